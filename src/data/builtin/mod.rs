//! The dialogue world of the bundled model (to be written).
