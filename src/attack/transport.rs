//! Heads whose outputs are moved from where hazards are to where harmless requests are: mean and covariance at once.
//!
//! *Source*: RADIANT (2025), which moves undesirable heads' activations by the affine map of least cost; here with labels
//! flipped, and onto the Gaussian of the harmless requests' activations themselves.

use std::collections::BTreeMap;

use super::AttackData;
use super::direction::{Classes, Contrast};
use super::probe::{Ties, head_rows, numbers, ranked};
use crate::intervention::Edit;
use crate::math::gaussian::{AffineMap, Gaussian};
use crate::model::{Decoder, Point};
use crate::{Error, Result};

/// Maps of single heads whose number and common strength are still open.
#[derive(Debug, Clone, PartialEq)]
pub struct Transport {
    n_heads: usize,
    ties: Ties,
    /// Block, head and map, the head that parts the classes best first.
    maps: Vec<(usize, usize, AffineMap)>,
}

impl Transport {
    /// Finds the maps of the heads of `layers` from `pairs` prompts of each class.
    ///
    /// # Errors
    /// When the classes do not differ at any head.
    pub fn find(
        layers: &[usize],
        decoder: &Decoder,
        data: &AttackData,
        contrast: Contrast,
        pairs: usize,
    ) -> Result<Self> {
        let mut variants = Self::variants(layers, decoder, data, contrast, pairs)?;
        Ok(variants.swap_remove(0))
    }

    /// As [`Transport::find`], with the heads in the order of either way of settling ties, where the best of them are others; one at least.
    ///
    /// # Errors
    /// As [`Transport::find`].
    pub fn variants(
        layers: &[usize],
        decoder: &Decoder,
        data: &AttackData,
        contrast: Contrast,
        pairs: usize,
    ) -> Result<Vec<Self>> {
        let classes: Vec<Classes> = Classes::collect(decoder, data, contrast, pairs, Point::Z, 0)?
            .into_iter()
            .filter(|classes| layers.contains(&classes.site.layer))
            .collect();
        let mut found: Vec<Self> =
            Ties::ALL.map(|ties| Self::between(&classes, decoder.blueprint().n_heads, ties)).into();
        if found[0].maps.is_empty() {
            return Err(Error::input(
                "class activations",
                "expected a difference between hazardous and harmless prompts at one head at least, got none",
            ));
        }
        let wholly = |transport: &mut Self| -> Vec<Edit> {
            transport.counts().into_iter().map(|heads| transport.edit(heads, 1.0)).collect()
        };
        found.dedup_by_key(wholly);
        Ok(found)
    }

    fn between(classes: &[Classes], n_heads: usize, ties: Ties) -> Self {
        let map = |block: usize, head: usize| {
            let Classes { site, width, hazard, harmless } = &classes[block];
            let gaussian = |rows: &[f32]| Gaussian::fit(&head_rows(rows, *width, head, width / n_heads));
            Some((site.layer, head, gaussian(hazard)?.map_to(&gaussian(harmless)?)?))
        };
        let maps = ranked(classes, n_heads, ties).iter().filter_map(|probe| map(probe.block, probe.head)).collect();
        Self { n_heads, ties, maps }
    }

    /// How many of the best heads are worth trying; the last is all of them.
    #[must_use]
    pub fn counts(&self) -> Vec<usize> {
        numbers(self.maps.len())
    }

    /// What tells its choice of heads from the first of the variants, in words that follow others.
    #[must_use]
    pub fn how(&self) -> &'static str {
        self.ties.how()
    }

    /// The edit of the best `heads`, taken `part` of the way.
    #[must_use]
    pub fn edit(&self, heads: usize, part: f64) -> Edit {
        let mut blocks: BTreeMap<usize, Vec<(usize, &AffineMap)>> = BTreeMap::new();
        for (layer, head, map) in self.maps.iter().take(heads) {
            blocks.entry(*layer).or_default().push((*head, map));
        }
        let mut edits: Vec<Edit> =
            blocks.into_iter().map(|(layer, maps)| block_edit(layer, self.n_heads, &maps, part)).collect();
        if edits.len() == 1 { edits.remove(0) } else { Edit::Several { edits } }
    }
}

/// `a + t((A − I)a + b)` at the given heads of a block; the others keep what they have.
fn block_edit(layer: usize, heads: usize, maps: &[(usize, &AffineMap)], part: f64) -> Edit {
    let size = maps.first().map_or(0, |(_, map)| map.bias.len());
    let identity = |i: usize| if i.is_multiple_of(size + 1) { 1.0 } else { 0.0 };
    let mut matrices: Vec<f32> = (0..heads).flat_map(|_| (0..size * size).map(|i| identity(i) as f32)).collect();
    let mut bias = vec![0.0; heads * size];
    for (head, map) in maps {
        let square = &mut matrices[head * size * size..][..size * size];
        for (i, (out, v)) in square.iter_mut().zip(&map.matrix).enumerate() {
            *out = (identity(i) + part * (v - identity(i))) as f32;
        }
        bias[head * size..].iter_mut().zip(&map.bias).for_each(|(out, v)| *out = (part * v) as f32);
    }
    Edit::Heads { layer, matrices, bias, heads }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::seed::Stream;
    use crate::model::{Intervention as _, Site};
    use candle_core::{Device, Tensor};

    /// Three heads of four at block 2; only the second knows the class, by its mean and by its spread.
    fn classes() -> Classes {
        let mut stream = Stream::new(6, "transport");
        let mut rows = |shift: f32, spread: f32| -> Vec<f32> {
            let noise = stream.gaussian(200 * 12, 0.5);
            let known = |i: usize| (4..8).contains(&(i % 12));
            noise.iter().enumerate().map(|(i, v)| if known(i) { v * spread + shift } else { *v }).collect()
        };
        Classes { site: Site::new(2, Point::Z), width: 12, hazard: rows(2.0, 1.0), harmless: rows(-1.0, 3.0) }
    }

    fn moments(rows: &[f32]) -> (f32, f32) {
        let known: Vec<f32> = rows.chunks_exact(12).flat_map(|row| row[4..8].to_vec()).collect();
        let mean = known.iter().sum::<f32>() / known.len() as f32;
        (mean, known.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / known.len() as f32)
    }

    #[test]
    fn the_head_that_knows_moves_to_the_other_class_and_no_other_head() {
        let classes = classes();
        let transport = Transport::between(std::slice::from_ref(&classes), 3, Ties::Earlier);
        assert_eq!((transport.maps[0].0, transport.maps[0].1), (2, 1), "the best head");
        assert_eq!(transport.counts(), [1, 2, 3]);
        let edit = transport.edit(1, 1.0);
        let stream = Tensor::from_vec(classes.hazard.clone(), (1, 200, 12), &Device::Cpu).unwrap();
        let moved = edit.place(&Device::Cpu).unwrap().apply(classes.site, &stream).unwrap();
        let moved: Vec<f32> = moved.flatten_all().unwrap().to_vec1().unwrap();
        for (before, after) in classes.hazard.chunks_exact(12).zip(moved.chunks_exact(12)) {
            assert!(before[..4] == after[..4] && before[8..] == after[8..]);
        }
        let ((mean, spread), (wanted_mean, wanted_spread)) = (moments(&moved), moments(&classes.harmless));
        assert!((mean - wanted_mean).abs() < 0.01 && (spread / wanted_spread - 1.0).abs() < 0.05, "{mean} {spread}");
    }

    #[test]
    fn no_part_of_the_way_is_no_edit() {
        let edit = Transport::between(&[classes()], 3, Ties::Earlier).edit(3, 0.0);
        let Edit::Heads { matrices, bias, .. } = &edit else { panic!("one block") };
        assert!(bias.iter().all(|v| *v == 0.0));
        assert_eq!(matrices.iter().filter(|v| **v == 1.0).count(), 12, "three identities of four");
        let text = serde_json::to_string(&edit).unwrap();
        assert_eq!(serde_json::from_str::<Edit>(&text).unwrap(), edit, "it replays from what is stored");
    }
}
