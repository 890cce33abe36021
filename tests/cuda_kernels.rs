//! The GPU's kernels against the operations of the CPU, without a GPU: a C++ compiler builds `src/model/cuda/fused.cu` for the
//! CPU, one thread per thread of a block, plainly and with its checks for memory, undefined behaviour and races.
//!
//! Shows arithmetic, bounds, barriers and that every value is written; not what the CUDA compiler makes of it.

#![cfg(target_os = "linux")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};

use candle_core::{Device, Tensor, Var};
use immunise::math::seed::Stream;
use immunise::model::attention::{AttentionShape, masked_softmax_plain};
use immunise::model::frequencies::Rope;
use immunise::model::mlp::{geglu, swiglu};
use immunise::model::norm::rms_norm;
use immunise::model::optimiser::{AdamSettings, AdamW, host_values};
use immunise::model::rope::{RopeTable, RowPositions};

/// Largest relative difference: sums are taken in another order than on the CPU.
const TOLERANCE: f32 = 1e-5;

/// Kernels as compiled with one set of checks.
struct Emulator(PathBuf);

/// A kernel and where it runs.
#[derive(Clone, Copy)]
struct Launch {
    kernel: &'static str,
    blocks: usize,
    threads: usize,
}

impl Launch {
    fn per_value(kernel: &'static str, n: usize) -> Self {
        Self { kernel, blocks: n.div_ceil(256), threads: 256 }
    }

    fn per_row(kernel: &'static str, rows: usize, width: usize) -> Self {
        Self { kernel, blocks: rows, threads: width.next_power_of_two().clamp(32, 256) }
    }
}

impl Emulator {
    /// `None` where the compiler is missing or does not know the checks.
    fn compile(checks: &[&str]) -> Option<Self> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
        let out =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda_kernels{}", checks.concat().replace('=', "-")));
        let kernels = sources.join("src/model/cuda/fused.cu");
        let built = Command::new(compiler())
            .args(["-std=c++17", "-O1", "-g", "-pthread", &format!("-DFUSED=\"{}\"", kernels.display())])
            .args(checks)
            .arg("-o")
            .arg(&out)
            .arg(sources.join("tests/cuda_kernels/emulator.cpp"))
            .output()
            .ok()?;
        let log = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success() || !checks.is_empty(), "{log}");
        built.status.success().then_some(Self(out))
    }

    /// The launch's result of `length` values; 0: the first array as the kernel left it.
    fn run(&self, launch: Launch, length: usize, scalars: &[f64], arrays: &[&[f32]]) -> Vec<f32> {
        let mut child = Command::new(&self.0)
            .arg(launch.kernel)
            .args([launch.blocks, launch.threads, length].map(|count| count.to_string()))
            .args(scalars.iter().map(ToString::to_string))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input: Vec<u8> = arrays
            .iter()
            .flat_map(|array| {
                let length = u32::try_from(array.len()).unwrap();
                length.to_le_bytes().into_iter().chain(array.iter().flat_map(|value| value.to_le_bytes()))
            })
            .collect();
        child.stdin.take().unwrap().write_all(&input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}: {}", launch.kernel, output.status);
        output.stdout.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }
}

/// The kernels with each set of checks that the compiler has; none without a compiler.
static EMULATORS: LazyLock<Vec<Emulator>> = LazyLock::new(|| {
    if Command::new(compiler()).arg("--version").output().is_err() {
        eprintln!("skipped: no C++ compiler (set CXX)");
        return Vec::new();
    }
    let checks = [&[][..], &["-fsanitize=address,undefined", "-fno-sanitize-recover"], &["-fsanitize=thread"]];
    let known = checks.iter().filter_map(|checks| {
        let emulator = Emulator::compile(checks);
        if emulator.is_none() {
            eprintln!("skipped: the compiler has no {checks:?}");
        }
        emulator
    });
    known.collect()
});

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".into())
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

/// Value of `function` and the gradients of its inputs for the gradient `dy` of its value.
fn with_gradients(inputs: &[Tensor], dy: &[f32], function: impl Fn(&[Tensor]) -> Tensor) -> (Vec<f32>, Vec<Vec<f32>>) {
    let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let y = function(&vars.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>());
    let gradients = (&y * tensor(dy, y.dims())).unwrap().sum_all().unwrap().backward().unwrap();
    (host_values(&y).unwrap(), vars.iter().map(|var| host_values(gradients.get(var).unwrap()).unwrap()).collect())
}

#[track_caller]
fn near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= TOLERANCE * largest, "value {i}: {a} for {b}");
    }
}

#[test]
fn norms() {
    for emulator in EMULATORS.iter() {
        for (rows, width) in [(3, 5), (2, 300), (1, 1)] {
            let mut stream = Stream::new(1, "norms");
            let [x, dy] = [0; 2].map(|_| stream.gaussian(rows * width, 2.0));
            let gain = stream.gaussian(width, 1.0);
            let (y, gradients) = with_gradients(&[tensor(&x, &[rows, width])], &dy, |x| {
                rms_norm(&x[0], &tensor(&gain, &[width]), 1e-5).unwrap()
            });
            let (launch, back) =
                (Launch::per_row("rms_norm", rows, width), Launch::per_row("rms_norm_back", rows, width));
            let scalars = [width as f64, 1e-5];
            near(&emulator.run(launch, x.len(), &scalars, &[&x, &gain]), &y);
            near(&emulator.run(back, x.len(), &scalars, &[&x, &gain, &dy]), &gradients[0]);
        }
    }
}

#[test]
fn gates() {
    for emulator in EMULATORS.iter() {
        for n in [1, 256, 700] {
            let mut stream = Stream::new(1, "gates");
            let [gate, up, dy] = [0; 3].map(|_| stream.gaussian(n, 3.0));
            let inputs = [tensor(&gate, &[n]), tensor(&up, &[n])];
            for (kernel, back, function) in
                [("swiglu", "swiglu_back", swiglu as fn(&Tensor, &Tensor) -> _), ("geglu", "geglu_back", geglu)]
            {
                let (y, gradients) = with_gradients(&inputs, &dy, |x| function(&x[0], &x[1]).unwrap());
                near(&emulator.run(Launch::per_value(kernel, n), n, &[n as f64], &[&gate, &up]), &y);
                let found = emulator.run(Launch::per_value(back, n), 2 * n, &[n as f64], &[&gate, &up, &dy]);
                near(&found, &gradients.concat());
            }
        }
    }
}

#[test]
fn rotations() {
    let [batch, columns, heads, head_dim, positions] = [2, 7, 3, 10, 12];
    let width = heads * head_dim;
    for emulator in EMULATORS.iter() {
        for (fraction, half, past) in [(1.0, 5, 0), (0.6, 3, 4)] {
            let table = RopeTable::new(&Rope { fraction, ..Rope::new(1e4) }, head_dim, positions);
            // A head of ones and then zeros turns into its cosines and then its sines.
            let plain: Vec<f32> =
                (0..positions * head_dim).map(|i| if i % head_dim < half { 1.0 } else { 0.0 }).collect();
            let rows = RowPositions { pads: Arc::new(vec![0]), past: 0 };
            let turned = table.rotate(&tensor(&plain, &[1, positions, head_dim]), &rows).unwrap();
            let part =
                |start: usize| host_values(&turned.narrow(2, start, half).unwrap().contiguous().unwrap()).unwrap();
            let angles = [part(0), part(half)].concat();

            let mut stream = Stream::new(1, "rotations");
            let [x, dy] = [0; 2].map(|_| stream.gaussian(batch * columns * width, 1.0));
            let rows = RowPositions { pads: Arc::new(vec![0, 3]), past };
            let (y, gradients) =
                with_gradients(&[tensor(&x, &[batch, columns, width])], &dy, |x| table.rotate(&x[0], &rows).unwrap());
            let launch = Launch::per_row("rotate", batch * columns, width);
            let counts = [columns, width, head_dim, half, positions, past].map(|count| count as f64);
            let run = |x: &[f32], sign: f64| {
                emulator.run(launch, x.len(), &[&counts[..], &[sign]].concat(), &[x, &angles, &[0.0, 3.0]])
            };
            near(&run(&x, 1.0), &y);
            near(&run(&dy, -1.0), &gradients[0]);
        }
    }
}

#[test]
fn probabilities() {
    let [batch, kv_heads, group] = [2, 2, 3];
    for emulator in EMULATORS.iter() {
        for (queries, past, cap, window) in
            [(9, 0, None, None), (40, 0, Some(1.5), None), (1, 6, None, Some(3)), (5, 2, Some(2.0), Some(4))]
        {
            let keys = past + queries;
            let rows = kv_heads * group * queries;
            let mut stream = Stream::new(1, "probabilities");
            let [scores, dy] = [0; 2].map(|_| stream.gaussian(batch * rows * keys, 3.0));
            let pads = Arc::new(vec![0, 3]);
            let shape = AttentionShape { heads: 6, kv_heads, head_dim: 4, pads, past, scale: 0.6, cap, window };
            let input = tensor(&scores, &[batch, kv_heads, group * queries, keys]);
            let (p, gradients) = with_gradients(&[input], &dy, |x| masked_softmax_plain(&x[0], &shape).unwrap());
            let reals = [f64::from(shape.scale), cap.map_or(0.0, f64::from)];
            let counts = [rows, queries, keys, past, window.unwrap_or(0)].map(|count| count as f64);
            let launch = Launch::per_row("masked_softmax", batch * rows, keys);
            let found = emulator.run(launch, p.len(), &[&counts[..], &reals].concat(), &[&scores, &[0.0, 3.0]]);
            near(&found, &p);
            let back = Launch { kernel: "masked_softmax_back", ..launch };
            let found = emulator.run(back, p.len(), &[keys as f64, reals[0], reals[1]], &[&p, &dy, &scores]);
            near(&found, &gradients[0]);
        }
    }
}

#[test]
fn optimiser_steps() {
    let settings = AdamSettings { clip: Some(0.7), weight_decay: 0.1, ..AdamSettings::default() };
    let (n, rate) = (900, 0.02);
    for emulator in EMULATORS.iter() {
        let mut stream = Stream::new(1, "adam");
        let start = stream.gaussian(n, 1.0);
        let var = Var::from_tensor(&tensor(&start, &[n])).unwrap();
        let mut adam = AdamW::new(vec![var.clone()], settings);
        let (mut weights, mut moments) = (start, vec![0.0; 2 * n]);
        // Clipped, not clipped, not finite.
        for (step, std) in [(1, 1.0), (2, 0.001), (3, f64::INFINITY)] {
            let gradient = stream.gaussian(n, std);
            adam.step(&vec![Some(tensor(&gradient, &[n]))], rate).unwrap();

            let add = Launch { kernel: "add_squares", blocks: 3, threads: 256 };
            let sums = emulator.run(add, 0, &[n as f64], &[&[0.0; 3], &gradient]);
            let clip = Launch { kernel: "clip_factor", blocks: 1, threads: 256 };
            let factor = emulator.run(clip, 1, &[3.0, 0.7], &[&sums]);
            let AdamSettings { beta1, beta2, epsilon, weight_decay, .. } = settings;
            let first = Launch::per_value("adam_moments", n);
            moments = emulator.run(first, 0, &[n as f64, beta1, beta2], &[&moments, &gradient, &factor]);
            let corrected = rate / (1.0 - beta1.powi(step));
            let scale = 1.0 / (1.0 - beta2.powi(step)).sqrt();
            let scalars = [n as f64, corrected, scale, epsilon, 1.0 - rate * weight_decay];
            weights = emulator.run(Launch::per_value("adam_weights", n), 0, &scalars, &[&weights, &moments, &factor]);
            near(&weights, &host_values(var.as_tensor()).unwrap());
        }
    }
}
