//! A Llama-3-8B-shaped model with random weights on an accelerator: what its blocks cost, beside PyTorch in the same run.
//!
//! `cargo bench --features cuda --bench accelerator`; `-- --device cpu --shape smollm2 --blocks 2` tries it out without one.
//! Prints a Markdown table: seconds of a block's train step and its share of the measured matmul peak, of the local stage on
//! all blocks, of an attack's fit, and peak memory. PyTorch's side needs `IMMUNISE_PYTHON`.

#[path = "../paired/pair.rs"]
mod pair;
#[path = "../paired/shape.rs"]
mod shape;
#[path = "../paired/steps.rs"]
mod steps;

use std::process::Command;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use immunise::defence::et::{self, Faults};
use immunise::defence::spec::EtSpec;
use immunise::defence::{DefenceData, Dialogue, Forgetful, Given, Means, Weighed};
use immunise::event::Silent;
use immunise::intervention::Edit;
use immunise::math::float::{settle_threads, start_workers};
use immunise::math::seed::Stream;
use immunise::model::frequencies::Rope;
use immunise::model::{Blueprint, Decoder, Module};
use immunise::pipeline::device;
use pair::{HEAD, Outcome, Pair, Peer, median, seconds};
use serde_json::json;
use steps::{AttackFit, BlockStep, Fixed, described, with};

/// Tokens of a train step.
const SHAPE: (usize, usize) = (16, 64);
const RANK: usize = 4;
/// Steps that a block gets in the local stage.
const STEPS: usize = 80;

/// Llama-3-8B's blocks.
fn llama_8b(n_layers: usize, vocab: usize) -> Blueprint {
    Blueprint {
        vocab,
        d_model: 4096,
        n_layers,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 128,
        d_ff: 14_336,
        norm_eps: 1e-5,
        ropes: vec![Rope::new(5e5)],
        max_positions: 2048,
        ..Blueprint::default()
    }
}

/// As in the program itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Outcome<()> {
    // SAFETY: no other thread has been started yet.
    unsafe { settle_threads() };
    start_workers(None);
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| arguments.iter().position(|word| word == name).and_then(|at| arguments.get(at + 1));
    let device = device::parse(option("--device").map_or("auto", String::as_str))?;
    let blocks = option("--blocks").map_or(Ok(32), |text| text.parse::<usize>())?;
    let blueprint = match option("--shape").map(String::as_str) {
        None | Some("llama-8b") => llama_8b(blocks, 32_000),
        Some("smollm2") => shape::smollm2(blocks, 8192),
        Some(other) => return Err(format!("expected `llama-8b` or `smollm2`, got `{other}`").into()),
    };
    let on = device::kind(&device);
    if device.is_cpu() && option("--device").is_none() {
        eprintln!("no accelerator: `--device cpu --shape smollm2 --blocks 2` tries this out on a CPU");
        return Ok(());
    }
    println!("{blocks} blocks of width {} on {on}\n\n{HEAD}", blueprint.d_model);
    let peak = matmul_peak(&device)?;
    let decoder = shape::random(blueprint, &device)?;
    let placed = json!({ "device": on, "dtype": if device.is_cpu() { "float32" } else { "bfloat16" } });

    let (rows, cols) = SHAPE;
    let settings = json!({ "batch": rows, "tokens": cols, "rank": RANK });
    let settings = with(with(described(decoder.blueprint()), &settings), &placed);
    let mut step = BlockStep::new(&decoder, SHAPE, RANK)?;
    let rate = flops(decoder.blueprint(), rows * cols);
    let note = |times: &[f64]| {
        format!("{:.0}% of the matmul peak, {:.1} TFLOP/s", 100.0 * rate / median(times) / peak, peak / 1e12)
    };
    let what = format!("train step of a block, {rows} x {cols} tokens, rank {RANK}");
    report(&what, 20, || step.run(), "train-step", &settings, note)?;

    let stage = local_stage(&decoder)?;
    println!("| `et` on all {blocks} blocks, {STEPS} steps each | {} | | | | measured |", seconds(stage));

    let fit = AttackFit::new(decoder, 40, 10);
    let settings = with(fit.described(), &placed);
    let cell = |times: &[f64]| format!("an attack's 120 steps: {}", seconds(12.0 * median(times)));
    report(&format!("attack fit, 10 steps through {blocks} blocks"), 3, || fit.run(), "attack-fit", &settings, cell)?;
    println!("\npeak memory: {}", memory(&device));
    Ok(())
}

/// A row with PyTorch's side where there is one.
fn report(
    what: &str,
    rounds: usize,
    mut ours: impl FnMut() -> Outcome<f64>,
    task: &str,
    settings: &serde_json::Value,
    note: impl Fn(&[f64]) -> String,
) -> Outcome<()> {
    match Peer::start(task, settings) {
        Ok(mut peer) => {
            let mut pair = Pair::run(what, "PyTorch eager", rounds, ours, || peer.time())?;
            pair.note = note(&pair.ours);
            println!("{}", pair.row());
        }
        Err(error) => {
            ours()?;
            let times = (0..rounds).map(|_| ours()).collect::<Outcome<Vec<_>>>()?;
            println!("| {what} | {} | | | | {}; PyTorch: {error} |", seconds(median(&times)), note(&times));
        }
    }
    Ok(())
}

/// Floating-point operations of a train step: forward through all maps, backward through those whose input wants a gradient.
fn flops(blueprint: &Blueprint, tokens: usize) -> f64 {
    let size = |module: Module| blueprint.weight_shape(module).iter().product::<usize>() as f64;
    let forward: f64 = Module::ALL.into_iter().map(size).sum();
    let backward = forward - [Module::Q, Module::K, Module::V].into_iter().map(size).sum::<f64>();
    2.0 * tokens as f64 * (forward + backward)
}

/// Operations a second of a large square product in the type of the weights.
fn matmul_peak(device: &Device) -> Outcome<f64> {
    let (n, dtype) = if device.is_cpu() { (1024, DType::F32) } else { (8192, DType::BF16) };
    let matrix = Tensor::randn(0_f32, 1.0, (n, n), device)?.to_dtype(dtype)?;
    let mut times = Vec::new();
    for _ in 0..12 {
        let start = Instant::now();
        matrix.matmul(&matrix)?;
        device.synchronize()?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (n as f64).powi(3) / median(&times))
}

/// A random rank-2 edit of a block's input.
fn random_edit(decoder: &Decoder, layer: usize) -> Edit {
    let (rank, d) = (2, decoder.blueprint().d_model);
    let (mut stream, bound) = (Stream::new(0, "edit"), (d as f64).powf(-0.5));
    Edit::LowRank { layer, rank, w1: stream.uniform(rank * d, bound), w2: stream.uniform(rank * d, bound) }
}

/// Seconds of `et` on all blocks.
fn local_stage(decoder: &Decoder) -> Outcome<f64> {
    let vocab = decoder.blueprint().vocab;
    let dialogue = |prompt: Vec<u32>| Dialogue { prompt, answer: Vec::new() };
    let list = |name: &str| shape::tokens(64, 64, vocab, name).into_iter().map(dialogue).collect();
    let data = DefenceData { hazards: list("hazards"), anchors: list("anchors"), ..DefenceData::default() };
    let spec = EtSpec { rank: RANK, steps: STEPS, rounds: 1, prompts: 64, anchors: 64, ..EtSpec::default() };
    let given = Given {
        weights: Weighed::from(decoder),
        data: &data,
        adversary: &Fixed(random_edit),
        means: &Means::in_memory(1),
        seed: 0,
    };
    let layers: Vec<usize> = (0..decoder.n_layers()).collect();
    let start = Instant::now();
    et::run(&spec, Faults::Avoided, &layers, &given, &Silent, &mut Forgetful::default())?;
    decoder.device().synchronize()?;
    Ok(start.elapsed().as_secs_f64())
}

/// What the device's own tool says, or the process's peak on a CPU.
fn memory(device: &Device) -> String {
    if device.is_cpu() {
        let peak = immunise::pipeline::metrics::peak_memory();
        return peak.map_or("unknown".into(), |bytes| format!("{} MiB", bytes >> 20));
    }
    let query = ["--query-gpu=name,driver_version,memory.used", "--format=csv,noheader"];
    match Command::new("nvidia-smi").args(query).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => format!("unknown: nvidia-smi: {error}"),
    }
}
