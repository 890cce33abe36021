//! Prints greedy answers of a checkpoint as JSON lines, for comparison with other implementations.
//!
//! `cargo run --release --example answers -- DIR [N]` asks the first N (50) evaluation requests of the bundled model's world,
//! evenly over its kinds, and prints `{"prompt", "ids", "answer"}` for each.

use std::io::Write as _;
use std::path::PathBuf;

use candle_core::Device;
use immunise::checkpoint::Checkpoint;
use immunise::data::{Example, Kind, Split, builtin};
use immunise::math::float::{settle_threads, start_workers};
use immunise::model::Decoder;
use immunise::model::generate::{Greedy, generate};
use immunise::model::prompt::PromptEncoder;

const KINDS: [Kind; 6] = [Kind::Hazard, Kind::Twin, Kind::Benign, Kind::Maths, Kind::Copy, Kind::Fact];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // SAFETY: no other thread has been started yet.
    unsafe { settle_threads() };
    start_workers(None);
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("expected a checkpoint folder")?);
    let wanted: usize = arguments.next().map_or(Ok(50), |n| n.parse())?;
    let decoder = Decoder::load(&Checkpoint::open(&dir)?, &Device::Cpu)?;
    let encoder = PromptEncoder::open(&dir)?;

    let data = builtin::tiny_chat();
    let kinds = KINDS.map(|kind| data.select(Split::Evaluation, kind));
    let longest = kinds.iter().map(Vec::len).max().unwrap_or(0);
    let examples: Vec<&Example> =
        (0..longest).flat_map(|i| kinds.iter().filter_map(move |kind| kind.get(i * 7).copied())).take(wanted).collect();
    let prompts =
        examples.iter().map(|e| encoder.encode_chat(&e.prompt, None)).collect::<immunise::Result<Vec<_>>>()?;
    let options = Greedy { max_new_tokens: 40, stop: encoder.stop_ids(), pad: 0, batch: 16 };
    let answers = generate(&decoder, &prompts, &[], &options)?;
    let mut out = std::io::stdout().lock();
    for (example, ids) in examples.into_iter().zip(answers) {
        let answer = encoder.decode(&ids)?;
        writeln!(out, "{}", serde_json::json!({ "prompt": example.prompt, "ids": ids, "answer": answer }))?;
    }
    Ok(())
}
