//! Every file under fixtures/hostile, and threats too large or too odd to be kept as files: each is refused for its own reason,
//! with the exit code of unusable input, soon, in little memory, and without a panic.

use std::alloc::System;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cap::Cap;
use immunise::adapter::peft;
use immunise::checkpoint::gguf::Gguf;
use immunise::checkpoint::{Checkpoint, Staged, files, npy, torch_file};
use immunise::data::PromptSet;
use immunise::model::chat_template::{ChatTemplate, Message};
use immunise::model::tokenizer::Tokenizer;
use immunise::model::{Decoder, families};
use immunise::recipe::Recipe;
use immunise::sign::{SigningKey, sign_folder, verify_folder};
use immunise::{Error, Result};
use tempfile::TempDir;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// Longest that one file may take, in a build without optimisation on a busy machine; most take less than a millisecond.
const TIME: Duration = Duration::from_secs(20);
/// Bytes that refusing one file may take in all; a template that writes until its fuel is spent takes the most.
const BYTES: usize = 512 << 20;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hostile")
}

/// A good checkpoint with a file of its own, to be spoilt.
fn checkpoint() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"model_type":"llama","vocab_size":8,"hidden_size":4,"intermediate_size":6,"num_hidden_layers":1,
        "num_attention_heads":2,"num_key_value_heads":1,"rms_norm_eps":1e-5,"max_position_embeddings":32,"rope_theta":10000.0}"#;
    fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

fn safetensors(names: &[&str]) -> Vec<u8> {
    let entry = |(at, name): (usize, &&str)| {
        format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":[{},{}]}}"#, at * 8, at * 8 + 8)
    };
    let header = format!("{{{}}}", names.iter().enumerate().map(entry).collect::<Vec<_>>().join(","));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; 8 * names.len()]].concat()
}

/// A folder in which `threat` lies where a reader of its kind looks for it, among good files.
fn spoilt(kind: &str, threat: &[u8]) -> TempDir {
    let dir = checkpoint();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    match kind {
        "safetensors" => put("model.safetensors", threat),
        "config" => {
            put("config.json", threat);
            put("model.safetensors", &safetensors(&["a"]));
        }
        "index" => {
            put("model-00001-of-00002.safetensors", &safetensors(&["a", "a2"]));
            put("model-00002-of-00002.safetensors", &safetensors(&["b"]));
            put("model.safetensors.index.json", threat);
        }
        "template" => put("chat_template.jinja", threat),
        "tokenizer" => put("tokenizer.json", threat),
        "adapter" => {
            put("adapter_config.json", threat);
            put("adapter_model.safetensors", &safetensors(&["a"]));
        }
        "signature" => put("model.sig", threat),
        _ => put("file", threat),
    }
    dir
}

/// What a reader of `kind` makes of a file.
fn read(kind: &str, dir: &Path) -> Result<()> {
    let file = dir.join("file");
    match kind {
        "safetensors" | "index" => Checkpoint::open(dir).map(drop),
        "config" => families::blueprint(Checkpoint::open(dir)?.config()).map(drop),
        "gguf" => {
            let bytes = files::read(&file, files::MAX_LIST)?;
            let gguf = Gguf::parse(&file, &bytes)?;
            gguf.names().try_for_each(|name| gguf.tensor(name).map(drop))
        }
        "torch" => torch_file::load(&file).map(drop),
        "npy" => npy::read(&file, &files::read(&file, files::MAX_LIST)?).map(drop),
        "recipe" => Recipe::load(&file).map(drop),
        "template" => ChatTemplate::open(dir)?.render(&[Message::new("user", "a")], true).map(drop),
        "tokenizer" => Tokenizer::open(dir)?.encode(&"a".repeat(64), true).map(drop),
        "prompts" => {
            let named = file.with_extension("jsonl");
            fs::rename(&file, &named).unwrap();
            PromptSet::from_path(&named).map(drop)
        }
        "adapter" => peft::load(dir).map(drop),
        "signature" => verify_folder(dir, &SigningKey::generate()?.verifying_key()).map(drop),
        other => panic!("no reader of {other}"),
    }
}

/// Refuses `threat`: the problem in words, within the limits of time and memory.
fn refusal(name: &str, kind: &str, threat: &[u8]) -> Result<Error, String> {
    let dir = spoilt(kind, threat);
    let (begin, before) = (Instant::now(), MEMORY.allocated());
    MEMORY.set_limit(before + BYTES).map_err(|_| format!("{name}: no room"))?;
    let result = read(kind, dir.path());
    let took = begin.elapsed();
    if took > TIME {
        return Err(format!("{name}: took {took:?}"));
    }
    let error = result.err().ok_or_else(|| format!("{name}: was accepted"))?;
    // A signature is named as it is inside the folder, and so is what a family has to say about its configuration.
    if !matches!(kind, "signature" | "config" | "prompts")
        && !error.to_string().contains(&*dir.path().to_string_lossy())
    {
        return Err(format!("{name}: no path in {error}"));
    }
    Ok(error)
}

fn code(kind: &str) -> u8 {
    match kind {
        "recipe" => 2,
        "signature" => 4,
        _ => 3,
    }
}

#[test]
fn every_hostile_file_is_refused_for_its_own_reason() {
    let expected: BTreeMap<String, String> =
        serde_json::from_slice(&fs::read(root().join("expected.json")).unwrap()).unwrap();
    let mut threats = files::list(&root()).unwrap();
    threats.retain(|file| file.contains('/'));
    let mut wrong = vec![];
    for threat in threats.iter().filter(|threat| !expected.contains_key(*threat)) {
        wrong.push(format!("{threat}: is not in expected.json"));
    }
    for (threat, words) in &expected {
        let kind = threat.split('/').next().unwrap();
        match refusal(threat, kind, &fs::read(root().join(threat)).unwrap()) {
            Err(problem) => wrong.push(problem),
            Ok(error) if !error.to_string().contains(words) => {
                wrong.push(format!("{threat}: {words:?} not in {error}"))
            }
            Ok(error) if error.exit_code() != code(kind) => wrong.push(format!("{threat}: exit {}", error.exit_code())),
            Ok(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), threats.len(), wrong.join("\n"));
    println!("{} files refused, each for its own reason", threats.len());
}

#[test]
fn what_is_too_large_to_be_kept_as_a_file_is_refused_too() {
    let nested = |open: &str, close: &str, depth: usize| (open.repeat(depth) + &close.repeat(depth)).into_bytes();
    let deep_json = nested("[", "]", 200_000);
    let deep_yaml = [b"a: ".to_vec(), nested("[", "]", 100_000)].concat();
    let deep_template = [b"{{ ".to_vec(), nested("(", ")", 100_000), b" }}".to_vec()].concat();
    let long_header = |length: usize| [&(length as u64).to_le_bytes()[..], b"{", &vec![b' '; length - 1]].concat();
    let mut wrong = vec![];
    for (kind, threat, words) in [
        ("config", deep_json.clone(), "recursion limit"),
        ("index", deep_json.clone(), "index.json: "),
        ("tokenizer", deep_json.clone(), "recursion limit"),
        ("adapter", deep_json.clone(), "adapter_config.json: "),
        ("signature", deep_json.clone(), "expected a signature bundle"),
        ("prompts", deep_json, "line 1"),
        ("recipe", deep_yaml, "1 problem"),
        ("recipe", vec![b'#'; 2 << 20], "at most 1 MiB"),
        ("template", deep_template, "chat template"),
        ("template", vec![b' '; 17 << 20], "expected at most 16777216 bytes, got more"),
        ("config", vec![b' '; 17 << 20], "expected at most 16777216 bytes, got more"),
        ("adapter", vec![b' '; 17 << 20], "expected at most 16777216 bytes, got more"),
        ("safetensors", long_header(32 << 20), "header"),
        ("torch", nested("(", "t", 3_000_000), "zip archive"),
    ] {
        match refusal(words, kind, &threat) {
            Err(problem) => wrong.push(format!("{kind}, {problem}")),
            Ok(error) if !error.to_string().contains(words) => wrong.push(format!("{kind}: {words:?} not in {error}")),
            Ok(error) => assert_eq!(error.exit_code(), code(kind)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_tensor() {
    let pico = root().with_file_name("pico").join("qwen2");
    for bits in [0x7fc0u16, 0x7f80, 0xff80] {
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(pico.join(file), dir.path().join(file)).unwrap();
        }
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&bits.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let error = Decoder::load(&checkpoint, &candle_core::Device::Cpu).expect_err("a refusal");
        let text = error.to_string();
        assert!(text.contains("tensor `") && text.contains("expected finite values, got NaN or infinity"), "{text}");
        assert_eq!(error.exit_code(), 3);
    }
}

#[test]
fn names_that_deceive_are_neither_published_nor_signed() {
    let key = SigningKey::generate().unwrap();
    for name in
        ["model\u{202e}gpj.exe", "config\u{200b}.json", "a\u{feff}", "line\nbreak", "bell\u{7}", "soft\u{ad}hyphen"]
    {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), "x").unwrap();
        for error in [files::list(dir.path()).unwrap_err(), sign_folder(dir.path(), &key).unwrap_err()] {
            assert!(error.to_string().contains("without invisible characters"), "{name:?}: {error}");
            assert_eq!(error.exit_code(), 3);
        }
    }
    // What looks alike but can be seen is two names, and neither takes the other's place.
    let dir = tempfile::tempdir().unwrap();
    for name in ["é", "e\u{301}", "a", "а"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    let manifest = sign_folder(dir.path(), &key).unwrap();
    assert_eq!(manifest.resources().len(), fs::read_dir(dir.path()).unwrap().count() - 1);
    for outside in ["..", "a/../../b", "/etc/passwd", "a\\b", "a//b", "."] {
        let staged = Staged::beside(&dir.path().join("new")).unwrap();
        assert!(staged.write(outside, b"").is_err(), "{outside}");
    }
}

/// What a link leads to would be copied, signed and published under the link's name.
#[cfg(unix)]
#[test]
fn a_link_leads_to_nothing_that_is_not_the_model_s_own() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    for (secret, text) in [("secrets/token", "t"), ("m/.git/config", "t"), ("m/.cache/huggingface/token", "t")] {
        fs::create_dir_all(at(secret).parent().unwrap()).unwrap();
        fs::write(at(secret), text).unwrap();
    }
    let commit = "0123456789abcdef0123456789abcdef01234567";
    for (dir, target, words) in [
        ("hostile/snapshots/m".to_owned(), "../../blobs/token", "expected a link inside the folder"),
        (format!("hostile/snapshots/{commit}"), "../../blobs/token", "expected a link inside the folder"),
        (format!("models--org--name/snapshots/{commit}"), "../../blobs/token", "expected a link inside the folder"),
        ("m".to_owned(), ".git/config", "expected a link to a file that is published itself"),
        ("m".to_owned(), ".cache/huggingface/token", "expected a link to a file that is published itself"),
    ] {
        let (dir, blobs) = (at(&dir), at(&dir).join("../../blobs"));
        fs::create_dir_all(&dir).unwrap();
        if target.contains("blobs") && !blobs.exists() {
            symlink(at("secrets"), blobs).unwrap();
        }
        let link = dir.join("notes.txt");
        symlink(target, &link).unwrap();
        assert_eq!(fs::read_to_string(&link).unwrap(), "t");
        let error = files::list(&dir).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains(words), "{target}: {error}");
        assert!(error.to_string().contains("notes.txt"), "{error}");
        fs::remove_file(link).unwrap();
    }
}

/// A pipe has no end, and waiting for one is waiting forever.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_waited_for() {
    for (kind, name) in [
        ("config", "config.json"),
        ("index", "model.safetensors.index.json"),
        ("template", "chat_template.jinja"),
        ("tokenizer", "tokenizer.json"),
        ("torch", "file"),
    ] {
        let dir = spoilt(kind, b"");
        fs::remove_file(dir.path().join(name)).unwrap();
        let made = std::process::Command::new("mkfifo").arg(dir.path().join(name)).status().unwrap();
        assert!(made.success());
        let error = read(kind, dir.path()).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{kind}: {error}");
    }
}
