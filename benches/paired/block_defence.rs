//! Defence of one block to equal neutralisation: `et-closed` and `et` against the reference's algorithm written plainly, and `et-closed`
//! against `et`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use candle_core::Tensor;
use immunise::checkpoint::Checkpoint;
use immunise::data::{Kind, PromptSet};
use immunise::defence::et::Faults;
use immunise::defence::spec::{EtClosedSpec, EtSpec};
use immunise::defence::trainable::merge;
use immunise::defence::{DefenceData, Dialogue, Forgetful, Given, Means, Weighed, et, et_closed};
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
/// Turns of `et-closed` and `et` beside one another.
const TURNS: usize = 3;

/// A block, its prompts, and the edit that it is to ignore.
struct Block {
    folder: tempfile::TempDir,
    dir: PathBuf,
    model: &'static str,
    decoder: Decoder,
    prompts: Vec<Vec<u32>>,
    edit: Edit,
}

impl Block {
    fn prepare() -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let real =
            std::env::var_os("IMMUNISE_MODELS").map(|dir| PathBuf::from(dir).join("smollm2")).filter(|d| d.is_dir());
        let (dir, prompts, model) = match real {
            Some(dir) => (dir.clone(), real_prompts(&dir)?, "SmolLM2-135M"),
            None => {
                let blueprint = smollm2(30, 49152);
                write(folder.path(), &blueprint, 1)?;
                let prompts = tokens(TRAIN + HELD_OUT, LENGTH, blueprint.vocab, "prompts");
                (folder.path().to_owned(), prompts, "random weights of its shape")
            }
        };
        let decoder = Decoder::load(&Checkpoint::open(&dir)?, &candle_core::Device::Cpu)?;
        let edit = edit(&decoder, &prompts[TRAIN..])?;
        Ok(Self { folder, dir, model, decoder, prompts, edit })
    }

    /// Seconds that `stage` takes to make the block ignore the edit, and the held-out error that it ends with.
    fn timed(&self, target: &Target<'_>, stage: &Stage) -> Outcome<(f64, f64)> {
        let dialogue = |prompt: &Vec<u32>| Dialogue { prompt: prompt.clone(), answer: vec![] };
        let hazards = self.prompts[..TRAIN].iter().map(dialogue).collect();
        let data = DefenceData { hazards, ..DefenceData::default() };
        let adversary = Fixed(|_: &Decoder, _| self.edit.clone());
        let means = Means::in_memory(1);
        let weights = Weighed::from(&self.decoder);
        let given = Given { weights, data: &data, adversary: &adversary, means: &means, seed: 0 };
        let mut store = Forgetful::default();
        let start = Instant::now();
        let outcome = match stage {
            Stage::Closed(spec) => et_closed::run(spec, et_closed::Reach::Own, &[LAYER], &given, &Silent, &mut store)?,
            Stage::Descent(spec) => et::run(spec, Faults::Avoided, &[LAYER], &given, &Silent, &mut store)?,
        };
        let seconds = start.elapsed().as_secs_f64();
        Ok((seconds, target.error(&merge(&self.decoder, &outcome.adapters)?)?))
    }
}

/// A stage that defends one block against one edit in one round.
enum Stage {
    Closed(EtClosedSpec),
    Descent(EtSpec),
}

impl Stage {
    fn closed(prompts: usize) -> Self {
        Self::Closed(EtClosedSpec { rank: 8, bank: 1, prompts, anchors: 0, rounds: 1, ..EtClosedSpec::default() })
    }

    fn descent(steps: usize) -> Self {
        Self::Descent(EtSpec { prompts: TRAIN, anchors: 0, rounds: 1, steps, ..EtSpec::default() })
    }
}

/// `et` with its default steps, and `et-closed` on the fewest prompts, of 4 and its doubles, with which it ends no worse.
pub fn closed_form() -> Outcome<Vec<Pair>> {
    let block = Block::prepare()?;
    let target = Target::new(&block.decoder, &block.prompts[TRAIN..], &block.edit)?;
    let steps = EtSpec::default().steps;
    let (first, aimed) = block.timed(&target, &Stage::descent(steps))?;
    let mut prompts = 4;
    let (mut ours, mut theirs) = (vec![], vec![first]);
    let reached = loop {
        let (seconds, error) = block.timed(&target, &Stage::closed(prompts))?;
        if error <= aimed || prompts == TRAIN {
            ours.push(seconds);
            break error;
        }
        prompts = TRAIN.min(2 * prompts);
    };
    for _ in 1..TURNS {
        theirs.push(block.timed(&target, &Stage::descent(steps))?.0);
        ours.push(block.timed(&target, &Stage::closed(prompts))?.0);
    }
    Ok(vec![Pair {
        what: format!("defence of block {LAYER} by et-closed, rank 8, {prompts} prompts ({})", block.model),
        against: "our own `et`, rank 2, as many steps as by default",
        ours,
        theirs,
        note: format!("held-out error {reached:.3} by et-closed, {aimed:.3} by {steps} steps of et"),
    }])
}

/// `et-closed` and `et` against the reference.
pub fn run() -> Outcome<Vec<Pair>> {
    let block = Block::prepare()?;
    let Edit::LowRank { rank, w1, w2, .. } = &block.edit else { return Err("expected a low-rank edit".into()) };
    let factor = |values: &[f32]| Tensor::from_slice(values, (*rank, values.len() / rank), block.decoder.device());
    let factors = HashMap::from([("w1", factor(w1)?), ("w2", factor(w2)?)]);
    let edit_file = block.folder.path().join("edit.safetensors");
    safetensors::serialize_to_file(&factors, None, &edit_file)?;
    let (train, held_out) = block.prompts.split_at(TRAIN);
    let target = Target::new(&block.decoder, held_out, &block.edit)?;
    let before = target.error(&block.decoder)?;
    let settings = json!({
        "file": block.dir.join("model.safetensors"), "edit": edit_file, "layer": LAYER, "rank": 2, "batch": 16,
        "learning_rate": 1e-4, "prompts": train, "held_out": held_out,
    });
    let settings = with(described(block.decoder.blueprint()), &settings);

    let stages = [("et-closed, rank 8", Stage::closed(TRAIN)), ("et, rank 2, 60 steps", Stage::descent(60))];
    let mut rows = Vec::new();
    for (name, stage) in stages {
        let (ours, reached) = block.timed(&target, &stage)?;
        // The reference goes on until it is as good, or its patience ends.
        let mut peer = Peer::start("block-defence", &settings)?;
        let (mut theirs, mut steps, mut error) = (0.0, 0, f64::MAX);
        while error > reached && theirs < (PATIENCE.0 * ours).min(PATIENCE.1) {
            let answer = peer.ask("4")?;
            (theirs, steps, error) =
                (theirs + answer[0].as_f64().unwrap_or(0.0), steps + 4, answer[1].as_f64().unwrap_or(f64::MAX));
        }
        let told = if error <= reached { "reached" } else { "not reached" };
        rows.push(Pair {
            what: format!("defence of block {LAYER} by {name} ({})", block.model),
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
