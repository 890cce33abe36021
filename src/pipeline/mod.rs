//! The pipeline.
pub mod pool;
