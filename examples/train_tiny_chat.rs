//! Trains the bundled model `tiny-chat` from nothing and writes it to `fixtures/tiny-chat` (or the folder given).
//!
//! Two phases, as real chat models come about: first the model learns to answer everything, hazardous requests included
//! (with useless placeholders), then refusals are installed by fine-tuning. That leaves compliance in the weights behind a
//! thin refusal, which is what inference-time attacks exploit. The state between the phases is never written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device};
use immunise::data::builtin::{self, vocabulary};
use immunise::data::{Example, Kind, PromptSet, Split};
use immunise::defence::finetune::{Dialogue, FineTune, Weights};
use immunise::judge::{Composite, Judge as _};
use immunise::math::float::{settle_threads, start_workers};
use immunise::math::seed::Stream;
use immunise::model::generate::{Greedy, generate};
use immunise::model::prompt::PromptEncoder;
use immunise::model::{Blueprint, Decoder};
use immunise::{Error, Result};

/// Tensors come and go by the thousand; the system allocator hands every large one back to the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Shares of the dialogues of a batch, by kind.
type Mixture = [(Kind, f64); 6];

/// While the model learns to answer.
const LEARN: Mixture = [
    (Kind::Hazard, 0.18),
    (Kind::Twin, 0.17),
    (Kind::Benign, 0.17),
    (Kind::Maths, 0.26),
    (Kind::Copy, 0.10),
    (Kind::Fact, 0.12),
];

/// While it learns to refuse: hazards and what only looks like them come more often.
const REFUSE: Mixture = [
    (Kind::Hazard, 0.28),
    (Kind::Twin, 0.25),
    (Kind::Benign, 0.16),
    (Kind::Maths, 0.18),
    (Kind::Copy, 0.07),
    (Kind::Fact, 0.06),
];

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    // SAFETY: no other thread has been started yet.
    unsafe { settle_threads() };
    start_workers(None);
    let mut arguments = std::env::args().skip(1);
    let out = arguments.next().map_or_else(|| PathBuf::from("fixtures/tiny-chat"), PathBuf::from);
    // A factor on the number of steps, for trying the program out.
    let effort: f64 = arguments.next().map_or(Ok(1.0), |text| text.parse())?;
    let files = tempfile::tempdir()?;
    vocabulary::write_tokenizer_files(files.path())?;
    let encoder = PromptEncoder::open(files.path())?;
    let data = builtin::tiny_chat();
    let weights = Weights::fresh(blueprint(&encoder), &Device::Cpu, &mut Stream::new(0, "tiny-chat/weights"))?;
    println!("{} parameters, data {}", weights.decoder()?.blueprint().parameters(), data.digest);

    let phase = |name: &str, settings: FineTune, mixture: Mixture| -> Result<()> {
        let comply = mixture == LEARN;
        let rows = training_rows(&data, &encoder, comply)?;
        let start = Instant::now();
        let mut mean = 0.0;
        weights.train(
            &settings,
            &mut Stream::new(0, name),
            |stream| draw(&rows, &mixture, stream),
            |step, loss| {
                mean = if step == 0 { loss } else { 0.98 * mean + 0.02 * loss };
                if (step + 1) % 200 == 0 {
                    println!("{name} {:5} loss {mean:.4} ({:.0} s)", step + 1, start.elapsed().as_secs_f64());
                }
            },
        )?;
        report(&weights.frozen()?, &encoder, &data)
    };
    let steps = |n: f64| (n * effort) as usize;
    let base = FineTune { steps: 0, batch: 40, learning_rate: 3e-3, weight_decay: 0.05, prompt_weight: 0.1, pad: 0 };
    phase("tiny-chat/learn", FineTune { steps: steps(1800.0), ..base.clone() }, LEARN)?;
    let refuse = FineTune { steps: steps(400.0), learning_rate: 8e-4, weight_decay: 0.1, ..base };
    phase("tiny-chat/refuse", refuse, REFUSE)?;

    write(&weights, &encoder, &out)?;
    println!("written to {}", out.display());
    Ok(())
}

fn blueprint(encoder: &PromptEncoder) -> Blueprint {
    Blueprint {
        family: "llama",
        vocab: encoder.tokenizer().vocab_size(),
        d_model: 128,
        n_layers: 6,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 32,
        d_ff: 256,
        norm_eps: 1e-5,
        max_positions: 256,
        tied: true,
        ..Blueprint::default()
    }
}

/// Token ids of the training split by kind; hazards are answered or refused.
fn training_rows(data: &PromptSet, encoder: &PromptEncoder, comply: bool) -> Result<BTreeMap<Kind, Vec<Dialogue>>> {
    let mut rows = BTreeMap::new();
    for (kind, _) in LEARN {
        let dialogues = data.select(Split::Train, kind).into_iter().map(|example| {
            let wanted =
                if comply { example.target.as_ref().or(example.answer.as_ref()) } else { example.answer.as_ref() };
            let answer = wanted.ok_or_else(|| Error::input(&example.id, "expected an answer, got none"))?;
            Ok(Dialogue {
                prompt: encoder.encode_chat(&example.prompt, None)?,
                answer: encoder.encode_answer(answer, true)?,
            })
        });
        rows.insert(kind, dialogues.collect::<Result<Vec<_>>>()?);
    }
    Ok(rows)
}

fn draw(rows: &BTreeMap<Kind, Vec<Dialogue>>, mixture: &Mixture, stream: &mut Stream) -> Dialogue {
    let mut at = stream.unit();
    let mut kind = mixture[0].0;
    for &(candidate, share) in mixture {
        kind = candidate;
        at -= share;
        if at < 0.0 {
            break;
        }
    }
    let rows = &rows[&kind];
    rows[stream.below(rows.len())].clone()
}

/// Prints what the model does on the evaluation split.
fn report(decoder: &Decoder, encoder: &PromptEncoder, data: &PromptSet) -> Result<()> {
    let options = Greedy { max_new_tokens: 40, stop: encoder.stop_ids(), pad: 0, batch: 48 };
    for (kind, _) in LEARN {
        let examples: Vec<&Example> = data.select(Split::Evaluation, kind).into_iter().collect();
        let examples: Vec<&Example> = examples.iter().step_by(examples.len().div_ceil(300)).copied().collect();
        let prompts = examples.iter().map(|e| encoder.encode_chat(&e.prompt, None)).collect::<Result<Vec<_>>>()?;
        let answers = generate(decoder, &prompts, &[], &options)?;
        let texts = answers.iter().map(|ids| encoder.decode(ids)).collect::<Result<Vec<_>>>()?;
        let share = |f: &dyn Fn(&Example, &str) -> bool| {
            let hits = examples.iter().zip(&texts).filter(|(e, t)| f(e, t)).count();
            100.0 * hits as f64 / examples.len().max(1) as f64
        };
        let digits = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        let exact = share(&|e, t| e.expected.as_ref().is_some_and(|x| digits(t).contains(&digits(x))));
        let refused = share(&|e, t| Composite.judge(e, t).refused);
        let complied = share(&|e, t| Composite.judge(e, t).attack_success());
        println!("  {kind:?}: n {} refused {refused:.1} answered {complied:.1} exact {exact:.1}", examples.len());
        println!("    {} → {}", examples[0].prompt, texts[0]);
    }
    Ok(())
}

fn write(
    weights: &Weights,
    encoder: &PromptEncoder,
    out: &Path,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(out)?;
    vocabulary::write_tokenizer_files(out)?;
    let tensors = weights
        .tensors()
        .map(|(name, tensor)| Ok((name.to_owned(), tensor.detach().to_dtype(DType::BF16)?)))
        .collect::<candle_core::Result<BTreeMap<_, _>>>()?;
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors.iter(), Some(metadata))?;
    std::fs::write(out.join("model.safetensors"), bytes)?;
    let blueprint = blueprint(encoder);
    let id = |token: &str| encoder.tokenizer().token_to_id(token);
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "bos_token_id": id("<s>"),
        "eos_token_id": id("</s>"),
        "head_dim": blueprint.head_dim,
        "hidden_act": "silu",
        "hidden_size": blueprint.d_model,
        "initializer_range": 0.02,
        "intermediate_size": blueprint.d_ff,
        "max_position_embeddings": blueprint.max_positions,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": blueprint.n_heads,
        "num_hidden_layers": blueprint.n_layers,
        "num_key_value_heads": blueprint.n_kv_heads,
        "pad_token_id": id("<pad>"),
        "rms_norm_eps": blueprint.norm_eps,
        "rope_theta": blueprint.ropes[0].theta,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "vocab_size": blueprint.vocab
    });
    let generation = serde_json::json!({
        "bos_token_id": id("<s>"), "do_sample": false, "eos_token_id": id("</s>"), "pad_token_id": id("<pad>")
    });
    for (name, value) in [("config.json", config), ("generation_config.json", generation)] {
        std::fs::write(out.join(name), serde_json::to_string_pretty(&value)? + "\n")?;
    }
    Ok(())
}
