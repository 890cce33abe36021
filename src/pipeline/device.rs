//! Where to compute: which device, how much memory there is, and how reports name it and the host's arithmetic.

use std::path::Path;

use candle_core::Device;

use super::corpus::{OWN_ANSWER, anchor_rows, refused_rows};
use crate::data::PromptSet;
use crate::defence::spec::{AdversarialSpec, CacheType, Parameters};
use crate::defence::{Means, Room, et_closed};
use crate::model::Blueprint;
use crate::recipe::{Recipe, Stage};
use crate::{Error, Result};

/// Share of the memory that is free at the start which may be taken.
const SHARE: f64 = 0.85;

/// Tokens of a dialogue, roughly.
const TOKENS: usize = 96;

/// Tokens of an answer, roughly.
const ANSWER: usize = 32;

/// Dialogues of one step of an attack's fit.
const FITTED: usize = 10;

/// Most edits of a search that are fitted together: four times the rows kept two threads busy with a small model, eight times gained
/// little more.
const TOGETHER: usize = 4;

/// Most memory that they may take for their backward passes: of every worker on the host, and of an accelerator.
const TOGETHER_BYTES: [usize; 2] = [512 << 20, 4 << 30];

/// A device and the memory that may be taken.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Where tensors live.
    pub device: Device,
    /// Bytes; of the device where that is an accelerator.
    pub memory: u64,
    /// Bytes of the host's, where the device has its own.
    pub host: u64,
}

/// Where a decoder's matrices are while it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// In memory, f32.
    Held,
    /// In the checkpoint's files: read at every use.
    Stored,
}

/// What a pass keeps for its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// All of them.
    Kept,
    /// The blocks' inputs; the rest is computed again.
    Recomputed,
}

/// Where a run's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The matrices of its decoders.
    pub weights: Residency,
    /// Of its training passes.
    pub activations: Activations,
    /// Blocks that a block-local stage trains at once.
    pub blocks: usize,
    /// Where such a stage keeps what it comes back to.
    pub cache: Shelf,
    /// Bytes that lie there, roughly, of all those blocks.
    pub cached: u64,
    /// Bytes of memory that all this takes, roughly; of the device where that is an accelerator.
    pub bytes: u64,
}

/// Where a block-local stage keeps its blocks' inputs and targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shelf {
    /// In the memory of the device.
    Device,
    /// In the host's, beside an accelerator.
    Host,
    /// In the run folder.
    Disk,
}

impl Placement {
    /// What block-local stages may use, with `run` as the run folder.
    #[must_use]
    pub fn means(&self, run: &Path) -> Means {
        let room = match self.cache {
            Shelf::Device => Room::Device,
            Shelf::Host => Room::Host,
            Shelf::Disk => Room::Disk(run.to_owned()),
        };
        Means { at_once: self.blocks, room }
    }
}

/// What stages take that train each block apart, the most of any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Apart {
    /// Of what a block's training comes back to: bytes per token and unit of `d_model`, summed over dialogues.
    pub kept: usize,
    /// As much again for each block before it.
    pub earlier: usize,
    /// Dialogues of one pass through the block.
    pub batch: usize,
    /// Passes whose activations are there at once.
    pub passes: usize,
    /// Whether maps are solved for in closed form, on the host.
    pub solved: bool,
    /// Blocks of a stage.
    pub blocks: usize,
}

impl Apart {
    fn of(stage: &Stage) -> Self {
        // An input and two targets.
        let kept = |hazards: usize, anchors: usize, cache: CacheType| 3 * (hazards + anchors) * cache.bytes();
        let blocks = stage.layers().most();
        match stage {
            Stage::Et(spec, _) | Stage::EtFaithful(spec, _) => Self {
                kept: kept(spec.prompts, spec.anchors, spec.cache),
                batch: spec.batch,
                // A batch under its edit, the same as it is, and one of anchors.
                passes: 3,
                blocks,
                ..Self::default()
            },
            Stage::EtClosed(spec, _) | Stage::EtPropagated(spec, _) => {
                let meets_earlier = matches!(stage, Stage::EtPropagated(..));
                Self {
                    kept: kept(spec.prompts, spec.anchors, spec.cache),
                    earlier: if meets_earlier { spec.prompts * spec.cache.bytes() } else { 0 },
                    batch: et_closed::BATCH,
                    passes: 1,
                    solved: true,
                    blocks,
                }
            }
            Stage::HdrTaskvec(..) | Stage::HdrTopk(..) | Stage::Adversarial(..) => Self::default(),
        }
    }

    fn most(self, other: Self) -> Self {
        Self {
            kept: self.kept.max(other.kept),
            earlier: self.earlier.max(other.earlier),
            batch: self.batch.max(other.batch),
            passes: self.passes.max(other.passes),
            solved: self.solved || other.solved,
            blocks: self.blocks.max(other.blocks),
        }
    }
}

/// Bytes of one block of such a stage, roughly.
#[derive(Debug, Clone, Copy)]
struct OfBlock {
    /// What its training comes back to; all the time.
    cached: u64,
    /// What it is computed with on the device; not at the same time as passes through the model.
    pass: u64,
    /// What solving takes of the host's memory beside a device that has its own.
    beside: u64,
}

/// What a run wants of a machine's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Decoders in memory at once.
    pub copies: u64,
    /// Cells whose attacks are fitted at once.
    pub cells: usize,
    /// Dialogues whose activations are kept for a backward pass at once while a stage trains.
    pub dialogues: usize,
    /// Of stages that train each block apart.
    pub apart: Apart,
    /// Copies of all maps beside those of the decoders, f32 and in memory wherever the weights are.
    pub trained: u64,
    /// Answer tokens at which a joint stage keeps the un-hardened model's final hidden states, f32.
    pub states: usize,
}

impl Demand {
    /// Measuring a finished model and its base: one cell per worker.
    #[must_use]
    pub fn of_measuring(device: &Device) -> Self {
        let cells = if device.is_cpu() { rayon::current_num_threads() } else { 1 };
        Self { copies: 2, cells, dialogues: 0, apart: Apart::default(), trained: 0, states: 0 }
    }

    /// Hardening with the rows of `data`: one more decoder while a stage trains.
    #[must_use]
    pub fn of_hardening(recipe: &Recipe, data: &PromptSet, device: &Device) -> Self {
        let measuring = Self::of_measuring(device);
        let trained = recipe.stages.iter().map(|stage| match stage {
            // One block's activations only.
            Stage::Et(..) | Stage::EtFaithful(..) | Stage::EtClosed(..) | Stage::EtPropagated(..) => 0,
            Stage::HdrTaskvec(spec, _) | Stage::HdrTopk(spec, _) => spec.batch,
            Stage::Adversarial(spec, _) => {
                (spec.batch + spec.attacked_anchors + spec.interrupted) * spec.edits_per_step + spec.anchor_batch
            }
        });
        let dialogues = trained.max().unwrap_or(0);
        let whole = recipe.stages.iter().any(|stage| match stage {
            Stage::HdrTaskvec(..) | Stage::HdrTopk(..) => true,
            Stage::Adversarial(spec, _) => spec.train == Parameters::Weights || spec.rank == 0,
            _ => false,
        });
        let averaged =
            |stage: &Stage| matches!(stage, Stage::Adversarial(AdversarialSpec { average, .. }, _) if *average > 0.0);
        // The variable, what it was, its gradient and two moments; the mean, and what is added to it.
        let trained = if recipe.stages.iter().any(averaged) { 2 } else { 0 } + if whole { 5 } else { 0 };
        Self {
            copies: measuring.copies + u64::from(!recipe.stages.is_empty()),
            dialogues,
            apart: recipe.stages.iter().map(Apart::of).fold(Apart::default(), Apart::most),
            trained,
            states: recipe.stages.iter().map(|stage| states(stage, recipe, data)).max().unwrap_or(0),
            ..measuring
        }
    }
}

/// Answer tokens, roughly, of all dialogues that `stage` holds to the un-hardened model: clean refusals, anchors, and those that the model
/// makes up.
fn states(stage: &Stage, recipe: &Recipe, data: &PromptSet) -> usize {
    let Stage::Adversarial(spec, _) = stage else { return 0 };
    let held = if spec.refusal_tokens == 0 { ANSWER } else { spec.refusal_tokens.min(ANSWER) };
    let (answered, unanswered): (Vec<_>, Vec<_>) =
        anchor_rows(data, recipe.seed).into_iter().partition(|row| row.answer.is_some());
    let own = unanswered.len() + recipe.data.own_requests;
    refused_rows(data).len() * held + answered.len() * ANSWER + own * OWN_ANSWER
}

impl Machine {
    /// A machine with this much memory; without a figure: most of what is free on the host now, or no limit where that
    /// cannot be told, as of an accelerator's memory.
    #[must_use]
    pub fn new(device: Device, memory: Option<u64>) -> Self {
        let share = |free: Option<u64>| free.map_or(u64::MAX, |free| (free as f64 * SHARE) as u64);
        let host = share(free_memory());
        let own = if device.is_cpu() { host } else { u64::MAX };
        Self { device, memory: memory.unwrap_or(own), host }
    }

    /// Where the numbers of a run on decoders of one shape are to be: everything in memory if it fits; else activations
    /// computed again, which costs a third more time; else weights read at every use; else both. What block-local stages come
    /// back to leaves the device's memory where more blocks are trained at once without it.
    #[must_use]
    pub fn place(&self, blueprint: &Blueprint, demand: Demand) -> Placement {
        use {Activations::*, Residency::*};
        let OfBlock { cached, pass, beside } = self.of_block(blueprint, demand.apart);
        let choices = [(Held, Kept), (Held, Recomputed), (Stored, Kept), (Stored, Recomputed)];
        let needs = choices.map(|(weights, activations)| {
            let (whole, joint) = self.needs(blueprint, demand, weights, activations);
            (weights, activations, whole, joint)
        });
        let fits = needs.iter().find(|(.., whole, joint)| whole + joint.max(&pass) <= self.memory);
        let (weights, activations, whole, joint) = *fits.unwrap_or(&needs[3]);
        let most = rayon::current_num_threads().min(blueprint.n_layers).min(demand.apart.blocks).max(1) as u64;
        let takes = |blocks: u64, cached: u64| whole + blocks * cached + joint.max(blocks * pass);
        let fit = |cached: u64| (1..=most).rev().find(|blocks| takes(*blocks, cached) <= self.memory).unwrap_or(0);
        let (cache, blocks) = match (fit(cached), fit(0).max(1)) {
            (inside, outside) if inside >= outside || cached == 0 => (Shelf::Device, inside.max(1)),
            (_, outside) if !self.device.is_cpu() && outside * (cached + beside) <= self.host => (Shelf::Host, outside),
            (_, outside) => (Shelf::Disk, outside),
        };
        let bytes = takes(blocks, if cache == Shelf::Device { cached } else { 0 });
        Placement { weights, activations, blocks: blocks as usize, cache, cached: blocks * cached, bytes }
    }

    /// Bytes that a run needs all the time, and those of passes through the model on top.
    fn needs(&self, model: &Blueprint, demand: Demand, weights: Residency, kept: Activations) -> (u64, u64) {
        const F32: usize = size_of::<f32>();
        let width = if self.device.is_cpu() { F32 } else { F32 / 2 };
        let weights = match weights {
            Residency::Held => demand.copies * (width * model.parameters()) as u64,
            // One matrix as it is read and one as it is multiplied.
            Residency::Stored => (2 * F32 * model.d_model * model.vocab.max(model.d_ff)) as u64,
        };
        let fitted = demand.cells * FITTED * fitted_together(model, &self.device, FITTED);
        let joint = demand.dialogues.max(fitted) * bytes_of_dialogue(model, kept);
        let states = F32 * demand.states * model.d_model;
        (weights + demand.trained * (F32 * model.parameters()) as u64 + states as u64, joint as u64)
    }

    fn of_block(&self, model: &Blueprint, apart: Apart) -> OfBlock {
        let cached = (apart.kept + apart.earlier * model.n_layers.saturating_sub(1)) * TOKENS * model.d_model;
        // A batch's input and targets as they are taken from where they lie, and its pass.
        let pass = size_of::<f32>() * apart.passes * apart.batch * TOKENS * (3 * model.d_model + in_block(model));
        // In f64: the widest map's Gram matrix, a copy and its factor; the other side of the problem and its decomposition.
        let (width, rest) = (model.d_model.max(model.d_ff), model.d_model.min(model.d_ff));
        let solved = if apart.solved { size_of::<f64>() * (3 * width + 4 * rest) * width } else { 0 };
        let (here, beside) = if self.device.is_cpu() { (solved, 0) } else { (0, solved) };
        OfBlock { cached: cached as u64, pass: (pass + here) as u64, beside: beside as u64 }
    }
}

/// Most edits that are fitted together (see [`crate::attack::learned::fit_together`]), each on `batch` dialogues a step: several
/// where one of them has little to compute. Figures are rounded by it, so it does not depend on the memory that is free.
#[must_use]
pub fn fitted_together(model: &Blueprint, device: &Device, batch: usize) -> usize {
    let [host, accelerator] = TOGETHER_BYTES;
    let one = batch * bytes_of_dialogue(model, Activations::Kept);
    (if device.is_cpu() { host } else { accelerator } / one.max(1)).clamp(1, TOGETHER)
}

/// Numbers that a pass keeps of one token in one block: some twenty activations of the stream's and feed-forward's width.
fn in_block(model: &Blueprint) -> usize {
    12 * model.d_model + 4 * model.d_ff
}

/// Bytes that a pass keeps of one dialogue for its backward pass.
fn bytes_of_dialogue(model: &Blueprint, kept: Activations) -> usize {
    let block = in_block(model);
    let per_token = match kept {
        Activations::Kept => model.n_layers * block,
        Activations::Recomputed => model.n_layers * model.d_model + block,
    };
    // Logits, what they are compared with, and their gradient.
    let logits = 3 * ANSWER * model.vocab;
    size_of::<f32>() * (TOKENS * per_token + logits)
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
    UNITS
        .iter()
        .find_map(read)
        .ok_or_else(|| format!("expected an amount such as `24GiB`, `512MB` or a number of bytes, got `{text}`"))
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
        "auto" => open(0).unwrap_or(Device::Cpu),
        _ => {
            let ordinal = match text.strip_prefix("cuda") {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse::<usize>().ok()),
                None => None,
            };
            match ordinal {
                Some(ordinal) => open(ordinal).map_err(|error| no_gpu(text, &error))?,
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

#[cfg(feature = "cuda")]
use crate::model::cuda::open;

#[cfg(not(feature = "cuda"))]
fn open(ordinal: usize) -> candle_core::Result<Device> {
    Device::new_cuda_with_stream(ordinal)
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

/// `cpu`, `cuda`, `cuda without fused kernels` or `metal`: what figures are told apart by.
#[must_use]
pub fn kind(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        #[cfg(feature = "cuda")]
        Device::Cuda(_) if !crate::model::cuda::wanted() => "cuda without fused kernels",
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
        let llama_70b = Blueprint { d_model: 8192, n_layers: 80, n_heads: 64, d_ff: 28_672, ..llama_8b.clone() };
        // What the recipes of the families ask for.
        let apart = Apart { kept: 4 * 3 * 640, batch: 16, passes: 3, blocks: usize::MAX, ..Apart::default() };
        let demand = Demand { copies: 3, cells: 2, dialogues: 28, apart, trained: 0, states: 0 };
        let on = |model: &Blueprint, memory: u64, demand| {
            let placed = Machine::new(Device::Cpu, Some(memory)).place(model, demand);
            assert!(placed.bytes <= memory, "{placed:?} in {memory}");
            (placed.weights, placed.activations)
        };
        use {Activations::*, Residency::*};
        assert_eq!(on(&llama_8b, 192 << 30, demand), (Held, Kept));
        assert_eq!(on(&llama_8b, 100 << 30, demand), (Held, Recomputed));
        assert_eq!(on(&llama_8b, 64 << 30, demand), (Stored, Kept));
        assert_eq!(on(&llama_8b, 24 << 30, demand), (Stored, Recomputed));
        assert_eq!(on(&llama_70b, 80 << 30, demand), (Stored, Recomputed));
        let machine = Machine::new(Device::Cpu, Some(80 << 30));
        let trained = machine.place(&llama_8b, Demand { trained: 5, ..demand });
        assert!(trained.bytes > 5 * 4 * llama_8b.parameters() as u64, "trained weights: {trained:?}");
        let solved = Demand { apart: Apart { solved: true, batch: 32, passes: 1, ..apart }, ..demand };
        assert_eq!(on(&llama_8b, 24 << 30, solved), (Stored, Recomputed));
        assert_eq!(on(&llama_70b, 80 << 30, solved), (Stored, Recomputed));
    }

    #[test]
    fn what_blocks_come_back_to_makes_room_for_more_of_them() {
        let model = Blueprint { vocab: 32_000, d_model: 2048, n_layers: 16, d_ff: 8192, ..Blueprint::default() };
        let apart = Apart { kept: 4 * 3 * 640, batch: 16, passes: 3, blocks: 8, ..Apart::default() };
        // No passes through the model, which take their part of the memory at other times.
        let demand = Demand { copies: 3, cells: 0, dialogues: 0, apart, trained: 0, states: 0 };
        let machine = |memory: u64| Machine { device: Device::Cpu, memory, host: 0 };
        let (whole, _) = machine(0).needs(&model, demand, Residency::Held, Activations::Kept);
        let OfBlock { cached, pass, .. } = machine(0).of_block(&model, apart);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        pool.install(|| {
            let on = |memory: u64, demand| {
                let placed = machine(whole + memory).place(&model, demand);
                assert!(placed.bytes <= whole + memory, "{placed:?} in {memory} beside the weights");
                (placed.cache, placed.blocks, placed.cached)
            };
            assert_eq!(on(4 * (cached + pass), demand), (Shelf::Device, 4, 4 * cached));
            assert_eq!(on(4 * (cached + pass) - 1, demand), (Shelf::Disk, 4, 4 * cached));
            let two = Demand { apart: Apart { blocks: 2, ..apart }, ..demand };
            assert_eq!(on(4 * (cached + pass) - 1, two), (Shelf::Device, 2, 2 * cached), "there is no third");
            assert_eq!(on(pass, demand), (Shelf::Disk, 1, cached));
            let none = Demand { apart: Apart::default(), ..demand };
            assert_eq!(on(0, none), (Shelf::Device, 1, 0), "no such stage");
        });
        let nothing = machine(1).place(&model, demand);
        assert_eq!((nothing.cache, nothing.blocks), (Shelf::Disk, 1));
        let run = Path::new("run");
        assert_eq!(nothing.means(run), Means { at_once: 1, room: Room::Disk("run".into()) });
        assert_eq!(Placement { cache: Shelf::Host, ..nothing }.means(run).room, Room::Host);
        assert_eq!(Placement { cache: Shelf::Device, ..nothing }.means(run).room, Room::Device);
    }

    #[test]
    fn edits_of_earlier_blocks_are_kept_for_each_of_them() {
        let stage = |kind: &str| {
            let recipe = format!(
                "schema: 1\nname: a\nbase_access: public\ndata: {{prompts: builtin:prompts}}\nlayers: each\n\
                 stages: [{{kind: {kind}, prompts: 10, anchors: 20}}]\n\
                 suite: {{attacks: [{{kind: noreft}}]}}\nthresholds: {{adaptive_asr: {{max_mean: 0.5}}}}\n"
            );
            let recipe = Recipe::parse(&recipe, "recipe.yaml".as_ref()).unwrap();
            Demand::of_hardening(&recipe, &PromptSet::new("none", vec![]), &Device::Cpu).apart
        };
        let (own, earlier) = (stage("et-closed"), stage("et-propagated"));
        assert_eq!((own.kept, own.earlier, own.solved), (4 * 3 * 30, 0, true));
        assert_eq!((earlier.kept, earlier.earlier), (own.kept, 4 * 10));
        let model = Blueprint { d_model: 64, n_layers: 5, d_ff: 128, ..Blueprint::default() };
        let cached = |apart| Machine::new(Device::Cpu, None).of_block(&model, apart).cached;
        assert_eq!(cached(earlier) - cached(own), (4 * 4 * 10 * TOKENS * 64) as u64);
    }

    #[test]
    fn what_a_joint_stage_keeps_of_its_anchors_is_counted() {
        let data = PromptSet::builtin("tiny-chat").unwrap();
        let demand = |stage: &str, own_requests: usize| {
            let recipe = format!(
                "schema: 1\nname: a\ndata: {{prompts: builtin:tiny-chat, own_requests: {own_requests}}}\n\
                 stages: [{stage}]\nsuite: {{attacks: [{{kind: identity}}]}}\n"
            );
            Demand::of_hardening(&Recipe::parse(&recipe, "recipe.yaml".as_ref()).unwrap(), &data, &Device::Cpu)
        };
        let joint = "{kind: adversarial}";
        let (none, some) = (demand(joint, 0), demand(joint, 1000));
        let (refused, anchors) = (refused_rows(&data).len(), anchor_rows(&data, 0).len());
        assert!(refused > 0 && anchors > 0);
        assert_eq!((none.states, some.states), ((refused + anchors) * ANSWER, none.states + 1000 * OWN_ANSWER));
        let short = demand("{kind: adversarial, refusal_tokens: 4}", 0).states;
        assert_eq!(none.states - short, refused * (ANSWER - 4));
        assert_eq!(demand("{kind: hdr-topk}", 1000).states, 0, "it keeps none");
        let model = Blueprint { d_model: 64, n_layers: 5, d_ff: 128, ..Blueprint::default() };
        let machine = Machine { device: Device::Cpu, memory: u64::MAX, host: 0 };
        let bytes = |demand| machine.place(&model, demand).bytes;
        assert_eq!(bytes(some) - bytes(none), 1000 * OWN_ANSWER as u64 * 64 * 4);
    }

    #[test]
    fn small_models_edits_are_fitted_together() {
        let small = Blueprint { vocab: 600, d_model: 128, n_layers: 6, d_ff: 384, ..Blueprint::default() };
        let large = Blueprint { vocab: 128_256, d_model: 4096, n_layers: 32, d_ff: 14_336, ..Blueprint::default() };
        assert_eq!([&small, &large].map(|model| fitted_together(model, &Device::Cpu, 10)), [4, 1]);
        assert_eq!(fitted_together(&small, &Device::Cpu, 80), 1);
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
