//! Defence of one block to equal neutralisation: `et-closed` and `et` against the reference's algorithm written plainly.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use candle_core::Tensor;
use immunise::checkpoint::Checkpoint;
use immunise::data::{Kind, PromptSet};
use immunise::defence::et::Faults;
use immunise::defence::spec::{EtClosedSpec, EtSpec};
use immunise::defence::trainable::merge;
use immunise::defence::{DefenceData, Dialogue, Forgetful, Given, Means, StageOutcome, Weighed, et, et_closed};
use immunise::event::Silent;
use immunise::intervention::{Edit, Placed};
use immunise::math::rows::orthonormal;
use immunise::math::seed::Stream;
use immunise::model::prompt::PromptEncoder;
use immunise::model::{Decoder, Hooks, Intervention as _, Point, Site, TokenBatch};
use serde_json::json;

use crate::folder::write;
use crate::pair::{Outcome, Pair, Peer};
use crate::shape::{smollm2, tokens};
use crate::steps::{Fixed, described, with};

const LAYER: usize = 12;
const LENGTH: usize = 32;
const TRAIN: usize = 96;
const HELD_OUT: usize = 32;
/// Size of the edit in units of the block input's mean norm.
const SIZE: f32 = 0.5;
/// The reference gets this many times our time before its turn ends, and no more than so many seconds.
const PATIENCE: (f64, f64) = (60.0, 300.0);

pub fn run() -> Outcome<Vec<Pair>> {
    let folder = tempfile::tempdir()?;
    let real = std::env::var_os("IMMUNISE_MODELS").map(|dir| PathBuf::from(dir).join("smollm2")).filter(|d| d.is_dir());
    let (dir, prompts) = match &real {
        Some(dir) => (dir.clone(), real_prompts(dir)?),
        None => {
            let blueprint = smollm2(30, 49152);
            write(folder.path(), &blueprint, 1)?;
            (folder.path().to_owned(), tokens(TRAIN + HELD_OUT, LENGTH, blueprint.vocab, "prompts"))
        }
    };
    let decoder = Decoder::load(&Checkpoint::open(&dir)?, &candle_core::Device::Cpu)?;
    let (train, held_out) = prompts.split_at(TRAIN);
    let edit = edit(&decoder, held_out)?;
    let Edit::LowRank { rank, w1, w2, .. } = &edit else { return Err("expected a low-rank edit".into()) };
    let factor = |values: &[f32]| Tensor::from_slice(values, (*rank, values.len() / rank), decoder.device());
    let factors = HashMap::from([("w1", factor(w1)?), ("w2", factor(w2)?)]);
    let edit_file = folder.path().join("edit.safetensors");
    safetensors::serialize_to_file(&factors, None, &edit_file)?;

    let dialogue = |prompt: &Vec<u32>| Dialogue { prompt: prompt.clone(), answer: vec![] };
    let data = DefenceData { hazards: train.iter().map(dialogue).collect(), ..DefenceData::default() };
    let adversary = Fixed(|_: &Decoder, _| edit.clone());
    let given = Given {
        weights: Weighed::from(&decoder),
        data: &data,
        adversary: &adversary,
        means: &Means::in_memory(1),
        seed: 0,
    };
    let target = Target::new(&decoder, held_out, &edit)?;
    let before = target.error(&decoder)?;
    let settings = json!({
        "file": dir.join("model.safetensors"), "edit": edit_file, "layer": LAYER, "rank": 2, "batch": 16,
        "learning_rate": 1e-4, "prompts": train, "held_out": held_out,
    });
    let settings = with(described(decoder.blueprint()), &settings);

    let closed = EtClosedSpec { rank: 8, bank: 1, prompts: TRAIN, anchors: 0, rounds: 1, ..EtClosedSpec::default() };
    let descent = EtSpec { prompts: TRAIN, anchors: 0, rounds: 1, steps: 60, ..EtSpec::default() };
    let store = Forgetful::default;
    let stages: [(&str, &dyn Fn() -> immunise::Result<StageOutcome>); 2] = [
        ("et-closed, rank 8", &|| {
            et_closed::run(&closed, et_closed::Reach::Own, &[LAYER], &given, &Silent, &mut store())
        }),
        ("et, rank 2, 60 steps", &|| et::run(&descent, Faults::Avoided, &[LAYER], &given, &Silent, &mut store())),
    ];
    let mut rows = Vec::new();
    for (name, stage) in stages {
        let start = Instant::now();
        let outcome = stage()?;
        let ours = start.elapsed().as_secs_f64();
        let reached = target.error(&merge(&decoder, &outcome.adapters)?)?;
        // The reference goes on until it is as good, or its patience ends.
        let mut peer = Peer::start("block-defence", &settings)?;
        let (mut theirs, mut steps, mut error) = (0.0, 0, f64::MAX);
        while error > reached && theirs < (PATIENCE.0 * ours).min(PATIENCE.1) {
            let answer = peer.ask("4")?;
            (theirs, steps, error) =
                (theirs + answer[0].as_f64().unwrap_or(0.0), steps + 4, answer[1].as_f64().unwrap_or(f64::MAX));
        }
        let told = if error <= reached { "reached" } else { "not reached" };
        let model = if real.is_some() { "SmolLM2-135M" } else { "random weights of its shape" };
        rows.push(Pair {
            what: format!("defence of block {LAYER} by {name} ({model})"),
            against: "the reference's algorithm in PyTorch",
            ours: vec![ours],
            theirs: vec![theirs],
            note: format!(
                "held-out error {before:.3} to {reached:.3}; {told} by the reference after {steps} steps: {error:.3}"
            ),
        });
    }
    Ok(rows)
}

/// What the adapted block should compute on edited held-out inputs.
struct Target<'a> {
    batch: TokenBatch,
    input: Tensor,
    clean: [Tensor; 2],
    placed: Placed,
    decoder: &'a Decoder,
}

impl<'a> Target<'a> {
    fn new(decoder: &'a Decoder, prompts: &[Vec<u32>], edit: &Edit) -> Outcome<Self> {
        let batch = TokenBatch::prompts(prompts, 0);
        let input = decoder.run(0..LAYER, &decoder.embed(&batch)?, &batch, &mut Hooks::none(), None)?;
        let (attention, mlp) = decoder.block_outputs(LAYER, &input, &batch)?;
        Ok(Self { clean: [attention, mlp], placed: edit.place(decoder.device())?, batch, input, decoder })
    }

    /// Squared error relative to the clean outputs' squared norms, mean over tokens but the first, attention and
    /// feed-forward part added: as the other side defines it.
    fn error(&self, hardened: &Decoder) -> Outcome<f64> {
        debug_assert_eq!(hardened.n_layers(), self.decoder.n_layers());
        let dirty = self.placed.apply(Site::new(LAYER, Point::ResidPre), &self.input)?;
        let (attention, mlp) = hardened.block_outputs(LAYER, &dirty, &self.batch)?;
        let mut total = 0.0;
        for (output, target) in [attention, mlp].iter().zip(&self.clean) {
            let tail = |t: &Tensor| t.narrow(1, 1, LENGTH - 1);
            let (output, target) = (tail(output)?, tail(target)?);
            let squares = target.sqr()?.sum_keepdim(2)?;
            let floor = f64::from(squares.mean_all()?.to_scalar::<f32>()?) * 1e-2;
            let relative = (output - target)?.sqr()?.sum_keepdim(2)?.div(&(squares + floor)?)?;
            total += f64::from(relative.mean_all()?.to_scalar::<f32>()?);
        }
        Ok(total)
    }
}

/// A random rank-2 edit that moves the block's input by [`SIZE`] of its norm.
fn edit(decoder: &Decoder, prompts: &[Vec<u32>]) -> Outcome<Edit> {
    let d = decoder.blueprint().d_model;
    let mut stream = Stream::new(4, "edit");
    let rows = orthonormal(&stream.uniform(4 * d, 1.0), d);
    let (w2, difference) = rows.split_at(2 * d);
    let make = |gain: f32| Edit::LowRank {
        layer: LAYER,
        rank: 2,
        w1: w2.iter().zip(difference).map(|(a, b)| a + gain * b).collect(),
        w2: w2.to_vec(),
    };
    let batch = TokenBatch::prompts(prompts, 0);
    let input = decoder.run(0..LAYER, &decoder.embed(&batch)?, &batch, &mut Hooks::none(), None)?;
    // Without the first token, whose activations are of another size in real models.
    let input = input.narrow(1, 1, LENGTH - 1)?.contiguous()?;
    let norm = |t: &Tensor| -> Outcome<f32> { Ok(t.sqr()?.sum(2)?.sqrt()?.mean_all()?.to_scalar::<f32>()?) };
    let moved = (make(1.0).place(decoder.device())?.apply(Site::new(LAYER, Point::ResidPre), &input)? - &input)?;
    Ok(make(SIZE * norm(&input)? / norm(&moved)?))
}

/// Ends of the bundled hazards' prompts, all of one length.
fn real_prompts(dir: &std::path::Path) -> Outcome<Vec<Vec<u32>>> {
    let encoder = PromptEncoder::open(dir)?;
    let set = PromptSet::builtin("prompts")?;
    let mut prompts = Vec::new();
    for row in set.examples.iter().filter(|row| row.kind == Kind::Hazard) {
        let ids = encoder.encode_chat(&row.prompt, None)?;
        if ids.len() >= LENGTH && prompts.len() < TRAIN + HELD_OUT {
            prompts.push(ids[ids.len() - LENGTH..].to_vec());
        }
    }
    if prompts.len() < TRAIN + HELD_OUT {
        return Err(format!("expected {} prompts of {LENGTH} tokens, got {}", TRAIN + HELD_OUT, prompts.len()).into());
    }
    Ok(prompts)
}
