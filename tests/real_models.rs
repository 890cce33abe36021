//! The decoder on real pretrained models: reference perplexities, and logits against transformers.
//!
//! `IMMUNISE_MODELS` names a folder with `smollm2/` (SmolLM2-135M-Instruct), `qwen/` (Qwen2.5-Coder-0.5B-Instruct)
//! and `gemma3/` (Gemma 3 270M) in Hugging Face layout, and `IMMUNISE_DATA` one with wikitext-2's raw test file as `text/wiki.test.raw`. They are
//! ignored unless asked for. Build with `--release`, or it takes an hour:
//!
//! ```sh
//! IMMUNISE_MODELS=models IMMUNISE_DATA=data cargo test --release --test real_models -- --ignored --nocapture
//! ```
//!
//! Reference values are PyTorch's and transformers' on the same files in f32; `tests/interop/logits.py` makes the golden
//! files.

use std::path::{Path, PathBuf};

use candle_core::{Device, IndexOp as _};
use immunise::checkpoint::{Checkpoint, Digest};
use immunise::math::float::start_workers;
use immunise::model::prompt::PromptEncoder;
use immunise::model::tokenizer::Tokenizer;
use immunise::model::{Decoder, Hooks, TokenBatch};
use immunise::utility::perplexity::windowed;
use serde_json::Value;

/// Tokens of a window, and number of windows: 4,092 predictions, 4,096 where a first token stands before each.
const CONTEXT: usize = 1024;
const WINDOWS: usize = 4;

/// What lies in the folder that an environment variable names.
fn folder(variable: &str, below: &str) -> PathBuf {
    let dir = std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} names no folder"));
    let path = PathBuf::from(dir).join(below);
    assert!(path.exists(), "{variable} is set, but {} does not exist", path.display());
    path
}

struct Real {
    decoder: Decoder,
    encoder: PromptEncoder,
    dir: PathBuf,
}

fn open(name: &str) -> Real {
    let dir = folder("IMMUNISE_MODELS", name);
    start_workers(None);
    let decoder = Decoder::load(&Checkpoint::open(&dir).unwrap(), &Device::Cpu).unwrap();
    Real { decoder, encoder: PromptEncoder::open(&dir).unwrap(), dir }
}

fn perplexity_is(name: &str, reference: f64) {
    let (dir, text) = (folder("IMMUNISE_MODELS", name), folder("IMMUNISE_DATA", "text/wiki.test.raw"));
    start_workers(None);
    let decoder = Decoder::load(&Checkpoint::open(&dir).unwrap(), &Device::Cpu).unwrap();
    // The file may have been written with carriage returns, which the reference did not see.
    let text = std::fs::read_to_string(text).unwrap().replace("\r\n", "\n");
    // Enough text for the windows; a tokenizer need not read all of it.
    let end = (0..=60_000.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
    let tokenizer = Tokenizer::open(&dir).unwrap();
    let ids = tokenizer.encode(&text[..end], false).unwrap();
    // What the tokenizer puts first stands before every window, beside its tokens, as it did in the reference.
    let first = tokenizer.encode("", true).unwrap();
    let ids: Vec<u32> = ids.chunks(CONTEXT).flat_map(|window| first.iter().chain(window).copied()).collect();
    let measured = windowed(&decoder, &ids, CONTEXT + first.len(), WINDOWS).unwrap();
    let error = measured.value / reference - 1.0;
    println!("{name}: perplexity {:.4}, reference {reference}, {:+.4}%", measured.value, 100.0 * error);
    assert!(error.abs() < 5e-3, "{name}: expected {reference}, got {}", measured.value);
}

fn logits_are_those_of_transformers(name: &str) {
    let real = open(name);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/interop/logits_{name}.json"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let digest = Digest::of_file(&real.dir.join("model.safetensors")).unwrap().to_string();
    assert_eq!(digest, golden["weights_sha256"].as_str().unwrap(), "{name}: the golden file is of other weights");
    let mut worst = 0_f64;
    for case in golden["cases"].as_array().unwrap() {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let encoded = match case["user"].as_str() {
            Some(user) => real.encoder.encode_chat(user, None),
            None => real.encoder.tokenizer().encode(case["text"].as_str().unwrap(), true),
        };
        assert_eq!(encoded.unwrap(), ids, "{name}: token ids of {case}");
        let batch = TokenBatch::prompts(&[ids], 0);
        let logits = real.decoder.forward(&batch, &mut Hooks::none(), None).unwrap();
        for position in case["positions"].as_array().unwrap() {
            let at = usize::try_from(position["at"].as_u64().unwrap()).unwrap();
            let row = logits.i((0, at)).unwrap().to_vec1::<f32>().unwrap();
            let top: Vec<(usize, f64)> = serde_json::from_value(position["top"].clone()).unwrap();
            let largest = top.iter().fold(0_f64, |m, (_, value)| m.max(value.abs()));
            for (id, value) in top {
                worst = worst.max((f64::from(row[id]) - value).abs() / largest);
            }
        }
    }
    println!("{name}: logits differ from transformers' by {worst:.2e} relative at most");
    assert!(worst < 1e-3, "{name}: {worst:e}");
}

#[test]
#[ignore = "needs IMMUNISE_MODELS and IMMUNISE_DATA"]
fn smollm2_has_the_reference_perplexity() {
    perplexity_is("smollm2", 23.09);
}

#[test]
#[ignore = "needs IMMUNISE_MODELS and IMMUNISE_DATA"]
fn qwen_has_the_reference_perplexity() {
    perplexity_is("qwen", 36.22);
}

#[test]
#[ignore = "needs IMMUNISE_MODELS and IMMUNISE_DATA"]
fn gemma_has_the_reference_perplexity() {
    perplexity_is("gemma3", 18.76);
}

#[test]
#[ignore = "needs IMMUNISE_MODELS and IMMUNISE_DATA"]
fn smollm2_gives_the_logits_of_transformers() {
    logits_are_those_of_transformers("smollm2");
}

#[test]
#[ignore = "needs IMMUNISE_MODELS and IMMUNISE_DATA"]
fn qwen_gives_the_logits_of_transformers() {
    logits_are_those_of_transformers("qwen");
}
