//! Steps that a run consists of: train a block, fit an edit, answer prompts.

use std::time::Instant;

use immunise::attack::form::Form;
use immunise::attack::learned::{Fit, fit};
use immunise::attack::{AttackData, Pair as Example};
use immunise::checkpoint::Checkpoint;
use immunise::defence::trainable::Trainable;
use immunise::intervention::Positions;
use immunise::math::seed::Stream;
use immunise::model::generate::{Greedy, generate};
use immunise::model::optimiser::{AdamSettings, AdamW, sharded_gradients};
use immunise::model::{Blueprint, Decoder, TokenBatch};
use serde_json::{Value, json};

use crate::pair::{Outcome, Pair, Peer};
use crate::shape::{noise, random, smollm2, tokens, write};

/// What the other side has to know of a model's shape.
pub fn described(blueprint: &Blueprint) -> Value {
    json!({
        "d_model": blueprint.d_model, "n_heads": blueprint.n_heads, "n_kv_heads": blueprint.n_kv_heads,
        "head_dim": blueprint.head_dim, "d_ff": blueprint.d_ff, "eps": blueprint.norm_eps,
        "theta": blueprint.ropes[0].theta, "vocab": blueprint.vocab, "n_layers": blueprint.n_layers,
    })
}

pub fn with(mut value: Value, more: &Value) -> Value {
    if let (Some(into), Some(from)) = (value.as_object_mut(), more.as_object()) {
        into.extend(from.clone());
    }
    value
}

/// One step of a block's adapters: forward, backward, Adam.
pub fn train_step() -> Outcome<Vec<Pair>> {
    const SHAPE: (usize, usize) = (16, 64);
    const RANK: usize = 4;
    let blueprint = smollm2(1, 64);
    let (rows, cols) = SHAPE;
    let settings = with(described(&blueprint), &json!({ "batch": rows, "tokens": cols, "rank": RANK }));
    let mut peer = Peer::start("train-step", &settings)?;
    let width = blueprint.d_model;
    let decoder = random(blueprint)?;
    let trainable = Trainable::fresh(&decoder, &[0], RANK, &mut Stream::new(0, "adapters"))?;
    let adapted = trainable.attach(&decoder)?;
    let mut adam = AdamW::new(trainable.vars(), AdamSettings::default());
    let batch = TokenBatch::prompts(&tokens(rows, cols, 64, "train"), 0);
    let [h, a, m] = ["h", "a", "m"].map(|name| noise(&[rows, cols, width], name));
    let (h, a, m) = (h?, a?, m?);
    let mut step = || -> Outcome<f64> {
        let start = Instant::now();
        let (gradients, _) = sharded_gradients(adam.vars(), 1, |_| {
            let (attention, mlp) = adapted.block_outputs(0, &h, &batch)?;
            Ok(((attention - &a)?.sqr()?.mean_all()? + (mlp - &m)?.sqr()?.mean_all()?)?)
        })?;
        adam.step(&gradients, 1e-3)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let what = format!("train step of a block, {rows} x {cols} tokens, rank {RANK}");
    Ok(vec![Pair::run(what, "PyTorch eager", 30, &mut step, || peer.time())?])
}

/// A whole fit of a learned edit below some blocks.
pub fn attack_fit() -> Outcome<Vec<Pair>> {
    let (above, vocab, pairs, steps, batch, rank) = (6, 8192, 40, 10, 10, 2);
    let (prompt, answer) = (24, 24);
    let blueprint = smollm2(above, vocab);
    let settings = json!({
        "above": above, "pairs": pairs, "steps": steps, "batch": batch, "rank": rank, "tokens": prompt + answer,
        "answer": answer,
    });
    let mut peer = Peer::start("attack-fit", &with(described(&blueprint), &settings))?;
    let decoder = random(blueprint)?;
    // The last two tokens of an answer are cut off by the attack itself.
    let (prompts, answers) = (tokens(pairs, prompt, vocab, "prompts"), tokens(pairs, answer + 2, vocab, "answers"));
    let pair = |(prompt, target)| Example { prompt, target, opening: None };
    let data = AttackData { pairs: prompts.into_iter().zip(answers).map(pair).collect(), ..AttackData::default() };
    let settings =
        Fit { form: Form::Noreft, layers: vec![0], rank, steps, batch, learning_rate: 4e-3, positions: Positions::All };
    let ours = || -> Outcome<f64> {
        let start = Instant::now();
        fit(&decoder, &data, pairs, &settings, None, None, &mut Stream::new(0, "fit"))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let what = format!("attack fit, {steps} steps of {batch} x {} tokens through {above} blocks", prompt + answer);
    Ok(vec![Pair::run(what, "PyTorch eager", 5, ours, || peer.time())?])
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
    let decoder = Decoder::load(&Checkpoint::open(folder.path())?, &candle_core::Device::Cpu)?;
    let options = Greedy { max_new_tokens: new, stop: vec![], pad: 0, batch: 16 };
    let ours = || -> Outcome<f64> {
        let start = Instant::now();
        generate(&decoder, &prompts, &[], &options)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let what = format!("generation, {rows} prompts of 16 to {} tokens, {new} new ones", 14 + 2 * rows);
    Ok(vec![Pair::run(what, "transformers", 3, ours, || peer.time())?])
}
