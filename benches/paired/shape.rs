//! Models of a real one's shape with random weights: speed does not depend on what a model knows.

use candle_core::{DType, Device, Tensor};
use immunise::math::seed::Stream;
use immunise::model::frequencies::Rope;
use immunise::model::{Blueprint, Decoder};

use crate::pair::Outcome;

/// SmolLM2-135M's block, with as many blocks and tokens as a measurement needs.
pub fn smollm2(n_layers: usize, vocab: usize) -> Blueprint {
    Blueprint {
        family: "llama",
        vocab,
        d_model: 576,
        n_layers,
        n_heads: 9,
        n_kv_heads: 3,
        head_dim: 64,
        d_ff: 1536,
        norm_eps: 1e-5,
        ropes: vec![Rope::new(1e5)],
        max_positions: 2048,
        tied: true,
        ..Blueprint::default()
    }
}

/// Random weights: gains of one, maps that keep the stream's scale; matrices in bf16 on an accelerator.
pub fn random(blueprint: Blueprint, device: &Device) -> Outcome<Decoder> {
    let mut stream = Stream::new(0, "bench weights");
    let decoder = Decoder::from_weights(blueprint, device, |_, shape| {
        let weight = weight(shape, &mut stream)?;
        let narrow = shape.len() == 2 && !device.is_cpu();
        Ok(weight.to_dtype(if narrow { DType::BF16 } else { DType::F32 })?.to_device(device)?)
    });
    Ok(decoder?)
}

/// A gain of ones, or a matrix that keeps the scale of what it maps.
pub fn weight(shape: &[usize], stream: &mut Stream) -> immunise::Result<Tensor> {
    let values = match shape {
        [width] => vec![1.0; *width],
        _ => stream.uniform(shape.iter().product(), (3.0 / shape[1] as f64).sqrt() * 0.5),
    };
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Values of `shape`, uniform in ±1.
pub fn noise(shape: &[usize], name: &str, device: &Device) -> Outcome<Tensor> {
    let values = Stream::new(1, name).uniform(shape.iter().product(), 1.0);
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// Token ids below `vocab`.
pub fn tokens(rows: usize, length: usize, vocab: usize, name: &str) -> Vec<Vec<u32>> {
    let mut stream = Stream::new(2, name);
    (0..rows).map(|_| (0..length).map(|_| stream.below(vocab) as u32).collect()).collect()
}
