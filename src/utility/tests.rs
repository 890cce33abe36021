//! The tasks on a small random decoder.

use candle_core::{Device, Tensor};

use super::*;
use crate::data::builtin::{self, vocabulary::write_tokenizer_files};
use crate::data::{Kind, Split};
use crate::math::seed::Stream;
use crate::model::{Blueprint, Hooks, TokenBatch};

fn encoder() -> PromptEncoder {
    let dir = tempfile::tempdir().unwrap();
    write_tokenizer_files(dir.path()).unwrap();
    PromptEncoder::open(dir.path()).unwrap()
}

fn decoder(encoder: &PromptEncoder, seed: u64) -> Decoder {
    let blueprint = Blueprint {
        family: "llama",
        vocab: encoder.tokenizer().vocab_size(),
        d_model: 16,
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 8,
        d_ff: 24,
        norm_eps: 1e-5,
        max_positions: 128,
        tied: true,
        ..Blueprint::default()
    };
    let mut stream = Stream::new(seed, "utility");
    Decoder::from_weights(blueprint, &Device::Cpu, |name, shape| {
        let count = shape.iter().product();
        let values = if name.ends_with("norm.weight") { vec![1.0; count] } else { stream.gaussian(count, 0.3) };
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    })
    .unwrap()
}

fn answered(_: &Example, answer: &str) -> Grade {
    Grade { refused: answer.len().is_multiple_of(2), on_topic: true, degenerate: false }
}

fn asking(encoder: &PromptEncoder, max_new_tokens: usize) -> Asking<'_> {
    Asking { encoder, system: None, max_new_tokens }
}

fn specs(items: usize) -> Vec<TaskSpec> {
    let of_prompts = Task::ALL.into_iter().filter(|task| *task != Task::Imported);
    of_prompts.map(|task| TaskSpec { items: Some(items), bound: Some(0.1), ..TaskSpec::new(task) }).collect()
}

#[test]
fn a_model_costs_nothing_against_itself() {
    let (encoder, data) = (encoder(), builtin::tiny_chat());
    let model = decoder(&encoder, 1);
    let rows = measure(&specs(30), &model, &model, asking(&encoder, 8), &data, &answered).unwrap();
    let names: Vec<&str> = specs(30).iter().map(|spec| spec.task.name()).collect();
    assert_eq!(rows.iter().map(|row| row.task.as_str()).collect::<Vec<_>>(), names);
    for row in rows {
        let delta = row.delta.unwrap();
        assert_eq!((delta.value, delta.n, row.bound, row.ok), (0.0, 30, Some(0.1), None), "{}", row.task);
        if row.task != "kl" {
            assert_eq!(row.base, Some(row.hardened), "{}", row.task);
        }
    }
}

#[test]
fn another_model_differs_and_its_divergence_is_positive() {
    let (encoder, data) = (encoder(), builtin::tiny_chat());
    let (base, hardened) = (decoder(&encoder, 1), decoder(&encoder, 2));
    let tasks = [Task::Kl, Task::Perplexity].map(|task| TaskSpec { items: Some(12), ..TaskSpec::new(task) });
    let rows = measure(&tasks, &base, &hardened, asking(&encoder, 8), &data, &answered).unwrap();
    assert!(rows[0].hardened.low > 0.1 && rows[0].delta == Some(rows[0].hardened));
    let (before, after, delta) = (rows[1].base.unwrap(), rows[1].hardened, rows[1].delta.unwrap());
    assert!((after.value / before.value - 1.0 - delta.value).abs() < 1e-9, "relative changes are those of the values");
    assert!(delta.low < delta.value && delta.value < delta.high);
}

#[test]
fn perplexity_is_that_of_a_hand_computation() {
    let (encoder, mut data) = (encoder(), builtin::tiny_chat());
    let model = decoder(&encoder, 1);
    data.examples.retain(|row| row.kind == Kind::Text && row.split == Split::Evaluation);
    data.examples.truncate(5);
    // One row of plain text among the dialogues.
    data.examples[4].answer = None;
    let (mut nats, mut tokens) = (0.0, 0);
    for row in &data.examples {
        let (mut ids, start) = match &row.answer {
            Some(_) => encoder.encode_chat(&row.prompt, None).map(|ids| (ids.clone(), ids.len())).unwrap(),
            None => (encoder.tokenizer().encode(&row.prompt, true).unwrap(), 1),
        };
        if let Some(answer) = &row.answer {
            ids.extend(encoder.encode_answer(answer, true).unwrap());
        }
        let batch = TokenBatch::prompts(&[ids.clone()], 0);
        let logits = model.forward(&batch, &mut Hooks::none(), None).unwrap();
        let logits = logits.squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        for at in start..ids.len() {
            let row: Vec<f64> = logits[at - 1].iter().map(|x| f64::from(*x)).collect();
            let log_sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
            nats += log_sum - row[ids[at] as usize];
            tokens += 1;
        }
    }
    let task = TaskSpec::new(Task::Perplexity);
    let row = measure(&[task], None, &model, asking(&encoder, 8), &data, &answered).unwrap().remove(0);
    let by_hand = (nats / f64::from(tokens)).exp();
    assert!((row.hardened.value / by_hand - 1.0).abs() < 1e-5, "{} {by_hand}", row.hardened.value);
    assert_eq!((row.hardened.n, row.base, row.delta), (5, None, None));
}

#[test]
fn windows_of_a_text_are_scored_apart() {
    let encoder = encoder();
    let model = decoder(&encoder, 1);
    let ids: Vec<u32> = (0..50).map(|i| 5 + i % 40).collect();
    let whole = perplexity::windowed(&model, &ids, 20, 2).unwrap();
    let each = [0, 20].map(|at| perplexity::windowed(&model, &ids[at..], 20, 1).unwrap().value);
    assert!((whole.value - (each[0] * each[1]).sqrt()).abs() < 1e-6 * whole.value);
    assert_eq!(whole.n, 2);
    assert!(perplexity::windowed(&model, &ids, 20, 3).is_err(), "the third window is short");
}

#[test]
fn without_a_base_or_without_items_nothing_is_decided() {
    let (encoder, data) = (encoder(), builtin::tiny_chat());
    let model = decoder(&encoder, 1);
    for row in measure(&specs(3), None, &model, asking(&encoder, 4), &data, &answered).unwrap() {
        assert_eq!((row.base, row.delta), (None, None), "{}", row.task);
        assert_eq!(row.hardened.n, if row.task == "kl" { 0 } else { 3 }, "{}", row.task);
    }
    let nothing = PromptSet::new("nothing", Vec::new());
    for row in measure(&specs(3), &model, &model, asking(&encoder, 4), &nothing, &answered).unwrap() {
        assert_eq!((row.hardened.n, row.delta.unwrap().n), (0, 0), "{}", row.task);
    }
}

#[test]
fn the_system_prompt_stands_before_every_request() {
    let dir = tempfile::tempdir().unwrap();
    write_tokenizer_files(dir.path()).unwrap();
    let template = dir.path().join("chat_template.jinja");
    // The world's own template refuses system prompts.
    let own = std::fs::read_to_string(&template).unwrap();
    std::fs::write(&template, own.replace("['role'] == 'user'", "['role'] in ['user', 'system']")).unwrap();
    let (encoder, data) = (PromptEncoder::open(dir.path()).unwrap(), builtin::tiny_chat());
    let (base, hardened) = (decoder(&encoder, 1), decoder(&encoder, 2));
    let kl = TaskSpec { items: Some(4), ..TaskSpec::new(Task::Kl) };
    let measured = |system| {
        let asking = Asking { system, ..asking(&encoder, 4) };
        measure(std::slice::from_ref(&kl), &base, &hardened, asking, &data, &answered).unwrap()[0].hardened.value
    };
    assert!((measured(None) - measured(Some("Add the numbers."))).abs() > 1e-6);
}
