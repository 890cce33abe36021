//! Attack artefacts of other tools: each acts here as in the tool that made it, and none runs code.
//!
//! `fixtures/artefacts` is made by `tests/interop/artefacts.py` with the tools themselves; its `golden.json` holds logits of
//! their own steered passes over the bundled model.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, IndexOp as _};
use immunise::adapter::merge::plan;
use immunise::checkpoint::block_quant::{Q4_0, Q8_0};
use immunise::checkpoint::{Checkpoint, Digest, patch};
use immunise::defence::trainable::merge;
use immunise::intervention::Positions;
use immunise::intervention::import::{Change, Format, Imported, Op, Terms, load};
use immunise::model::{Decoder, Hooks, TokenBatch};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn artefact(name: &str) -> PathBuf {
    root().join("fixtures/artefacts").join(name)
}

fn model() -> PathBuf {
    root().join("fixtures/tiny-chat")
}

fn decoder(dir: &Path) -> Decoder {
    Decoder::load(&Checkpoint::open(dir).unwrap(), &Device::Cpu).unwrap()
}

fn golden() -> Value {
    let golden: Value = serde_json::from_str(&fs::read_to_string(artefact("golden.json")).unwrap()).unwrap();
    let digest = Digest::of_file(&model().join("model.safetensors")).unwrap().to_string();
    assert_eq!(golden["weights_sha256"], digest.as_str(), "the golden file is of other weights");
    golden
}

fn terms(value: &Value) -> Terms {
    Terms {
        op: serde_json::from_value(value["op"].clone()).unwrap(),
        scale: value["scale"].as_f64(),
        layers: serde_json::from_value(value["layers"].clone()).unwrap(),
        layer_offset: value["layer_offset"].as_i64().unwrap_or(0),
    }
}

/// Logits of every position of the golden dialogue, `[pos][vocab]`.
fn logits(decoder: &Decoder, golden: &Value, change: Option<(&Change, Positions)>) -> Vec<Vec<f32>> {
    let ids = |key: &str| -> Vec<u32> { serde_json::from_value(golden[key].clone()).unwrap() };
    let batch = TokenBatch::dialogues(&[ids("prompt")], &[ids("answer")], 0);
    let logits = match change {
        None => decoder.forward(&batch, &mut Hooks::none(), None),
        Some((Change::Edit(edit), positions)) => {
            let placed = edit.place(&Device::Cpu).unwrap();
            decoder.forward(&batch, &mut Hooks::edit(&placed, positions), None)
        }
        Some((Change::Adapters(set), _)) => merge(decoder, set).unwrap().forward(&batch, &mut Hooks::none(), None),
        Some((Change::Weights { dir, .. }, _)) => self::decoder(dir).forward(&batch, &mut Hooks::none(), None),
    };
    logits.unwrap().i(0).unwrap().to_vec2().unwrap()
}

/// Largest difference between golden logits and ours.
fn distance(case: &Value, logits: &[Vec<f32>]) -> f64 {
    let mut worst = 0_f64;
    for row in case["logits"].as_array().unwrap() {
        let ours = &logits[row["at"].as_u64().unwrap() as usize];
        for pair in row["top"].as_array().unwrap() {
            let (index, value) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
            worst = worst.max((value - f64::from(ours[index])).abs());
        }
    }
    worst
}

#[test]
fn every_artefact_acts_as_in_the_tool_that_made_it() {
    let (golden, decoder) = (golden(), decoder(&model()));
    let plain = logits(&decoder, &golden, None);
    let mut seen = 0;
    for case in golden["cases"].as_array().unwrap() {
        let name = case["artefact"].as_str().unwrap();
        if name == "none" {
            assert!(distance(case, &plain) < 1e-4, "the model itself: {}", distance(case, &plain));
            continue;
        }
        let positions: Positions = serde_json::from_value(case["positions"].clone()).unwrap();
        let imported = load(&artefact(name), &terms(&case["terms"]), decoder.blueprint())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let steered = logits(&decoder, &golden, Some((&imported.change, positions)));
        let (error, effect) = (distance(case, &steered), distance(case, &plain));
        println!("{name} {}: error {error:.1e}, effect {effect:.2}", case["terms"]);
        assert!(error < 2e-4 * (1.0 + effect), "{name} {}: error {error}", case["terms"]);
        assert!(effect > 0.05, "{name} {}: it does next to nothing, {effect}", case["terms"]);
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn formats_are_told_by_content() {
    for (name, format) in [
        ("control_vector.gguf", Format::ControlVector),
        ("loreft", Format::Reft),
        ("refusal_direction", Format::RefusalDirection),
        ("refusal_direction/direction.pt", Format::RefusalDirection),
        ("caa", Format::ActivationAddition),
        ("caa/vec_layer_2_tiny-chat.pt", Format::ActivationAddition),
        ("heads.svec", Format::SteeringVector),
        ("layers.safetensors", Format::Arrays),
        ("direction.npy", Format::Arrays),
        ("lora", Format::Lora),
    ] {
        assert_eq!(Format::of(&artefact(name)).unwrap(), format, "{name}");
    }
    assert_eq!(Format::of(&model()).unwrap(), Format::Checkpoint);
    let dir = tempfile::tempdir().unwrap();
    let renamed = dir.path().join("vector.bin");
    fs::copy(artefact("control_vector.gguf"), &renamed).unwrap();
    assert_eq!(Format::of(&renamed).unwrap(), Format::ControlVector, "whatever it is called");
    let text = dir.path().join("notes.txt");
    fs::write(&text, "nothing of the kind").unwrap();
    assert!(Format::of(&text).unwrap_err().to_string().contains("expected an attack artefact"));
    assert!(Format::of(dir.path()).is_err() && Format::of(&dir.path().join("missing")).is_err());
}

#[test]
fn an_edited_checkpoint_is_what_its_weights_are() {
    let (golden, dir) = (golden(), tempfile::tempdir().unwrap());
    let base = Checkpoint::open(&model()).unwrap();
    let decoder = decoder(&model());
    let Change::Adapters(set) = imported("lora", &Terms::default()).change else { panic!("adapters") };
    let edited = dir.path().join("edited");
    let (staged, _) = patch(&base, &edited, &plan(&base, std::slice::from_ref(&set)).unwrap(), &[], &[]).unwrap();
    staged.publish(&edited).unwrap();
    let change = load(&edited, &Terms::default(), decoder.blueprint()).unwrap().change;
    let merged = logits(&decoder, &golden, Some((&Change::Adapters(set), Positions::All)));
    let replaced = logits(&decoder, &golden, Some((&change, Positions::All)));
    // The files hold bf16.
    let far = merged.iter().flatten().zip(replaced.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 0.2, "{far}");
    let add = Terms { op: Some(Op::Add), scale: Some(0.5), ..Terms::default() };
    assert!(
        matches!(load(&edited, &add, decoder.blueprint()).unwrap().change, Change::Weights { delta: Some(d), .. } if d == 0.5)
    );
}

fn imported(name: &str, terms: &Terms) -> Imported {
    load(&artefact(name), terms, decoder(&model()).blueprint()).unwrap()
}

#[test]
fn rounding_is_that_of_llama_cpp() {
    let golden = golden();
    let values = |key: &str| -> Vec<f32> { serde_json::from_value(golden["rounding"][key].clone()).unwrap() };
    for (name, round) in [("Q8_0", Q8_0::round_trip as fn(&mut [f32])), ("Q4_0", Q4_0::round_trip)] {
        let mut ours = values("weight");
        round(&mut ours);
        assert_eq!(ours, values(name), "{name}");
    }
}

#[test]
fn pickles_with_code_are_refused_and_never_run() {
    let dir = tempfile::tempdir().unwrap();
    let blueprint = decoder(&model()).blueprint().clone();
    let canary = Path::new("ran-by-immunise");
    for (name, expected) in [
        ("system_layer_1.pt", "system"),
        ("eval_layer_1.pt", "eval"),
        ("bare_layer_1.pt", "bare pickle"),
        ("objects.npy", "arrays of objects are pickles"),
    ] {
        let hostile = artefact("hostile").join(name);
        let error = load(&hostile, &Terms::default(), &blueprint).unwrap_err();
        assert!(error.to_string().contains(expected) && error.to_string().contains(name), "{error}");
        assert_eq!(error.exit_code(), 3);
        // The same where the format expects a tensor of a fixed name.
        fs::copy(&hostile, dir.path().join("direction.pt")).unwrap();
        fs::write(dir.path().join("direction_metadata.json"), r#"{"pos": -1, "layer": 1}"#).unwrap();
        assert!(load(dir.path(), &Terms::default(), &blueprint).is_err(), "{name}");
    }
    assert!(!canary.exists(), "it ran");
}

#[test]
fn no_cut_or_changed_file_is_accepted_silently_or_panics() {
    let dir = tempfile::tempdir().unwrap();
    let blueprint = decoder(&model()).blueprint().clone();
    for (name, layer_offset) in [
        ("control_vector_q8_0.gguf", 0),
        ("caa/vec_layer_2_tiny-chat.pt", 0),
        ("layers.safetensors", 0),
        ("hidden_states.npy", -1),
    ] {
        let add = Terms { op: Some(Op::Add), layer_offset, ..Terms::default() };
        load(&artefact(name), &add, &blueprint).unwrap();
        let bytes = fs::read(artefact(name)).unwrap();
        let path = dir.path().join(Path::new(name).file_name().unwrap());
        // A GGUF file may end in padding.
        let needed = bytes.len() - if name.ends_with("gguf") { 24 } else { 0 };
        for end in (0..needed).step_by(13).chain([needed - 1]) {
            fs::write(&path, &bytes[..end]).unwrap();
            assert!(load(&path, &add, &blueprint).is_err(), "{name} cut to {end}");
        }
        for at in (0..bytes.len().min(1200)).step_by(5) {
            for byte in [0x00, 0x52, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = byte;
                fs::write(&path, &changed).unwrap();
                let _ = load(&path, &add, &blueprint);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let blueprint = decoder(&model()).blueprint().clone();
    let with = |change: fn(&mut Terms)| {
        let mut terms = Terms::default();
        change(&mut terms);
        terms
    };
    for (name, terms, expected) in [
        ("layers.safetensors", with(|_| ()), "`op`: expected `add` or `ablate`, got nothing"),
        ("layers.safetensors", with(|t| t.op = Some(Op::Affine)), "`op`: expected `add` or `ablate`, got `affine`"),
        ("control_vector.gguf", with(|t| t.layer_offset = 1), "expected blocks below 6, got 6"),
        ("control_vector.gguf", with(|t| t.layers = Some(vec![0])), "`layers`: expected some of 1, 2, 3, 4, 5, got 0"),
        ("control_vector.gguf", with(|t| t.scale = Some(f64::NAN)), "`scale`: expected a finite number"),
        ("direction.npy", with(|t| t.op = Some(Op::Add)), "`layers`: expected the blocks"),
        ("refusal_direction", with(|t| t.scale = Some(2.0)), "`scale`: a direction is projected out whole"),
        ("hidden_states.npy", with(|t| t.op = Some(Op::Add)), "expected blocks below 6, got 6"),
        ("heads.svec", with(|t| t.op = Some(Op::Ablate)), "`op`: expected `add`, got `ablate`"),
        ("loreft", with(|t| t.layers = Some(vec![2])), "`layers`: expected blocks that it edits, got 2"),
        ("lobireft", with(|_| ()), "expected LoReFT, NoReFT or NodiReFT, got `LobireftIntervention`"),
        ("lora", with(|t| t.layer_offset = 1), "`layer_offset`"),
        ("lora", with(|t| t.op = Some(Op::Ablate)), "`op`: expected `add`, got `ablate`"),
    ] {
        let error = load(&artefact(name), &terms, &blueprint).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(name), "{expected:?} not in {error:?}");
    }
    let mut narrow = blueprint;
    (narrow.d_model, narrow.n_heads) = (64, 2);
    let add = with(|t| t.op = Some(Op::Add));
    for name in ["control_vector.gguf", "layers.safetensors", "vector.svec", "heads.svec", "caa"] {
        let error = load(&artefact(name), &add, &narrow).unwrap_err().to_string();
        assert!(error.contains("64") && error.contains(name.split('/').next().unwrap()), "{name}: {error}");
    }
    assert!(load(&artefact("loreft"), &Terms::default(), &narrow).unwrap_err().to_string().contains("expected shape"));
}

#[test]
fn vectors_that_are_not_numbers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let blueprint = decoder(&model()).blueprint().clone();
    let svec = |value: Value| {
        let path = dir.path().join("v.svec");
        fs::write(&path, value.to_string()).unwrap();
        load(&path, &Terms::default(), &blueprint).unwrap_err().to_string()
    };
    let row = vec![0.1; 128];
    let map = |key: &str, rows: Value| BTreeMap::from([(key.to_owned(), rows)]);
    for (value, expected) in [
        (serde_json::json!({"model_type": "llama", "directions": {}}), "expected vectors by block, got none"),
        (serde_json::json!({"model_type": "qwen2", "directions": map("1", row.clone().into())}), "`model_type`"),
        (serde_json::json!({"directions": map("a", row.clone().into())}), "expected a block's number"),
        (serde_json::json!({"directions": map("1", serde_json::json!([row, row]))}), "got [2, 128]"),
        (serde_json::json!({"directions": map("1", serde_json::json!(["x"]))}), "expected rows of numbers"),
        (serde_json::json!({"directions": map("99", serde_json::json!([row]))}), "expected blocks below 6, got 99"),
        (serde_json::json!({"directions": map("1", serde_json::json!([vec![1e300; 128]]))}), "finite"),
    ] {
        let error = svec(value);
        assert!(error.contains(expected) && error.contains("v.svec"), "{expected:?} not in {error:?}");
    }
}
