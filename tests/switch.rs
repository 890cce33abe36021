//! The safety switch on a pair whose difference was put in by hand: the base sees what is hazardous and writes it where nothing
//! reads it, the tuned model writes it where it makes the answer a refusal.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use candle_core::Device;
use immunise::detect::Switch;
use immunise::event::Silent;
use immunise::pipeline::Model;
use immunise::pipeline::device::{Demand, Machine};
use immunise::pipeline::switch::{Settings, fit};
use tempfile::TempDir;

mod planted_model;
use planted_model::{Planted, REFUSAL, prompts, write};

const SETTINGS: Settings = Settings { layer: 2, pairs: 64, prompts: 48, max_new_tokens: 8, seed: 1 };

fn pair() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("base"), &Planted::untuned(REFUSAL[0], REFUSAL[1]));
    write(&dir.path().join("tuned"), &Planted::refusing(REFUSAL[0]));
    fs::write(dir.path().join("prompts.jsonl"), prompts().to_jsonl()).unwrap();
    dir
}

fn open(dir: &Path) -> Model {
    let machine = Machine::new(Device::Cpu, None);
    Model::open(dir.to_str().unwrap(), &machine, Demand::of_measuring(&machine.device), &Silent).unwrap()
}

#[test]
fn the_map_gives_the_base_the_tuned_models_refusals_and_a_random_one_does_not() {
    let dir = pair();
    let (base, tuned) = (open(&dir.path().join("base")), open(&dir.path().join("tuned")));
    let fitted = fit(&base, &tuned, &prompts(), None, SETTINGS).unwrap();
    let [plain, mapped, random, target] = &fitted.behaves;
    assert_eq!((plain.refused.value, target.refused.value), (0.0, 1.0));
    assert!(mapped.refused.value >= 0.9 && mapped.answered.value >= 0.9, "{mapped:?}");
    assert!(random.refused.value <= 0.1, "{random:?}");
    assert!(plain.answered.value >= 0.9 && target.answered.value >= 0.9, "{plain:?} {target:?}");
    assert!(fitted.switch.about.explained > 0.9, "{:?}", fitted.switch.about);
    let again = fit(&base, &tuned, &prompts(), None, SETTINGS).unwrap();
    assert_eq!(again.switch.to_bytes().unwrap(), fitted.switch.to_bytes().unwrap(), "equal inputs give equal bytes");
    // Below the block that makes the difference there is nothing to map, and the figures say so.
    let below = fit(&base, &tuned, &prompts(), None, Settings { layer: 1, ..SETTINGS }).unwrap();
    assert_eq!(below.behaves[1].refused.value, 0.0);
}

#[test]
fn nothing_that_undoes_hardening_is_made_or_put_beside_it() {
    let dir = pair();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let run = |base: &str, to: &str, out: &str| {
        let mut command = Command::cargo_bin("immunise").unwrap();
        // The file alone, too: one in the working folder.
        let arguments = ["detect", "switch", &path(base), "--to", &path(to), "--layer", "2", "--out", out];
        let output = command
            .current_dir(dir.path())
            .args(arguments)
            .args(["--data", &path("prompts.jsonl"), "--prompts", "8"])
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    let (code, text) = run("base", "tuned", "switch.safetensors");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("base with the switch") && text.contains("base with a random map"), "{text}");
    let switch = Switch::read(&dir.path().join("switch.safetensors")).unwrap();
    assert_eq!((switch.about.layer, switch.about.site.as_str()), (2, "blocks.2.hook_resid_pre"));

    // Before the models are opened, and nothing is left of it.
    for (out, problem) in [("none/switch.safetensors", "a folder to write into, got none"), ("base", "a file to write")]
    {
        let (code, text) = run("nowhere", "nowhere", out);
        assert_eq!(code, 3, "{text}");
        assert!(text.contains(problem) && !dir.path().join("none").exists(), "{text}");
    }

    // The tuned model turns out to be a published, hardened one.
    fs::create_dir(dir.path().join("tuned/immunisation")).unwrap();
    let (code, text) = run("base", "tuned", "tuned/switch.safetensors");
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("expected a folder outside of a published model"), "{text}");
    assert!(!dir.path().join("tuned/switch.safetensors").exists());
    fs::create_dir(dir.path().join("tuned/immunisation/deeper")).unwrap();
    assert_eq!(run("base", "tuned", "tuned/immunisation/deeper/switch.safetensors").0, 3);
    let (code, text) = run("tuned", "base", "back.safetensors");
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("expected an un-hardened model to map from") && !dir.path().join("back.safetensors").exists()
    );
    assert_eq!(run("base", "tuned", "apart.safetensors").0, 0, "for whoever hosts both, outside of what is published");
}
