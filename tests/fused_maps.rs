//! Maps that share a tensor are trained, solved, merged and stored as those with tensors of their own.

use candle_core::{Device, Tensor};
use immunise::Result;
use immunise::adapter::{AdapterSet, peft};
use immunise::defence::spec::{EtClosedSpec, EtSpec};
use immunise::defence::trainable::merge;
use immunise::defence::{Adversary, DefenceData, Dialogue, Forgetful, Given, Means, et, et_closed};
use immunise::event::Silent;
use immunise::intervention::Edit;
use immunise::math::seed::Stream;
use immunise::model::optimiser::host_values;
use immunise::model::{Blueprint, Decoder, Hooks, Module, TokenBatch, WeightLocation};

fn blueprint(fused: bool) -> Blueprint {
    Blueprint {
        family: "phi3",
        vocab: 31,
        d_model: 16,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 4,
        d_ff: 24,
        max_positions: 32,
        tied: true,
        fused,
        ..Blueprint::default()
    }
}

/// A decoder whose weights depend on nothing but the maps they belong to.
fn decoder(fused: bool) -> Decoder {
    let blueprint = blueprint(fused);
    let of_tensor = |name: &str| -> Vec<f32> {
        let maps = (0..2).flat_map(|layer| Module::ALL.map(|module| (layer, module)));
        maps.filter(|(layer, module)| blueprint.weight_location(*module, *layer).tensor == name)
            .flat_map(|(layer, module)| {
                let count = blueprint.weight_shape(module).iter().product();
                Stream::new(1, &format!("{layer} {module}")).gaussian(count, 0.3)
            })
            .collect()
    };
    Decoder::from_weights(blueprint.clone(), &Device::Cpu, |name, shape| {
        let count = shape.iter().product();
        let values = match of_tensor(name) {
            values if !values.is_empty() => values,
            _ if name.ends_with("norm.weight") => vec![1.0; count],
            _ => Stream::new(1, name).gaussian(count, 0.3),
        };
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    })
    .unwrap()
}

struct Always;

impl Adversary for Always {
    fn fit(&self, _: &Decoder, layer: usize, _: usize) -> Result<Edit> {
        let mut stream = Stream::new(layer as u64, "edit");
        Ok(Edit::LowRank { layer, rank: 2, w1: stream.gaussian(32, 0.4), w2: stream.gaussian(32, 0.4) })
    }

    fn success(&self, _: &Decoder, _: &Edit) -> Result<f64> {
        Ok(1.0)
    }
}

fn data() -> DefenceData {
    let mut stream = Stream::new(3, "dialogues");
    let mut tokens = |n: usize| (0..n).map(|_| 1 + stream.below(30) as u32).collect::<Vec<u32>>();
    let mut dialogues = |count: usize| -> Vec<Dialogue> {
        (0..count).map(|i| Dialogue { prompt: tokens(4 + i % 4), answer: tokens(2 + i % 3) }).collect()
    };
    DefenceData { hazards: dialogues(8), anchors: dialogues(8), ..DefenceData::default() }
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    let batch = TokenBatch::prompts(&[vec![1, 5, 9, 30], vec![3, 2]], 0);
    host_values(&decoder.forward(&batch, &mut Hooks::none(), None).unwrap()).unwrap()
}

fn same_in_both_layouts(stage: impl Fn(&Given<'_>) -> AdapterSet) {
    let (apart, joined, data) = (decoder(false), decoder(true), data());
    assert_eq!(logits(&apart), logits(&joined));
    let run = |decoder: &Decoder| {
        stage(&Given { weights: decoder.into(), data: &data, adversary: &Always, means: &Means::in_memory(2), seed: 5 })
    };
    let (apart_set, joined_set) = (run(&apart), run(&joined));
    assert_eq!((apart_set.len(), joined_set.len()), (7, 4));
    for module in Module::ALL {
        let expected = apart_set.get(&apart.blueprint().weight_location(module, 1).tensor).unwrap().delta();
        let WeightLocation { tensor, rows, .. } = joined.blueprint().weight_location(module, 1);
        assert_eq!(joined_set.get(&tensor).unwrap().of_rows(rows).delta(), expected, "{module}");
        assert!(expected.iter().any(|value| *value != 0.0), "{module} was not trained");
    }
    let merged = logits(&merge(&joined, &joined_set).unwrap());
    assert_eq!(merged, logits(&merge(&apart, &apart_set).unwrap()));
    assert_ne!(merged, logits(&apart));
    let place = tempfile::tempdir().unwrap();
    peft::save(&joined_set, &place.path().join("adapter"), "base").unwrap();
    assert_eq!(peft::load(&place.path().join("adapter")).unwrap(), joined_set, "through PEFT's files");
}

#[test]
fn gradient_descent_gives_the_same_changes() {
    let spec = EtSpec { rank: 2, steps: 6, batch: 4, prompts: 8, anchors: 8, rounds: 1, ..EtSpec::default() };
    same_in_both_layouts(|given| {
        let mut store = Forgetful::default();
        et::run(&spec, et::Faults::Avoided, &[1], given, &Silent, &mut store).unwrap().adapters
    });
}

#[test]
fn the_closed_form_gives_the_same_changes() {
    let spec = EtClosedSpec { rank: 2, bank: 1, rounds: 1, ..EtClosedSpec::default() };
    same_in_both_layouts(|given| {
        et_closed::run(&spec, et_closed::Reach::Own, &[1], given, &Silent, &mut Forgetful::default()).unwrap().adapters
    });
}
