//! Blocks computed again in the backward pass: the same values and gradients to the bit, and a fraction of the memory.

use std::alloc::System;
use std::sync::Mutex;

use candle_core::{Device, Tensor, Var};
use cap::Cap;
use immunise::Result;
use immunise::defence::trainable::Trainable;
use immunise::math::seed::Stream;
use immunise::model::loss::cross_entropy;
use immunise::model::optimiser::{host_values, sharded_gradients};
use immunise::model::{Blueprint, Decoder, Hooks, Intervention, Point, Site, TokenBatch};

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// One test at a time, or they would count each other's memory.
static ALONE: Mutex<()> = Mutex::new(());

fn decoder() -> Decoder {
    let blueprint = Blueprint {
        family: "qwen2",
        vocab: 64,
        d_model: 32,
        n_layers: 8,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
        d_ff: 96,
        norm_eps: 1e-5,
        max_positions: 64,
        tied: true,
        qkv_bias: true,
        ..Blueprint::default()
    };
    let mut stream = Stream::new(7, "weights");
    Decoder::from_weights(blueprint, &Device::Cpu, |name, shape| {
        let std = if name.ends_with("norm.weight") { 0.1 } else { 0.2 };
        let values = Tensor::from_vec(stream.gaussian(shape.iter().product(), std), shape, &Device::Cpu)?;
        Ok(if name.ends_with("norm.weight") { (values + 1.0)? } else { values })
    })
    .unwrap()
}

fn batch() -> TokenBatch {
    let dialogue = |i: u32| -> (Vec<u32>, Vec<u32>) { ((0..20 + i % 5).collect(), (i..i + 12).collect()) };
    let (prompts, answers): (Vec<_>, Vec<_>) = (0..16).map(dialogue).unzip();
    TokenBatch::dialogues(&prompts, &answers, 0)
}

/// Adds a trained vector at one site.
struct Added {
    site: Site,
    vector: Var,
}

impl Intervention for Added {
    fn apply(&self, _: Site, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_add(self.vector.as_tensor())?)
    }

    fn acts_at(&self, site: Site) -> bool {
        site == self.site
    }
}

fn loss(decoder: &Decoder, edit: &Added) -> Result<Tensor> {
    let batch = batch();
    let hidden = decoder.hidden(&batch, &mut Hooks::edit(edit, Default::default()), None)?;
    let (positions, targets) = batch.answer_targets();
    let weights = vec![1.0 / targets.len() as f32; targets.len()];
    cross_entropy(&decoder.logits_at(&hidden, &positions)?, &targets, &weights)
}

/// Loss and gradients as bits.
fn bits(decoder: &Decoder, vars: &[Var], edit: &Added) -> Vec<Option<Vec<u32>>> {
    let vars: Vec<Var> = vars.iter().chain([&edit.vector]).cloned().collect();
    let (gradients, losses) = sharded_gradients(&vars, 1, |_| loss(decoder, edit)).unwrap();
    let of = |tensor: &Tensor| host_values(tensor).unwrap().into_iter().map(f32::to_bits).collect();
    gradients.iter().chain([&Some(losses[0].clone())]).map(|gradient| gradient.as_ref().map(of)).collect()
}

#[test]
fn values_and_gradients_are_the_same_to_the_bit_wherever_the_edit_acts() {
    let _alone = ALONE.lock().unwrap();
    let base = decoder();
    let mut stream = Stream::new(3, "changes");
    let factors = Trainable::fresh(&base, &[1, 2, 5], 2, &mut stream).unwrap();
    for (i, var) in factors.vars().iter().enumerate() {
        let values = Stream::new(i as u64, "factor").gaussian(var.elem_count(), 0.1);
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    let weights = Trainable::weights(&base, &[0, 7]).unwrap();
    for (trained, what) in [(&factors, "factors"), (&weights, "weights")] {
        let adapted = trained.attach(&base).unwrap();
        for point in [Point::ResidPre, Point::Z, Point::ResidMid, Point::ResidPost] {
            let vector = Var::from_tensor(&Tensor::full(0.3_f32, 32, &Device::Cpu).unwrap()).unwrap();
            let edit = Added { site: Site::new(3, point), vector };
            let kept = bits(&adapted, &trained.vars(), &edit);
            assert!(kept.iter().all(Option::is_some), "{what}: every gradient is wanted");
            let again = bits(&adapted.clone().recomputing(true), &trained.vars(), &edit);
            assert!(kept == again, "{what}, edit at {}", edit.site);
        }
    }
}

#[test]
fn a_pass_keeps_the_blocks_inputs_and_no_more() {
    let _alone = ALONE.lock().unwrap();
    let base = decoder();
    let adapted = Trainable::fresh(&base, &[1, 2, 5], 2, &mut Stream::new(3, "changes")).unwrap();
    let adapted = adapted.attach(&base).unwrap();
    let vector = Var::zeros(32, candle_core::DType::F32, &Device::Cpu).unwrap();
    let edit = Added { site: Site::new(0, Point::ResidPre), vector };
    let kept_by = |decoder: &Decoder| {
        let before = MEMORY.allocated();
        let value = loss(decoder, &edit).unwrap();
        let kept = MEMORY.allocated() - before;
        drop(value);
        kept
    };
    // What is set up once comes first.
    kept_by(&adapted);
    let (all, inputs) = (kept_by(&adapted), kept_by(&adapted.clone().recomputing(true)));
    assert!(8 * inputs < all, "{inputs} bytes of {all}");
}
