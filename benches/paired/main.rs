//! This crate against PyTorch, transformers and coreutils: the same work in turn, in one run, with ratios.
//!
//! `cargo bench --bench paired [-- TASK…]`; tasks: train-step, attack-fit, generation, stored-weights, cost, block-defence, closed-form, merge,
//! start. All but stored-weights, cost, closed-form, merge and start need `IMMUNISE_PYTHON`, a Python with torch (generation: and transformers).
//! Prints a Markdown table.

mod block_defence;
mod cpu;
mod disk;
mod folder;
mod pair;
mod shape;
mod steps;

use immunise::math::float::{settle_threads, start_workers};
use pair::{HEAD, Outcome, Pair};

/// As in the program itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures rows of the table.
type Task = fn() -> Outcome<Vec<Pair>>;

const TASKS: &[(&str, Task)] = &[
    ("train-step", cpu::train_step),
    ("attack-fit", cpu::attack_fit),
    ("generation", cpu::generation),
    ("stored-weights", cpu::stored_weights),
    ("cost", cpu::cost),
    ("block-defence", block_defence::run),
    ("closed-form", block_defence::closed_form),
    ("merge", disk::merge),
    ("start", disk::start),
];

fn main() -> Outcome<()> {
    // SAFETY: no other thread has been started yet.
    unsafe { settle_threads() };
    start_workers(None);
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if let Some(unknown) = wanted.iter().find(|word| !TASKS.iter().any(|(name, _)| name == word)) {
        let names: Vec<&str> = TASKS.iter().map(|(name, _)| *name).collect();
        return Err(format!("expected one of {}, got `{unknown}`", names.join(", ")).into());
    }
    println!("{HEAD}");
    for (name, task) in TASKS {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            match task() {
                Ok(pairs) => pairs.iter().for_each(|pair| println!("{}", pair.row())),
                // The other rows are worth having where one side of this one is missing.
                Err(error) => eprintln!("{name}: skipped: {error}"),
            }
        }
    }
    Ok(())
}
