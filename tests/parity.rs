//! The decoder against independent implementations and against itself: candle-transformers' decoders on random weights, and
//! the forms of one forward pass that must agree.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, IndexOp as _, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{llama, qwen2};
use immunise::Result;
use immunise::adapter::Adapter;
use immunise::checkpoint::Checkpoint;
use immunise::defence::trainable::{Trainable, merge};
use immunise::math::seed::Stream;
use immunise::model::frequencies::Rope;
use immunise::model::generate::{Greedy, generate};
use immunise::model::linear::LowRank;
use immunise::model::optimiser::host_values;
use immunise::model::{Blueprint, Decoder, Hooks, Module, TokenBatch, families};
use immunise::pipeline::device;
use ndarray::Array2;

const CPU: Device = Device::Cpu;

fn blueprint(family: &'static str, tied: bool) -> Blueprint {
    Blueprint {
        family,
        vocab: 61,
        d_model: 32,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
        d_ff: 48,
        norm_eps: 1e-6,
        ropes: vec![Rope::new(5e4)],
        max_positions: 64,
        tied,
        qkv_bias: family == "qwen2",
        ..Blueprint::default()
    }
}

/// A decoder of random weights, and those weights by name.
fn random(blueprint: Blueprint) -> (Decoder, HashMap<String, Tensor>) {
    let mut stream = Stream::new(11, "parity");
    let mut weights = HashMap::new();
    let decoder = Decoder::from_weights(blueprint, &CPU, |name, shape| {
        let values = stream.gaussian(shape.iter().product(), 0.25);
        let mut weight = Tensor::from_vec(values, shape, &CPU)?;
        if name.ends_with("norm.weight") {
            weight = (weight + 1.0)?;
        }
        weights.insert(name.to_owned(), weight.clone());
        Ok(weight)
    });
    (decoder.unwrap(), weights)
}

fn tokens(name: &str, n: usize) -> Vec<u32> {
    let mut stream = Stream::new(5, name);
    (0..n).map(|_| stream.below(61) as u32).collect()
}

fn logits(decoder: &Decoder, batch: &TokenBatch) -> Tensor {
    decoder.forward(batch, &mut Hooks::none(), None).unwrap()
}

/// Largest difference, relative to the largest value of `reference`.
fn distance(ours: &Tensor, reference: &Tensor) -> f64 {
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (ours, reference) = (values(ours), values(reference));
    assert_eq!(ours.len(), reference.len());
    let scale = reference.iter().fold(0_f32, |m, v| m.max(v.abs()));
    let worst = ours.iter().zip(&reference).fold(0_f32, |m, (a, b)| m.max((a - b).abs()));
    f64::from(worst / scale)
}

/// Compares the logits of every position with `reference(prefix)`, which gives those of a prefix's last token.
fn agree(decoder: &Decoder, name: &str, mut reference: impl FnMut(&Tensor) -> candle_core::Result<Tensor>) {
    let ids = tokens(name, 20);
    let ours = logits(decoder, &TokenBatch::prompts(std::slice::from_ref(&ids), 0));
    for end in 1..=ids.len() {
        let prefix = Tensor::from_slice(&ids[..end], (1, end), &CPU).unwrap();
        let theirs = reference(&prefix).unwrap().flatten_all().unwrap();
        let error = distance(&ours.i((0, end - 1)).unwrap(), &theirs);
        assert!(error < 1e-4, "{name}, position {end}: {error:e}");
    }
}

#[test]
fn llama_agrees_with_the_reference_decoder() {
    for tied in [true, false] {
        let (decoder, weights) = random(blueprint("llama", tied));
        let b = decoder.blueprint();
        let config = llama::Config {
            hidden_size: b.d_model,
            intermediate_size: b.d_ff,
            vocab_size: b.vocab,
            num_hidden_layers: b.n_layers,
            num_attention_heads: b.n_heads,
            num_key_value_heads: b.n_kv_heads,
            use_flash_attn: false,
            rms_norm_eps: b.norm_eps,
            rope_theta: b.ropes[0].theta as f32,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: b.max_positions,
            tie_word_embeddings: tied,
        };
        let model = llama::Llama::load(VarBuilder::from_tensors(weights, DType::F32, &CPU), &config).unwrap();
        agree(&decoder, "llama", |prefix| {
            model.forward(prefix, 0, &mut llama::Cache::new(false, DType::F32, &config, &CPU)?)
        });
    }
}

#[test]
fn qwen2_agrees_with_the_reference_decoder() {
    for tied in [true, false] {
        let (decoder, weights) = random(blueprint("qwen2", tied));
        let b = decoder.blueprint();
        let config = qwen2::Config {
            vocab_size: b.vocab,
            hidden_size: b.d_model,
            intermediate_size: b.d_ff,
            num_hidden_layers: b.n_layers,
            num_attention_heads: b.n_heads,
            num_key_value_heads: b.n_kv_heads,
            max_position_embeddings: b.max_positions,
            sliding_window: b.max_positions,
            max_window_layers: b.n_layers,
            tie_word_embeddings: tied,
            rope_theta: b.ropes[0].theta,
            rms_norm_eps: b.norm_eps,
            use_sliding_window: false,
            hidden_act: Activation::Silu,
        };
        let builder = VarBuilder::from_tensors(weights, DType::F32, &CPU);
        let mut model = qwen2::ModelForCausalLM::new(&config, builder).unwrap();
        agree(&decoder, "qwen2", |prefix| {
            model.clear_kv_cache();
            model.forward(prefix, 0)
        });
    }
}

fn prompts() -> Vec<Vec<u32>> {
    [3, 11, 7, 1, 16, 7, 5].iter().enumerate().map(|(i, n)| tokens(&format!("prompt {i}"), *n)).collect()
}

fn greedy(batch: usize) -> Greedy {
    Greedy { max_new_tokens: 12, stop: vec![7, 23, 42], pad: 0, batch }
}

/// Greedy decoding without cache, batch or padding: the whole sequence anew for every token.
fn by_hand(decoder: &Decoder, prompt: &[u32], options: &Greedy) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    while ids.len() < prompt.len() + options.max_new_tokens {
        let last = logits(decoder, &TokenBatch::prompts(&[ids.clone()], 0)).i((0, ids.len() - 1)).unwrap();
        let next = last.argmax(0).unwrap().to_scalar::<u32>().unwrap();
        if options.stop.contains(&next) {
            break;
        }
        ids.push(next);
    }
    ids.split_off(prompt.len())
}

#[test]
fn generation_with_a_cache_is_the_full_forward_pass_repeated() {
    for family in ["llama", "qwen2"] {
        let (decoder, _) = random(blueprint(family, true));
        let expected: Vec<Vec<u32>> = prompts().iter().map(|prompt| by_hand(&decoder, prompt, &greedy(1))).collect();
        assert_eq!(generate(&decoder, &prompts(), &[], &greedy(4)).unwrap(), expected, "{family}");
        assert!(expected.iter().any(|answer| answer.len() < 12), "some answers end by a stop token");
        assert!(expected.iter().any(|answer| answer.len() == 12), "and some by their length");
    }
}

#[test]
fn the_batch_size_does_not_change_answers() {
    let (decoder, _) = random(blueprint("llama", true));
    let answers = generate(&decoder, &prompts(), &[], &greedy(1)).unwrap();
    for batch in [2, 3, 7, 50] {
        assert_eq!(generate(&decoder, &prompts(), &[], &greedy(batch)).unwrap(), answers, "batches of {batch}");
    }
}

#[test]
fn left_padding_changes_no_logits_whatever_the_padding_is() {
    let (decoder, _) = random(blueprint("qwen2", true));
    let prompt = tokens("padded", 6);
    let alone = logits(&decoder, &TokenBatch::prompts(std::slice::from_ref(&prompt), 0)).i(0).unwrap();
    for (pad, width) in [(0, 9), (60, 9), (3, 30)] {
        let batch = TokenBatch::prompts(&[tokens("long", width), prompt.clone()], pad);
        let padded = logits(&decoder, &batch).i((1, width - prompt.len()..)).unwrap();
        let error = distance(&padded, &alone);
        assert!(error < 1e-5, "{} columns of {pad}: {error:e}", width - prompt.len());
    }
}

#[test]
fn merged_weights_compute_what_the_adapters_did() -> Result<()> {
    for family in ["llama", "qwen2"] {
        let (base, _) = random(blueprint(family, true));
        let mut stream = Stream::new(3, "adapters");
        let mut adapters = HashMap::new();
        for layer in 0..base.n_layers() {
            for module in Module::ALL {
                let [d_out, d_in] = base.blueprint().weight_shape(module);
                let mut factor = |rows: usize, cols: usize| {
                    Array2::from_shape_vec((rows, cols), stream.gaussian(rows * cols, 0.2)).unwrap()
                };
                adapters.insert((layer, module), Adapter::new(factor(2, d_in), factor(d_out, 2), 0.5)?);
            }
        }
        let tensor = |array: &Array2<f32>| Tensor::from_iter(array.iter().copied(), &CPU)?.reshape(array.dim());
        let change = |f: &dyn Fn(&Adapter, &immunise::model::linear::Linear) -> Result<_>| {
            base.map_blocks(|layer, block| {
                Module::ALL.into_iter().try_fold(block.clone(), |block, module| {
                    let map = f(&adapters[&(layer, module)], block.map(module))?;
                    Ok(block.with_map(module, map))
                })
            })
        };
        let adapted = change(&|adapter, map| {
            let (a, b) = (tensor(&adapter.a)?, tensor(&adapter.b)?);
            map.with_adapter(LowRank { a, b, scale: f64::from(adapter.scale) })
        })?;
        // As the files are merged: the delta summed on the host and added to the weight once.
        let written =
            change(&|adapter, map| Ok(map.with_weight((map.weight().tensor()? + tensor(&adapter.delta())?)?)))?;
        let batch = TokenBatch::prompts(&prompts(), 0);
        let reference = logits(&adapted, &batch);
        assert!(distance(&logits(&base, &batch), &reference) > 0.05, "the adapters do something");
        for (name, merged) in [("in memory", adapted.merged()?), ("as in files", written)] {
            let error = distance(&logits(&merged, &batch), &reference);
            assert!(error < 1e-5, "{family}, {name}: {error:e}");
        }
    }
    Ok(())
}

#[test]
fn a_decoder_that_stays_in_its_files_computes_what_a_loaded_one_does() -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-chat");
    let checkpoint = Arc::new(Checkpoint::open(&dir)?);
    let (held, stored) = (Decoder::load(&checkpoint, &CPU)?, Decoder::stream(&checkpoint, &CPU)?);
    let batch = TokenBatch::dialogues(&[tokens("a", 9), tokens("b", 6)], &[tokens("c", 4), tokens("d", 5)], 0);
    assert_eq!(host_values(&logits(&held, &batch))?, host_values(&logits(&stored, &batch))?);

    // Adapters under training, merged for an inner loop, and merged for good.
    let trainable = Trainable::without_zero(&held, &[1, 3], 2, 1.0, &mut Stream::new(2, "adapters"))?;
    let passes = [&held, &stored].map(|decoder| -> Result<_> {
        let adapted = trainable.attach(decoder)?;
        let y = logits(&adapted, &batch);
        let gradients = y.sqr()?.sum_all()?.backward()?;
        let gradient = host_values(gradients.get(&trainable.vars()[1]).expect("a gradient of B"))?;
        let merged = logits(&adapted.merged()?, &batch);
        let for_good = logits(&merge(decoder, &trainable.export()?)?, &batch);
        Ok([host_values(&y)?, gradient, host_values(&merged)?, host_values(&for_good)?])
    });
    let [held, stored] = passes;
    let (held, stored) = (held?, stored?);
    assert_eq!(held[..2], stored[..2], "bit for bit");
    for (held, stored) in held[2..].iter().zip(&stored[2..]) {
        let largest = held.iter().fold(0_f32, |m, v| m.max(v.abs()));
        assert!(held.iter().zip(stored).all(|(a, b)| (a - b).abs() <= 1e-4 * largest));
    }
    Ok(())
}

#[test]
fn an_accelerator_computes_what_the_cpu_does() -> Result<()> {
    let Ok(device) = device::parse("cuda") else {
        eprintln!("skipped: this build or machine has no CUDA device");
        return Ok(());
    };
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-chat");
    let checkpoint = Checkpoint::open(&dir)?;
    let batch = TokenBatch::dialogues(&[tokens("a", 9), tokens("b", 6)], &[tokens("c", 4), tokens("d", 5)], 0);
    let pass = |decoder: &Decoder| -> Result<[Vec<f32>; 2]> {
        let trainable = Trainable::without_zero(decoder, &[1, 3], 2, 1.0, &mut Stream::new(2, "adapters"))?;
        let y = logits(&trainable.attach(decoder)?, &batch);
        let gradients = y.sqr()?.sum_all()?.backward()?;
        Ok([host_values(&y)?, host_values(gradients.get(&trainable.vars()[1]).expect("a gradient of B"))?])
    };
    let expected = pass(&Decoder::load(&checkpoint, &CPU)?)?;
    let f32_there = Decoder::from_weights(families::blueprint(checkpoint.config())?, &device, |name, shape| {
        Ok(Tensor::from_vec(checkpoint.read_f32(name)?, shape, &device)?)
    })?;
    // In f32, and with matrices in bf16 as `load` keeps them there.
    for (decoder, tolerance) in [(f32_there, 1e-3), (Decoder::load(&checkpoint, &device)?, 5e-2)] {
        for (found, expected) in pass(&decoder)?.iter().zip(&expected) {
            let largest = expected.iter().fold(0_f32, |m, v| m.max(v.abs()));
            let differences = || found.iter().zip(expected).map(|(a, b)| (a - b).abs());
            eprintln!("largest difference {:.1e} of the largest value", differences().fold(0.0, f32::max) / largest);
            assert!(found.len() == expected.len() && differences().all(|d| d <= tolerance * largest));
        }
    }
    Ok(())
}
