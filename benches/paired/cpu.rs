//! Steps that a run consists of, on the CPU: train a block, fit an edit, answer prompts.

use std::sync::Arc;
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

/// Matrices that stay in the checkpoint's files as bf16 beside the same ones held in memory as f32: what that saves in memory costs in
/// time.
pub fn stored_weights() -> Outcome<Vec<Pair>> {
    const HELD: &str = "held in memory, f32";
    let folder = tempfile::tempdir()?;
    write(folder.path(), &smollm2(30, 49152), 1)?;
    let checkpoint = Arc::new(Checkpoint::open(folder.path())?);
    let (stored, held) = (Decoder::stream(&checkpoint, &Device::Cpu)?, Decoder::load(&checkpoint, &Device::Cpu)?);
    let [mut ours, mut theirs] = [BlockStep::new(&stored, (16, 64), 4)?, BlockStep::new(&held, (16, 64), 4)?];
    let step = Pair::run("train step of a block, weights stored", HELD, 30, || ours.run(), || theirs.run())?;
    let answers = |decoder: &Decoder, prompts: usize| -> Outcome<f64> {
        let options = Greedy { max_new_tokens: 16, stop: vec![], pad: 0, batch: prompts };
        let prompts = tokens(prompts, 24, decoder.blueprint().vocab, "prompts");
        let start = Instant::now();
        generate(decoder, &prompts, &[], &options)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let mut rows = vec![step];
    for prompts in [1, 16, 64] {
        let what = format!("generation, {prompts} prompts of 24 tokens, 16 new ones, weights stored");
        rows.push(Pair::run(what, HELD, 3, || answers(&stored, prompts), || answers(&held, prompts))?);
    }
    Ok(rows)
}

/// What a step costs at other ranks, for more or fewer tokens and through more or fewer blocks, each beside what the other tasks measure.
pub fn cost() -> Outcome<Vec<Pair>> {
    const SHAPE: (usize, usize) = (16, 64);
    const RANK: usize = 4;
    let block = random(smollm2(1, 64), &Device::Cpu)?;
    let mut rows = vec![];
    let mut step = |(count, tokens): (usize, usize), rank: usize| -> Outcome<()> {
        let [mut ours, mut theirs] =
            [BlockStep::new(&block, (count, tokens), rank)?, BlockStep::new(&block, SHAPE, RANK)?];
        let what = format!("train step of a block, {count} x {tokens} tokens, rank {rank}");
        rows.push(Pair::run(what, "16 x 64 tokens, rank 4", 15, || ours.run(), || theirs.run())?);
        Ok(())
    };
    for rank in [1, 16, 64, 576] {
        step(SHAPE, rank)?;
    }
    for shape in [(4, 64), (8, 64), (32, 64), (8, 128), (4, 256)] {
        step(shape, RANK)?;
    }
    let fit =
        |above: usize| -> Outcome<AttackFit> { Ok(AttackFit::new(random(smollm2(above, 8192), &Device::Cpu)?, 40, 5)) };
    let six = fit(6)?;
    for above in [1, 3, 12, 30] {
        let fit = fit(above)?;
        let what = format!("attack fit, 5 steps of {} x 48 tokens through {above} blocks", AttackFit::BATCH);
        rows.push(Pair::run(what, "through 6 blocks", 3, || fit.run(), || six.run())?);
    }
    Ok(rows)
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
