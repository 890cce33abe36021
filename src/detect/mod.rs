//! What whoever hosts a model can watch or change while it runs: a detector of hazardous requests in the outputs of attention
//! heads, and a switch that makes a base behave as the model that was tuned from it. Never part of a verdict.
//!
//! A probe a head, a vote a block, and for the heads that fire the least movement that takes their activations back to the
//! harmless side. Whoever holds the weights can leave a monitor out, so it says nothing about how robust a model is.
//!
//! *Source*: RADIANT (arXiv 2501.15758).

mod file;
pub mod monitor;
pub mod movement;
pub mod probe;
pub mod switch;
pub mod vote;

pub use monitor::Monitor;
pub use movement::Movement;
pub use probe::{Loss, Probe};
pub use switch::Switch;
pub use vote::{Errors, Vote};

/// Outputs of the heads of one block at the last token of requests, `[requests, heads · head_dim]`, row by row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Width of a row.
    pub width: usize,
    /// Of hazardous requests.
    pub hazards: Vec<f32>,
    /// Of harmless requests.
    pub harmless: Vec<f32>,
}

impl Rows {
    /// One head's part of both classes, of `heads`.
    #[must_use]
    pub fn head(&self, head: usize, heads: usize) -> Head {
        let size = self.width / heads.max(1);
        let part = |rows: &[f32]| -> Vec<Vec<f64>> {
            let rows = rows.chunks_exact(self.width.max(1));
            rows.map(|row| row[head * size..(head + 1) * size].iter().map(|v| f64::from(*v)).collect()).collect()
        };
        Head { hazards: part(&self.hazards), harmless: part(&self.harmless) }
    }
}

/// One head's outputs, a row a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Head {
    /// Of hazardous requests.
    pub hazards: Vec<Vec<f64>>,
    /// Of harmless requests.
    pub harmless: Vec<Vec<f64>>,
}
