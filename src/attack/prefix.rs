//! A frozen decoder above an attacked block: what an attacker's training runs forward and backward.

use candle_core::{DType, Tensor};

use super::Pair;
use crate::intervention::{Placed, Positions};
use crate::model::batch::sum_by_length;
use crate::model::loss::cross_entropy;
use crate::model::{Decoder, Hooks, Intervention, Site, TokenBatch};
use crate::{Error, Result};

/// A frozen decoder's view of some pairs from one block on: everything below is computed once.
///
/// All pairs are padded to one width; a batch drops the columns that are padding in all of its rows.
pub struct Prefix<'a> {
    decoder: &'a Decoder,
    layer: usize,
    inputs: Tensor,
    prompts: Vec<Vec<u32>>,
    targets: Vec<Vec<u32>>,
    pads: Vec<usize>,
    pad: u32,
}

impl<'a> Prefix<'a> {
    /// Runs blocks `0..layer` of `decoder` on `pairs`.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn new(decoder: &'a Decoder, layer: usize, pairs: &[&Pair], pad: u32) -> Result<Self> {
        if layer >= decoder.n_layers() {
            return Err(Error::input(
                format!("block {layer}"),
                format!("expected a block below {}", decoder.n_layers()),
            ));
        }
        let prompts: Vec<Vec<u32>> = pairs.iter().map(|p| p.prompt.clone()).collect();
        let targets: Vec<Vec<u32>> = pairs.iter().map(|p| p.target.clone()).collect();
        let batch = TokenBatch::dialogues(&prompts, &targets, pad);
        // Chunks bound the memory of the pass below; nothing is tracked there.
        let rows: Vec<usize> = (0..pairs.len()).collect();
        let mut parts = Vec::new();
        for chunk in rows.chunks(64) {
            let pick = |rows: &[Vec<u32>]| chunk.iter().map(|i| rows[*i].clone()).collect::<Vec<_>>();
            let part = TokenBatch::dialogues_of_width(&pick(&prompts), &pick(&targets), pad, batch.cols());
            parts.push(decoder.run(0..layer, &decoder.embed(&part)?, &part, &mut Hooks::none(), None)?.detach());
        }
        let inputs = Tensor::cat(&parts, 0)?;
        Ok(Self { decoder, layer, inputs, prompts, targets, pads: batch.pads().to_vec(), pad })
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Mean Euclidean norm of the inputs of block `layer`, over all tokens of all pairs but each one's first, whose activations dwarf all
    /// others in many models.
    ///
    /// # Errors
    /// When a copy from the device fails.
    pub fn mean_norm(&self) -> Result<f64> {
        let norms = self.inputs.to_dtype(DType::F32)?.sqr()?.sum(2)?.sqrt()?.to_vec2::<f32>()?;
        let tokens = norms.iter().zip(&self.pads).flat_map(|(row, pad)| &row[(*pad + 1).min(row.len() - 1)..]);
        let (sum, count) = tokens.fold((0.0, 0_usize), |(sum, count), norm| (sum + f64::from(*norm), count + 1));
        Ok(sum / count.max(1) as f64)
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// The block inputs of the chosen pairs and their token batch.
    ///
    /// # Errors
    /// When an index lies outside.
    pub fn select(&self, rows: &[usize]) -> Result<(Tensor, TokenBatch)> {
        let pick = |all: &[Vec<u32>]| rows.iter().map(|i| all[*i].clone()).collect::<Vec<_>>();
        let batch = TokenBatch::dialogues(&pick(&self.prompts), &pick(&self.targets), self.pad);
        let index: Vec<u32> = rows.iter().map(|i| *i as u32).collect();
        let skip = rows.iter().map(|i| self.pads[*i]).min().unwrap_or(0);
        let inputs = self.inputs.index_select(&Tensor::from_slice(&index, index.len(), self.decoder.device())?, 0)?;
        Ok((inputs.narrow(1, skip, batch.cols())?.contiguous()?, batch))
    }

    /// Mean nats per target token of the chosen pairs under `edit`; differentiable in the edit.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn loss(&self, rows: &[usize], edit: &Placed, positions: Positions) -> Result<Tensor> {
        self.sum_of_losses(&[(rows, edit)], positions)
    }

    /// The sum of what [`Prefix::loss`] gives for each part, in one pass; differentiable in all edits.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn sum_of_losses(&self, parts: &[(&[usize], &Placed)], positions: Positions) -> Result<Tensor> {
        let rows: Vec<Row> = parts.iter().enumerate().flat_map(|(part, (rows, _))| self.weighed(part, rows)).collect();
        let edits: Vec<&Placed> = parts.iter().map(|(_, edit)| *edit).collect();
        let lengths: Vec<usize> =
            rows.iter().map(|row| self.prompts[row.pair].len() + self.targets[row.pair].len()).collect();
        sum_by_length(&lengths, |group| {
            let mut group: Vec<Row> = group.iter().map(|i| rows[*i]).collect();
            // Stable: the rows of one part stay in their order.
            group.sort_by_key(|row| row.part);
            self.loss_of(&group, &edits, positions)
        })
    }

    fn weighed(&self, part: usize, rows: &[usize]) -> Vec<Row> {
        let tokens: usize = rows.iter().map(|row| self.targets[*row].len()).sum();
        let weight = 1.0 / tokens.max(1) as f32;
        rows.iter().map(|&pair| Row { part, pair, weight }).collect()
    }

    /// Sum over the target tokens of `rows`, which are in the order of their parts.
    fn loss_of(&self, rows: &[Row], edits: &[&Placed], positions: Positions) -> Result<Tensor> {
        let pairs: Vec<usize> = rows.iter().map(|row| row.pair).collect();
        let (inputs, batch) = self.select(&pairs)?;
        let parts: Vec<(usize, &Placed)> =
            rows.chunk_by(|a, b| a.part == b.part).map(|run| (run.len(), edits[run[0].part])).collect();
        let stacked = Stacked(parts);
        let mut hooks = Hooks::edit(&stacked, positions);
        let hidden = self.decoder.run(self.layer..self.decoder.n_layers(), &inputs, &batch, &mut hooks, None)?;
        let (positions, targets) = batch.answer_targets();
        let weights: Vec<f32> =
            positions.iter().map(|position| rows[*position as usize / batch.cols()].weight).collect();
        cross_entropy(&self.decoder.logits_at(&hidden, &positions)?, &targets, &weights)
    }
}

/// A pair of a pass that several edits share.
#[derive(Clone, Copy)]
struct Row {
    /// Number of the edit that it is under.
    part: usize,
    pair: usize,
    /// Of each of its target tokens.
    weight: f32,
}

/// Edits of different rows of one batch: each acts on the next so many rows.
struct Stacked<'a>(Vec<(usize, &'a Placed)>);

impl Intervention for Stacked<'_> {
    fn apply(&self, site: Site, x: &Tensor) -> Result<Tensor> {
        if let [(_, edit)] = self.0.as_slice() {
            return edit.apply(site, x);
        }
        let mut start = 0;
        let part = |(rows, edit): &(usize, &Placed)| {
            let part = x.narrow(0, start, *rows)?;
            start += rows;
            if edit.acts_at(site) { edit.apply(site, &part.contiguous()?) } else { Ok(part) }
        };
        let parts: Vec<Tensor> = self.0.iter().map(part).collect::<Result<_>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }

    fn acts_at(&self, site: Site) -> bool {
        self.0.iter().any(|(_, edit)| edit.acts_at(site))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::{random_decoder, tiny};
    use crate::math::seed::Stream;

    #[test]
    fn the_mean_norm_leaves_out_each_pairs_first_token() {
        let decoder = random_decoder(tiny(), 0.4, Stream::new(1, "norm"));
        let norm = |first: u32, second: u32| {
            let prompts = [vec![first, second, 7, 9], vec![first, second]];
            let pair = |prompt: &Vec<u32>| Pair { prompt: prompt.clone(), target: vec![5, 3], opening: None };
            let pairs: Vec<Pair> = prompts.iter().map(pair).collect();
            // At the first block's input a token's norm is that of its own embedding.
            Prefix::new(&decoder, 0, &pairs.iter().collect::<Vec<_>>(), 0).unwrap().mean_norm().unwrap()
        };
        assert!((norm(11, 4) - norm(12, 4)).abs() < 1e-6, "of any first token");
        assert!((norm(11, 4) - norm(11, 6)).abs() > 1e-4, "but not of any second");
    }
}
