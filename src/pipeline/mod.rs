//! From a recipe and a model to a report and, if it passes, a published folder.
//!
//! One direction: locate → open → measure the base → stages → merge into a staged copy → re-open that copy → measure it →
//! report → verdict → card, evidence, signature → rename into place. What is measured is always what was written: the
//! trained decoder in memory is dropped before the staged files are opened. Every finished unit (a fit, a cell, a stage)
//! goes into the run folder's [`journal`] first, so a killed run resumes there.
//!
//! Owned here: the order of things, who sees which rows, what goes into OUT and what stays in RUN. Not owned: how an attack
//! fits ([`crate::attack`]), how a defence trains ([`crate::defence`]), what a figure means ([`crate::report`]).

mod artefact;
pub mod bench;
pub mod budget;
pub mod bundled;
pub mod cell;
mod controls;
pub mod corpus;
pub mod detect;
pub mod device;
pub mod examiner;
pub mod harden;
pub mod journal;
pub mod metrics;
pub mod model;
mod needs;
pub mod plan;
pub mod policy;
pub mod pool;
pub mod publish;
pub mod rank;
pub mod stage;
pub mod suite;
pub mod switch;
pub mod verify;
pub mod weights;
mod window;

/// The build that finished units belong to: another one may compute other numbers from the same inputs.
const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), "+", env!("IMMUNISE_SOURCES"));

mod abliterate;
mod search;
mod train;
mod transfer;

pub use bench::{Bench, Subject};
pub use corpus::{Corpus, prompt_set, prompts_of};
pub use examiner::{Counts, Designs, Examiner, Judgements, Questions};
pub use harden::{Outcome, Request, harden, harden_part};
pub use journal::{Journal, Stop};
pub use model::{Located, Model, locate};
pub use train::Part;
pub use verify::{Trial, assess};
