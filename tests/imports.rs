//! The shape of the code: imports run one way, only `cli` prints, and nothing trains through operations without a backward
//! pass.
//!
//! Sources are read as text with comments and literals blanked out. What counts is any path that starts at the crate's
//! root, whether by `crate::` or by climbing with `super::`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The crate's modules from the lowest to the highest; a module may use those in rows above its own only.
const ORDER: [&[&str]; 15] = [
    &["error"],
    &["event"],
    &["math"],
    &["report"],
    &["hub"],
    &["checkpoint"],
    &["data"],
    &["sign"],
    &["adapter"],
    &["model"],
    &["intervention"],
    &["attack", "defence", "detect", "judge", "utility"],
    &["recipe"],
    &["pipeline"],
    &["cli"],
];

/// Operations of candle whose gradient is missing or wrong (see `clippy.toml`), by how they can be spelt.
const NO_GRADIENT: [&str; 10] = [
    "softmax_last_dim",
    "ops::rms_norm",
    "ops::layer_norm",
    "ops::sdpa",
    "rotary_emb",
    "candle_nn::rms_norm",
    "candle_nn::layer_norm",
    "candle_nn::RmsNorm",
    "candle_nn::LayerNorm",
    "scatter_add",
];

const PRINTING: [&str; 7] = ["println!", "eprintln!", "print!", "eprint!", "dbg!", "stdout()", "stderr()"];

#[test]
fn every_module_has_a_place_in_the_order() {
    let lib = code(&fs::read_to_string(source().join("lib.rs")).unwrap());
    let declared = lib.split("mod ").skip(1).filter_map(|rest| Some(rest.split_once(';')?.0.trim().to_owned()));
    let missing: Vec<String> = declared.filter(|module| rank(module).is_none()).collect();
    assert!(missing.is_empty(), "give these a row in ORDER: {missing:?}");
}

#[test]
fn imports_run_one_way() {
    let mut wrong = Vec::new();
    for (module, path, text) in sources() {
        let Some(own) = rank(&module) else { continue };
        for used in imports(&code(&text), depth(&path)) {
            let allowed = used == module || rank(&used).is_none_or(|rank| rank < own);
            if !allowed {
                wrong.push(format!("{}: `{module}` must not use `{used}`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_command_line_prints() {
    // The build script speaks to cargo, and is no module.
    let found = occurrences(&PRINTING, |module| !["cli", "build"].contains(&module));
    assert!(found.is_empty(), "emit an event instead:\n{}", found.join("\n"));
}

#[test]
fn nothing_computes_with_operations_that_lose_gradients() {
    let found = occurrences(&NO_GRADIENT, |_| true);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn only_tests_use_the_reference_decoders() {
    let found = occurrences(&["candle_transformers"], |_| true);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_reader_sees_every_form_of_import_and_no_comment() {
    let text = r##"
        //! crate::cli in a comment
        use crate::{Error, model::{Decoder, data}, sign};
        use crate::report;
        /* crate::recipe /* nested crate::pipeline */ */
        fn f<'a>(x: &'a str) -> String { super::super::judge::by_name(x); format!("crate::hub {}", '"') }
        const TEXT: &str = r#"crate::cli "quoted" "#;
        mod tests { use super::*; }
    "##;
    let found = imports(&code(text), 2);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["Error", "judge", "model", "report", "sign"]);
    assert!(imports("mod tests { use super::super::super::cli; }", 2).contains("cli"));
    assert!(imports("super::judge::f()", 2).is_empty(), "one step up from `a::b` is still `a`");
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|row| row.contains(&module))
}

/// Top-level module, path below `src` and text of every source file but the crate's two roots.
fn sources() -> Vec<(String, PathBuf, String)> {
    let (mut folders, mut found) = (vec![source()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(source()).unwrap().to_owned();
                let module = path.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned();
                if !["lib", "main"].contains(&module.as_str()) {
                    found.push((module, path, text));
                }
            }
        }
    }
    found.sort();
    assert!(found.len() > 50, "the sources are where this test looks for them");
    found
}

/// How many steps of `super::` lead from a file's module to the crate's root.
fn depth(path: &Path) -> usize {
    let parts = path.iter().count();
    if path.file_name().is_some_and(|name| name == "mod.rs") { parts - 1 } else { parts }
}

fn occurrences(words: &[&str], looked_at: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (module, path, text) in sources().iter().filter(|(module, ..)| looked_at(module)) {
        let code = code(text);
        for (number, line) in code.lines().enumerate() {
            let whole = |word: &&&str| {
                line.match_indices(**word)
                    .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
            };
            if let Some(word) = words.iter().find(whole) {
                found.push(format!("src/{}:{}: `{word}` in `{module}`", path.display(), number + 1));
            }
        }
    }
    found
}

/// First names of all paths that start at the crate's root, in code of a module `depth` steps below it.
fn imports(code: &str, depth: usize) -> BTreeSet<String> {
    let code: String = code.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ::", "::").replace(":: ", "::");
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            found.extend(first_names(&code[at + "crate::".len()..]));
        }
    }
    let climb = "super::".repeat(depth);
    for (at, _) in code.match_indices(&climb) {
        // An inline module needs one more step; names that are no module of the crate are items of the file's own module.
        let names = first_names(code[at + climb.len()..].trim_start_matches("super::"));
        found.extend(names.into_iter().filter(|name| rank(name).is_some()));
    }
    found.remove("");
    found
}

/// The names a path may begin with: one, or those of a braced group.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut nesting, mut start, mut names) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => nesting += 1,
            '}' if nesting > 0 => nesting -= 1,
            ',' | '}' if nesting == 0 => {
                names.push(name(group[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

/// The text with comments, string literals and character literals blanked out; lines stay where they are.
fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let (mut out, mut i) = (String::new(), 0);
    while i < chars.len() {
        let end = match at(i) {
            '/' if at(i + 1) == '/' => (i..).find(|&j| matches!(at(j), '\n' | '\0')).unwrap_or(i),
            '/' if at(i + 1) == '*' => end_of_block(&chars, i),
            '"' => end_of_string(&chars, i),
            'r' if matches!(at(i + 1), '"' | '#') && (i == 0 || !at(i - 1).is_alphanumeric()) => end_of_raw(&chars, i),
            '\'' if at(i + 1) == '\\' => (i + 3..).find(|&j| matches!(at(j), '\'' | '\0')).map_or(i, |j| j + 1),
            '\'' if at(i + 2) == '\'' => i + 3,
            _ => i,
        };
        if end <= i {
            out.push(at(i));
            i += 1;
            continue;
        }
        let end = end.min(chars.len());
        out.extend(chars[i..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        i = end;
    }
    out
}

fn end_of_block(chars: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn end_of_string(chars: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// End of a raw string, or `start` where the `r` begins a name such as `r#type`.
fn end_of_raw(chars: &[char], start: usize) -> usize {
    let hashes = chars[start + 1..].iter().take_while(|c| **c == '#').count();
    if chars.get(start + 1 + hashes) != Some(&'"') {
        return start;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = start + 2 + hashes;
    let end = chars[body..].windows(close.len()).position(|part| part == close.as_slice());
    end.map_or(chars.len(), |end| body + end + close.len())
}
