//! Hooks: edits and recordings that a forward pass is given. Nothing is installed in the model.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::batch::TokenBatch;
use super::site::{Point, Site};
use crate::Result;

/// Token positions at which an intervention acts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// The tokens of the prompt only, as the E.T. paper evaluates.
    Prompt,
    /// Every token, generated ones too: the stronger attack and the default.
    #[default]
    All,
    /// The last token of the prompt and every generated token after it.
    Last,
}

/// What an edit does to one activation: pure, the same for every token.
pub trait Intervention: Send + Sync {
    /// The edited activation at `site`.
    ///
    /// *Shapes*: `x` and the result are `[batch, pos, width]` with the width of the site. Differentiable in `x`.
    ///
    /// # Errors
    /// When the edit's width differs from the site's.
    fn apply(&self, site: Site, x: &Tensor) -> Result<Tensor>;

    /// Whether the edit acts at `site`.
    fn acts_at(&self, site: Site) -> bool;
}

/// Edits applied and activations recorded in one forward pass. Recordings show what the rest of the model sees: edits
/// come first.
#[derive(Default)]
pub struct Hooks<'a> {
    edits: Vec<(&'a dyn Intervention, Positions)>,
    wanted: BTreeSet<Site>,
    recorded: BTreeMap<Site, Tensor>,
}

impl<'a> Hooks<'a> {
    /// No edits, no recordings.
    pub fn none() -> Self {
        Self::default()
    }

    /// One edit.
    pub fn edit(intervention: &'a dyn Intervention, positions: Positions) -> Self {
        Self::none().and_edit(intervention, positions)
    }

    /// Adds an edit, applied after those already there.
    #[must_use]
    pub fn and_edit(mut self, intervention: &'a dyn Intervention, positions: Positions) -> Self {
        self.edits.push((intervention, positions));
        self
    }

    /// Adds sites to record.
    #[must_use]
    pub fn and_record(mut self, sites: impl IntoIterator<Item = Site>) -> Self {
        self.wanted.extend(sites);
        self
    }

    /// Takes the recording of `site`, `[batch, pos, width]`, if the pass reached it.
    pub fn take(&mut self, site: Site) -> Option<Tensor> {
        self.recorded.remove(&site)
    }

    /// Whether there is an edit or a recording in block `layer`, between its input and its output.
    pub(super) fn act_inside(&self, layer: usize) -> bool {
        [Point::Z, Point::AttnOut, Point::ResidMid, Point::MlpOut].into_iter().any(|point| {
            let site = Site::new(layer, point);
            self.wanted.contains(&site) || self.edits.iter().any(|(edit, _)| edit.acts_at(site))
        })
    }

    /// Applies the edits of `site` to `x` and records the result if asked to.
    pub(super) fn visit(&mut self, site: Site, x: Tensor, batch: &TokenBatch) -> Result<Tensor> {
        let mut x = x;
        for (edit, positions) in &self.edits {
            if !edit.acts_at(site) {
                continue;
            }
            let edited = edit.apply(site, &x)?;
            x = match batch.edit_mask(*positions, x.device())? {
                None => edited,
                Some(mask) => (&x + (edited - &x)?.broadcast_mul(&mask)?)?,
            };
        }
        if self.wanted.contains(&site) {
            self.recorded.insert(site, x.clone());
        }
        Ok(x)
    }
}
