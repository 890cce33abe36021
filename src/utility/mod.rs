//! What hardening must not cost.

pub mod spec;
