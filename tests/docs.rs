//! Every command in the documentation: run where that takes seconds, read by the command line where it would take hours, and
//! otherwise listed here with the reason why it is not run.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;

mod random_model;
use random_model::World;

/// Commands of other programs, by how they begin, and why no test runs them.
const NOT_RUN: &[(&str, &str)] = &[
    ("cargo ", "compiles; `.ci/run` does it"),
    (".ci/", "needs a GPU's compiler"),
    ("IMMUNISE_MODELS=", "needs real models"),
    ("IMMUNISE_KILLS=", "compiles, and kills for an hour"),
    ("IMMUNISE_FUZZ_SECONDS=", "compiles, and reads damaged files for minutes"),
    ("python ", "needs PyTorch"),
    ("tests/interop/", "needs the network"),
    ("hf ", "publishes"),
];

/// Commands that take minutes or hours: the command line reads them, and no more.
const HEAVY: &[&str] = &[
    "immunise demo",
    "immunise attack ",
    "immunise merge smollm2 ",
    "immunise harden examples/recipes/",
    "immunise harden recipes/demo.yaml",
    "immunise report compare et=",
    "immunise report compare adversarial=",
    "immunise report compare broad=",
    "immunise report compare one-block=",
    "immunise report compare four-blocks=",
];

/// What a command ends with where it is not 0, and options that make it end so on a model that knows nothing.
const ENDS: &[(&str, &[&str], i32)] = &[
    ("immunise harden my.yaml --model model --out", &["--allow-fail"], 5),
    ("immunise harden policy.yaml --model base --out hardened --assemble", &["--allow-fail"], 5),
    ("immunise verify candidate", &[], 5),
    ("immunise verify hardened --key", &[], 5),
    ("immunise verify hardened --policy my.yaml", &[], 5),
    ("immunise verify hardened --roots", &[], 5),
    ("immunise report merge", &[], 5),
    ("immunise diff model hardened", &[], 1),
];

/// Reports of measurements that took hours, and the name of their column in docs/RESULTS.md.
const REPORTS: &[(&str, &str)] = &[
    ("et", "docs/reports/smollm2-et.json"),
    ("adversarial", "docs/reports/smollm2-adversarial.json"),
    ("broad", "docs/reports/smollm2-broad.json"),
    ("one-block", "docs/reports/smollm2-one-block.json"),
    ("four-blocks", "docs/reports/smollm2-four-blocks.json"),
    ("et", "docs/reports/qwen-et.json"),
];

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn documents() -> Vec<PathBuf> {
    let entries = fs::read_dir(repository("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut documents: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    documents.push(repository("README.md"));
    documents.sort();
    documents
}

/// The commands of a text's `sh` blocks, comments and line ends within a command removed.
fn commands(text: &str) -> Vec<String> {
    let mut commands = vec![];
    for block in text.split("```sh\n").skip(1) {
        let block = block.split("```").next().unwrap().replace("\\\n", " ");
        for line in block.lines() {
            let line = line.split("  #").next().unwrap().trim();
            if !line.is_empty() && !line.starts_with('#') {
                commands.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
            }
        }
    }
    commands
}

/// The arguments of a command, and the file that its results go to.
fn arguments(command: &str) -> (Vec<String>, Option<String>) {
    let (command, file) = command.split_once(" > ").map_or((command, None), |(c, file)| (c, Some(file.to_owned())));
    let mut arguments = vec![String::new()];
    let mut quoted = false;
    for c in command.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => arguments.push(String::new()),
            c => arguments.last_mut().unwrap().push(c),
        }
    }
    (arguments.split_off(1), file)
}

fn immunise(dir: &Path, arguments: &[String]) -> (i32, Vec<u8>, String) {
    let mut command = Command::cargo_bin("immunise").unwrap();
    let output =
        command.env("HF_HUB_OFFLINE", "1").env("NO_COLOR", "1").current_dir(dir).args(arguments).output().unwrap();
    (output.status.code().unwrap(), output.stdout, String::from_utf8(output.stderr).unwrap())
}

/// A folder with what the documents take for granted: a model, prompts, a policy and a candidate with its base.
fn sandbox(document: &str) -> World {
    let world = World::new();
    let root = world.root();
    fs::write(root.join("passphrase.txt"), "correct horse\n").unwrap();
    if document.contains("--to tuned") {
        copy(&world.model(), &root.join("tuned"));
    }
    if document.contains("candidate") {
        fs::copy(world.recipe(), root.join("policy.yaml")).unwrap();
        for made in [
            "immunise keygen --out publisher.pem",
            "immunise harden policy.yaml --model model --out candidate --key publisher.pem --allow-fail",
        ] {
            let (code, _, err) = immunise(root, &arguments(made).0);
            assert!([0, 5].contains(&code), "{made}: {err}");
        }
        fs::rename(world.model(), root.join("base")).unwrap();
    }
    world
}

/// Copies the files of a flat folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Runs one command, or has it read, or finds why it is not run.
fn follow(command: &str, world: &World) {
    if !command.starts_with("immunise ") {
        let listed = NOT_RUN.iter().any(|(begins, _)| command.starts_with(begins));
        assert!(listed, "`{command}` is neither run nor listed with a reason");
        return;
    }
    let (mut given, file) = arguments(command);
    if HEAVY.iter().any(|begins| command.starts_with(begins)) {
        return understood(world.root(), command, given);
    }
    let (more, expected) = ENDS
        .iter()
        .find(|(begins, ..)| command.starts_with(begins))
        .map_or((&[][..], 0), |(_, more, expected)| (*more, *expected));
    given.extend(more.iter().map(|option| (*option).to_owned()));
    let (code, out, err) = immunise(world.root(), &given);
    assert_eq!(code, expected, "`{command}`: {err}");
    if let Some(file) = file {
        assert!(!out.is_empty(), "`{command}` wrote nothing");
        fs::write(world.root().join(file), out).unwrap();
    }
    if command == "immunise recipe new model --out my.yaml" {
        // What was fitted is valid; from here on a recipe that takes seconds stands in for it.
        assert_eq!(immunise(world.root(), &arguments("immunise recipe check my.yaml").0).0, 0);
        fs::copy(world.recipe(), world.root().join("my.yaml")).unwrap();
    }
}

/// The command line knows the command and every option of it.
#[track_caller]
fn understood(dir: &Path, command: &str, mut arguments: Vec<String>) {
    arguments.push("--help".into());
    let (code, _, err) = immunise(dir, &arguments);
    assert_eq!(code, 0, "`{command}`: {err}");
}

#[test]
fn every_command_of_the_documentation_works() {
    let mut seen = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let commands = commands(&text);
        if commands.iter().any(|command| command.starts_with("immunise ")) {
            let world = sandbox(&text);
            for command in &commands {
                follow(command, &world);
            }
        } else {
            commands.iter().for_each(|command| {
                let listed = NOT_RUN.iter().any(|(begins, _)| command.starts_with(begins));
                assert!(listed, "{}: `{command}` is neither run nor listed with a reason", document.display());
            });
        }
        seen += commands.len();
    }
    assert!(seen > 30, "{seen} commands were found; has the form of the documents changed?");
}

#[test]
fn examples_in_the_help_are_understood() {
    let here = repository("");
    let (_, help, _) = immunise(&here, &["--help".into()]);
    let help = String::from_utf8(help).unwrap();
    let names = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names =
        names.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|word| !word.is_empty()));
    let mut examples = 0;
    for name in names.filter(|name| *name != "help") {
        let (code, text, err) = immunise(&here, &[name.into(), "--help".into()]);
        assert_eq!(code, 0, "{name}: {err}");
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("Usage: immunise"), "{name}");
        for line in text.lines().filter(|line| line.trim_start().starts_with("immunise ") && line.starts_with("  ")) {
            let command = line.trim().split(" > ").next().unwrap().split(" && ").next().unwrap();
            understood(&here, command, arguments(command).0);
            examples += 1;
        }
    }
    assert!(examples > 8, "{examples}");
}

#[test]
fn options_in_the_ci_examples_exist() {
    let mut files: Vec<PathBuf> =
        fs::read_dir(repository("examples/ci")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.push(repository(".github/actions/verify/action.yml"));
    for file in files.iter().filter(|file| file.exists()) {
        let text = fs::read_to_string(file).unwrap().replace("\\\n", " ").replace("report.json;", "");
        let mut calls = 0;
        for call in text.split("immunise ").skip(1) {
            let words: Vec<&str> = call.lines().next().unwrap().split([' ', ';', '|', ')']).collect();
            let known = ["verify", "report", "harden"].contains(&words[0]);
            if !known {
                continue;
            }
            let mut path = vec![words[0].to_owned()];
            if words[0] == "report" {
                path.push(words[1].to_owned());
            }
            path.push("--help".into());
            let (code, help, err) = immunise(&repository(""), &path);
            assert_eq!(code, 0, "{}: {err}", file.display());
            let help = String::from_utf8(help).unwrap();
            for option in words.iter().filter(|word| word.starts_with("--")) {
                assert!(help.contains(&format!("{option} ")), "{}: `{}` has no {option}", file.display(), path[0]);
            }
            calls += 1;
        }
        assert!(calls > 0, "{} calls nothing", file.display());
    }
}

/// Runs a script of `examples/ci` for each of two tasks, then the merge that it names, as a person would.
#[cfg(unix)]
fn measured_in_two_tasks(script: &str, merge: &str, variables: [&[(&str, &str)]; 2]) {
    let world = sandbox("candidate");
    let binary = assert_cmd::cargo::cargo_bin("immunise");
    let path = std::env::join_paths(
        std::iter::once(binary.parent().unwrap().to_owned())
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let path = path.unwrap();
    let bash = |script: &str, variables: &[(&str, &str)]| {
        let mut command = std::process::Command::new("bash");
        let script = script.replace("/data", &world.root().display().to_string());
        command.current_dir(world.root()).env("PATH", &path).envs(variables.iter().copied());
        let output = command.args(["-c", &script, "script", "candidate", "base", "policy.yaml"]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for variables in variables {
        let (code, err) = bash(script, variables);
        assert_eq!(code, Some(0), "{script}: {err}");
    }
    let (code, err) = bash(merge, &[]);
    assert_eq!(code, Some(5), "a model that knows nothing has nothing to defend: {err}");
    assert!(world.root().join("report/report.html").is_file(), "{err}");
}

#[cfg(unix)]
#[test]
fn job_arrays_measure_a_part_each_and_are_merged() {
    let slurm = fs::read_to_string(repository("examples/ci/slurm.sh")).unwrap();
    let merge = slurm.split("# and, when all have ended:").nth(1).unwrap().lines().next().unwrap();
    let merge = merge.trim().replace("POLICY", "policy.yaml");
    let task = |index| [("SLURM_ARRAY_TASK_ID", index), ("SLURM_ARRAY_TASK_COUNT", "2")];
    measured_in_two_tasks(&slurm, &merge, [&task("1"), &task("2")]);

    let kubernetes = fs::read_to_string(repository("examples/ci/kubernetes.yaml")).unwrap();
    let merge = kubernetes.lines().find_map(|line| line.strip_prefix("#   ")).unwrap();
    let pod = kubernetes.split("- >\n").nth(1).unwrap().split("volumeMounts").next().unwrap();
    let pod = pod.lines().map(str::trim).collect::<Vec<_>>().join(" ").replace("))/8", "))/2");
    measured_in_two_tasks(&pod, merge, [&[("JOB_COMPLETION_INDEX", "0")], &[("JOB_COMPLETION_INDEX", "1")]]);
}

#[test]
fn the_family_that_is_shown_is_the_one_that_runs() {
    let shown = fs::read_to_string(repository("docs/contributing.md")).unwrap();
    let source = fs::read_to_string(repository("src/model/families/mistral.rs")).unwrap();
    assert!(shown.contains(&format!("```rust,ignore\n{source}```\n")), "docs/contributing.md shows another mistral.rs");
    let registry = fs::read_to_string(repository("src/model/families/mod.rs")).unwrap();
    assert!(registry.contains("(\"mistral\", mistral::blueprint)"));
}

#[test]
fn the_tables_of_results_are_those_of_the_reports() {
    let results = fs::read_to_string(repository("docs/RESULTS.md")).unwrap();
    for (name, report) in REPORTS {
        let arguments = ["report", "compare", &format!("{name}={report}")].map(str::to_owned);
        let (code, out, err) = immunise(&repository(""), &arguments);
        assert_eq!(code, 0, "{report}: {err}");
        let table = String::from_utf8(out).unwrap();
        let rows: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).collect();
        assert!(rows.len() > 10, "{report}: {table}");
        for row in rows {
            assert!(results.contains(row), "{report}: docs/RESULTS.md lacks {row}");
        }
    }
}
