//! Gradients of the decoder against finite differences, for every adapted matrix and for the block input, and the fused
//! operations against their plain twins.

use candle_core::{Device, Tensor, Var};
use immunise::Result;
use immunise::math::seed::Stream;
use immunise::model::attention::{AttentionShape, attend, attend_plain};
use immunise::model::cap::{soft_cap, soft_cap_plain};
use immunise::model::frequencies::{Rope, RopeScaling};
use immunise::model::linear::LowRank;
use immunise::model::loss::{cross_entropy, kl_divergence, log_probabilities};
use immunise::model::low_rank::{plus_low_rank, plus_low_rank_plain};
use immunise::model::mlp::{geglu, geglu_plain, swiglu, swiglu_plain};
use immunise::model::norm::{layer_norm, layer_norm_plain, rms_norm, rms_norm_plain};
use immunise::model::rope::{RopeTable, RowPositions};
use immunise::model::{Blueprint, Decoder, Hooks, Module, TokenBatch};

fn blueprint(qkv_bias: bool) -> Blueprint {
    Blueprint {
        family: if qkv_bias { "qwen2" } else { "llama" },
        vocab: 23,
        d_model: 12,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 4,
        d_ff: 20,
        norm_eps: 1e-5,
        max_positions: 32,
        tied: true,
        qkv_bias,
        ..Blueprint::default()
    }
}

fn random(stream: &mut Stream, shape: &[usize], std: f64) -> Result<Tensor> {
    let values = stream.gaussian(shape.iter().product(), std);
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn decoder(qkv_bias: bool) -> Decoder {
    let mut stream = Stream::new(7, "weights");
    Decoder::from_weights(blueprint(qkv_bias), &Device::Cpu, |name, shape| {
        if name.ends_with("norm.weight") {
            return Ok((random(&mut stream, shape, 0.1)? + 1.0)?);
        }
        random(&mut stream, shape, 0.35)
    })
    .unwrap()
}

fn batch() -> TokenBatch {
    TokenBatch::dialogues(&[vec![1, 5, 9, 2], vec![3, 8]], &[vec![4, 6, 7], vec![11, 12]], 0)
}

fn answer_loss(decoder: &Decoder, hidden: &Tensor) -> Result<Tensor> {
    let (positions, targets) = batch().answer_targets();
    let weights = vec![1.0 / targets.len() as f32; targets.len()];
    cross_entropy(&decoder.logits_at(hidden, &positions)?, &targets, &weights)
}

/// Largest difference between `gradient` and central differences of `loss` over the entries of `values`, relative to the
/// gradient's largest entry.
fn worst_error(values: &Tensor, gradient: &Tensor, loss: impl Fn(&Tensor) -> f64) -> f64 {
    let base = values.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let scale = gradient.iter().fold(1e-3_f32, |m, g| m.max(g.abs()));
    let step = 1e-2_f32;
    let mut worst = 0_f64;
    for i in (0..base.len()).step_by((base.len() / 40).max(1)) {
        let at = |shift: f32| {
            let mut moved = base.clone();
            moved[i] += shift;
            loss(&Tensor::from_vec(moved, values.shape(), values.device()).unwrap())
        };
        // Richardson extrapolation removes the second-order error, so that a step large enough for f32 can be taken.
        let wide = (at(step) - at(-step)) / (2.0 * f64::from(step));
        let narrow = (at(step / 2.0) - at(-step / 2.0)) / f64::from(step);
        let slope = (4.0 * narrow - wide) / 3.0;
        worst = worst.max((slope - f64::from(gradient[i])).abs() / f64::from(scale));
    }
    worst
}

fn scalar(tensor: &Tensor) -> f64 {
    f64::from(tensor.to_scalar::<f32>().unwrap())
}

#[test]
fn every_adapted_matrix_has_the_gradient_of_finite_differences() {
    for qkv_bias in [false, true] {
        let base = decoder(qkv_bias);
        let mut stream = Stream::new(1, "adapters");
        for layer in 0..2 {
            for module in Module::ALL {
                let [d_out, d_in] = base.blueprint().weight_shape(module);
                let a = Var::from_tensor(&random(&mut stream, &[3, d_in], 0.3).unwrap()).unwrap();
                let b = Var::from_tensor(&random(&mut stream, &[d_out, 3], 0.3).unwrap()).unwrap();
                let with = |a: &Tensor, b: &Tensor| {
                    base.map_blocks(|l, block| {
                        if l != layer {
                            return Ok(block.clone());
                        }
                        let low = LowRank { a: a.clone(), b: b.clone(), scale: 0.7 };
                        Ok(block.clone().with_map(module, block.map(module).with_adapter(low)?))
                    })
                    .unwrap()
                };
                let loss = |a: &Tensor, b: &Tensor| {
                    let decoder = with(a, b);
                    answer_loss(&decoder, &decoder.hidden(&batch(), &mut Hooks::none(), None).unwrap()).unwrap()
                };
                let value = loss(a.as_tensor(), b.as_tensor());
                assert!(value.track_op());
                let gradients = value.backward().unwrap();
                let (da, db) = (gradients.get(&a).unwrap(), gradients.get(&b).unwrap());
                let error_a = worst_error(a.as_tensor(), da, |t| scalar(&loss(t, b.as_tensor())));
                let error_b = worst_error(b.as_tensor(), db, |t| scalar(&loss(a.as_tensor(), t)));
                assert!(error_a < 3e-3 && error_b < 3e-3, "block {layer} {module}: {error_a} {error_b}");
            }
        }
    }
}

#[test]
fn every_trainable_weight_has_the_gradient_of_finite_differences() {
    let base = decoder(true);
    for module in Module::ALL {
        let weight = Var::from_tensor(&base.block(1).map(module).weight().tensor().unwrap()).unwrap();
        let loss = |w: &Tensor| {
            let decoder = base
                .map_blocks(|l, block| {
                    let map = block.map(module).with_weight(w.clone());
                    Ok(if l == 1 { block.clone().with_map(module, map) } else { block.clone() })
                })
                .unwrap();
            answer_loss(&decoder, &decoder.hidden(&batch(), &mut Hooks::none(), None).unwrap()).unwrap()
        };
        let gradients = loss(weight.as_tensor()).backward().unwrap();
        let error = worst_error(weight.as_tensor(), gradients.get(&weight).unwrap(), |t| scalar(&loss(t)));
        assert!(error < 3e-3, "{module}: {error}");
    }
}

#[test]
fn the_block_input_has_the_gradient_of_finite_differences() {
    let decoder = decoder(true);
    let input = Var::from_tensor(&decoder.embed(&batch()).unwrap()).unwrap();
    let loss =
        |h: &Tensor| answer_loss(&decoder, &decoder.run(0..2, h, &batch(), &mut Hooks::none(), None).unwrap()).unwrap();
    let gradients = loss(input.as_tensor()).backward().unwrap();
    let error = worst_error(input.as_tensor(), gradients.get(&input).unwrap(), |t| scalar(&loss(t)));
    assert!(error < 3e-3, "{error}");
}

#[test]
fn the_divergence_has_the_gradient_of_finite_differences() {
    let mut stream = Stream::new(5, "logits");
    let logits = Var::from_tensor(&random(&mut stream, &[3, 9], 1.0).unwrap()).unwrap();
    let reference = log_probabilities(&random(&mut stream, &[3, 9], 1.0).unwrap()).unwrap();
    let loss = |x: &Tensor| kl_divergence(x, &reference, &[0.2, 0.5, 0.3]).unwrap();
    let gradients = loss(logits.as_tensor()).backward().unwrap();
    let error = worst_error(logits.as_tensor(), gradients.get(&logits).unwrap(), |t| scalar(&loss(t)));
    assert!(error < 3e-3, "{error}");
    assert!(scalar(&kl_divergence(&reference, &reference, &[1.0; 3]).unwrap()).abs() < 1e-6);
}

fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    let scale = scalar(&b.abs().unwrap().flatten_all().unwrap().max(0).unwrap()).max(1e-6);
    let worst = scalar(&(a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap());
    assert!(worst / scale < tolerance, "differ by {worst} of {scale}");
}

/// Compares value and gradients of a fused operation and its plain twin under a random linear functional.
fn same_operation(inputs: &[Tensor], fused: impl Fn(&[Tensor]) -> Tensor, plain: impl Fn(&[Tensor]) -> Tensor) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let (x, y) = (fused(&tensors), plain(&tensors));
    assert!(x.track_op(), "the fused operation is not differentiable");
    close(&x, &y, 1e-5);
    let functional = random(&mut Stream::new(9, "functional"), x.dims(), 1.0).unwrap();
    let gradient = |out: &Tensor| (out * &functional).unwrap().sum_all().unwrap().backward().unwrap();
    let (gx, gy) = (gradient(&x), gradient(&y));
    for var in &vars {
        close(gx.get(var).unwrap(), gy.get(var).unwrap(), 1e-5);
    }
}

#[test]
fn fused_operations_equal_their_plain_twins() {
    let mut stream = Stream::new(2, "inputs");
    let mut draw = |shape: &[usize]| random(&mut stream, shape, 1.0).unwrap();
    same_operation(
        &[draw(&[2, 5, 12]), draw(&[12])],
        |t| rms_norm(&t[0], &t[1], 1e-5).unwrap(),
        |t| rms_norm_plain(&t[0], &t[1], 1e-5).unwrap(),
    );
    same_operation(
        &[draw(&[2, 700, 20]), draw(&[2, 700, 20])],
        |t| swiglu(&t[0], &t[1]).unwrap(),
        |t| swiglu_plain(&t[0], &t[1]).unwrap(),
    );
    same_operation(
        &[draw(&[2, 700, 20]), draw(&[2, 700, 20])],
        |t| geglu(&t[0], &t[1]).unwrap(),
        |t| geglu_plain(&t[0], &t[1]).unwrap(),
    );
    same_operation(
        &[(draw(&[2, 5, 12]) + 3.0).unwrap(), draw(&[12]), draw(&[12])],
        |t| layer_norm(&t[0], &t[1], &t[2], 1e-5).unwrap(),
        |t| layer_norm_plain(&t[0], &t[1], &t[2], 1e-5).unwrap(),
    );
    same_operation(
        &[(draw(&[3, 900]) * 4.0).unwrap()],
        |t| soft_cap(&t[0], 5.0).unwrap(),
        |t| soft_cap_plain(&t[0], 5.0).unwrap(),
    );
    for rank in [1, 3] {
        same_operation(
            &[draw(&[2, 5, 12]), draw(&[rank, 12]), draw(&[rank, 12])],
            |t| plus_low_rank(&t[0], &t[1], &t[2]).unwrap(),
            |t| plus_low_rank_plain(&t[0], &t[1], &t[2]).unwrap(),
        );
    }
}

#[test]
fn every_rotation_equals_its_plain_twin() {
    let mut stream = Stream::new(2, "rotations");
    let divisors = |at: f64| vec![at, 2.0 * at];
    let long = RopeScaling::Long { short: divisors(1.0), long: divisors(1.5), original: 5, amplitude: 1.2 };
    let ropes =
        [Rope::new(1e4), Rope { fraction: 0.7, ..Rope::new(1e4) }, Rope { theta: 1e4, fraction: 0.7, scaling: long }];
    for (rope, past) in ropes.iter().zip([2, 2, 0]) {
        let table = RopeTable::new(rope, 6, 16);
        let rows = RowPositions { pads: std::sync::Arc::new(vec![0, 3]), past };
        same_operation(
            &[random(&mut stream, &[2, 7, 24], 1.0).unwrap()],
            |t| table.rotate(&t[0], &rows).unwrap(),
            |t| table.rotate_plain(&t[0], &rows).unwrap(),
        );
    }
}

#[test]
fn a_sequence_must_not_outgrow_its_cached_keys_angles() {
    let scaling = RopeScaling::Long { short: vec![1.0; 3], long: vec![2.0; 3], original: 5, amplitude: 1.0 };
    let table = RopeTable::new(&Rope { theta: 1e4, fraction: 1.0, scaling }, 6, 16);
    let x = Tensor::zeros((1, 2, 6), candle_core::DType::F32, &Device::Cpu).unwrap();
    let rotate = |past: usize| table.rotate(&x, &RowPositions { pads: std::sync::Arc::new(vec![1]), past });
    assert!(rotate(1).is_ok() && rotate(4).is_ok() && rotate(7).is_ok());
    assert!(rotate(5).unwrap_err().to_string().contains("stays within 5 tokens"));
}

#[test]
fn every_attention_equals_its_plain_twin() {
    let mut stream = Stream::new(2, "attention");
    let pads = std::sync::Arc::new(vec![0, 3]);
    for (queries, cap, window) in [
        (2, None, None),
        (7, None, None),
        (7, None, Some(2)),
        (7, Some(1.5), None),
        (3, Some(1.5), Some(2)),
        (7, Some(1.5), Some(3)),
    ] {
        let pads = pads.clone();
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 6, pads, past: 0, scale: 0.7, cap, window };
        let mut draw = |shape: &[usize]| random(&mut stream, shape, 1.0).unwrap();
        same_operation(
            &[draw(&[2, queries, 24]), draw(&[2, queries, 12]), draw(&[2, queries, 12])],
            |t| attend(&t[0], &t[1], &t[2], &shape).unwrap(),
            |t| attend_plain(&t[0], &t[1], &t[2], &shape).unwrap(),
        );
    }
}
