//! What varies between runs of the same inputs: times, memory, host. It goes into RUN and never into OUT.

use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use crate::checkpoint::PatchReport;

/// Times of the parts of a run.
#[derive(Debug)]
pub struct Metrics {
    started: Instant,
    last: Instant,
    parts: Vec<Part>,
    cast: Option<Cast>,
}

#[derive(Debug, Clone, Serialize)]
struct Part {
    name: String,
    seconds: f64,
}

/// What the cast to the stored type lost of the change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cast {
    /// Tensors changed.
    pub tensors: usize,
    /// Mean over tensors of the part of the change that was lost, fraction of 1.
    pub mean_loss: f64,
    /// The tensor that lost most.
    pub worst: Option<String>,
    /// What it lost.
    pub worst_loss: f64,
}

impl Cast {
    /// Sums a patch up.
    #[must_use]
    pub fn of(report: &PatchReport) -> Self {
        let changed: Vec<_> = report.tensors.iter().filter(|tensor| tensor.max_abs > 0.0).collect();
        let worst = changed.iter().max_by(|a, b| a.cast_loss.total_cmp(&b.cast_loss));
        let sum: f64 = changed.iter().map(|tensor| tensor.cast_loss).sum();
        Self {
            tensors: changed.len(),
            mean_loss: sum / changed.len().max(1) as f64,
            worst: worst.map(|tensor| tensor.name.clone()),
            worst_loss: worst.map_or(0.0, |tensor| tensor.cast_loss),
        }
    }
}

impl Metrics {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, parts: vec![], cast: None }
    }

    /// Ends the part of the run since the last call.
    pub fn lap(&mut self, name: impl Into<String>) {
        let now = Instant::now();
        self.parts.push(Part { name: name.into(), seconds: (now - self.last).as_secs_f64() });
        self.last = now;
    }

    /// Notes what the cast lost.
    pub fn cast(&mut self, cast: Cast) {
        self.cast = Some(cast);
    }

    /// `RUN/metrics.json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "seconds": self.started.elapsed().as_secs_f64(),
            "parts": self.parts,
            "peak_memory_bytes": peak_memory(),
            "threads": rayon::current_num_threads(),
            "cast": self.cast,
        })
    }
}

/// Largest resident size of this process so far, where the system says.
#[must_use]
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::TensorPatch;

    #[test]
    fn the_cast_is_summed_up_over_what_changed() {
        let tensor = |name: &str, max_abs, cast_loss| TensorPatch {
            name: name.into(),
            elements: 4,
            changed: 1,
            max_abs,
            relative_norm: 0.1,
            cast_loss,
        };
        let tensors = vec![tensor("a", 0.1, 0.2), tensor("b", 0.1, 0.4), tensor("c", 0.0, 0.0)];
        let cast = Cast::of(&PatchReport { tensors, other_weights: vec![] });
        assert_eq!((cast.tensors, cast.worst.as_deref()), (2, Some("b")));
        assert!((cast.mean_loss - 0.3).abs() < 1e-12);
    }
}
