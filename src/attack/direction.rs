//! What the activations of hazardous and of harmless prompts say: class means, their difference, the subspace around it.
//!
//! *Source*: Arditi et al. 2024, "Refusal in language models is mediated by a single direction": the difference of means
//! at the last prompt token, projected out everywhere.

use super::AttackData;
use crate::intervention::Edit;
use crate::math::rows::{orthonormal, principal};
use crate::model::optimiser::host_values;
use crate::model::record::at_token;
use crate::model::{Decoder, Point, Site};
use crate::{Error, Result};

/// Positions at the end of a prompt that are candidates for a direction.
const MAX_BACK: usize = 5;

/// What hazards are told apart from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contrast {
    /// Ordinary harmless requests.
    Harmless,
    /// Harmless requests in hazardous words.
    Twins,
}

impl Contrast {
    fn of(self, data: &AttackData) -> &[Vec<u32>] {
        match self {
            Self::Harmless => &data.harmless,
            Self::Twins => &data.twins,
        }
    }

    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Harmless => "harmless requests",
            Self::Twins => "their twins",
        }
    }
}

/// The contrasts that an attacker can try with this data.
#[must_use]
pub fn contrasts(data: &AttackData) -> Vec<Contrast> {
    let twins = (!data.twins.is_empty()).then_some(Contrast::Twins);
    [Contrast::Harmless].into_iter().chain(twins).collect()
}

/// Activations of both classes at one site and token; rows in the order of the attacker's data.
#[derive(Debug, Clone, PartialEq)]
pub struct Classes {
    /// Where they were taken.
    pub site: Site,
    /// Width of a row.
    pub width: usize,
    /// `[hazardous prompts, width]`, row by row.
    pub hazard: Vec<f32>,
    /// `[harmless prompts, width]`, row by row.
    pub harmless: Vec<f32>,
}

impl Classes {
    /// The activations at `point` of every block, `back` tokens before the prompt's last, from `per_class` prompts of each
    /// class.
    ///
    /// # Errors
    /// When a class is empty.
    pub fn collect(
        decoder: &Decoder,
        data: &AttackData,
        contrast: Contrast,
        per_class: usize,
        point: Point,
        back: usize,
    ) -> Result<Vec<Self>> {
        let hazards: Vec<Vec<u32>> = data.pairs.iter().take(per_class).map(|p| p.prompt.clone()).collect();
        let harmless: Vec<Vec<u32>> = contrast.of(data).iter().take(per_class).cloned().collect();
        if hazards.is_empty() || harmless.is_empty() {
            let (a, b) = (hazards.len(), harmless.len());
            return Err(Error::input(
                "attack data",
                format!("expected prompts of both classes, got {a} hazardous and {b} harmless"),
            ));
        }
        let hazards = at_token(decoder, &hazards, data.pad, point, back)?;
        let harmless = at_token(decoder, &harmless, data.pad, point, back)?;
        let blocks = hazards.iter().zip(&harmless).enumerate();
        blocks
            .map(|(layer, (a, b))| {
                Ok(Self {
                    site: Site::new(layer, point),
                    width: a.dim(1)?,
                    hazard: host_values(a)?,
                    harmless: host_values(b)?,
                })
            })
            .collect()
    }

    /// Mean over hazardous minus mean over harmless prompts, `[width]`.
    #[must_use]
    pub fn difference(&self) -> Vec<f32> {
        let (a, b) = (mean(&self.hazard, self.width), mean(&self.harmless, self.width));
        a.iter().zip(&b).map(|(a, b)| (a - b) as f32).collect()
    }

    /// Mean norm over the rows of both classes.
    #[must_use]
    pub fn norm(&self) -> f64 {
        let rows = self.hazard.chunks_exact(self.width).chain(self.harmless.chunks_exact(self.width));
        let norms: Vec<f64> = rows.map(length).collect();
        norms.iter().sum::<f64>() / norms.len().max(1) as f64
    }

    /// Differences of the first hazardous and the first harmless prompt, of the second, and so on, `[pairs, width]`.
    #[must_use]
    pub fn pair_differences(&self) -> Vec<f32> {
        self.hazard.iter().zip(&self.harmless).map(|(a, b)| a - b).collect()
    }

    /// The unit difference of means.
    ///
    /// # Errors
    /// When the two means are equal.
    pub fn direction(&self) -> Result<Vec<f32>> {
        let difference = self.difference();
        let length = length(&difference);
        if !length.is_normal() {
            return Err(Error::input(
                self.site,
                "expected a difference between hazardous and harmless prompts, got none",
            ));
        }
        Ok(difference.iter().map(|v| (f64::from(*v) / length) as f32).collect())
    }

    /// The direction, and with a larger `rank` the principal directions of hazards around the harmless mean beside it, projected out
    /// everywhere.
    ///
    /// # Errors
    /// As [`Classes::direction`].
    pub fn projection(&self, rank: usize) -> Result<Edit> {
        let mut rows = self.direction()?;
        if rank > 1 {
            let centre = mean(&self.harmless, self.width);
            // Beside the direction: it is nearly the leading principal direction, whose remnant is noise.
            let beside = |row: &[f32]| {
                let around: Vec<f64> = row.iter().zip(&centre).map(|(v, c)| f64::from(*v) - c).collect();
                let along: f64 = around.iter().zip(&rows).map(|(v, d)| v * f64::from(*d)).sum();
                around.iter().zip(&rows).map(|(v, d)| (v - along * f64::from(*d)) as f32).collect::<Vec<f32>>()
            };
            let around: Vec<f32> = self.hazard.chunks_exact(self.width).flat_map(beside).collect();
            rows.extend(principal(&around, self.width, rank - 1));
        }
        let mut basis: Vec<f32> = orthonormal(&rows, self.width)
            .chunks_exact(self.width)
            .filter(|row| length(row) > 0.5)
            .flatten()
            .copied()
            .collect();
        basis.truncate(rank * self.width);
        Ok(Edit::Ablate { rank: basis.len() / self.width, basis, layers: vec![] })
    }
}

/// Tokens that all prompts end in, what the chat template puts after the request: a direction may be taken at each.
#[must_use]
pub fn shared_ending(data: &AttackData) -> usize {
    let prompts: Vec<&Vec<u32>> = data.pairs.iter().map(|pair| &pair.prompt).chain(&data.harmless).collect();
    let Some(first) = prompts.first() else { return 0 };
    let shared = |back: usize| {
        let token = |prompt: &Vec<u32>| prompt.len().checked_sub(back + 1).map(|at| prompt[at]);
        token(first).is_some() && prompts.iter().all(|prompt| token(prompt) == token(first))
    };
    (0..MAX_BACK).take_while(|back| shared(*back)).count()
}

fn mean(rows: &[f32], width: usize) -> Vec<f64> {
    let mut sum = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        sum.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
    }
    let count = (rows.len() / width.max(1)).max(1) as f64;
    sum.iter().map(|s| s / count).collect()
}

fn length(row: &[f32]) -> f64 {
    row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(hazard: Vec<f32>, harmless: Vec<f32>) -> Classes {
        Classes { site: Site::new(0, Point::ResidPre), width: 3, hazard, harmless }
    }

    #[test]
    fn the_direction_is_the_unit_difference_of_means() {
        let found = classes(vec![3.0, 1.0, 0.0, 5.0, 1.0, 0.0], vec![0.0, 1.0, 0.0]);
        assert_eq!(found.direction().unwrap(), [1.0, 0.0, 0.0]);
        let equal = classes(vec![1.0, 1.0, 0.0], vec![1.0, 1.0, 0.0]);
        assert!(equal.direction().unwrap_err().to_string().contains("blocks.0.hook_resid_pre"));
    }

    #[test]
    fn the_shared_ending_is_what_all_prompts_end_in() {
        let pair = |prompt: &[u32]| crate::attack::Pair { prompt: prompt.to_vec(), target: vec![], opening: None };
        let data = |pairs: Vec<_>| AttackData { pairs, harmless: vec![vec![9, 1, 2]], ..AttackData::default() };
        assert_eq!(shared_ending(&data(vec![pair(&[5, 1, 2]), pair(&[6, 7, 1, 2])])), 2);
        assert_eq!(shared_ending(&data(vec![pair(&[2])])), 1);
        assert_eq!(shared_ending(&data(vec![pair(&[3])])), 0);
    }

    #[test]
    fn no_direction_of_a_subspace_is_spent_on_what_is_left_of_the_first() {
        // Along the second axis they vary most, along the third less; the direction is the first, but for rounding.
        let hazard = [[2.0, 3.0, 1.0], [2.1, -3.0, 1.0], [1.9, 3.0, -1.0], [2.0, -3.0, -1.0]].concat();
        let found = classes(hazard, vec![0.0; 3]);
        let Edit::Ablate { basis, rank, .. } = found.projection(2).unwrap() else { panic!("an ablation") };
        assert_eq!(rank, 2);
        assert!((basis[0] - 1.0).abs() < 1e-3 && (basis[4].abs() - 1.0).abs() < 1e-2, "{basis:?}");
    }

    #[test]
    fn a_subspace_holds_the_direction_and_what_varies_around_it() {
        let found = classes(vec![2.0, 3.0, 0.0, 2.0, -3.0, 0.0, 2.0, 3.0, 0.0, 2.0, -3.0, 0.0], vec![0.0; 3]);
        let Edit::Ablate { basis, rank, .. } = found.projection(2).unwrap() else { panic!("an ablation") };
        assert_eq!(rank, 2);
        assert!((basis[0] - 1.0).abs() < 1e-5 && (basis[4].abs() - 1.0).abs() < 1e-3, "{basis:?}");
    }
}
