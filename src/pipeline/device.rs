//! Where to compute: which device, how much memory there is, and how reports name it and the host's arithmetic.

use candle_core::Device;

use crate::defence::spec::Parameters;
use crate::model::Blueprint;
use crate::recipe::{Recipe, Stage};
use crate::{Error, Result};

/// Share of the memory that is free at the start which may be taken.
const SHARE: f64 = 0.85;

/// Tokens of a dialogue, roughly.
const TOKENS: usize = 96;

/// Dialogues of one step of an attack's fit.
const FITTED: usize = 10;

/// A device and the memory that may be taken.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Where tensors live.
    pub device: Device,
    /// Bytes; of the device where that is an accelerator.
    pub memory: u64,
}

/// Where a decoder's matrices are while it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// In memory, f32.
    Held,
    /// In the checkpoint's files: read at every use.
    Stored,
}

/// What a run wants of a machine's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Decoders in memory at once.
    pub copies: u64,
    /// Dialogues whose activations are kept for a backward pass at once.
    pub dialogues: usize,
    /// Copies of all maps beside those of the decoders, f32 and in memory wherever the weights are.
    pub trained: u64,
}

impl Demand {
    /// Measuring a finished model and its base: one fit per worker.
    #[must_use]
    pub fn of_measuring(device: &Device) -> Self {
        let fits = if device.is_cpu() { rayon::current_num_threads() } else { 1 };
        Self { copies: 2, dialogues: FITTED * fits, trained: 0 }
    }

    /// Hardening: one more decoder while a stage trains.
    #[must_use]
    pub fn of_hardening(recipe: &Recipe, device: &Device) -> Self {
        let measuring = Self::of_measuring(device);
        let trained = recipe.stages.iter().map(|stage| match stage {
            // One block's activations only.
            Stage::Et(..) | Stage::EtFaithful(..) | Stage::EtClosed(..) => 0,
            // The stream alone of what comes from each of the blocks before.
            Stage::EtPropagated(spec, _) => spec.prompts,
            Stage::HdrTaskvec(spec, _) | Stage::HdrTopk(spec, _) => spec.batch,
            Stage::Adversarial(spec, _) => spec.batch * spec.edits_per_step + spec.anchor_batch,
        });
        let dialogues = trained.max().unwrap_or(0).max(measuring.dialogues);
        let whole = recipe.stages.iter().any(|stage| match stage {
            Stage::HdrTaskvec(..) | Stage::HdrTopk(..) => true,
            Stage::Adversarial(spec, _) => spec.train == Parameters::Weights || spec.rank == 0,
            _ => false,
        });
        // The variable, what it was, its gradient and two moments.
        let trained = if whole { 5 } else { 0 };
        Self { copies: measuring.copies + u64::from(!recipe.stages.is_empty()), dialogues, trained }
    }
}

impl Machine {
    /// A machine with this much memory; without a figure: most of what is free on the host now, or no limit where that
    /// cannot be told, as of an accelerator's memory.
    #[must_use]
    pub fn new(device: Device, memory: Option<u64>) -> Self {
        let free = if device.is_cpu() { free_memory() } else { None };
        let limit = free.map_or(u64::MAX, |free| (free as f64 * SHARE) as u64);
        Self { device, memory: memory.unwrap_or(limit) }
    }

    /// Where the matrices of decoders of one shape are to be, and the bytes that are needed so, roughly.
    #[must_use]
    pub fn residency(&self, blueprint: &Blueprint, demand: Demand) -> (Residency, u64) {
        let width = if self.device.is_cpu() { 4 } else { 2 };
        let held = demand.copies * width * blueprint.parameters() as u64;
        // One as it is read and one as it is multiplied.
        let stored = 2 * 4 * (blueprint.d_model * blueprint.vocab.max(blueprint.d_ff)) as u64;
        // Some twenty activations of the stream's and feed-forward's width are kept per token and block.
        let per_token = 4 * blueprint.n_layers * (12 * blueprint.d_model + 4 * blueprint.d_ff);
        let activations = (per_token * TOKENS * demand.dialogues) as u64;
        let besides = activations + demand.trained * 4 * blueprint.parameters() as u64;
        if held + besides <= self.memory {
            (Residency::Held, held + besides)
        } else {
            (Residency::Stored, stored + besides)
        }
    }
}

/// Reads an amount of memory such as `24GiB`, `512MB` or a number of bytes.
///
/// # Errors
/// When it is neither.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 7] = [
        ("TiB", TIB),
        ("GiB", TIB / 1024.0),
        ("MiB", TIB / 1024.0 / 1024.0),
        ("TB", 1e12),
        ("GB", 1e9),
        ("MB", 1e6),
        ("", 1.0),
    ];
    const TIB: f64 = (1_u64 << 40) as f64;
    let read = |(unit, factor): &(&str, f64)| {
        let number: f64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        (number.is_finite() && number > 0.0).then_some((number * factor) as u64)
    };
    UNITS.iter().find_map(read).ok_or_else(|| format!("expected an amount such as `24GiB`, got `{text}`"))
}

/// Bytes that programs can take without others losing theirs; `None` where the system does not say.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The device that `auto`, `cpu`, `cuda` or `cuda:N` means; `auto` takes a GPU where this build and machine have one.
///
/// # Errors
/// [`Error::Usage`] for another word; [`Error::Input`] when the GPU that is asked for cannot be opened, or computes something
/// else with this build's kernels than with candle's.
pub fn parse(text: &str) -> Result<Device> {
    let device = match text {
        "cpu" => Device::Cpu,
        // A build for GPUs on a machine without one computes on the CPU.
        "auto" => Device::new_cuda(0).unwrap_or(Device::Cpu),
        _ => {
            let ordinal = match text.strip_prefix("cuda") {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse::<usize>().ok()),
                None => None,
            };
            match ordinal {
                Some(ordinal) => Device::new_cuda(ordinal).map_err(|error| no_gpu(text, &error))?,
                None => return Err(Error::usage(format!("expected `auto`, `cpu`, `cuda` or `cuda:N`, got `{text}`"))),
            }
        }
    };
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        crate::model::cuda::check(&device)?;
    }
    Ok(device)
}

fn no_gpu(text: &str, error: &candle_core::Error) -> Error {
    let hint = if cfg!(feature = "cuda") {
        "is the driver installed? `nvidia-smi` lists the GPUs that it sees"
    } else {
        "this program was built for CPUs only; docs/cuda.md says how to build it for GPUs"
    };
    let reason = error.to_string();
    let reason = reason.lines().next().unwrap_or_default();
    Error::input(format!("--device {text}"), format!("expected a GPU, got none: {reason}")).hint(hint)
}

/// `cpu`, `cuda` or `metal`.
#[must_use]
pub fn kind(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

/// The widest vector instructions that the host has: sums of other widths round differently.
#[must_use]
pub fn simd() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "avx2";
        }
        "sse2"
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        if cfg!(target_arch = "aarch64") { "neon" } else { "scalar" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_does_not_fit_stays_in_its_files() {
        let llama_8b = Blueprint {
            vocab: 128_256,
            d_model: 4096,
            n_layers: 32,
            n_heads: 32,
            n_kv_heads: 8,
            head_dim: 128,
            d_ff: 14_336,
            ..Blueprint::default()
        };
        let demand = Demand { copies: 3, dialogues: FITTED, trained: 0 };
        let on = |memory: u64| Machine::new(Device::Cpu, Some(memory)).residency(&llama_8b, demand);
        let ((held, much), (stored, little)) = (on(192 << 30), on(24 << 30));
        assert_eq!((held, stored), (Residency::Held, Residency::Stored));
        assert!(much > 3 * 4 * llama_8b.parameters() as u64, "{much}");
        assert!(little < 24 << 30, "an 8B model is hardened within 24 GiB: {little}");
        let (stored, all) =
            Machine::new(Device::Cpu, Some(80 << 30)).residency(&llama_8b, Demand { trained: 5, ..demand });
        assert!(stored == Residency::Stored && all > 5 * 4 * llama_8b.parameters() as u64, "trained weights: {all}");
        let llama_70b = Blueprint { d_model: 8192, n_layers: 80, n_heads: 64, d_ff: 28_672, ..llama_8b };
        let (stored, little) = Machine::new(Device::Cpu, Some(80 << 30)).residency(&llama_70b, demand);
        assert!(stored == Residency::Stored && little < 80 << 30, "a 70B model is within 80 GiB: {little}");
    }

    #[test]
    fn amounts_of_memory_have_units() {
        assert_eq!(parse_memory("24GiB"), Ok(24 << 30));
        assert_eq!(parse_memory("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(parse_memory("1000"), Ok(1000));
        for text in ["", "GiB", "-1GiB", "24 gallons", "infGB"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_device_nobody_knows_is_a_usage_error() {
        for text in ["gpu", "cuda:x", "cuda0", ""] {
            assert_eq!(parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
        assert_eq!(kind(&parse("cpu").unwrap()), "cpu");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_for_cpus_says_so() {
        let error = parse("cuda:1").unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains("built for CPUs"), "{error}");
        assert_eq!(kind(&parse("auto").unwrap()), "cpu");
    }
}
