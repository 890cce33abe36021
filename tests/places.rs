//! What a command may write to, and what may not leave with a model: refused before any work, and nothing is left behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use assert_cmd::Command;
use immunise::checkpoint::{Checkpoint, patch};

mod random_model;
use random_model::World;

/// Runs a command in the world's folder: its exit code and what it says.
fn ran(world: &World, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::cargo_bin("immunise").unwrap();
    let output = command.env("NO_COLOR", "1").current_dir(world.root()).args(arguments).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// The files of the model's folder.
fn files(world: &World) -> Vec<String> {
    immunise::checkpoint::files::list(&world.model()).unwrap()
}

/// `harden` with these options, as a dry run and as a run, is refused in these words, and makes nothing but what was there.
fn refused(world: &World, options: &[&str], parts: &[&str]) {
    let (recipe, before) = (world.recipe().display().to_string(), (world.left_behind(), files(world)));
    for dry in [&["--dry-run"][..], &[]] {
        let arguments = [&["harden", recipe.as_str(), "--model", "model"], options, dry].concat();
        let (code, text) = ran(world, &arguments);
        assert_eq!(code, 3, "{arguments:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{arguments:?}: {part:?} not in {text}");
        }
        assert_eq!((world.left_behind(), files(world)), before, "{arguments:?}");
    }
}

#[test]
fn a_private_key_in_the_model_is_refused_before_anything_is_trained() {
    for (place, options) in [
        ("model/k.pem", &["--key", "model/k.pem"][..]),
        ("model/.gitkeys.pem", &["--key", "model/.gitkeys.pem"]),
        ("model/notes/old.txt", &[]),
    ] {
        let world = World::new();
        let (code, text) = ran(&world, &["keygen", "--out", "k.pem"]);
        assert_eq!(code, 0, "{text}");
        fs::create_dir(world.model().join("notes")).unwrap();
        fs::rename(world.root().join("k.pem"), world.root().join(place)).unwrap();
        refused(&world, options, &[place, "expected no private key", "move the key away"]);
        let checkpoint = Checkpoint::open(&world.model()).unwrap();
        let copied = patch(&checkpoint, &world.root().join("copy"), &BTreeMap::new(), &[], &[]);
        assert!(copied.unwrap_err().to_string().contains(place));
        // Its public half may go along.
        fs::remove_file(world.root().join(place)).unwrap();
        fs::rename(world.root().join("k.pub.pem"), world.model().join("k.pub.pem")).unwrap();
        let (code, text) = ran(&world, &["harden", "recipe.yaml", "--model", "model", "--dry-run"]);
        assert_eq!(code, 0, "{text}");
    }
}

#[test]
fn a_passphrase_in_the_model_is_refused_before_anything_is_trained() {
    let world = World::new();
    fs::write(world.model().join("secret.txt"), "correct horse").unwrap();
    let options = ["--key", "k.pem", "--passphrase-file", "model/secret.txt"];
    let (code, text) = ran(&world, &["keygen", "--out", "k.pem", "--passphrase-file", "model/secret.txt"]);
    assert_eq!(code, 0, "{text}");
    refused(&world, &options, &["model/secret.txt: expected a place outside of the model's folder", "move it away"]);
    let (code, text) = ran(&world, &[&["sign", "model"][..], &options].concat());
    assert!(code == 3 && text.contains("secret.txt") && !world.model().join("model.sig").exists(), "{text}");
}

#[test]
fn answers_to_interrupt_are_looked_for_before_anything_is_measured() {
    let world = World::with_stage("{kind: adversarial, interrupted: 1, vectors: [mean-difference], pool: 0}");
    let (recipe, prompts) = (world.recipe().display().to_string(), world.root().join("prompts.jsonl"));
    let dry = ["harden", &recipe, "--model", "model", "--dry-run"];
    let (code, text) = ran(&world, &dry);
    assert_eq!(code, 0, "{text}");
    let all = fs::read_to_string(&prompts).unwrap();
    let without = all.lines().map(|line| {
        let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
        if row["split"] == "train" {
            row.as_object_mut().unwrap().retain(|key, _| key != "target" && key != "opening");
        }
        format!("{row}\n")
    });
    fs::write(&prompts, without.collect::<String>()).unwrap();
    let (code, text) = ran(&world, &dry);
    assert!(code == 2 && text.contains("`stages.0.interrupted`: expected a hazard of split `train`"), "{code} {text}");
}

#[test]
fn a_rank_above_the_model_s_widths_is_refused_before_any_work() {
    let world = World::new();
    for key in ["stages.0.rank", "stages.0.attack_rank", "suite.attacks.0.rank"] {
        let (set, words) = (format!("{key}=100"), format!("{key}: expected a rank of "));
        refused(&world, &["--set", &set], &[&words, "up to 16", "got 100"]);
    }
    let (code, text) = ran(&world, &["verify", "model", "--policy", "recipe.yaml", "--set", "suite.attacks.0.rank=17"]);
    assert!(code == 3 && text.contains("suite.attacks.0.rank: expected a rank of `noreft` up to 16"), "{text}");
}

#[test]
fn a_run_folder_is_apart_from_the_output() {
    let world = World::new();
    for (out, run) in [("o", "o/run"), ("o", "o"), ("r/adapters", "r"), ("o", "none/../o/run")] {
        refused(&world, &["--out", out, "--run", run], &[run, "expected a run folder apart from the output"]);
    }
}

#[test]
fn a_dry_run_tries_the_places_of_the_run() {
    let world = World::new();
    fs::create_dir(world.root().join("mine")).unwrap();
    fs::write(world.root().join("mine/precious"), "").unwrap();
    refused(&world, &["--out", "o", "--run", "mine"], &["expected a run folder or an empty one"]);
    refused(&world, &["--out", "o", "--run", "recipe.yaml"], &["recipe.yaml", "give a folder"]);
    refused(&world, &["--out", "recipe.yaml/o"], &["recipe.yaml", "give a folder"]);
    if cfg!(target_os = "linux") {
        refused(&world, &["--out", "/proc/x", "--run", "r"], &["/proc: "]);
        refused(&world, &["--out", "o", "--run", "/proc/x/r"], &["/proc: "]);
    }
    let (code, text) = ran(&world, &["harden", "recipe.yaml", "--model", "model", "--out", "a/b/o", "--dry-run"]);
    assert_eq!((code, world.left_behind()), (0, vec!["mine".to_owned()]), "{text}");
}

#[test]
fn nothing_is_kept_in_a_model_that_is_measured() {
    let world = World::new();
    fs::create_dir(world.root().join("other")).unwrap();
    for file in files(&world) {
        fs::copy(world.model().join(&file), world.root().join("other").join(&file)).unwrap();
    }
    let before = files(&world);
    for arguments in [
        &["attack", "model", "--suite", "recipe.yaml", "--run", "model/run"][..],
        &["attack", "other", "--base", "model", "--suite", "recipe.yaml", "--run", "model/run"],
        &["verify", "model", "--policy", "recipe.yaml", "--run", "other/../model/run"],
        &["detect", "fit", "model", "--data", "prompts.jsonl", "--out", "model/monitor.safetensors"],
    ] {
        let (code, text) = ran(&world, arguments);
        assert_eq!((code, text.contains("outside of the model's folder")), (3, true), "{arguments:?}: {text}");
        assert_eq!(files(&world), before, "{arguments:?}");
    }
    // Not in one that is published, whichever it is.
    fs::create_dir(world.model().join("immunisation")).unwrap();
    let out = "model/monitor.safetensors";
    let (code, text) = ran(&world, &["detect", "fit", "other", "--data", "prompts.jsonl", "--out", out]);
    assert_eq!((code, text.contains("outside of a published model")), (3, true), "{text}");
    assert!(!Path::new(&world.root().join(out)).exists());
}

/// Copies the world's model to a folder of that name, with evidence as a published one has it.
fn published(world: &World, name: &str) {
    let dir = world.root().join(name);
    fs::create_dir_all(dir.join("immunisation")).unwrap();
    for file in files(world) {
        fs::copy(world.model().join(&file), dir.join(&file)).unwrap();
    }
    fs::write(dir.join("immunisation/report.json"), "evidence").unwrap();
}

#[test]
fn no_report_takes_the_place_of_a_model_s_evidence() {
    let world = World::new();
    for name in ["base", "other", "signed"] {
        published(&world, name);
    }
    fs::write(world.root().join("signed/model.sig"), "").unwrap();
    fs::remove_file(world.root().join("signed/config.json")).unwrap();
    let part = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reports/smollm2-one-block.json");
    let part = part.to_str().unwrap();
    for arguments in [
        &["attack", "model", "--suite", "nosuch", "--report", "other/immunisation"][..],
        &["attack", "model", "--base", "base", "--suite", "nosuch", "--report", "base/immunisation"],
        &["attack", "model", "--suite", "nosuch", "--report", "other/../signed/immunisation"],
        &["verify", "model", "--policy", "recipe.yaml", "--report", "signed/immunisation"],
        &["verify", "model", "--policy", "recipe.yaml", "--report", "other/ci"],
        &["report", "merge", part, "--out", "signed/immunisation"],
    ] {
        let (code, text) = ran(&world, arguments);
        assert!(code == 3 && text.contains("expected a place outside of "), "{arguments:?}: {code} {text}");
        assert!(!world.root().join("other/ci").exists());
        for name in ["base", "other", "signed"] {
            let evidence = world.root().join(name).join("immunisation/report.json");
            assert_eq!(fs::read_to_string(evidence).unwrap(), "evidence", "{arguments:?}");
        }
    }
}

#[test]
fn nothing_is_merged_into_a_model_s_folder() {
    let world = World::new();
    published(&world, "other");
    let before = files(&world);
    for (out, words) in [
        ("model/x", "expected a place outside of the model's folder"),
        ("other/../model", "expected a place outside of the model's folder"),
        ("other/x", "expected a place outside of a model's folder"),
    ] {
        let (code, text) = ran(&world, &["merge", "model", "nosuch", "--out", out]);
        assert!(code == 3 && text.contains(words), "{out}: {code} {text}");
        assert_eq!(files(&world), before);
    }
}

#[test]
fn neither_a_key_nor_a_recipe_is_made_in_a_model_s_folder() {
    let world = World::new();
    let before = files(&world);
    fs::create_dir(world.model().join("keys")).unwrap();
    for (arguments, words) in [
        (&["keygen", "--out", "model/k.pem"][..], "keep the key elsewhere"),
        (&["keygen", "--out", "model/keys/../keys/k.pem"], "keep the key elsewhere"),
        (&["recipe", "new", "model", "--out", "model/my.yaml"], "choose another folder"),
        (&["recipe", "new", "--out", "model/keys/my.yaml"], "choose another folder"),
    ] {
        let (code, text) = ran(&world, arguments);
        assert!(code == 3 && text.contains("expected a place outside of a model's folder"), "{arguments:?}: {text}");
        assert!(text.contains(words) && text.contains(arguments.last().unwrap()), "{arguments:?}: {text}");
        assert_eq!(files(&world), before, "{arguments:?}");
    }
}

#[test]
fn prompts_that_are_not_there_are_said_with_a_way_out() {
    let world = World::new();
    let (code, text) = ran(&world, &["recipe", "check", "recipe.yaml", "--set", "data.prompts=train.jsonl"]);
    assert_eq!((code, text.contains("the comment at the recipe's top says how")), (3, true), "{text}");
    let (code, text) = ran(&world, &["attack", "model", "--suite", "recipe.yaml", "--data", "builtin:foo"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("`builtin:prompts`") && text.contains("`builtin:tiny-chat`"), "{text}");
}
