//! Whether the fused kernels compute here what candle's own operations do: asked once, when a GPU is chosen.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use super::{Adam, clip_factor, gated, masked_softmax, rms_norm, rotate, wanted};
use crate::math::seed::Stream;
use crate::model::attention::{AttentionShape, masked_softmax_plain};
use crate::model::blueprint::Activation;
use crate::model::mlp::gated_plain;
use crate::model::norm::rms_norm_plain;
use crate::model::optimiser::host_values;
use crate::model::rope::RowPositions;
use crate::{Error, Result};

/// Largest difference from the plain operation, relative to its largest value.
const TOLERANCE: f32 = 1e-3;

/// Compares results and gradients of all kernels with those of plain operations on small random values.
///
/// # Errors
/// [`Error::Input`] naming the kernel that differs, or what the driver says where one cannot run.
pub(crate) fn check(device: &Device) -> Result<()> {
    if !wanted() {
        return Ok(());
    }
    let mut stream = Stream::new(0, "cuda/check");
    let mut random = |shape: &[usize]| -> Result<Tensor> {
        Ok(Tensor::from_vec(stream.gaussian(shape.iter().product(), 1.0), shape, device)?)
    };
    // Rows of less than a block's threads, and of more.
    for width in [40, 700] {
        let gain = random(&[width])?;
        compare(
            "rms_norm",
            &[random(&[3, width])?],
            |x| Ok(rms_norm(&x[0], &gain, 1e-5)?),
            |x| rms_norm_plain(&x[0], &gain, 1e-5),
        )?;
    }
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let inputs = [random(&[3, 300])?, random(&[3, 300])?];
        compare("gated", &inputs, |x| Ok(gated(activation, &x[0], &x[1])?), |x| gated_plain(activation, &x[0], &x[1]))?;
    }
    // A quarter of the plane per position.
    let angles = Tensor::new(&[[[1_f32], [0.0], [-1.0]], [[0.0], [1.0], [0.0]]], device)?;
    let rows = RowPositions { pads: Arc::new(vec![0]), past: 0 };
    let quarters = |x: &Tensor| -> Result<Tensor> {
        let [one, two, three] = [0, 1, 2].map(|token| x.narrow(1, token, 1));
        let two = two?;
        let turned = Tensor::cat(&[&two.narrow(2, 1, 1)?.neg()?, &two.narrow(2, 0, 1)?], 2)?;
        Ok(Tensor::cat(&[one?, turned, three?.neg()?], 1)?)
    };
    compare("rotate", &[random(&[1, 3, 2])?], |x| Ok(rotate(&x[0], &angles, 2, &rows)?), |x| quarters(&x[0]))?;
    for (keys, cap, window) in [(9, None, None), (9, Some(2.0), Some(4)), (300, None, None)] {
        let pads = Arc::new(vec![0, 3]);
        let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 4, pads, past: 0, scale: 0.5, cap, window };
        let scores = random(&[2, 1, 2 * keys, keys])?;
        compare(
            "masked_softmax",
            &[scores],
            |x| Ok(masked_softmax(&x[0], &shape)?),
            |x| masked_softmax_plain(&x[0], &shape),
        )?;
    }
    adam(&random(&[500])?, &random(&[500])?)
}

fn compare(
    kernel: &str,
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let of = |function: &dyn Fn(&[Tensor]) -> Result<Tensor>| -> Result<Vec<Vec<f32>>> {
        let vars = inputs.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
        let y = function(&vars.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>())?;
        let gradients = y.sin()?.sum_all()?.backward()?;
        let gradient = |var: &Var| gradients.get(var).ok_or_else(|| differs(kernel, "no gradient".into()));
        let mut values = vec![host_values(&y)?];
        for var in &vars {
            values.push(host_values(gradient(var)?)?);
        }
        Ok(values)
    };
    let (found, expected) = (of(&fused)?, of(&plain)?);
    found.iter().zip(&expected).try_for_each(|(found, expected)| near(kernel, found, expected))
}

/// Two steps, the second one of a gradient that is not finite and changes nothing.
fn adam(start: &Tensor, gradient: &Tensor) -> Result<()> {
    let (var, n) = (Var::from_tensor(start)?, start.elem_count());
    let moments = Tensor::zeros((2, n), candle_core::DType::F32, start.device())?;
    let step = Adam { betas: [0.9, 0.99], rate: 0.1, scale: 1.5, epsilon: 1e-3, decay: 0.95 };
    for gradient in [gradient.clone(), (gradient / 0.0)?] {
        if let Some(factor) = clip_factor(std::slice::from_ref(&gradient), Some(0.5))? {
            step.step(&var, &moments, &gradient, &factor)?;
        }
    }
    let (start, gradient) = (host_values(start)?, host_values(gradient)?);
    let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
    let expected: Vec<f32> = start
        .iter()
        .zip(&gradient)
        .map(|(w, g)| {
            let g = g * 0.5 / norm;
            w * 0.95 - 0.1 * 0.1 * g / ((0.01 * g * g).sqrt() * 1.5 + 1e-3)
        })
        .collect();
    near("adam", &host_values(var.as_tensor())?, &expected)
}

fn near(kernel: &str, found: &[f32], expected: &[f32]) -> Result<()> {
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    if found.len() != expected.len() {
        return Err(differs(kernel, format!("{} values instead of {}", found.len(), expected.len())));
    }
    // What is not a number is near nothing.
    let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= TOLERANCE * largest;
    match found.iter().zip(expected).position(|pair| !is_near(pair)) {
        Some(at) => Err(differs(kernel, format!("{} instead of {}", found[at], expected[at]))),
        None => Ok(()),
    }
}

fn differs(kernel: &str, found: String) -> Error {
    Error::input(
        format!("fused kernel {kernel}"),
        format!("expected what plain operations give on this GPU, got {found}"),
    )
    .hint("IMMUNISE_KERNELS=plain computes without fused kernels; please report this with the GPU's name")
}
