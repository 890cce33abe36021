//! Arithmetic that everything else stands on: named random streams, floating-point mode, matrix products on plain
//! slices, and state that is kept bit for bit. Knows nothing of models.

mod dots;
pub mod float;
pub mod gaussian;
pub mod gemm;
pub mod linalg;
pub mod rows;
pub mod seed;
pub mod snapshot;
pub mod spectrum;
