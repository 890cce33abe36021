//! `monitor.safetensors`: a fitted detector for whoever hosts the model.
//!
//! | tensor | shape | meaning |
//! |---|---|---|
//! | `probe.weight`, `probe.bias` | `[heads, head_dim]`, `[heads]` | a head fires where `weight·a + bias > 0` |
//! | `map.matrix`, `map.bias` | `[heads, head_dim, head_dim]`, `[heads, head_dim]` | a firing head's output becomes `matrix·a + bias` |
//!
//! All in f32. What is around them is JSON under the metadata key `monitor` ([`About`]).

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file::{self, File};
use super::{Loss, Movement, Probe, Rows, Vote};
use crate::Result;
use crate::intervention::Edit;

/// Metadata key of [`About`].
const KEY: &str = "monitor";

/// What a monitor is for and how it decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Layout version: 1.
    pub schema_version: u32,
    /// Where the heads are watched, such as `blocks.3.hook_z`, at the last token of the prompt.
    pub site: String,
    /// The block.
    pub layer: usize,
    /// Heads that must fire, at least.
    pub threshold: usize,
    /// How the probes were trained.
    pub probes: Loss,
    /// Standard deviations of a head's score that its movement takes to the harmless side.
    pub margin: f64,
    /// SHA-256 over the files of the model that it was fitted on.
    pub model: String,
}

/// A detector with the movement of every head.
#[derive(Debug, Clone, PartialEq)]
pub struct Monitor {
    /// What it is for.
    pub about: About,
    vote: Vote,
    /// `A` and `b` of every head.
    maps: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Monitor {
    /// The monitor of a vote, with movements for what its heads say of the hazardous `rows` of its block.
    #[must_use]
    pub fn new(vote: Vote, rows: &Rows, loss: Loss, margin: f64, model: &str) -> Self {
        let heads = vote.probes.len();
        let round = |v: &f64| f64::from(*v as f32);
        // What is written is what decides, here as after reading it again.
        let probes: Vec<Probe> = vote
            .probes
            .iter()
            .map(|probe| Probe { weight: probe.weight.iter().map(round).collect(), bias: round(&probe.bias) })
            .collect();
        let map = |(head, probe): (usize, &Probe)| {
            let hazards: Vec<Vec<f64>> =
                rows.head(head, heads).hazards.into_iter().filter(|row| probe.fires(row)).collect();
            Movement::least(probe, &hazards, margin).map(probe)
        };
        let about = About {
            schema_version: 1,
            site: format!("blocks.{}.hook_z", vote.layer),
            layer: vote.layer,
            threshold: vote.threshold,
            probes: loss,
            margin,
            model: model.to_owned(),
        };
        Self { about, maps: probes.iter().enumerate().map(map).collect(), vote: Vote { probes, ..vote } }
    }

    /// The vote.
    #[must_use]
    pub fn vote(&self) -> &Vote {
        &self.vote
    }

    /// The row of all heads' outputs after the movement of the heads that fire; unflagged rows stay as they are.
    #[must_use]
    pub fn moved(&self, row: &[f32]) -> Vec<f32> {
        if !self.vote.flags(row) {
            return row.to_vec();
        }
        let size = row.len() / self.maps.len().max(1);
        let parts = row.chunks_exact(size.max(1)).zip(self.vote.firing(row)).zip(&self.maps);
        parts
            .flat_map(|((part, fires), (matrix, bias))| {
                let dot = |i: usize| matrix[i * size..(i + 1) * size].iter().zip(part).map(|(m, a)| m * a).sum::<f32>();
                (0..size).map(move |i| if fires { dot(i) + bias[i] } else { part[i] }).collect::<Vec<f32>>()
            })
            .collect()
    }

    /// The movement of the given heads as an edit of the model.
    #[must_use]
    pub fn edit(&self, firing: &[bool]) -> Edit {
        let parts = self.maps.iter().zip(firing).map(|((matrix, bias), fires)| {
            let identity = |i: usize| f32::from(u8::from(i.is_multiple_of(bias.len() + 1)));
            if *fires {
                (matrix.clone(), bias.clone())
            } else {
                ((0..matrix.len()).map(identity).collect(), vec![0.0; bias.len()])
            }
        });
        let (matrices, bias): (Vec<_>, Vec<_>) = parts.unzip();
        Edit::Heads {
            layer: self.about.layer,
            matrices: matrices.concat(),
            bias: bias.concat(),
            heads: self.maps.len(),
        }
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// Never for a monitor made by this crate.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let (heads, size) = (self.maps.len(), self.maps.first().map_or(0, |(_, bias)| bias.len()));
        let (matrices, bias): (Vec<&[f32]>, Vec<&[f32]>) =
            self.maps.iter().map(|(matrix, bias)| (matrix.as_slice(), bias.as_slice())).unzip();
        let probes = &self.vote.probes;
        let tensors = [
            ("map.bias", vec![heads, size], bias.concat()),
            ("map.matrix", vec![heads, size, size], matrices.concat()),
            ("probe.bias", vec![heads], probes.iter().map(|probe| probe.bias as f32).collect()),
            (
                "probe.weight",
                vec![heads, size],
                probes.iter().flat_map(|probe| probe.weight.iter().map(|w| *w as f32)).collect(),
            ),
        ];
        file::bytes(KEY, &self.about, &tensors)
    }

    /// Reads a monitor.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Input`] naming the file and tensor when it is no monitor.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::read(path)?;
        let about: About = file.about(KEY)?;
        let wrong = |problem: String| file.wrong(problem);
        let values = |name: &str, shape: &[usize]| file.values(name, shape);
        let &[heads, size] = file.shape("probe.weight")?.as_slice() else {
            return Err(wrong("tensor `probe.weight`: expected 2 dimensions, got others".into()));
        };
        if heads == 0 || size == 0 || !(1..=heads).contains(&about.threshold) {
            let (tau, shape) = (about.threshold, [heads, size]);
            return Err(wrong(format!(
                "expected a threshold from 1 to the number of heads, got {tau} and shape {shape:?}"
            )));
        }
        let bias = values("probe.bias", &[heads])?;
        let probes = values("probe.weight", &[heads, size])?
            .chunks_exact(size)
            .zip(&bias)
            .map(|(w, b)| Probe { weight: w.iter().map(|v| f64::from(*v)).collect(), bias: f64::from(*b) })
            .collect();
        let shifts = values("map.bias", &[heads, size])?;
        let matrices = values("map.matrix", &[heads, size, size])?;
        let maps = matrices.chunks_exact(size * size).zip(shifts.chunks_exact(size));
        Ok(Self {
            vote: Vote { layer: about.layer, probes, threshold: about.threshold },
            maps: maps.map(|(matrix, bias)| (matrix.to_vec(), bias.to_vec())).collect(),
            about,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::seed::Stream;
    use crate::model::{Intervention as _, Point, Site};
    use candle_core::{Device, Tensor};
    use std::fs;

    fn rows() -> Rows {
        let mut stream = Stream::new(4, "monitor");
        let mut class = |mean: f32| -> Vec<f32> {
            let noise = stream.gaussian(120 * 12, 0.6);
            noise.iter().enumerate().map(|(i, v)| if i % 4 == 1 { v + mean } else { *v }).collect()
        };
        Rows { width: 12, hazards: class(1.5), harmless: class(-1.5) }
    }

    fn monitor() -> Monitor {
        let (rows, loss) = (rows(), Loss::RiskAware { beta: 2.0 });
        let vote = Vote::choose(std::slice::from_ref(&rows), std::slice::from_ref(&rows), 3, loss, 2.0).unwrap();
        Monitor::new(vote, &rows, loss, 1.645, "00")
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let monitor = monitor();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("monitor.safetensors");
        fs::write(&path, monitor.to_bytes().unwrap()).unwrap();
        let again = Monitor::read(&path).unwrap();
        assert_eq!(again, monitor);
        assert_eq!(again.to_bytes().unwrap(), fs::read(&path).unwrap());
    }

    #[test]
    fn movement_silences_nearly_all_that_it_flags() {
        let (monitor, rows) = (monitor(), rows());
        let flagged: Vec<&[f32]> = rows.hazards.chunks_exact(12).filter(|row| monitor.vote().flags(row)).collect();
        assert!(flagged.len() >= 118, "{}", flagged.len());
        let silent = flagged.iter().filter(|row| monitor.vote().firing(&monitor.moved(row)).iter().all(|f| !f)).count();
        assert!(silent * 10 >= flagged.len() * 8, "{silent} of {}", flagged.len());
    }

    #[test]
    fn the_edit_moves_as_the_monitor_does() {
        let (monitor, rows) = (monitor(), rows());
        let row = &rows.hazards[..12];
        let edit = monitor.edit(&monitor.vote().firing(row)).place(&Device::Cpu).unwrap();
        let stream = Tensor::from_slice(row, (1, 1, 12), &Device::Cpu).unwrap();
        let moved =
            edit.apply(Site::new(0, Point::Z), &stream).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(moved.iter().zip(monitor.moved(row)).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn what_is_no_monitor_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let whole = monitor().to_bytes().unwrap();
        let replaced = |from: &str, to: &str| {
            let at = whole.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            [&whole[..at], to.as_bytes(), &whole[at + from.len()..]].concat()
        };
        for (bytes, expected) in [
            (whole[..40].to_vec(), "expected safetensors"),
            (replaced("\"monitor\"", "\"monitar\""), "expected metadata `monitor`"),
            (replaced("map.bias", "map.biaz"), "tensor `map.bias`"),
            (replaced("schema_version\\\":1", "schema_version\\\":2"), "expected schema_version 1, got 2"),
        ] {
            fs::write(&path, bytes).unwrap();
            let error = Monitor::read(&path).unwrap_err();
            assert!(error.to_string().contains(expected), "{expected}: {error}");
            assert_eq!(error.exit_code(), 3);
        }
    }
}
