//! Teaches a chat model that answers everything to refuse: low-rank adapters, fine-tuned on the bundled English prompts, or on a
//! set of one's own.
//!
//! Hardening keeps refusals that are there; a model without any has nothing to defend. Hazards of the training split get
//! the prompt set's refusals, and everything else (twins, everyday requests, arithmetic) the model's own greedy answers,
//! so that little else moves. The adapters are written in PEFT's form, and `merge` makes a checkpoint of them:
//!
//! ```sh
//! cargo run --release --example install_refusals -- MODEL ADAPTERS [STEPS [PROMPTS.jsonl]]
//! immunise merge MODEL ADAPTERS --out MODEL-REFUSING
//! ```

use std::path::PathBuf;
use std::time::Instant;

use candle_core::Device;
use immunise::adapter::peft;
use immunise::checkpoint::Checkpoint;
use immunise::data::{Example, Kind, PromptSet, Split};
use immunise::defence::finetune::{Dialogue, FineTune, tune_adapters};
use immunise::math::float::{settle_threads, start_workers};
use immunise::math::seed::Stream;
use immunise::model::Decoder;
use immunise::model::generate::{Greedy, generate};
use immunise::model::prompt::PromptEncoder;

/// Tensors come and go by the thousand; the system allocator hands every large one back to the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RANK: usize = 16;
/// Rows of each harmless kind whose answers the model keeps.
const KEPT: usize = 400;
/// Tokens of an answer of its own that are kept at most.
const ANSWER: usize = 32;
/// Share of hazards in a batch.
const HAZARDS: f64 = 0.5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // SAFETY: no other thread has been started yet.
    unsafe { settle_threads() };
    start_workers(None);
    let mut arguments = std::env::args().skip(1);
    let model = PathBuf::from(arguments.next().ok_or("expected a checkpoint folder")?);
    let out = PathBuf::from(arguments.next().ok_or("expected a folder for the adapters")?);
    let steps: usize = arguments.next().map_or(Ok(120), |steps| steps.parse())?;
    let decoder = Decoder::load(&Checkpoint::open(&model)?, &Device::Cpu)?;
    let encoder = PromptEncoder::open(&model)?;
    let set = match arguments.next() {
        Some(path) => PromptSet::from_path(&PathBuf::from(path))?,
        None => PromptSet::builtin("prompts")?.in_languages(&["en".to_owned()])?,
    };

    let ask = |row: &Example| encoder.encode_chat(&row.prompt, None);
    let mut refusals = Vec::new();
    for row in set.select(Split::Train, Kind::Hazard) {
        let answer = row.answer.as_deref().ok_or("expected a refusal of every hazard")?;
        refusals.push(Dialogue { prompt: ask(row)?, answer: encoder.encode_answer(answer, true)? });
    }
    let mut stream = Stream::new(0, "install-refusals");
    let start = Instant::now();
    let options = Greedy { max_new_tokens: ANSWER, stop: encoder.stop_ids(), pad: 0, batch: 24 };
    let closing = encoder.closing();
    let mut kept: Vec<Vec<Dialogue>> = Vec::new();
    for kind in [Kind::Twin, Kind::Benign, Kind::Maths] {
        let mut rows: Vec<&Example> =
            [Split::Train, Split::Retain].into_iter().flat_map(|split| set.select(split, kind)).collect();
        stream.shuffle(&mut rows);
        let prompts = rows.into_iter().take(KEPT).map(ask).collect::<immunise::Result<Vec<_>>>()?;
        let own = generate(&decoder, &prompts, &[], &options)?;
        let answered = prompts.into_iter().zip(own).filter(|(_, answer)| !answer.is_empty());
        let dialogues: Vec<Dialogue> = answered
            .map(|(prompt, mut answer)| {
                if answer.len() < ANSWER {
                    answer.extend(closing);
                }
                Dialogue { prompt, answer }
            })
            .collect();
        println!("{} own answers to rows of kind {kind:?} ({:.0} s)", dialogues.len(), start.elapsed().as_secs_f64());
        kept.push(dialogues);
    }
    kept.retain(|dialogues| !dialogues.is_empty());
    if refusals.is_empty() || kept.is_empty() {
        return Err("expected hazards to refuse, and harmless requests that the model answers".into());
    }
    let settings = FineTune { steps, batch: 8, learning_rate: 1e-3, weight_decay: 0.0, prompt_weight: 0.0, pad: 0 };
    let draw = |stream: &mut Stream| {
        let rows = if stream.unit() < HAZARDS { &refusals } else { &kept[stream.below(kept.len())] };
        rows[stream.below(rows.len())].clone()
    };
    let adapters = tune_adapters(&decoder, RANK, &settings, &mut stream, draw, |step, loss| {
        if (step + 1) % 10 == 0 {
            println!("step {:3} of {steps}: {loss:.3} nats ({:.0} s)", step + 1, start.elapsed().as_secs_f64());
        }
    })?;
    peft::save(&adapters, &out, &model.display().to_string())?;
    println!("written to {}", out.display());
    Ok(())
}
