//! What an inference-time edit does to an activation, and how edits that other tools made are read.

pub mod edit;
pub mod import;
pub mod layers;

pub use crate::model::hooks::Positions;
pub use edit::{Edit, Placed};
pub use layers::Layers;
