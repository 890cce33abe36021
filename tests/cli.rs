//! What a person sees: exit codes, messages that name the culprit, and nothing half-made left behind.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use immunise::report::Report;

mod random_model;
use random_model::World;

fn immunise() -> Command {
    let mut command = Command::cargo_bin("immunise").unwrap();
    command.env_remove("IMMUNISE_DEMO_MODEL").env("HF_HUB_CACHE", "/nowhere").env("NO_COLOR", "1");
    command
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn ran<A: AsRef<std::ffi::OsStr>>(arguments: &[A]) -> Ran {
    let output = immunise().args(arguments).output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn key(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/oms/keys").join(name)
}

/// Runs `harden` on a world whose input `spoil` has damaged: the message, and no file but the inputs.
fn refused(spoil: impl Fn(&World) -> Vec<String>, code: i32, parts: &[&str]) {
    let world = World::new();
    let extra = spoil(&world);
    let mut arguments = vec!["harden".into(), world.recipe().display().to_string()];
    arguments.extend(["--out".into(), world.root().join("out").display().to_string()]);
    if !extra.iter().any(|argument| argument == "--model") {
        arguments.extend(["--model".into(), world.model().display().to_string()]);
    }
    arguments.extend(extra);
    let ran = ran(&arguments);
    assert_eq!(ran.code, code, "{}", ran.err);
    for part in parts {
        assert!(ran.err.contains(part), "{part:?} not in {}", ran.err);
    }
    assert!(ran.err.contains("error: ") && ran.out.is_empty(), "{}", ran.out);
    assert!(world.left_behind().is_empty(), "left behind: {:?}", world.left_behind());
}

#[test]
fn unusable_models_are_refused_by_name() {
    let none = |_: &World| vec!["--model".to_owned(), "/no/such/model".to_owned()];
    refused(none, 3, &["/no/such/model", "expected a folder, got nothing"]);
    let shortened = |world: &World| {
        let path = world.model().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
        vec![]
    };
    refused(shortened, 3, &["model.safetensors"]);
    let reshaped = |world: &World| {
        let path = world.model().join("config.json");
        let text = fs::read_to_string(&path).unwrap().replace("\"intermediate_size\":24", "\"intermediate_size\":25");
        fs::write(path, text).unwrap();
        vec![]
    };
    refused(reshaped, 3, &["model.layers.0.mlp.gate_proj.weight", "expected shape [25, 16], got [24, 16]"]);
    let voiceless = |world: &World| {
        fs::remove_file(world.model().join("tokenizer.json")).unwrap();
        vec![]
    };
    refused(voiceless, 3, &["tokenizer.json", "hint: "]);
}

#[test]
fn every_problem_of_a_recipe_is_reported_at_once() {
    let spoil = |world: &World| {
        let text = fs::read_to_string(world.recipe()).unwrap();
        fs::write(world.recipe(), text.replace("max: 0.9", "max: 1.9").replace("seed: 3", "sed: 3")).unwrap();
        vec![]
    };
    refused(spoil, 2, &["2 problems", "sed: unknown key", "did you mean", "thresholds.control_asr.max: expected"]);
    refused(|_| vec!["--set".into(), "stages.0.layers=[7]".into()], 3, &["stages.0.layers", "below 2"]);
}

#[test]
fn unusable_keys_are_refused_before_any_work() {
    for (name, found) in [("rsa.pem", "RSA"), ("p256.pub.pem", "public key"), ("p256.encrypted.pem", "passphrase")] {
        let given = |_: &World| vec!["--key".to_owned(), key(name).display().to_string()];
        refused(given, 3, &[name, "expected an EC private key", found]);
    }
    refused(|_| vec!["--require-signature".into()], 2, &["--key"]);
}

#[test]
fn an_output_in_use_is_left_alone() {
    let world = World::new();
    let out = world.root().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "precious").unwrap();
    let ran = ran(&[
        "harden".as_ref(),
        world.recipe().as_os_str(),
        "--model".as_ref(),
        world.model().as_os_str(),
        "--out".as_ref(),
        out.as_os_str(),
    ]);
    assert_eq!(ran.code, 3, "{}", ran.err);
    assert_eq!(fs::read_to_string(out.join("mine")).unwrap(), "precious");
    assert_eq!(world.left_behind(), ["out"]);
}

#[test]
fn a_model_is_hardened_verified_and_compared_from_the_command_line() {
    let world = World::new();
    let (recipe, model) = (world.recipe().display().to_string(), world.model().display().to_string());
    let (out, pair) = (world.root().join("out").display().to_string(), world.root().join("key.pem"));
    let key = pair.display().to_string();
    assert_eq!(ran(&["keygen", "--out", &key]).code, 0);
    assert_eq!(ran(&["keygen", "--out", &key]).code, 3, "no key is overwritten");

    let arguments =
        ["harden", &recipe, "--model", &model, "--out", &out, "--key", &key, "--allow-fail", "--format", "json"];
    let hardened = ran(&arguments);
    let report = Report::from_json(&hardened.out, "stdout").unwrap();
    assert_eq!(hardened.code, i32::from(report.verdict.exit_code()), "{}", hardened.err);
    assert!(hardened.err.contains("next: hf upload REPO"), "{}", hardened.err);

    let public = world.root().join("key.pub.pem").display().to_string();
    let checked = ran(&["verify", &out, "--key", &public]);
    assert_eq!(checked.code, hardened.code, "a valid signature on evidence of no pass is no pass: {}", checked.err);
    assert!(checked.out.contains("signature valid") && checked.code != 0, "{}", checked.out);
    assert_eq!(ran(&["verify", &out, "--key", &public, "--signature-only"]).code, 0);
    for (left_out, needed) in [("--identity", "--roots"), ("--base", "--policy"), ("--report", "--policy")] {
        let ran = ran(&["verify", &out, "--key", &public, "--signature-only", left_out, "x"]);
        assert_eq!((ran.code, ran.err.contains(needed)), (2, true), "{left_out}: {}", ran.err);
    }
    for left_out in [&["--run", "x"][..], &["--shard", "1/2"], &["--run", "x", "--fresh"]] {
        let ran = ran(&[&["verify", &out, "--key", &public][..], left_out].concat());
        let words = format!("`{}` needs `--policy`", left_out[0]);
        assert_eq!((ran.code, ran.err.contains(&words)), (2, true), "{left_out:?}: {}", ran.err);
    }
    let measured = ran(&["verify", &out, "--policy", &recipe, "--base", &model, "--format", "json"]);
    let again = Report::from_json(&measured.out, "stdout").unwrap();
    assert_eq!(again.hardened, report.hardened);
    assert_eq!(again.attacks, report.attacks, "measuring the published folder gives the published figures");

    // The published recipe has the prompts' name, not their folder.
    let attacked = ran(&[
        "attack",
        &out,
        "--base",
        &model,
        "--suite",
        &format!("{out}/immunisation/recipe.yaml"),
        "--data",
        &world.root().join("prompts.jsonl").display().to_string(),
        "--only",
        "noreft r2 p4 s2 b2",
        "--format",
        "json",
    ]);
    assert_eq!(attacked.code, 0, "{}", attacked.err);
    let alone = Report::from_json(&attacked.out, "stdout").unwrap();
    let figures = |report: &Report| -> Vec<_> {
        report.attacks.iter().filter(|row| row.family == "noreft").map(|row| (row.base, row.hardened)).collect()
    };
    assert_eq!(figures(&alone), figures(&report), "`reproduce` repeats the row");

    let differs = ran(&["diff", &model, &out]);
    assert_eq!(differs.code, 1);
    assert!(
        differs.out.contains("file README.md: other content") && !differs.out.contains("tensor "),
        "{}",
        differs.out
    );
    assert_eq!(ran(&["diff", &model, &model]).out, "no difference\n");
}

#[test]
fn tampering_is_exit_code_4_and_names_the_file() {
    let world = World::new();
    let model = world.model();
    let sign = ["sign".into(), model.display().to_string(), "--key".into(), key("p256.pem").display().to_string()];
    assert_eq!(ran(&sign).code, 0);
    let measured_by_nobody =
        ["verify".into(), model.display().to_string(), "--key".into(), key("p256.pub.pem").display().to_string()];
    let unmeasured = ran(&measured_by_nobody);
    assert_eq!((unmeasured.code, unmeasured.out.contains("no evidence")), (5, true), "{}", unmeasured.out);
    let verify = [measured_by_nobody.as_slice(), &["--signature-only".into()]].concat();
    assert_eq!(ran(&verify).code, 0);
    let card = model.join("README.md");
    let before = fs::read(&card).unwrap();
    fs::write(&card, "changed").unwrap();
    let tampered = ran(&verify);
    assert_eq!(tampered.code, 4);
    assert!(tampered.err.contains("README.md"), "{}", tampered.err);
    fs::write(&card, before).unwrap();
    fs::write(model.join("extra.bin"), "").unwrap();
    assert_eq!(ran(&verify).code, 4);
    fs::remove_file(model.join("extra.bin")).unwrap();
    assert_eq!(ran(&verify).code, 0);
    fs::remove_file(model.join("model.sig")).unwrap();
    assert_eq!(ran(&verify).code, 4, "removing the signature is not the way around it");
    let measured = ran(&[measured_by_nobody.as_slice(), &["--policy".into(), "demo".into()]].concat());
    assert_eq!(measured.code, 4, "nothing is measured before the signature holds");
}

#[test]
fn wrong_usage_is_exit_code_2_with_a_way_out() {
    for (arguments, part) in [
        (&["verify", "."][..], "--policy"),
        (&["sign", "."], "keygen"),
        (&["attack", ".", "--suite", "fast"], "quick"),
        (&["recipe", "show", "lama"], "llama"),
        (&["harden", "demo", "--device", "gpu"], "cuda:N"),
        (&["frobnicate"], "Usage"),
    ] {
        let dir = World::new();
        let output = immunise().args(arguments).current_dir(dir.model()).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
        assert!(err.contains(part), "{part:?} not in {err}");
    }
}

#[test]
fn recipes_that_are_shown_are_valid_and_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shown.yaml");
    let digest = |text: &str| text.split("digest ").nth(1).unwrap().trim().to_owned();
    for name in ["demo", "llama", "qwen2"] {
        fs::write(&file, ran(&["recipe", "show", name]).out).unwrap();
        let shown = ran(&["recipe", "check", file.to_str().unwrap()]);
        assert_eq!(digest(&shown.out), digest(&ran(&["recipe", "check", name]).out));
    }
    assert!(ran(&["recipe", "schema"]).out.contains("\"stages\""));
    assert!(ran(&["recipe", "schema", "--report"]).out.contains("\"verdict\""));
}

#[test]
fn a_recipe_is_checked_with_its_prompts() {
    let world = World::new();
    let recipe = world.recipe().display().to_string();
    let with = |assignment: &str| ran(&["recipe", "check", &recipe, "--set", assignment]);
    let checked = ran(&["recipe", "check", &recipe]);
    assert!(checked.code == 0 && checked.out.starts_with(&recipe), "{}{}", checked.out, checked.err);
    let missing = with("data.prompts=nowhere.jsonl");
    assert!(missing.code == 3 && missing.err.contains("nowhere.jsonl"), "{}", missing.err);
    assert!(missing.err.contains("`data.prompts`"), "{}", missing.err);
    let points = with("utility=[{task: maths, bound: 2}]");
    assert!(points.code == 2 && points.err.contains("expected a number from 0 to 1, got 2"), "{}", points.err);
    let opening = with("stages=[{kind: adversarial, openings: [o99]}]");
    assert!(
        opening.code == 2 && opening.err.contains("`o99`") && opening.err.contains("there are: "),
        "{}",
        opening.err
    );
    let unknown = with("data.languages=[xx]");
    assert!(unknown.code == 3 && unknown.err.contains("`xx`") && unknown.err.contains("hint: "), "{}", unknown.err);
}

#[test]
fn a_recipe_is_fitted_to_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fitted.yaml");
    let pico = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pico/gemma3_text");
    let made = ran(&["recipe", "new", pico.to_str().unwrap(), "--out", file.to_str().unwrap()]);
    assert_eq!(made.code, 0, "{}", made.err);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("name: gemma3\n") && text.contains("layers: [\"0-2\"]"), "{text}");
    assert_eq!(ran(&["recipe", "check", file.to_str().unwrap()]).code, 0);
    // A small Llama of one's own is not the bundled model, whose recipe it gets.
    let own = ran(&["recipe", "new", World::new().model().to_str().unwrap()]).out;
    assert!(own.contains("name: demo\n") && !own.contains("model: builtin:tiny-chat"), "{own}");
    assert!(ran(&["recipe", "new", "builtin:tiny-chat"]).out.contains("\nmodel: builtin:tiny-chat\n"));
}

#[test]
fn a_dry_run_refuses_what_the_run_would() {
    type Spoil = fn(&World) -> Vec<String>;
    let cases: [(Spoil, i32, &str); 10] = [
        (
            |world| {
                fs::create_dir(world.root().join("out")).unwrap();
                fs::write(world.root().join("out/mine"), "").unwrap();
                vec!["--out".into(), world.root().join("out").display().to_string()]
            },
            3,
            "expected no folder or an empty one",
        ),
        (|world| vec!["--out".into(), world.model().join("out").display().to_string()], 3, "outside of the model"),
        (|world| vec!["--run".into(), world.model().join("run").display().to_string()], 3, "outside of the model"),
        (|_| vec!["--require-signature".into()], 2, "there is no key"),
        (
            |world| {
                fs::remove_file(world.model().join("tokenizer.json")).unwrap();
                vec![]
            },
            3,
            "tokenizer.json",
        ),
        (
            |world| {
                let config = world.model().join("config.json");
                let text =
                    fs::read_to_string(&config).unwrap().replace("\"num_hidden_layers\":2", "\"num_hidden_layers\":3");
                fs::write(config, text).unwrap();
                vec![]
            },
            3,
            "model.layers.2.",
        ),
        (
            |world| {
                let config = world.model().join("config.json");
                let text =
                    fs::read_to_string(&config).unwrap().replace("\"num_hidden_layers\":2", "\"num_hidden_layers\":1");
                fs::write(config, text).unwrap();
                vec![]
            },
            3,
            "tensor `model.layers.1.input_layernorm.weight`: expected one of a block below 1, the `num_hidden_layers` of",
        ),
        (
            |world| {
                let path = world.root().join("prompts.jsonl");
                let rows = fs::read_to_string(&path).unwrap();
                let long = rows.lines().map(|line| {
                    let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
                    if row["kind"] == "twin" && row["split"] == "evaluation" {
                        row["prompt"] = format!("{} {}", row["id"].as_str().unwrap(), "lamp ".repeat(200)).into();
                    }
                    format!("{row}\n")
                });
                fs::write(&path, long.collect::<String>()).unwrap();
                vec![]
            },
            3,
            "prompts `prompts`, row `twin/",
        ),
        (
            |_| vec!["--set".into(), "suite.guard={model: /no/such/guard}".into()],
            3,
            "/no/such/guard: expected a folder",
        ),
        (
            |_| {
                let row = "{kind: transferred, source: /no/such/source, of: noreft, pairs: 4, steps: 2}";
                vec!["--set".into(), format!("suite.attacks.1={row}")]
            },
            3,
            "/no/such/source: expected a folder",
        ),
    ];
    for (spoil, code, part) in cases {
        for dry in [&["--dry-run".to_owned()][..], &[]] {
            let world = World::new();
            let options = spoil(&world);
            let (recipe, model) = (world.recipe().display().to_string(), world.model().display().to_string());
            let arguments = [&["harden".into(), recipe, "--model".into(), model][..], &options, dry].concat();
            let ran = ran(&arguments);
            assert_eq!((ran.code, ran.err.contains(part)), (code, true), "{arguments:?}: {}", ran.err);
            assert!(world.left_behind().iter().all(|name| name == "out"), "{arguments:?}: {:?}", world.left_behind());
        }
    }
}

#[test]
fn what_is_in_the_way_is_named_before_the_work() {
    let world = World::new();
    let (model, recipe) = (world.model().display().to_string(), world.recipe().display().to_string());
    let inside = world.model().join("report").display().to_string();
    let missing = world.root().join("nowhere/key.pem").display().to_string();
    let pem = key("p256.pem").display().to_string();
    for (arguments, code, part) in [
        (&["harden", "nosuch"][..], 3, "`ORG/nosuch`"),
        (&["harden", "dmeo"], 3, "did you mean the recipe `demo`?"),
        (&["recipe", "check", &model], 3, "immunise recipe new"),
        (&["recipe", "new", &model, "--out", &recipe], 3, "nothing is overwritten"),
        (&["sign", &recipe, "--key", &pem], 3, "give a folder"),
        (&["keygen", "--out", &missing], 3, "is the folder there"),
        (&["attack", &model, "--report", &inside], 3, "outside of the model"),
        (&["attack", &model, "--suite", &recipe, "--block", "0", "--block", "99"], 2, "from 0 to 1, got 99"),
        (
            &["attack", &model, "--suite", &recipe, "--only", "identity", "--only", "noreft"],
            2,
            "no row `noreft` in the suite",
        ),
        (&["attack", &model, "--report", &recipe, "--data", &missing], 3, "nowhere"),
        (&["verify", &model, "--policy", &recipe, "--report", &recipe], 3, "nothing is overwritten"),
        (&["harden", &recipe, "--shard", "3/2"], 2, "from 1 to 2, got 3"),
        (&["harden", &recipe, "--memory", "24gb"], 2, "512MB"),
    ] {
        let ran = ran(arguments);
        assert_eq!((ran.code, ran.err.contains(part)), (code, true), "{arguments:?}: {}", ran.err);
    }
    assert!(!Path::new(&inside).exists() && world.left_behind().is_empty(), "{:?}", world.left_behind());
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let world = World::new();
    let (recipe, model) = (world.recipe().display().to_string(), world.model().display().to_string());
    let dry = ["harden", &recipe, "--model", &model, "--dry-run", "--memory"];
    let planned = ran(&[&dry[..], &["1TiB"]].concat());
    assert_eq!(planned.code, 0, "{}", planned.err);
    let apart = "apart     one block at a time, their inputs and targets (1 MiB) in memory";
    for part in ["et on block 0", "noreft r2 p4 s2 b2 at block 1", apart, "memory    about", "2 blocks"] {
        assert!(planned.out.contains(part), "{part:?} not in {}", planned.out);
    }
    let beyond = "more than the 1 MiB that are allowed";
    assert!(!planned.out.contains("more than"), "{}", planned.out);
    let planned = ran(&[&dry[..], &["1"]].concat());
    assert!(planned.code == 0 && planned.out.contains(beyond), "{}{}", planned.out, planned.err);
    assert!(planned.out.contains("(1 MiB) in the run folder: in memory they do not fit"), "{}", planned.out);
    assert!(world.left_behind().is_empty());
}

#[test]
fn a_task_that_the_model_cannot_do_is_refused_before_anything_is_trained() {
    let files = tempfile::tempdir().unwrap();
    let (task, data) = (files.path().join("task.yaml"), files.path().join("data.jsonl"));
    let text = "task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: data.jsonl}}\ntest_split: test\n\
                doc_to_text: q\ndoc_to_target: a\ngeneration_kwargs: {max_gen_toks: 60000}\n";
    fs::write(&task, text).unwrap();
    fs::write(data, "{\"q\": \"what is\", \"a\": \"7\"}\n").unwrap();
    for extra in [&["--dry-run"][..], &[]] {
        let asked = |world: &World| {
            let recipe = fs::read_to_string(world.recipe()).unwrap();
            let utility = format!("utility: [{{task: imported, file: {}}}]\n", task.display());
            fs::write(world.recipe(), recipe + &utility).unwrap();
            extra.iter().map(|argument| (*argument).to_owned()).collect()
        };
        refused(asked, 3, &["task.yaml", "max_gen_toks: expected less than the model's", "got 60000"]);
    }
}

#[test]
fn registries_and_completions_are_printed() {
    for (what, name) in [
        ("families", "llama"),
        ("attacks", "noreft"),
        ("defences", "et"),
        ("judges", "composite"),
        ("tasks", "perplexity"),
    ] {
        assert!(ran(&["list", what]).out.contains(name), "{what}");
    }
    assert!(ran(&["completions", "bash"]).out.contains("immunise"));
    assert!(ran(&["--help"]).out.contains("Exit codes"));
}

#[test]
fn help_explains_each_command() {
    for (command, explained) in [
        ("diff", "with 1 when they differ"),
        ("verify", "the verdict cannot be a pass"),
        ("attack", "nothing is gated"),
        ("harden", "resumes a run that was stopped"),
    ] {
        let help = ran(&["help", command]).out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(explained), "{command}: {help}");
    }
    let family = ran(&["recipe", "new", "--family", "gemma3_text"]);
    assert!(family.code == 0 && family.out.contains("name: gemma3\n"), "{}{}", family.out, family.err);
}

#[test]
fn a_run_that_fails_leaves_no_older_report_behind_and_a_mistake_costs_none() {
    let world = World::new();
    let (model, recipe) = (world.model().display().to_string(), world.recipe().display().to_string());
    let dir = tempfile::tempdir().unwrap();
    let (report, page) = (dir.path().join("report.json"), dir.path().join("report.html"));
    let stale = || [&report, &page].map(|path| fs::write(path, "older").unwrap());
    let folder = dir.path().display().to_string();
    let (own_run, no_model) = (world.model().join("run").display().to_string(), world.root().display().to_string());
    let public = key("p256.pub.pem").display().to_string();
    let (attack, verify) = (["attack", &model, "--suite", &recipe], ["verify", &model, "--policy", &recipe]);
    for (arguments, code) in [
        (&["verify", "/no/such/model", "--policy", &recipe][..], 3),
        (&["verify", &model, "--policy", "dmeo"], 2),
        (&[&verify[..], &["--base", "/no/such/base"]].concat(), 3),
        (&[&verify[..], &["--base", &no_model]].concat(), 3),
        (&[&verify[..], &["--set", "data.prompts=nosuch.jsonl"]].concat(), 3),
        (&[&verify[..], &["--set", "suite.attacks.0.layers=[7]"]].concat(), 3),
        (&[&verify[..], &["--key", "nosuch.pem"]].concat(), 3),
        (&["attack", "/no/such/model"], 3),
        (&["attack", &model, "--suite", "qick"], 2),
        (&[&attack[..], &["--base", "nosuch"]].concat(), 3),
        (&[&attack[..], &["--data", "nosuch.jsonl"]].concat(), 3),
        (&[&attack[..], &["--only", "noreft"]].concat(), 2),
        (&[&attack[..], &["--block", "99"]].concat(), 2),
        (&[&attack[..], &["--guard", "nosuch"]].concat(), 3),
        (&[&attack[..], &["--run", &own_run]].concat(), 3),
    ] {
        stale();
        let failed = ran(&[arguments, &["--report", &folder]].concat());
        assert_eq!((failed.code, report.exists(), page.exists()), (code, true, true), "{arguments:?}: {}", failed.err);
    }
    // What begins and fails: a signature that does not hold, and weights that are damaged.
    let weights = world.model().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    for (arguments, code) in [(&[&verify[..], &["--key", &public]].concat()[..], 4), (&verify[..], 3), (&attack[..], 3)]
    {
        stale();
        let failed = ran(&[arguments, &["--report", &folder]].concat());
        assert_eq!(
            (failed.code, report.exists(), page.exists()),
            (code, false, false),
            "{arguments:?}: {}",
            failed.err
        );
    }
    fs::write(&weights, bytes).unwrap();
    let own = world.model().join("immunisation");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("report.json"), "evidence").unwrap();
    let inside = ran(&["verify", &model, "--policy", &recipe, "--report", &own.display().to_string()]);
    assert_eq!((inside.code, own.join("report.json").exists()), (3, true), "{}", inside.err);
    let none = ran(&["report", "show", &folder]);
    assert!(none.code == 3 && none.err.contains("immunisation/report.json"), "{}", none.err);
}

#[test]
fn reports_of_other_bases_do_not_stand_in_one_table() {
    let reports = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reports");
    let named = |name: &str| format!("{name}={}", reports.join(name).with_extension("json").display());
    let mixed = ran(&["report", "compare", &named("smollm2-broad"), &named("qwen-et")]);
    assert!(mixed.code == 3 && mixed.err.contains("`qwen-et` is about another base"), "{}", mixed.err);
    assert_eq!(ran(&["report", "compare", &named("smollm2-broad"), &named("smollm2-one-block")]).code, 0);
}

#[test]
fn parts_without_utility_do_not_pass_a_policy_that_has_it() {
    let part = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reports/smollm2-one-block.json");
    let merge = ["report", "merge", part.to_str().unwrap(), "--policy", "demo"];
    let merged = ran(&merge);
    assert!(merged.code == 3 && merged.err.contains("no row of `maths`"), "{}", merged.err);
    // Nor do those of other attacks, whatever bounds they are held against.
    let without = ran(&[&merge[..], &["--set", "utility=[]"]].concat());
    assert!(without.code == 3 && without.err.contains("no row of `noreft r2 p80` at block 0"), "{}", without.err);
}

#[test]
fn a_part_is_not_replaced_by_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let part = dir.path().join("report.json");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reports/smollm2-one-block.json"), &part).unwrap();
    let before = fs::read(&part).unwrap();
    let folder = dir.path().display().to_string();
    for given in [part.display().to_string(), folder.clone()] {
        let merged = ran(&["report", "merge", &given, "--out", &folder]);
        assert!(merged.code == 3 && merged.err.contains("expected a part apart from the output"), "{}", merged.err);
        assert!(merged.err.contains(&given) && fs::read(&part).unwrap() == before, "{}", merged.err);
    }
}

#[test]
fn a_policy_decides_about_all_of_its_rows_by_its_own_bounds() {
    let world = World::new();
    let path = |name: &str| world.root().join(name).display().to_string();
    let (model, recipe) = (path("model"), path("recipe.yaml"));
    let measured = |out: &str, more: &[&str]| {
        let command = ["attack", &model, "--base", &model, "--suite", &recipe, "--run", &path("run"), "--report", out];
        assert_eq!(ran(&[&command, more].concat()).code, 0);
    };
    let (whole, narrow, joined) = (path("whole"), path("narrow"), path("joined"));
    measured(&whole, &[]);
    measured(&narrow, &["--only", "noreft r2 p4 s2 b2"]);
    let merge = |part: &str, more: &[&str]| {
        ran(&[&["report", "merge", part, "--policy", &recipe, "--out", &joined], more].concat())
    };
    let lacking = merge(&narrow, &[]);
    assert!(lacking.code == 3 && lacking.err.contains("no row of `ablation p4 best of 2`"), "{}", lacking.err);
    assert_eq!(merge(&whole, &[]).code, 5, "nothing to defend");
    // The recipe's own attacks fitted anew only: the frozen rows of a policy that asks for both are missed.
    let refitted = path("refitted");
    let by_policy = |out: &str, set: &str| {
        let verify = ["verify", &model, "--base", &model, "--policy", &recipe, "--report", out, "--run", &path("run")];
        assert_eq!(ran(&[&verify[..], &["--set", set]].concat()).code, 5);
    };
    by_policy(&refitted, "suite.attacks.0.knowledge=[adaptive]");
    let lacking = merge(&refitted, &[]);
    assert!(lacking.code == 3 && lacking.err.contains("at block 1, all tokens, frozen"), "{}", lacking.err);

    let (task, policy) = ("utility=[{task: benign, bound: 0.9}]", "utility=[{task: benign, bound: 0.01}]");
    by_policy(&whole, task);
    assert_eq!(merge(&whole, &["--set", policy]).code, 5);
    let report = fs::read_to_string(world.root().join("joined/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["utility"][0]["bound"], 0.01);
}

#[test]
fn a_monitor_is_fitted_measured_and_asked() {
    let world = World::new();
    let path = |name: &str| world.root().join(name).display().to_string();
    let (model, data) = (path("model"), path("prompts.jsonl"));
    let fitted = ran(&["detect", "fit", &model, "--data", &data, "--out", &path("a.safetensors"), "--format", "json"]);
    assert_eq!(fitted.code, 0, "{}", fitted.err);
    let value: serde_json::Value = serde_json::from_str(&fitted.out).unwrap();
    assert_eq!(
        (value["detected"][0]["loss"].as_str(), value["detected"][1]["loss"].as_str()),
        (Some("risk-aware"), Some("logistic"))
    );
    assert_eq!(value["detected"][0]["missed"]["n"], 6, "the hazards of the evaluation split");
    let again = ran(&["detect", "fit", &model, "--data", &data, "--out", &path("b.safetensors")]);
    assert!(again.out.contains("hazards missed") && again.out.contains("silenced by the movement"), "{}", again.out);
    assert_eq!(fs::read(path("a.safetensors")).unwrap(), fs::read(path("b.safetensors")).unwrap());
    let over = ran(&["detect", "fit", &model, "--data", &data, "--out", &data]);
    assert_eq!(over.code, 3, "{}", over.err);
    assert!(over.err.contains("expected no file of this name") && over.err.contains("nothing is overwritten"));
    let monitor = path("a.safetensors");
    let scored = ran(&["detect", "score", &model, "--monitor", &monitor, "--data", &data, "--format", "json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&scored.out).unwrap(), value["detected"][0], "{}", scored.err);
    let asked =
        ran(&["detect", "score", &model, "--monitor", &monitor, "--data", &data, "--request", "how do i boil rice ?"]);
    assert!(["flagged\n", "not flagged\n"].contains(&asked.out.as_str()), "{} {}", asked.out, asked.err);
    let wrong = ran(&["detect", "score", &model, "--monitor", &path("prompts.jsonl"), "--data", &data]);
    assert_eq!(wrong.code, 3, "{}", wrong.err);
    assert!(wrong.err.contains("prompts.jsonl") && wrong.err.contains("expected safetensors"), "{}", wrong.err);
    // A template without the request makes one prompt of all.
    for template in ["", "hello", "{{ messages|length }}"] {
        fs::write(world.root().join("model/chat_template.jinja"), template).unwrap();
        let deaf = ran(&["detect", "fit", &model, "--data", &data, "--out", &path("c.safetensors")]);
        assert_eq!(deaf.code, 3, "{template}: {}", deaf.err);
        assert!(deaf.err.contains("the same one for two requests"), "{template}: {}", deaf.err);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("immunise"));
    let output = command.args(["recipe", "show", "demo"]).stdout(full).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("standard output") && message.contains("make room"), "{message}");
}

#[test]
fn recipes_and_suites_inside_the_binary_are_listed() {
    for (what, name) in [("recipes", "demo"), ("suites", "standard")] {
        let ran = ran(&["list", what]);
        assert!(ran.code == 0 && ran.out.lines().any(|line| line.starts_with(name)), "{}", ran.out);
    }
}

#[test]
fn a_folder_with_a_private_key_is_not_signed() {
    let world = World::new();
    fs::copy(key("p256.pem"), world.model().join("k.pem")).unwrap();
    let (model, pem) = (world.model().display().to_string(), key("p256.pem").display().to_string());
    let ran = ran(&["sign", &model, "--key", &pem]);
    assert!(ran.code == 3 && ran.err.contains("k.pem"), "{}", ran.err);
    assert!(!world.model().join("model.sig").exists());
}
