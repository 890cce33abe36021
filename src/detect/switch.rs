//! `switch.safetensors`: the map that makes a base behave as the model that was tuned from it, for whoever hosts the base.
//!
//! | tensor | shape | meaning |
//! |---|---|---|
//! | `map.change`, `map.bias` | `[d_model, d_model]`, `[d_model]` | the block's input h becomes `h + change·h + bias` |
//!
//! In f32, with [`About`] as JSON under the metadata key `switch`. The map leads from the base to the tuned model and is written in
//! that direction only. As every edit at run time it can be left out, so it says nothing about how robust a model is.
//!
//! *Source*: "Activation space interventions can be transferred between large language models" (arXiv 2503.04429), the
//! "lightweight safety switch".

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file::{self, File};
use crate::Result;
use crate::intervention::Edit;
use crate::model::{Point, Site};

/// Metadata key of [`About`].
const KEY: &str = "switch";

/// What a switch is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Layout version: 1.
    pub schema_version: u32,
    /// Where it acts, such as `blocks.3.hook_resid_pre`, at every token.
    pub site: String,
    /// The block.
    pub layer: usize,
    /// SHA-256 over the files of the model that it acts in.
    pub base: String,
    /// SHA-256 over the files of the model that it makes it behave as.
    pub tuned: String,
    /// Part of the tuned model's variance there that it explains on requests that it was not fitted on.
    pub explained: f64,
}

/// A fitted map.
#[derive(Debug, Clone, PartialEq)]
pub struct Switch {
    /// What it is for.
    pub about: About,
    /// `[d_model, d_model]`, row by row.
    change: Vec<f32>,
    /// `[d_model]`.
    bias: Vec<f32>,
}

impl Switch {
    /// A map at the input of block `layer` of the model `base`; `change` is `[d_model, d_model]`, `bias` `[d_model]`.
    #[must_use]
    pub fn new(layer: usize, [base, tuned]: [&str; 2], change: Vec<f32>, bias: Vec<f32>, explained: f64) -> Self {
        let site = site(layer).to_string();
        let [base, tuned] = [base, tuned].map(str::to_owned);
        Self { about: About { schema_version: 1, site, layer, base, tuned, explained }, change, bias }
    }

    /// It as an edit of the base.
    #[must_use]
    pub fn edit(&self) -> Edit {
        let d = self.bias.len();
        let identity = (0..d * d).map(|i| f32::from(u8::from(i.is_multiple_of(d + 1)))).collect();
        let site = site(self.about.layer);
        Edit::Affine { site, rank: d, up: identity, down: self.change.clone(), bias: self.bias.clone() }
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// Never for a switch made by this crate.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let d = self.bias.len();
        let tensors = [("map.bias", vec![d], self.bias.clone()), ("map.change", vec![d, d], self.change.clone())];
        file::bytes(KEY, &self.about, &tensors)
    }

    /// Reads a switch.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Input`] naming the file and tensor when it is no switch.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::read(path)?;
        let about: About = file.about(KEY)?;
        let site = site(about.layer);
        if about.site != site.to_string() {
            return Err(file.wrong(format!("`{KEY}`: expected the site `{site}` of its layer, got `{}`", about.site)));
        }
        let &[d] = file.shape("map.bias")?.as_slice() else {
            return Err(file.wrong("tensor `map.bias`: expected 1 dimension, got others".into()));
        };
        Ok(Self { about, change: file.values("map.change", &[d, d])?, bias: file.values("map.bias", &[d])? })
    }
}

/// Where a map at the input of block `layer` acts.
fn site(layer: usize) -> Site {
    Site::new(layer, Point::ResidPre)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::seed::Stream;
    use crate::model::Intervention as _;
    use candle_core::{Device, Tensor};

    fn switch() -> Switch {
        let mut stream = Stream::new(7, "switch");
        Switch::new(2, ["ba5e", "7a2d"], stream.gaussian(25, 1.0), stream.gaussian(5, 1.0), 0.75)
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let (switch, dir) = (switch(), tempfile::tempdir().unwrap());
        let path = dir.path().join("switch.safetensors");
        std::fs::write(&path, switch.to_bytes().unwrap()).unwrap();
        let again = Switch::read(&path).unwrap();
        assert_eq!(again, switch);
        assert_eq!(again.about.site, "blocks.2.hook_resid_pre");
    }

    #[test]
    fn what_is_no_switch_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("switch.safetensors");
        let refused = |bytes: &[u8], expected: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = Switch::read(&path).unwrap_err();
            assert!(error.to_string().contains(expected), "{expected}: {error}");
            assert_eq!(error.exit_code(), 3);
        };
        refused(&switch().to_bytes().unwrap()[..60], "expected safetensors");
        let about = |change: fn(&mut About)| {
            let mut switch = switch();
            change(&mut switch.about);
            switch.to_bytes().unwrap()
        };
        refused(&about(|about| about.schema_version = 2), "expected schema_version 1, got 2");
        let elsewhere = about(|about| about.layer = 3);
        refused(&elsewhere, "expected the site `blocks.3.hook_resid_pre` of its layer, got `blocks.2.hook_resid_pre`");
    }

    #[test]
    fn its_edit_is_the_map() {
        let switch = switch();
        let h = Stream::new(8, "h").gaussian(5, 1.0);
        let row = Tensor::from_slice(&h, (1, 1, 5), &Device::Cpu).unwrap();
        let edited = switch.edit().place(&Device::Cpu).unwrap().apply(Site::new(2, Point::ResidPre), &row).unwrap();
        let expected: Vec<f32> = (0..5)
            .map(|i| h[i] + switch.bias[i] + (0..5).map(|j| switch.change[i * 5 + j] * h[j]).sum::<f32>())
            .collect();
        let edited = edited.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(edited.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{edited:?} {expected:?}");
    }
}
