//! What an inference-time edit does to an activation.

pub mod edit;

pub use crate::model::hooks::Positions;
pub use edit::{Edit, Placed};
