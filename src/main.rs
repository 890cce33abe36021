//! The `immunise` binary.
fn main() {}
