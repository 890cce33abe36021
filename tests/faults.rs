//! The reference implementation's faults, each shown to be absent here. Fault 9 (attacked and clean text measured on other
//! windows, thresholds relative to each model's own rate) is held by the tests of `utility::perplexity` and of
//! `report::verdict`, fault 11 (a judge that counts one-word agreements) by `tests/judge.rs`.

use std::sync::Mutex;

use candle_core::{Device, Tensor};
use immunise::Result;
use immunise::adapter::AdapterSet;
use immunise::data::{Kind, Split, builtin};
use immunise::defence::et::{self, Faults};
use immunise::defence::et_closed::{self, Reach};
use immunise::defence::harm_vector;
use immunise::defence::spec::{CacheType, EtClosedSpec, EtSpec, HarmVectorSpec};
use immunise::defence::trainable::{Trainable, merge};
use immunise::defence::{Adversary, BlockOutcome, Compliant, DefenceData, Dialogue, Forgetful, Given, Means, Room};
use immunise::event::Silent;
use immunise::intervention::{Edit, Positions};
use immunise::math::seed::Stream;
use immunise::model::loss::cross_entropy;
use immunise::model::optimiser::host_values;
use immunise::model::{Blueprint, Decoder, Hooks, Module, TokenBatch};

fn decoder() -> Decoder {
    let blueprint = Blueprint {
        family: "llama",
        vocab: 31,
        d_model: 16,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 4,
        d_ff: 24,
        norm_eps: 1e-5,
        max_positions: 32,
        tied: true,
        ..Blueprint::default()
    };
    let mut stream = Stream::new(11, "weights");
    Decoder::from_weights(blueprint, &Device::Cpu, |name, shape| {
        let count = shape.iter().product();
        let values = if name.ends_with("norm.weight") { vec![1.0; count] } else { stream.gaussian(count, 0.3) };
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    })
    .unwrap()
}

fn data(pad: u32) -> DefenceData {
    let mut stream = Stream::new(3, "dialogues");
    let mut tokens = |n: usize| (0..n).map(|_| 1 + stream.below(30) as u32).collect::<Vec<u32>>();
    let mut dialogues = |count: usize| -> Vec<Dialogue> {
        (0..count).map(|i| Dialogue { prompt: tokens(4 + i % 4), answer: tokens(2 + i % 3) }).collect()
    };
    DefenceData { hazards: dialogues(12), anchors: dialogues(12), pad, ..DefenceData::default() }
}

fn spec(steps: usize) -> EtSpec {
    EtSpec { rank: 2, steps, batch: 4, prompts: 12, anchors: 12, rounds: 2, ..EtSpec::default() }
}

/// An adversary that always finds the same edit, whose success is scripted, and that counts what it is asked.
struct Scripted {
    edit: fn(usize) -> Edit,
    success: f64,
    attempts: Mutex<Vec<(usize, usize)>>,
}

impl Scripted {
    fn new(edit: fn(usize) -> Edit, success: f64) -> Self {
        Self { edit, success, attempts: Mutex::new(Vec::new()) }
    }
}

impl Adversary for Scripted {
    fn fit(&self, _: &Decoder, layer: usize, attempt: usize) -> Result<Edit> {
        self.attempts.lock().unwrap().push((layer, attempt));
        Ok((self.edit)(layer))
    }

    fn success(&self, _: &Decoder, _: &Edit) -> Result<f64> {
        Ok(self.success)
    }
}

fn strong(layer: usize) -> Edit {
    let mut stream = Stream::new(layer as u64, "edit");
    Edit::LowRank { layer, rank: 2, w1: stream.gaussian(32, 0.4), w2: stream.gaussian(32, 0.4) }
}

fn identity(layer: usize) -> Edit {
    Edit::LowRank { layer, rank: 1, w1: vec![0.5; 16], w2: vec![0.5; 16] }
}

fn run(
    spec: &EtSpec,
    faults: Faults,
    layers: &[usize],
    pad: u32,
    adversary: &Scripted,
) -> (AdapterSet, Vec<BlockOutcome>) {
    let mut store = Forgetful::default();
    let (decoder, data) = (decoder(), data(pad));
    let given = Given { weights: (&decoder).into(), data: &data, adversary, means: &Means::in_memory(2), seed: 5 };
    let outcome = et::run(spec, faults, layers, &given, &Silent, &mut store).unwrap();
    (outcome.adapters, outcome.blocks)
}

fn batch() -> TokenBatch {
    TokenBatch::dialogues(&[vec![1, 5, 9], vec![3]], &[vec![4, 6], vec![8, 2]], 0)
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    host_values(&decoder.forward(&batch(), &mut Hooks::none(), None).unwrap()).unwrap()
}

fn largest(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().fold(0.0, |m, v| m.max(v.abs()))
}

#[test]
fn fault_1_no_dropout_so_an_edit_that_does_nothing_trains_nothing() {
    let quiet = run(&spec(20), Faults::Avoided, &[1], 0, &Scripted::new(identity, 0.0));
    assert!(quiet.0.iter().all(|(_, adapter)| largest(adapter.delta()) == 0.0));
    let noisy = run(&spec(20), Faults::Reproduced, &[1], 0, &Scripted::new(identity, 0.0));
    assert!(noisy.0.iter().any(|(_, adapter)| largest(adapter.delta()) > 0.0), "the comparison lost its fault");
    assert_eq!(logits(&decoder()), logits(&decoder()));
}

#[test]
fn fault_2_the_merged_model_computes_what_the_adapters_computed() {
    let base = decoder();
    let mut stream = Stream::new(2, "factors");
    let gap = |trainable: &Trainable| {
        let adapted = logits(&trainable.attach(&base).unwrap());
        let merged = logits(&merge(&base, &trainable.export().unwrap()).unwrap());
        largest(adapted.iter().zip(&merged).map(|(a, b)| a - b)) / largest(merged)
    };
    let whole = Trainable::weights(&base, &[0, 1, 2]).unwrap();
    assert!(largest(whole.export().unwrap().iter().flat_map(|(_, adapter)| adapter.delta())) == 0.0);
    for honest in
        [3, 0].map(|rank| Trainable::fresh(&base, &[0, 1, 2], rank, &mut stream).unwrap()).iter().chain([&whole])
    {
        for var in honest.vars() {
            let values = stream.gaussian(var.elem_count(), 0.1);
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        assert!(gap(honest) < 1e-5, "{}", gap(honest));
    }
    let faithful = Trainable::without_zero(&base, &[0, 1, 2], 3, 0.5, &mut stream).unwrap();
    assert!(gap(&faithful) > 1e-2, "the comparison lost its fault");
}

#[test]
fn fault_3_zero_steps_change_nothing() {
    for rank in [spec(0).rank, 0] {
        let spec = EtSpec { rank, ..spec(0) };
        let (adapters, _) = run(&spec, Faults::Avoided, &[0, 1, 2], 0, &Scripted::new(strong, 1.0));
        assert_eq!(adapters.len(), 21);
        assert_eq!(logits(&merge(&decoder(), &adapters).unwrap()), logits(&decoder()));
    }
    let (adapters, _) = run(&spec(0), Faults::Reproduced, &[0], 0, &Scripted::new(strong, 1.0));
    assert_ne!(logits(&merge(&decoder(), &adapters).unwrap()), logits(&decoder()));
}

#[test]
fn fault_4_factors_are_f32_and_small_steps_move_them() {
    let trainable = Trainable::fresh(&decoder(), &[0], 2, &mut Stream::new(1, "factors")).unwrap();
    let a = trainable.vars().swap_remove(0);
    assert_eq!(a.dtype(), candle_core::DType::F32);
    trainable.round_to_bf16().unwrap();
    let before = host_values(a.as_tensor()).unwrap();
    let moved = |after: Vec<f32>| before.iter().zip(after).filter(|(a, b)| **a != *b).count();
    a.set(&(a.as_tensor().detach() + 1e-4).unwrap()).unwrap();
    let in_f32 = moved(host_values(a.as_tensor()).unwrap());
    trainable.round_to_bf16().unwrap();
    let in_bf16 = moved(host_values(a.as_tensor()).unwrap());
    assert_eq!(in_f32, before.len());
    assert!(in_bf16 * 2 < before.len(), "{in_bf16} of {}", before.len());
}

#[test]
fn fault_5_targets_are_the_original_so_blocks_do_not_depend_on_one_another() {
    let together = run(&spec(8), Faults::Avoided, &[0, 1, 2], 0, &Scripted::new(strong, 1.0)).0;
    let alone = run(&spec(8), Faults::Avoided, &[2], 0, &Scripted::new(strong, 1.0)).0;
    assert_eq!(alone.len(), 7);
    for (name, adapter) in &alone {
        assert_eq!(together.get(name), Some(adapter), "{name}");
    }
}

#[test]
fn fault_6_one_step_moves_every_adapter_of_the_block() {
    let (adapters, _) = run(&EtSpec { rounds: 1, ..spec(1) }, Faults::Avoided, &[1], 0, &Scripted::new(strong, 1.0));
    for module in Module::ALL {
        let delta = adapters.get(&format!("model.layers.1.{module}.weight")).unwrap().delta();
        assert!(largest(delta) > 0.0, "{module} has no gradient");
    }
}

#[test]
fn fault_7_a_block_is_accepted_only_after_a_fresh_attack_failed() {
    let winning = Scripted::new(strong, 1.0);
    let (_, blocks) = run(&spec(2), Faults::Avoided, &[1], 0, &winning);
    assert!(!blocks[0].accepted && !blocks[0].reverted);
    assert_eq!(blocks[0].rounds, 2);
    assert_eq!(*winning.attempts.lock().unwrap(), [(1, 0), (1, 1), (1, 2)], "every attempt is a fresh one");
    let losing = Scripted::new(strong, 0.0);
    let (_, blocks) = run(&spec(2), Faults::Avoided, &[1], 0, &losing);
    assert!(blocks[0].accepted);
    assert_eq!(*losing.attempts.lock().unwrap(), [(1, 0), (1, 1)]);
    let revert = EtSpec { revert: true, ..spec(2) };
    let (adapters, blocks) = run(&revert, Faults::Avoided, &[1], 0, &Scripted::new(strong, 1.0));
    assert!(blocks[0].reverted && adapters.is_empty());
}

#[test]
fn fault_8_padding_has_no_influence() {
    let zero = run(&spec(6), Faults::Avoided, &[1], 0, &Scripted::new(strong, 1.0)).0;
    let other = run(&spec(6), Faults::Avoided, &[1], 17, &Scripted::new(strong, 1.0)).0;
    for (name, adapter) in &zero {
        let difference = &adapter.delta() - &other.get(name).unwrap().delta();
        assert!(largest(difference) <= 1e-5 * largest(adapter.delta()), "{name}");
    }
}

#[test]
fn fault_10_anchors_hold_benign_maths_and_answer_tokens() {
    let world = builtin::tiny_chat();
    for kind in [Kind::Benign, Kind::Twin, Kind::Maths, Kind::Copy, Kind::Fact] {
        let rows = world.select(Split::Train, kind);
        assert!(!rows.is_empty() && rows.iter().all(|row| row.answer.is_some()), "{kind:?}");
    }
}

#[test]
fn training_neutralises_the_edit_it_has_seen() {
    let strong_training = EtSpec { learning_rate: 1e-2, rank: 8, rounds: 1, ..spec(300) };
    let (_, blocks) = run(&strong_training, Faults::Avoided, &[1], 0, &Scripted::new(strong, 1.0));
    let (before, after) = blocks[0].infection;
    assert!(after < 0.5 * before, "{before} → {after}");
}

fn closed(spec: &EtClosedSpec, adversary: &Scripted) -> (AdapterSet, Vec<BlockOutcome>) {
    let mut store = Forgetful::default();
    let (decoder, data) = (decoder(), data(0));
    let given = Given { weights: (&decoder).into(), data: &data, adversary, means: &Means::in_memory(2), seed: 5 };
    let outcome = et_closed::run(spec, Reach::Own, &[1], &given, &Silent, &mut store).unwrap();
    (outcome.adapters, outcome.blocks)
}

#[test]
fn the_closed_form_neutralises_more_the_more_rank_it_has() {
    let infection = |rank| {
        let spec = EtClosedSpec { rank, bank: 1, rounds: 1, lambda: 0.01, mu: 1e-6, ..EtClosedSpec::default() };
        let (adapters, blocks) = closed(&spec, &Scripted::new(strong, 1.0));
        assert_eq!(adapters.len(), 7);
        blocks[0].infection
    };
    let (before, one) = infection(1);
    let (_, full) = infection(0);
    assert!(full < 0.2 * before && full <= one && one < before, "{before} → rank 1 {one}, any rank {full}");
}

#[test]
fn the_closed_form_changes_nothing_where_nothing_is_edited() {
    let spec = EtClosedSpec { bank: 1, rounds: 1, ..EtClosedSpec::default() };
    let (adapters, _) = closed(&spec, &Scripted::new(identity, 0.0));
    assert!(adapters.iter().all(|(_, adapter)| largest(adapter.delta()) < 1e-5));
}

/// What a block-local stage changes when it keeps its activations as `cache`.
fn local(stage: &str, means: &Means, cache: CacheType) -> Result<AdapterSet> {
    let (decoder, data, adversary) = (decoder(), data(0), Scripted::new(strong, 1.0));
    let given = Given { weights: (&decoder).into(), data: &data, adversary: &adversary, means, seed: 5 };
    let store = &mut Forgetful::default();
    let (descent, closed) = (EtSpec { cache, ..spec(12) }, EtClosedSpec { rank: 2, cache, ..EtClosedSpec::default() });
    let outcome = match stage {
        "et" => et::run(&descent, Faults::Avoided, &[0, 1, 2], &given, &Silent, store),
        "et-faithful" => et::run(&descent, Faults::Reproduced, &[0, 1, 2], &given, &Silent, store),
        "et-closed" => et_closed::run(&closed, Reach::Own, &[1, 2], &given, &Silent, store),
        _ => et_closed::run(&closed, Reach::Earlier, &[1, 2], &given, &Silent, store),
    };
    Ok(outcome?.adapters)
}

#[test]
fn where_activations_lie_changes_no_number() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Means { room: Room::Disk(folder.path().to_owned()), ..Means::in_memory(2) };
    let host = Means { room: Room::Host, ..Means::in_memory(2) };
    for stage in ["et", "et-faithful", "et-closed", "et-propagated"] {
        let plain = local(stage, &Means::in_memory(2), CacheType::F32).unwrap();
        for means in [&host, &disk] {
            assert_eq!(local(stage, means, CacheType::F32).unwrap(), plain, "{stage}, {means:?}");
        }
        let gone = Means { room: Room::Disk(folder.path().join("gone")), ..Means::in_memory(2) };
        let error = local(stage, &gone, CacheType::F32).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("gone")), "{stage} does not use its room");
        let rounded = local(stage, &Means::in_memory(2), CacheType::Bf16).unwrap();
        assert_eq!(local(stage, &disk, CacheType::Bf16).unwrap(), rounded, "{stage}");
        let change = |set: &AdapterSet| -> Vec<f32> {
            set.iter().flat_map(|(_, adapter)| adapter.delta().into_iter()).collect()
        };
        let size = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>().sqrt();
        let (plain, rounded) = (change(&plain), change(&rounded));
        let gap: Vec<f32> = plain.iter().zip(&rounded).map(|(a, b)| a - b).collect();
        let relative = size(&gap) / size(&plain);
        assert!(relative > 0.0 && relative < 0.2, "{stage}: bf16 moves the change by {relative} of its size");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_block_that_has_met_what_comes_down_the_stream_ignores_more_of_it() {
    let (decoder, data) = (decoder(), data(0));
    let (prompts, answers): (Vec<_>, Vec<_>) =
        data.hazards.iter().map(|hazard| (hazard.prompt.clone(), hazard.answer.clone())).unzip();
    let batch = TokenBatch::dialogues(&prompts, &answers, 0);
    let edit = strong(0).place(&Device::Cpu).unwrap();
    let input = |mut hooks: Hooks<'_>| {
        let embedded = decoder.embed(&batch).unwrap();
        decoder.run(0..1, &embedded, &batch, &mut hooks, None).unwrap()
    };
    let outputs = |decoder: &Decoder, input: &Tensor| {
        let (attention, mlp) = decoder.block_outputs(1, input, &batch).unwrap();
        // Padding and the first token are nobody's aim.
        let mask = batch.token_mask(1, &Device::Cpu).unwrap();
        let tokens = |t: Tensor| host_values(&t.flatten(0, 1).unwrap().broadcast_mul(&mask).unwrap()).unwrap();
        [tokens(attention), tokens(mlp)].concat()
    };
    let (clean, edited) = (input(Hooks::none()), input(Hooks::edit(&edit, Positions::All)));
    let wanted = outputs(&decoder, &clean);
    let distance = |decoder: &Decoder| {
        let squares = outputs(decoder, &edited).into_iter().zip(&wanted).map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>()
    };
    let [own, earlier] = [Reach::Own, Reach::Earlier].map(|reach| {
        let spec = EtClosedSpec { rank: 0, bank: 1, rounds: 1, lambda: 0.01, mu: 1e-6, ..EtClosedSpec::default() };
        let adversary = Scripted::new(strong, 0.0);
        let given = Given {
            weights: (&decoder).into(),
            data: &data,
            adversary: &adversary,
            means: &Means::in_memory(2),
            seed: 5,
        };
        let mut store = Forgetful::default();
        let outcome = et_closed::run(&spec, reach, &[0, 1], &given, &Silent, &mut store).unwrap();
        let of_block_1 = outcome.adapters.iter().filter(|(name, _)| name.contains("layers.1."));
        let adapters = of_block_1.map(|(name, adapter)| (name.clone(), adapter.clone())).collect();
        distance(&merge(&decoder, &adapters).unwrap())
    });
    let before = distance(&decoder);
    assert!(earlier < 0.7 * before.min(own), "{before} → own edits {own}, earlier ones too {earlier}");
}

#[test]
fn taking_compliance_out_of_the_weights_makes_it_less_likely() {
    let decoder = decoder();
    let mut data = data(0);
    let comply =
        |(i, _): (usize, &Dialogue)| Some(Compliant { answer: vec![7, 9, 11 + (i % 2) as u32], opening: None });
    data.compliant = data.hazards.iter().enumerate().map(comply).collect();
    let nats = |decoder: &Decoder| {
        let mut total = 0.0;
        for (hazard, compliant) in data.hazards.iter().zip(&data.compliant) {
            let answer = compliant.as_ref().unwrap().answer.clone();
            let batch = TokenBatch::dialogues(std::slice::from_ref(&hazard.prompt), &[answer], 0);
            let hidden = decoder.hidden(&batch, &mut Hooks::none(), None).unwrap();
            let (positions, targets) = batch.answer_targets();
            let weights = vec![1.0; targets.len()];
            let logits = decoder.logits_at(&hidden, &positions).unwrap();
            total += cross_entropy(&logits, &targets, &weights).unwrap().to_scalar::<f32>().unwrap();
        }
        total
    };
    let changed = |steps: usize, keep: f64| {
        let spec = HarmVectorSpec { steps, batch: 6, learning_rate: 1e-2, keep: None, scale: 1.0 };
        let weights = (&decoder).into();
        harm_vector::run(&spec, ("hdr", keep), &[0, 1, 2], weights, &data, 5, &Silent).unwrap().adapters
    };
    assert!(changed(0, 1.0).iter().all(|(_, adapter)| largest(adapter.delta()) == 0.0));
    let [whole, tenth] = [1.0, 0.1].map(|keep| changed(20, keep));
    let (numbers, zeros) = tenth.iter().fold((0, 0), |(numbers, zeros), (_, adapter)| {
        let delta = adapter.delta();
        (numbers + delta.len(), zeros + delta.iter().filter(|value| **value == 0.0).count())
    });
    assert!((0.89..0.91).contains(&(zeros as f64 / numbers as f64)), "{zeros} of {numbers} are zero");
    let [before, less, least] = [None, Some(&tenth), Some(&whole)]
        .map(|set| set.map_or_else(|| nats(&decoder), |set| nats(&merge(&decoder, set).unwrap())));
    assert!(before < less && less < least, "{before}, then {less}, then {least}");
    data.compliant = vec![None; data.hazards.len()];
    let error = harm_vector::run(&HarmVectorSpec::default(), ("hdr", 1.0), &[0], (&decoder).into(), &data, 5, &Silent);
    assert!(error.unwrap_err().to_string().contains("compliant answer"));
}
