//! Artefacts and changed weights as rows of a report: what is measured, beside what, and that nothing is written.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use immunise::checkpoint::Digest;
use immunise::report::{AttackRow, Report};

mod random_model;
use random_model::World;

/// Runs `immunise attack` in `dir` and reads its report.
fn attack(dir: &Path, arguments: &[&str]) -> Report {
    let mut command = Command::cargo_bin("immunise").unwrap();
    let data = ["--data", "prompts.jsonl", "--format", "json"];
    let output = command.current_dir(dir).arg("attack").args(arguments).args(data).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{err}");
    Report::from_json(&String::from_utf8(output.stdout).unwrap(), "stdout").unwrap()
}

/// A NumPy file of one vector as wide as the model.
fn vector(path: &Path) {
    let header = format!("{:<117}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (16,), }");
    let values = (0..16u8).flat_map(|i| (f32::from(i) - 7.0).to_le_bytes());
    let bytes = [b"\x93NUMPY\x01\x00", &118u16.to_le_bytes()[..], header.as_bytes()].concat();
    fs::write(path, bytes.into_iter().chain(values).collect::<Vec<u8>>()).unwrap();
}

/// A folder with the model, a copy of it as if somebody had edited it, and a vector.
fn world() -> World {
    let world = World::new();
    vector(&world.root().join("v.npy"));
    let edited = world.root().join("edited");
    fs::create_dir(&edited).unwrap();
    for entry in fs::read_dir(world.model()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), edited.join(entry.file_name())).unwrap();
    }
    world
}

const SUITE: &str = "evaluation_prompts: 4
max_new_tokens: 3
attacks:
  - {kind: imported, file: v.npy, op: add, scale: 2, layers: [1]}
  - {kind: imported, file: edited}
  - {kind: imported, file: edited, op: add, scale: 0.5}
  - {kind: abliteration, pairs: 4, search_trials: 3}
  - {kind: optimal-transport, pairs: 4, layers: [1], coefficients: [1]}
  - {kind: random, rank: 1, pairs: 4, steps: 1, batch: 2, layers: [0]}
  - {kind: delta-strip, pairs: 4}
  - {kind: quantised, bits: 4, pairs: 4}
  - {kind: lora, rank: 1, pairs: 4, steps: 2, batch: 2}
";

fn row<'a>(rows: &'a [AttackRow], name: &str) -> &'a AttackRow {
    let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    rows.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no {name} in {names:?}"))
}

#[test]
fn every_row_has_its_value_and_its_control_and_no_weights_are_written() {
    let world = world();
    fs::write(world.root().join("s.yaml"), SUITE).unwrap();
    let before = Digest::of_file(&world.model().join("model.safetensors")).unwrap();
    let report = attack(world.root(), &["model", "--base", "model", "--suite", "s.yaml", "--run", "run"]);

    let added = row(&report.attacks, "imported v.npy add x2");
    assert!(!added.adaptive && !added.ungated && added.base == Some(added.hardened) && added.layers == [1]);
    assert!(added.budget.search.starts_with("arrays, sha256 "), "{}", added.budget.search);
    let control = report.control_of(added).unwrap();
    assert_eq!((control.name.as_str(), control.control), ("random like imported v.npy add x2", true));
    let norms = [added, control].map(|row| row.budget.relative_norm.unwrap());
    assert!((norms[0] / norms[1] - 1.0).abs() < 1e-3, "{norms:?}");

    let replaced = row(&report.attacks, "imported edited");
    assert!(replaced.base.is_none() && replaced.ungated, "these weights are not the model's");
    assert!(replaced.budget.search.contains("0 tensors"), "{}", replaced.budget.search);
    assert!(row(&report.attacks, "imported edited add x0.5").attacker_has_base && !replaced.attacker_has_base);
    let name = "abliteration p4 t3 best of 2";
    let abliterated: Vec<&AttackRow> = report.attacks.iter().filter(|row| row.name == name).collect();
    assert_eq!(
        abliterated.iter().map(|row| (row.adaptive, row.ungated)).collect::<Vec<_>>(),
        [(false, false), (true, false)]
    );
    assert!(abliterated.iter().all(|row| row.base.is_some()), "weights of the model itself have an un-hardened value");
    assert!(abliterated[0].budget.search.starts_with("3 kernels tried"), "{}", abliterated[0].budget.search);
    assert!(!row(&report.controls, &format!("random like {name}")).ungated);
    let stripped = row(&report.attacks, "delta-strip p4");
    assert!(stripped.adaptive && stripped.ungated && stripped.attacker_has_base);
    assert_eq!(stripped.base, Some(stripped.hardened), "nothing to strip");
    assert!(row(&report.attacks, "quantised q4_0 p4").ungated);
    assert!(row(&report.controls, "identity q4_0").ungated);
    let tuned = row(&report.attacks, "lora r1 p4 s2 b2");
    assert_eq!((tuned.ungated, tuned.budget.gradient_evaluations), (true, 4));
    for row in report.attacks.iter().filter(|row| row.family != "quantised") {
        assert!(report.controls.iter().any(|c| c.name == format!("random like {}", row.name)), "{}", row.name);
    }

    assert_eq!(Digest::of_file(&world.model().join("model.safetensors")).unwrap(), before);
    let run = immunise::checkpoint::files::list(&world.root().join("run")).unwrap();
    assert!(!run.iter().any(|file| file.contains("safetensors")), "{run:?}");
    let text = report.to_json();
    assert!(!text.contains(&world.root().display().to_string()), "a path in the report");

    let again = attack(world.root(), &["model", "--base", "model", "--suite", "s.yaml", "--run", "run"]);
    assert_eq!(again, report, "a resumed measurement is the same");
}

#[test]
fn an_imported_row_reproduces_with_its_own_command() {
    let world = world();
    let spec = "v.npy,op=add,scale=2,layers=0+1";
    let report = attack(world.root(), &["model", "--base", "model", "--import", spec, "--seed", "5"]);
    assert_eq!((report.attacks.len(), report.controls.len()), (1, 1), "alone unless a suite is named");
    let row = &report.attacks[0];
    let expected = "immunise attack . --base model --import 'v.npy,op=add,scale=2,layers=0+1' --seed 5 --only 'imported v.npy add x2'";
    assert_eq!(row.reproduce, expected);
    let again = attack(
        world.root(),
        &["model", "--base", "model", "--import", spec, "--seed", "5", "--only", "imported v.npy add x2"],
    );
    assert_eq!(again.attacks, report.attacks);
    assert_eq!(world.left_behind(), ["edited", "v.npy"], "nothing is written");
    let recipe = world.recipe().display().to_string();
    let joined =
        attack(world.root(), &["model", "--suite", &recipe, "--import", spec, "--only", "imported v.npy add x2"]);
    assert!(
        joined.attacks[0].reproduce.contains("--suite recipe.yaml --import 'v.npy,"),
        "{}",
        joined.attacks[0].reproduce
    );
}

#[test]
fn without_a_base_artefacts_are_measured_and_what_needs_it_is_left_out() {
    let world = world();
    fs::write(world.root().join("s.yaml"), SUITE).unwrap();
    let report = attack(world.root(), &["model", "--suite", "s.yaml"]);
    assert!(row(&report.attacks, "imported v.npy add x2").base.is_none());
    assert!(row(&report.attacks, "imported edited").base.is_none(), "weights that replace others need none");
    for name in ["delta-strip p4", "imported edited add x0.5"] {
        assert!(report.attacks.iter().chain(&report.controls).all(|row| !row.name.contains(name)), "{name}");
    }
    let alone = attack(world.root(), &["model", "--import", "edited,op=add"]);
    assert!(alone.attacks.is_empty() && alone.controls.is_empty());
}

#[test]
fn an_artefact_that_is_of_no_use_is_named_before_anything_is_measured() {
    let world = world();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let header = format!("{:<117}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }");
    let narrow = [b"\x93NUMPY\x01\x00", &118u16.to_le_bytes()[..], header.as_bytes(), &[0; 16]].concat();
    fs::write(world.root().join("narrow.npy"), narrow).unwrap();
    let (lora, other) = (fixtures.join("artefacts/lora"), fixtures.join("tiny-chat"));
    for (keys, expected) in [
        ("file: v.npz, op: add, layers: [1]".to_owned(), "v.npz"),
        ("file: narrow.npy, op: add, layers: [1]".to_owned(), "narrow.npy: expected vectors of width 16, got 4"),
        ("file: v.npy, layers: [1]".to_owned(), "v.npy: `op`: expected"),
        (format!("file: {}", lora.display()), "artefacts/lora: tensor `model.layers.1."),
        (format!("file: {}", other.display()), "tiny-chat: expected the architecture"),
        ("file: edited, positions: prompt".to_owned(), "edited: changed weights act on every token"),
    ] {
        let row = format!("{{kind: imported, {keys}}}");
        fs::write(world.root().join("s.yaml"), format!("attacks: [{{kind: ablation, pairs: 4}}, {row}]")).unwrap();
        let set = format!("suite.attacks.1={row}");
        for arguments in [
            &["attack", "model", "--base", "model", "--suite", "s.yaml", "--data", "prompts.jsonl"][..],
            &["attack", "model", "--suite", "s.yaml", "--data", "prompts.jsonl"],
            &["harden", "recipe.yaml", "--model", "model", "--dry-run", "--set", &set],
        ] {
            let mut command = Command::cargo_bin("immunise").unwrap();
            let output = command.current_dir(world.root()).args(arguments).output().unwrap();
            let err = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), err.contains(expected)), (Some(3), true), "{arguments:?}: {err}");
            assert!(!err.contains("ablation p4"), "a cell was measured first: {err}");
        }
    }
}

#[test]
fn a_row_reproduces_at_its_own_tokens_where_others_share_its_name() {
    let world = world();
    let rows = "{kind: ablation, pairs: 4, knowledge: [adaptive]}, {kind: ablation, pairs: 4, positions: prompt, knowledge: [adaptive]}";
    let suite = format!(
        "evaluation_prompts: 4\nmax_new_tokens: 3\nattacks: [{rows}, {{kind: subspace-ablation, pairs: 4}}, {{kind: random, pairs: 4, steps: 1}}]"
    );
    fs::write(world.root().join("s.yaml"), suite).unwrap();
    let whole = attack(world.root(), &["model", "--suite", "s.yaml"]);
    let ends = |row: &AttackRow| row.reproduce.rsplit_once("--positions ").map(|(_, at)| at.to_owned());
    let name = "ablation p4 best of 2";
    for rows in [&whole.attacks, &whole.controls] {
        let shared: Vec<&AttackRow> = rows.iter().filter(|row| row.name.ends_with(name)).collect();
        let at: Vec<Option<String>> = shared.into_iter().map(ends).collect();
        assert_eq!(at, [Some("all".into()), Some("prompt".into())]);
    }
    assert_eq!(ends(row(&whole.attacks, "subspace-ablation r2 p4 best of 2")), None, "nobody shares it");
    let part = attack(world.root(), &["model", "--suite", "s.yaml", "--only", name, "--positions", "all"]);
    let first = row(&whole.attacks, name);
    assert_eq!((part.attacks.len(), &part.attacks[0]), (1, first), "the command gives that row alone");
}
