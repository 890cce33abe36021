//! Steps that a run consists of, on the CPU: train a block, fit an edit, answer prompts.

use std::time::Instant;

use candle_core::Device;
use immunise::checkpoint::Checkpoint;
use immunise::model::Decoder;
use immunise::model::generate::{Greedy, generate};
use serde_json::json;

use crate::folder::write;
use crate::pair::{Outcome, Pair, Peer};
use crate::shape::{random, smollm2, tokens};
use crate::steps::{AttackFit, BlockStep, described, with};

/// [`BlockStep`] on the CPU.
pub fn train_step() -> Outcome<Vec<Pair>> {
    const SHAPE: (usize, usize) = (16, 64);
    const RANK: usize = 4;
    let decoder = random(smollm2(1, 64), &Device::Cpu)?;
    let (rows, cols) = SHAPE;
    let settings = with(described(decoder.blueprint()), &json!({ "batch": rows, "tokens": cols, "rank": RANK }));
    let mut peer = Peer::start("train-step", &settings)?;
    let mut step = BlockStep::new(&decoder, SHAPE, RANK)?;
    let what = format!("train step of a block, {rows} x {cols} tokens, rank {RANK}");
    Ok(vec![Pair::run(what, "PyTorch eager", 30, || step.run(), || peer.time())?])
}

/// [`AttackFit`] on the CPU.
pub fn attack_fit() -> Outcome<Vec<Pair>> {
    let (above, steps) = (6, 10);
    let fit = AttackFit::new(random(smollm2(above, 8192), &Device::Cpu)?, 40, steps);
    let mut peer = Peer::start("attack-fit", &fit.described())?;
    let what = format!("attack fit, {steps} steps of {} x 48 tokens through {above} blocks", AttackFit::BATCH);
    Ok(vec![Pair::run(what, "PyTorch eager", 5, || fit.run(), || peer.time())?])
}

/// Greedy answers to prompts of several lengths.
pub fn generation() -> Outcome<Vec<Pair>> {
    let (rows, new) = (16, 32);
    let blueprint = smollm2(30, 49152);
    let folder = tempfile::tempdir()?;
    write(folder.path(), &blueprint, 1)?;
    let prompts: Vec<Vec<u32>> = (0..rows)
        .map(|row| tokens(1, 16 + 2 * row, blueprint.vocab, &format!("prompt {row}")).swap_remove(0))
        .collect();
    let settings = json!({ "dir": folder.path(), "prompts": &prompts, "new": new });
    let mut peer = Peer::start("generation", &settings)?;
    let decoder = Decoder::load(&Checkpoint::open(folder.path())?, &Device::Cpu)?;
    let options = Greedy { max_new_tokens: new, stop: vec![], pad: 0, batch: 16 };
    let ours = || -> Outcome<f64> {
        let start = Instant::now();
        generate(&decoder, &prompts, &[], &options)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let what = format!("generation, {rows} prompts of 16 to {} tokens, {new} new ones", 14 + 2 * rows);
    Ok(vec![Pair::run(what, "transformers", 3, ours, || peer.time())?])
}
