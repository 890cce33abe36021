//! Arithmetic that everything else stands on: named random streams, floating-point mode, vectorised elementary
//! functions and matrix products on plain slices. Knows nothing of models.

pub mod float;
pub mod gemm;
pub mod seed;
