//! Attacks by a direction: the difference of class means, added or projected out.
//!
//! *Source*: mean difference: contrastive activation addition (ActAdd, CAA); ablation: Arditi et al. 2024, "Refusal in
//! language models is mediated by a single direction".

use candle_core::Tensor;

use super::AttackData;
use crate::intervention::Edit;
use crate::model::optimiser::host_values;
use crate::model::{Decoder, Hooks, Point, Site, TokenBatch};
use crate::{Error, Result};

/// Class means of one block's input at the last prompt token.
#[derive(Debug, Clone, PartialEq)]
pub struct Means {
    /// Mean over hazardous prompts, `[d_model]`.
    pub hazard: Vec<f32>,
    /// Mean over harmless prompts, `[d_model]`.
    pub harmless: Vec<f32>,
    /// Mean norm of the residual stream there, over both classes.
    pub norm: f64,
}

/// Class means at the inputs of all blocks, from `per_class` prompts of each class.
///
/// # Errors
/// When a class is empty.
pub fn means(decoder: &Decoder, data: &AttackData, per_class: usize) -> Result<Vec<Means>> {
    let hazards: Vec<Vec<u32>> = data.pairs.iter().take(per_class).map(|p| p.prompt.clone()).collect();
    let harmless: Vec<Vec<u32>> = data.harmless.iter().take(per_class).cloned().collect();
    if hazards.is_empty() || harmless.is_empty() {
        return Err(Error::input(
            "attack data",
            format!(
                "expected prompts of both classes, got {} hazardous and {} harmless",
                hazards.len(),
                harmless.len()
            ),
        ));
    }
    let (hazard, harmless) =
        (last_token_inputs(decoder, &hazards, data.pad)?, last_token_inputs(decoder, &harmless, data.pad)?);
    let norm =
        |rows: &Tensor| -> Result<f64> { Ok(f64::from(rows.sqr()?.sum(1)?.sqrt()?.mean_all()?.to_scalar::<f32>()?)) };
    hazard
        .iter()
        .zip(&harmless)
        .map(|(a, b)| {
            Ok(Means {
                hazard: host_values(&a.mean(0)?)?,
                harmless: host_values(&b.mean(0)?)?,
                norm: (norm(a)? + norm(b)?) / 2.0,
            })
        })
        .collect()
}

/// Inputs of all blocks at the last prompt token, `[prompts, d_model]` each.
fn last_token_inputs(decoder: &Decoder, prompts: &[Vec<u32>], pad: u32) -> Result<Vec<Tensor>> {
    let sites: Vec<Site> = (0..decoder.n_layers()).map(|layer| Site::new(layer, Point::ResidPre)).collect();
    let mut parts: Vec<Vec<Tensor>> = vec![Vec::new(); sites.len()];
    for chunk in prompts.chunks(32) {
        let batch = TokenBatch::prompts(chunk, pad);
        let mut hooks = Hooks::none().and_record(sites.iter().copied());
        decoder.hidden(&batch, &mut hooks, None)?;
        for (site, part) in sites.iter().zip(&mut parts) {
            let seen = hooks.take(*site).ok_or_else(|| Error::input(site, "expected a recording, got none"))?;
            part.push(seen.narrow(1, batch.cols() - 1, 1)?.squeeze(1)?.detach());
        }
    }
    parts.iter().map(|part| Ok(Tensor::cat(part, 0)?)).collect()
}

/// The unit difference of means, hazardous minus harmless, at one block's input.
///
/// # Errors
/// When the two means are equal.
pub fn direction(means: &Means) -> Result<Vec<f32>> {
    let difference: Vec<f64> =
        means.hazard.iter().zip(&means.harmless).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
    let length = difference.iter().map(|v| v * v).sum::<f64>().sqrt();
    if !length.is_normal() {
        return Err(Error::input(
            "class means",
            "expected a difference between hazardous and harmless prompts, got none",
        ));
    }
    Ok(difference.iter().map(|v| (v / length) as f32).collect())
}

/// `h + c·norm·v̂` at one block's input: negative coefficients push hazards towards the harmless mean.
///
/// # Errors
/// As [`direction`].
pub fn mean_difference(means: &Means, layer: usize, coefficient: f64) -> Result<Edit> {
    let factor = (coefficient * means.norm) as f32;
    Ok(Edit::Add { layer, vector: direction(means)?.iter().map(|v| v * factor).collect() })
}

/// Removes the direction found at one block's input everywhere.
///
/// # Errors
/// As [`direction`].
pub fn ablation(means: &Means) -> Result<Edit> {
    Ok(Edit::Ablate { basis: direction(means)?, rank: 1 })
}
