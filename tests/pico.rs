//! Every family against transformers on its pico checkpoint, and against itself: activations at every site, gradients by
//! finite differences, merged files, chat templates, greedy answers.
//!
//! `tests/interop/pico.py` makes the fixtures. The table is printed by
//! `cargo test --test pico -- --nocapture every_family`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, IndexOp as _, Tensor, Var};
use immunise::adapter::{Adapter, AdapterSet, merge};
use immunise::checkpoint::config::Config;
use immunise::checkpoint::{Checkpoint, diff, patch};
use immunise::data::{Kind, PromptSet, Split, builtin};
use immunise::defence::trainable;
use immunise::event::Silent;
use immunise::math::seed::Stream;
use immunise::model::blueprint::{Activation, Attends, BlockNorms, NormKind, QkNorm};
use immunise::model::chat_template::{ChatTemplate, Message};
use immunise::model::generate::{Greedy, generate};
use immunise::model::linear::LowRank;
use immunise::model::loss::cross_entropy;
use immunise::model::prompt::PromptEncoder;
use immunise::model::site::{Point, Site};
use immunise::model::tokenizer::Tokenizer;
use immunise::model::{Blueprint, Decoder, Hooks, Module, TokenBatch, WeightLocation, families};
use immunise::pipeline::device::Machine;
use immunise::pipeline::{Request, harden};
use immunise::recipe::Recipe;
use ndarray::Array2;
use serde_json::Value;

const CPU: Device = Device::Cpu;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pico")
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn parsed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// A family's checkpoint and what transformers made of it.
struct Pico {
    dir: PathBuf,
    decoder: Decoder,
    golden: Value,
    tensors: HashMap<String, Tensor>,
}

impl Pico {
    fn open(family: &str) -> Self {
        let dir = folder().join(family);
        let decoder = Decoder::load(&Checkpoint::open(&dir).unwrap(), &CPU).unwrap();
        let tensors = candle_core::safetensors::load(dir.join("golden.safetensors"), &CPU).unwrap();
        Self { decoder, golden: json(&dir.join("golden.json")), tensors, dir }
    }

    fn rows(&self) -> TokenBatch {
        TokenBatch::prompts(&parsed::<Vec<Vec<u32>>>(&self.golden["rows"]), 0)
    }

    fn encoder(&self) -> (Tokenizer, ChatTemplate) {
        let kind = self.golden["tokenizer"].as_str().unwrap();
        let tokenizer = Tokenizer::open(&folder().join("tokenizers").join(kind)).unwrap();
        (tokenizer, ChatTemplate::open(&self.dir).unwrap())
    }
}

/// 1 − cosine, and the largest difference relative to the largest value of `reference`.
fn distance(ours: &[f32], reference: &[f32]) -> (f64, f64) {
    assert_eq!(ours.len(), reference.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let cosine = dot(ours, reference) / (dot(ours, ours) * dot(reference, reference)).sqrt();
    assert!(ours.iter().all(|value| value.is_finite()), "not finite");
    let scale = reference.iter().fold(0_f32, |m, v| m.max(v.abs()));
    let worst = ours.iter().zip(reference).fold(0_f32, |m, (a, b)| m.max((a - b).abs()));
    (1.0 - cosine, f64::from(worst / scale))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Values of the columns from `from[row]` on.
fn real(tensor: &Tensor, from: &[usize]) -> Vec<f32> {
    from.iter().enumerate().flat_map(|(row, from)| values(&tensor.i((row, *from..)).unwrap())).collect()
}

/// What one check found: words for the table, or what is wrong.
type Check = Result<String, String>;
/// A column of the table.
type Column = (&'static str, fn(&Pico) -> Check);

fn parity(pico: &Pico) -> Check {
    const POINTS: [Point; 6] =
        [Point::ResidPre, Point::Z, Point::AttnOut, Point::ResidMid, Point::MlpOut, Point::ResidPost];
    let batch = pico.rows();
    let n_layers = pico.decoder.n_layers();
    let sites: Vec<Site> = (0..n_layers).flat_map(|l| POINTS.map(|point| Site::new(l, point))).collect();
    let mut hooks = Hooks::none().and_record(sites.clone());
    let logits = pico.decoder.forward(&batch, &mut hooks, None).unwrap();
    let columns: Vec<u32> = parsed(&pico.golden["logits_at"]);
    let logits = logits.index_select(&Tensor::new(columns, &CPU).unwrap(), 1).unwrap();
    let mut found = vec![("logits".to_owned(), values(&logits), values(&pico.tensors["logits"]))];
    for site in sites {
        let expected = match (site.layer, site.point) {
            (layer, Point::ResidPre) if layer > 0 => Site::new(layer - 1, Point::ResidPost),
            _ => site,
        };
        let expected = pico.tensors.get(&expected.to_string()).ok_or(format!("no golden {expected}"))?;
        found.push((site.to_string(), real(&hooks.take(site).unwrap(), batch.pads()), real(expected, batch.pads())));
    }
    let mut worst = 0_f64;
    for (site, ours, reference) in &found {
        let (angle, error) = distance(ours, reference);
        if angle >= 1e-5 || error > 1e-4 {
            return Err(format!("{site}: 1 - cosine {angle:.1e}, error {error:.1e}"));
        }
        worst = worst.max(error);
    }
    Ok(format!("{} sites, {worst:.0e}", found.len()))
}

fn dialogue() -> TokenBatch {
    TokenBatch::dialogues(&[vec![11, 5, 19, 120, 301, 7, 88], vec![203, 8, 9]], &[vec![14, 260, 37], vec![11, 390]], 0)
}

fn answer_loss(decoder: &Decoder, hidden: &Tensor) -> Tensor {
    let (positions, targets) = dialogue().answer_targets();
    let weights = vec![1.0; targets.len()];
    cross_entropy(&decoder.logits_at(hidden, &positions).unwrap(), &targets, &weights).unwrap()
}

fn loss_of(decoder: &Decoder) -> Tensor {
    answer_loss(decoder, &decoder.hidden(&dialogue(), &mut Hooks::none(), None).unwrap())
}

fn gaussian(stream: &mut Stream, shape: (usize, usize), deviation: f64) -> Tensor {
    Tensor::from_vec(stream.gaussian(shape.0 * shape.1, deviation), shape, &CPU).unwrap()
}

/// How far `gradient` is from central differences of `loss` at `at`, along itself and along a random direction, relative to
/// its norm.
fn slope_error(at: &Tensor, gradient: &Tensor, stream: &mut Stream, loss: impl Fn(&Tensor) -> f64) -> f64 {
    let norm = |t: &Tensor| f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
    let random = Tensor::from_vec(stream.gaussian(at.elem_count(), 1.0), at.shape(), &CPU).unwrap();
    let size = norm(gradient).max(1e-3);
    let mut worst = 0_f64;
    for direction in [gradient.clone(), random] {
        let direction = (&direction / norm(&direction).max(1e-12)).unwrap();
        let expected = f64::from((gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        let slope = |step: f64| {
            let moved = |step: f64| loss(&(at + (&direction * step).unwrap()).unwrap());
            (moved(step) - moved(-step)) / (2.0 * step)
        };
        // Richardson extrapolation removes the second-order error, so that a step large enough for f32 can be taken; where
        // the loss bends more, smaller ones.
        let error = |step: f64| ((4.0 * slope(step / 2.0) - slope(step)) / 3.0 - expected).abs() / size;
        worst = worst.max([4e-2, 1e-2, 2.5e-3].map(error).into_iter().fold(f64::INFINITY, f64::min));
    }
    worst
}

fn scalar(loss: &Tensor) -> f64 {
    f64::from(loss.to_scalar::<f32>().unwrap())
}

fn gradients(pico: &Pico) -> Check {
    let (base, mut stream) = (&pico.decoder, Stream::new(1, "adapters"));
    let mut factors = BTreeMap::new();
    for layer in 0..base.n_layers() {
        for module in Module::ALL {
            let [d_out, d_in] = base.blueprint().weight_shape(module);
            let pair = [gaussian(&mut stream, (2, d_in), 0.2), gaussian(&mut stream, (d_out, 2), 0.2)];
            factors.insert((layer, module), pair.map(|factor| Var::from_tensor(&factor).unwrap()));
        }
    }
    let with = |changed: Option<((usize, Module), usize, &Tensor)>| {
        let adapted = base.map_blocks(|layer, block| {
            Module::ALL.into_iter().try_fold(block.clone(), |adapted, module| {
                let [mut a, mut b] = factors[&(layer, module)].clone().map(|var| var.as_tensor().clone());
                match changed {
                    Some((at, 0, factor)) if at == (layer, module) => a = factor.clone(),
                    Some((at, _, factor)) if at == (layer, module) => b = factor.clone(),
                    _ => {}
                }
                Ok(adapted.with_map(module, block.map(module).with_adapter(LowRank { a, b, scale: 0.7 })?))
            })
        });
        adapted.unwrap()
    };
    let store = loss_of(&with(None)).backward().unwrap();
    let mut worst = 0_f64;
    for (at, pair) in &factors {
        for (index, var) in pair.iter().enumerate() {
            let gradient = store.get(var).ok_or(format!("block {} {}: no gradient", at.0, at.1))?;
            let at_value = var.as_tensor().detach();
            let error =
                slope_error(&at_value, gradient, &mut stream, |t| scalar(&loss_of(&with(Some((*at, index, t))))));
            if error >= 3e-3 {
                return Err(format!("block {} {} {}: {error:.1e}", at.0, at.1, ["A", "B"][index]));
            }
            worst = worst.max(error);
        }
    }
    let batch = dialogue();
    let input = Var::from_tensor(&base.embed(&batch).unwrap().detach()).unwrap();
    let loss =
        |h: &Tensor| answer_loss(base, &base.run(0..base.n_layers(), h, &batch, &mut Hooks::none(), None).unwrap());
    let store = loss(input.as_tensor()).backward().unwrap();
    let gradient = store.get(&input).ok_or("the block input has no gradient")?;
    let error = slope_error(&input.as_tensor().detach(), gradient, &mut stream, |t| scalar(&loss(t)));
    if error >= 3e-3 {
        return Err(format!("block input: {error:.1e}"));
    }
    Ok(format!("{} matrices, {:.0e}", 2 * factors.len(), worst.max(error)))
}

fn merging(pico: &Pico) -> Check {
    let (base, mut stream) = (&pico.decoder, Stream::new(3, "adapters"));
    let (mut set, mut low) = (AdapterSet::new(), HashMap::new());
    for layer in 0..base.n_layers() {
        for module in Module::ALL {
            let [d_out, d_in] = base.blueprint().weight_shape(module);
            let (a, b) = (gaussian(&mut stream, (2, d_in), 0.2), gaussian(&mut stream, (d_out, 2), 0.2));
            let array = |t: &Tensor| Array2::from_shape_vec(t.dims2().unwrap(), values(t)).unwrap();
            let adapter = Adapter::new(array(&a), array(&b), 0.5).unwrap();
            let WeightLocation { tensor, rows, of } = base.blueprint().weight_location(module, layer);
            set.add(&tensor, rows, of, adapter).unwrap();
            low.insert((layer, module), LowRank { a, b, scale: 0.5 });
        }
    }
    let adapted = base.map_blocks(|layer, block| {
        Module::ALL.into_iter().try_fold(block.clone(), |changed, module| {
            Ok(changed.with_map(module, block.map(module).with_adapter(low[&(layer, module)].clone())?))
        })
    });
    let batch = dialogue();
    let logits = |decoder: &Decoder| values(&decoder.forward(&batch, &mut Hooks::none(), None).unwrap());
    let reference = logits(&adapted.unwrap());
    let (_, change) = distance(&logits(base), &reference);
    assert!(change > 0.02, "the adapters do something: {change}");
    let merged = trainable::merge(base, &set).unwrap();
    let (_, error) = distance(&logits(&merged), &reference);
    if error >= 1e-5 {
        return Err(format!("merged weights give other logits: {error:.1e}"));
    }
    let (checkpoint, place) = (Checkpoint::open(&pico.dir).unwrap(), tempfile::tempdir().unwrap());
    let (out, sets) = (place.path().join("out"), [set]);
    let (staged, report) = patch(&checkpoint, &out, &merge::plan(&checkpoint, &sets).unwrap(), &[], &[]).unwrap();
    staged.publish(&out).unwrap();
    let written = Decoder::load(&Checkpoint::open(&out).unwrap(), &CPU).unwrap();
    for layer in 0..base.n_layers() {
        for module in Module::ALL {
            let expected = values(&merged.block(layer).map(module).weight().tensor().unwrap());
            let found = values(&written.block(layer).map(module).weight().tensor().unwrap());
            // Half a unit in the last place of bf16.
            if found.iter().zip(&expected).any(|(x, y)| (x - y).abs() > y.abs() / 255.0) {
                return Err(format!("block {layer} {module}: the file holds other values than the merged decoder"));
            }
        }
    }
    Ok(format!("{} tensors, {error:.0e}", report.tensors.len()))
}

fn templates(pico: &Pico) -> Check {
    let (tokenizer, template) = pico.encoder();
    let mut refused = 0;
    let dialogues = pico.golden["dialogues"].as_array().unwrap();
    for row in dialogues {
        let turns: Vec<(String, String)> = parsed(&row["messages"]);
        let messages: Vec<Message> = turns.into_iter().map(|(role, text)| Message::new(role, text)).collect();
        let text = template.render(&messages, row["add_generation_prompt"].as_bool().unwrap());
        match (text, row["error"].as_str()) {
            (Err(ours), Some(theirs)) if ours.to_string().contains(theirs) => refused += 1,
            (Ok(text), None) if row["text"] == text => {
                let ids = tokenizer.encode(&text, false).unwrap();
                if ids != parsed::<Vec<u32>>(&row["ids"]) {
                    return Err(format!("{text:?} gives {ids:?}, expected {}", row["ids"]));
                }
            }
            (ours, _) => return Err(format!("{}: got {ours:?}, expected {}", row["messages"], row["text"])),
        }
    }
    let encoder = PromptEncoder::new(tokenizer, template).unwrap();
    for row in dialogues.iter().filter(|row| row["add_generation_prompt"] == true && row["error"].is_null()) {
        let turns: Vec<(String, String)> = parsed(&row["messages"]);
        let ids = match turns.as_slice() {
            [(_, user)] => encoder.encode_chat(user, None),
            [(role, system), (_, user)] if role == "system" => encoder.encode_chat(user, Some(system)),
            _ => continue,
        };
        assert_eq!(ids.unwrap(), parsed::<Vec<u32>>(&row["ids"]), "{turns:?}");
    }
    // Where a model makes up a request itself.
    let (before, end) = encoder.before_request(None).unwrap();
    let whole = encoder.encode_chat("Why is the sky blue?", None).unwrap();
    let request = whole.strip_prefix(before.as_slice()).and_then(|rest| rest.split(|id| *id == end).next());
    let text = request.map(|ids| encoder.decode(ids).unwrap());
    if text.as_ref().is_none_or(|text| text.trim() != "Why is the sky blue?") {
        return Err(format!("{before:?} before and {end} after a request leave {text:?} of {whole:?}"));
    }
    Ok(format!("{} dialogues, {refused} refused", dialogues.len()))
}

fn generation(pico: &Pico) -> Check {
    let rows = pico.golden["answers"].as_array().unwrap();
    let prompts: Vec<Vec<u32>> = rows.iter().map(|row| parsed(&row["prompt"])).collect();
    let mut tokens = 0;
    for batch in [1, 3] {
        let options = Greedy { max_new_tokens: 14, stop: vec![], pad: 0, batch };
        let answers = generate(&pico.decoder, &prompts, &[], &options).unwrap();
        for (answer, row) in answers.iter().zip(rows) {
            if *answer != parsed::<Vec<u32>>(&row["answer"]) {
                return Err(format!("batches of {batch}: got {answer:?}, expected {}", row["answer"]));
            }
            tokens += answer.len();
        }
    }
    Ok(format!("{tokens} tokens equal"))
}

/// A folder as publishers have it: the checkpoint with its tokenizer beside it.
fn published(pico: &Pico, root: &Path) -> PathBuf {
    let model = root.join("model");
    fs::create_dir_all(&model).unwrap();
    let tokenizer = folder().join("tokenizers").join(pico.golden["tokenizer"].as_str().unwrap());
    for from in [tokenizer, pico.dir.clone()] {
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if !name.starts_with("golden") {
                fs::copy(entry.path(), model.join(name)).unwrap();
            }
        }
    }
    // Whole dialogues have to fit, spelled by tokenizers that know few words.
    let config = model.join("config.json");
    let longer = fs::read_to_string(&config)
        .unwrap()
        .replace("\"max_position_embeddings\": 64", "\"max_position_embeddings\": 256");
    fs::write(config, longer).unwrap();
    model
}

fn hardening(pico: &Pico) -> Check {
    let root = tempfile::tempdir().unwrap();
    let model = published(pico, root.path());
    let mut counts: HashMap<(Kind, Split), usize> = HashMap::new();
    let few = builtin::tiny_chat().examples.into_iter().filter(|row| {
        let count = counts.entry((row.kind, row.split)).or_default();
        *count += 1;
        *count <= 4
    });
    let prompts = root.path().join("prompts.jsonl");
    fs::write(&prompts, PromptSet::new("few", few.collect()).to_jsonl()).unwrap();
    let recipe = format!(
        "schema: 1\nname: pico\ndata: {{prompts: {}}}\nlayers: [1]\n\
         stages: [{{kind: et, steps: 2, rounds: 1, rank: 1, attack_pairs: 2, prompts: 2, anchors: 2, batch: 2}}]\n\
         suite: {{evaluation_prompts: 4, max_new_tokens: 3, attacks: [\
         {{kind: noreft, pairs: 2, steps: 1, batch: 2, layers: [1], knowledge: [frozen, adaptive]}}, \
         {{kind: random, pairs: 2, steps: 1, batch: 2, layers: [1]}}]}}\n\
         utility: [{{task: kl, items: 4}}]\nthresholds: {{control_asr: {{max: 0.9}}}}\n",
        prompts.display()
    );
    let file = root.path().join("recipe.yaml");
    fs::write(&file, recipe).unwrap();
    let request = Request {
        model: Some(model.display().to_string()),
        allow_fail: true,
        ..Request::new(root.path().join("out"), Machine::new(CPU, None))
    };
    let outcome =
        harden(&Recipe::load(&file).map_err(|e| e.to_string())?, &request, &Silent).map_err(|e| e.to_string())?;
    let out = outcome.published.ok_or("nothing was published")?;
    let difference = diff(&Checkpoint::open(&model).unwrap(), &Checkpoint::open(&out).unwrap()).unwrap();
    let changed = difference.tensors.iter().filter(|tensor| tensor.name.contains(".1.")).count();
    if changed == 0 || changed != difference.tensors.len() {
        return Err(format!("expected changes in block 1 alone, got {:?}", difference.tensors));
    }
    Ok(format!("{changed} tensors, {} rows", outcome.report.attacks.len()))
}

#[test]
fn every_family_is_what_transformers_computes_and_can_be_trained_and_merged() {
    const CHECKS: [Column; 6] = [
        ("parity", parity),
        ("gradients", gradients),
        ("merge", merging),
        ("template", templates),
        ("generation", generation),
        ("harden", hardening),
    ];
    println!("{:<12}  {}", "family", CHECKS.map(|(name, _)| format!("{name:<24}")).join(""));
    let mut wrong = vec![];
    for family in families::names() {
        let pico = Pico::open(family);
        let cells = CHECKS.map(|(name, check)| {
            let found = check(&pico);
            if let Err(problem) = &found {
                wrong.push(format!("{family}, {name}: {problem}"));
            }
            format!("{:<24}", found.unwrap_or_else(|_| "WRONG".into()))
        });
        println!("{family:<12}  {}", cells.join("").trim_end());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_rule_that_stretches_frequencies_gives_the_logits_of_transformers() {
    let golden = json(&folder().join("rope.json"));
    let expected = candle_core::safetensors::load(folder().join("rope.safetensors"), &CPU).unwrap();
    let llama = Checkpoint::open(&folder().join("llama")).unwrap();
    let batch = TokenBatch::prompts(&[parsed(&golden["ids"])], 0);
    let columns = Tensor::new(parsed::<Vec<u32>>(&golden["logits_at"]), &CPU).unwrap();
    let mut seen: Vec<Vec<f32>> = vec![];
    for (name, rule) in golden["rules"].as_object().unwrap() {
        let mut raw = llama.config().raw.clone();
        raw["rope_parameters"] = rule.clone();
        let blueprint = families::blueprint(&Config::parse(Path::new("config.json"), raw, None).unwrap()).unwrap();
        let decoder = Decoder::from_weights(blueprint, &CPU, |name, shape| {
            Ok(Tensor::from_vec(llama.read_f32(name)?, shape, &CPU)?)
        });
        let logits = decoder.unwrap().forward(&batch, &mut Hooks::none(), None).unwrap();
        let logits = values(&logits.i(0).unwrap().index_select(&columns, 0).unwrap());
        let (angle, error) = distance(&logits, &values(&expected[name]));
        assert!(angle < 1e-5 && error <= 1e-4, "{name}: {angle:.1e} {error:.1e}");
        assert!(seen.iter().all(|other| distance(&logits, other).1 > 1e-3), "{name} changes nothing");
        seen.push(logits);
    }
    assert_eq!(seen.len(), 7);
}

#[test]
fn hard_strings_have_the_ids_and_texts_of_transformers() {
    for kind in fs::read_dir(folder().join("tokenizers")).unwrap() {
        let dir = kind.unwrap().path();
        let tokenizer = Tokenizer::open(&dir).unwrap();
        let rows = json(&dir.join("strings.json"));
        assert!(rows.as_array().unwrap().len() > 40);
        for row in rows.as_array().unwrap() {
            let text = row["text"].as_str().unwrap();
            let ids: Vec<u32> = parsed(&row["ids"]);
            let shown = format!("{}: {text:?}", dir.display());
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{shown}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), parsed::<Vec<u32>>(&row["bare"]), "{shown}");
            assert_eq!(row["decoded"], tokenizer.decode(&ids, false).unwrap(), "{shown}");
            assert_eq!(row["readable"], tokenizer.decode(&ids, true).unwrap(), "{shown}");
        }
    }
}

#[test]
fn fixtures_are_small_and_each_is_a_familys() {
    let known: Vec<&str> = families::names().collect();
    for entry in fs::read_dir(folder()).unwrap() {
        let (name, path) = entry.map(|entry| (entry.file_name(), entry.path())).unwrap();
        if !path.is_dir() || name == "tokenizers" {
            continue;
        }
        assert!(known.contains(&name.to_str().unwrap()), "{name:?} is no family");
        let bytes: u64 = fs::read_dir(&path).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes < 200_000, "{name:?}: {bytes} bytes");
    }
}

/// A family's line in docs/families.md.
fn line(blueprint: &Blueprint) -> String {
    let yes = |flag: bool, word: &str| if flag { format!("{word}; ") } else { String::new() };
    let norms = match blueprint.norms {
        BlockNorms::BEFORE => "before",
        BlockNorms::AFTER => "after",
        BlockNorms::AROUND => "around",
        _ => "other",
    };
    let norm = if blueprint.norm == NormKind::Layer { " (LayerNorm)" } else { "" };
    let heads = match blueprint.qk_norm {
        QkNorm::None => "",
        QkNorm::Head => "each head",
        QkNorm::Whole => "all heads",
    };
    let attends: Vec<Attends> = (0..blueprint.n_layers).map(|layer| blueprint.attends(layer)).collect();
    let windowed = attends.iter().filter(|attends| attends.window.is_some()).count();
    let window = match windowed {
        0 => "",
        n if n == attends.len() => "every block",
        _ => "some blocks",
    };
    let activation = match blueprint.activation {
        Activation::Silu => "SiLU",
        Activation::GeluTanh => "GELU",
    };
    let more = [
        yes(blueprint.qkv_bias, "biases"),
        yes(blueprint.fused, "fused maps"),
        yes(blueprint.gain_offset != 0.0, "gains less one"),
        yes(blueprint.attention_cap.is_some(), "capped scores"),
        yes(blueprint.logit_cap.is_some(), "capped logits"),
        yes(blueprint.embedding_scale != 1.0, "scaled embedding"),
        yes(blueprint.residual_scale != 1.0, "scaled additions"),
        yes(blueprint.logit_divisor != 1.0, "scaled logits"),
        yes(blueprint.ropes.len() > 1, "two rotary embeddings"),
        yes(blueprint.ropes[0].fraction < 1.0, "a part of each head rotated"),
        yes(attends.iter().any(|attends| attends.rope.is_none()), "some blocks unrotated"),
    ]
    .concat();
    let cells = [norms.to_owned() + norm, heads.into(), window.into(), activation.into(), more];
    format!("| `{}` | {} |", blueprint.family, cells.map(|cell| cell.trim_end_matches("; ").to_owned()).join(" | "))
}

#[test]
fn the_documentation_lists_every_family_as_it_is() {
    let head = "| `model_type` | norms | normed queries, keys | window | gate | more |\n|---|---|---|---|---|---|\n";
    let rows = families::names().map(|family| {
        let config = Config::read(&folder().join(family)).unwrap();
        line(&families::blueprint(&config).unwrap()) + "\n"
    });
    let expected = format!("{head}{}", rows.collect::<String>());
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/families.md")).unwrap();
    let found =
        text.split_once("<!-- families:begin -->\n").and_then(|(_, rest)| rest.split_once("<!-- families:end -->"));
    assert_eq!(found.unwrap().0, expected, "put this between the marks:\n{expected}");
}
