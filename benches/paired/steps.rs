//! Steps that a run consists of, wherever they are computed: train a block, fit an edit.

use std::time::Instant;

use candle_core::{DType, Tensor};
use immunise::attack::form::Form;
use immunise::attack::learned::{Fit, fit};
use immunise::attack::{AttackData, Pair as Example};
use immunise::defence::Adversary;
use immunise::defence::trainable::Trainable;
use immunise::intervention::{Edit, Positions};
use immunise::math::seed::Stream;
use immunise::model::loss::squared_distance;
use immunise::model::optimiser::{AdamSettings, AdamW, sharded_gradients};
use immunise::model::{Blueprint, Decoder, TokenBatch};
use serde_json::{Value, json};

use crate::pair::Outcome;
use crate::shape::{noise, tokens};

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

/// One step of a block's adapters towards targets: forward, backward, Adam.
pub struct BlockStep {
    adapted: Decoder,
    adam: AdamW,
    batch: TokenBatch,
    input: Tensor,
    targets: [Tensor; 2],
    /// Of every token, so that the loss is the mean over all values.
    weights: Tensor,
}

impl BlockStep {
    /// On block 0 of `decoder`, `rows` times `cols` tokens, adapters of `rank`.
    pub fn new(decoder: &Decoder, (rows, cols): (usize, usize), rank: usize) -> Outcome<Self> {
        let (vocab, width) = (decoder.blueprint().vocab, decoder.blueprint().d_model);
        let trainable = Trainable::fresh(decoder, &[0], rank, &mut Stream::new(0, "adapters"))?;
        let like = |name: &str| noise(&[rows, cols, width], name, decoder.device());
        Ok(Self {
            adapted: trainable.attach(decoder)?,
            adam: AdamW::new(trainable.vars(), AdamSettings::default()),
            batch: TokenBatch::prompts(&tokens(rows, cols, vocab, "train"), 0),
            input: like("h")?,
            targets: [like("a")?, like("m")?],
            weights: (Tensor::ones((rows * cols, 1), DType::F32, decoder.device())? / (rows * cols * width) as f64)?,
        })
    }

    /// Seconds of one step.
    pub fn run(&mut self) -> Outcome<f64> {
        let Self { adapted, adam, batch, input, targets: [a, m], weights } = self;
        let start = Instant::now();
        let (gradients, _) = sharded_gradients(adam.vars(), 1, |_| {
            let (attention, mlp) = adapted.block_outputs(0, input, batch)?;
            let rows = |t: &Tensor| t.reshape(((), t.dim(2)?));
            let distance = |output: &Tensor, target| squared_distance(&rows(output)?, &rows(target)?, weights);
            Ok((distance(&attention, a)? + distance(&mlp, m)?)?)
        })?;
        adam.step(&gradients, 1e-3)?;
        input.device().synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// A whole fit of a learned edit of block 0's input, through all blocks.
pub struct AttackFit {
    decoder: Decoder,
    data: AttackData,
    settings: Fit,
}

impl AttackFit {
    /// Tokens of a prompt and of the part of an answer that is trained on.
    pub const LENGTHS: (usize, usize) = (24, 24);
    pub const RANK: usize = 2;
    pub const BATCH: usize = 10;

    pub fn new(decoder: Decoder, pairs: usize, steps: usize) -> Self {
        let (vocab, (prompt, answer)) = (decoder.blueprint().vocab, Self::LENGTHS);
        let (prompts, answers) = (tokens(pairs, prompt, vocab, "prompts"), tokens(pairs, answer, vocab, "answers"));
        let pair = |(prompt, target)| Example { prompt, target, opening: None };
        let data = AttackData { pairs: prompts.into_iter().zip(answers).map(pair).collect(), ..AttackData::default() };
        let settings = Fit {
            form: Form::Noreft,
            layers: vec![0],
            rank: Self::RANK,
            pairs,
            steps,
            batch: Self::BATCH,
            learning_rate: 4e-3,
            positions: Positions::All,
        };
        Self { decoder, data, settings }
    }

    /// What the other side has to know.
    pub fn described(&self) -> Value {
        let (prompt, answer) = Self::LENGTHS;
        let settings = json!({
            "above": self.decoder.n_layers(), "pairs": self.settings.pairs, "steps": self.settings.steps, "batch": Self::BATCH,
            "rank": Self::RANK, "tokens": prompt + answer, "answer": answer,
        });
        with(described(self.decoder.blueprint()), &settings)
    }

    /// Seconds of one fit.
    pub fn run(&self) -> Outcome<f64> {
        let start = Instant::now();
        fit(&self.decoder, &self.data, &self.settings, &mut Stream::new(0, "fit"))?;
        self.decoder.device().synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// An adversary whose edit of a block never changes: what is measured is the defence.
pub struct Fixed<F>(pub F);

impl<F: Fn(&Decoder, usize) -> Edit + Sync> Adversary for Fixed<F> {
    fn fit(&self, decoder: &Decoder, layer: usize, _: usize) -> immunise::Result<Edit> {
        Ok((self.0)(decoder, layer))
    }

    fn success(&self, _: &Decoder, _: &Edit) -> immunise::Result<f64> {
        Ok(0.0)
    }
}
