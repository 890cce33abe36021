//! Adapters as PEFT's files: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Reads what PEFT itself writes for plain LoRA on linear layers, and refuses by name every variant whose meaning is
//! more than `scale · B · A`. Writes deterministic bytes: one order of keys and tensors, no metadata that varies.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::Array2;
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::target::Targets;
use super::{Adapter, AdapterSet};
use crate::checkpoint::files;
use crate::checkpoint::header::Header;
use crate::checkpoint::reader::Float;
use crate::checkpoint::staging::Staged;
use crate::{Error, Result};

/// File name of the description.
pub const CONFIG: &str = "adapter_config.json";
/// File name of the factors.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Longest file of factors that is read, bytes.
const MAX_WEIGHTS: u64 = 64 << 30;

/// What PEFT puts in front of a module's name in the base model.
const PREFIX: &str = "base_model.model.";
const LORA_A: &str = ".lora_A.weight";
const LORA_B: &str = ".lora_B.weight";
const WEIGHT: &str = ".weight";

/// Writes `set` into the new folder `dir` in PEFT's form, for the base model named `base`.
///
/// *Errors*: [`Error::Input`] when `dir` exists and is not empty, the set is empty, or a tensor is not a `.weight`;
/// [`Error::Io`].
pub fn save(set: &AdapterSet, dir: &Path, base: &str) -> Result<()> {
    let (config, weights) = to_bytes(set, base)?;
    let staged = Staged::beside(dir)?;
    staged.write(CONFIG, &config)?;
    staged.write(WEIGHTS, &weights)?;
    staged.publish(dir)
}

/// The bytes of the two files that [`save`] writes: configuration and factors.
///
/// *Errors*: as [`save`].
pub fn to_bytes(set: &AdapterSet, base: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut modules = BTreeMap::new();
    for (tensor, adapter) in set {
        let module = tensor.strip_suffix(WEIGHT).ok_or_else(|| {
            Error::input(format!("adapter of `{tensor}`"), "expected the name of a weight matrix, ending in `.weight`")
        })?;
        modules.insert(module, adapter);
    }
    let Some(first) = modules.values().next() else {
        return Err(Error::input("adapter", "expected at least one adapted tensor, got none"));
    };
    let (rank, alpha) = (first.rank(), alpha(first));
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (module, adapter) in &modules {
        if adapter.rank() != rank {
            ranks.insert((*module).to_owned(), json!(adapter.rank()));
        }
        // Compared as alphas, because PEFT divides this one by the module's own rank.
        let own = self::alpha(adapter);
        if own != alpha {
            alphas.insert((*module).to_owned(), number(own));
        }
    }
    let config = json!({
        "alpha_pattern": alphas,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": number(alpha),
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": ranks,
        "target_modules": modules.keys().collect::<Vec<_>>(),
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    let mut config = serde_json::to_vec_pretty(&config).map_err(|error| Error::input(CONFIG, error.to_string()))?;
    config.push(b'\n');

    let mut tensors: BTreeMap<String, &Array2<f32>> = BTreeMap::new();
    for (module, adapter) in &modules {
        tensors.insert(format!("{PREFIX}{module}{LORA_A}"), &adapter.a);
        tensors.insert(format!("{PREFIX}{module}{LORA_B}"), &adapter.b);
    }
    Ok((config, safetensors_f32(&tensors)?))
}

/// `lora_alpha` that gives the adapter's scale back exactly: the product of an f32 and a rank is exact in f64.
fn alpha(adapter: &Adapter) -> f64 {
    f64::from(adapter.scale) * adapter.rank() as f64
}

/// A JSON number, without a fraction where there is none, as PEFT writes it.
fn number(value: f64) -> Value {
    // The range makes the conversion exact.
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// A safetensors file of f32 matrices, in the map's order, its header padded to 8 bytes.
fn safetensors_f32(tensors: &BTreeMap<String, &Array2<f32>>) -> Result<Vec<u8>> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0;
    for (name, array) in tensors {
        let begin = end;
        end += array.len() * size_of::<f32>();
        header.insert(name.clone(), json!({"dtype": "F32", "shape": array.shape(), "data_offsets": [begin, end]}));
    }
    let mut header = serde_json::to_vec(&header).map_err(|error| Error::input(WEIGHTS, error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.reserve(header.len() + end);
    bytes.extend_from_slice(&header);
    for value in tensors.values().flat_map(|array| array.iter()) {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    Ok(bytes)
}

/// The keys of `adapter_config.json` that change what the factors mean.
#[derive(Deserialize)]
struct RawConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    rank_pattern: Map<String, Value>,
    #[serde(default)]
    alpha_pattern: Map<String, Value>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    init_lora_weights: Value,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl RawConfig {
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let raw: Self = serde_json::from_slice(bytes).map_err(|error| Error::file(path, error.to_string()))?;
        if raw.peft_type != "LORA" {
            return Err(Error::file(path, format!("`peft_type`: expected LORA, got {}", raw.peft_type)));
        }
        refuse_variants(path, &raw)?;
        Ok(raw)
    }
}

/// Reads the adapter in `dir`.
///
/// *Errors*: [`Error::Input`] that names the file and the key or tensor, also for variants that are more than
/// `scale · B · A` (DoRA, trained biases, embeddings, whole modules, …), for factors that PEFT would leave out or that change
/// nothing, and for pickled ones.
pub fn load(dir: &Path) -> Result<AdapterSet> {
    let (config_path, weights_path) = (dir.join(CONFIG), dir.join(WEIGHTS));
    if !config_path.is_file() {
        return Err(Error::file(&config_path, "expected a file, got nothing").hint("is this the folder of an adapter?"));
    }
    if !weights_path.is_file() {
        let error = Error::file(&weights_path, "expected a file, got nothing");
        return Err(if dir.join("adapter_model.bin").exists() {
            error.hint("`adapter_model.bin` is a pickle, which can run code when it is read; save the adapter again with safetensors")
        } else {
            error.hint("the adapter is incomplete")
        });
    }
    let config = files::read(&config_path, files::MAX_DESCRIPTION)?;
    let weights = files::read(&weights_path, MAX_WEIGHTS)?;
    let config = RawConfig::parse(&config_path, &config)?;
    let (scales, targets) = (Scales::of(&config_path, &config)?, Targets::parse(&config_path, &config.rest)?);
    let set: AdapterSet = pair(&weights_path, &weights)?
        .into_iter()
        .map(|(module, (a, b))| {
            targets.check(&config_path, &module, &format!("{PREFIX}{module}{LORA_A}"))?;
            let scale = scales.of_module(&config_path, &module, a.nrows())?;
            let adapter = Adapter::new(a, b, scale).map_err(|error| named(error, &weights_path, &module))?;
            Ok((format!("{module}{WEIGHT}"), adapter))
        })
        .collect::<Result<_>>()?;
    if set.iter().all(|(_, adapter)| adapter.scale == 0.0) {
        return Err(Error::file(&config_path, "`lora_alpha`: expected a number other than 0, got 0 for every module")
            .hint("the adapter changes nothing"));
    }
    Ok(set)
}

fn named(error: Error, path: &Path, module: &str) -> Error {
    match error {
        Error::Input { problem, .. } => Error::file(path, format!("module `{module}`: {problem}")),
        other => other,
    }
}

/// How PEFT finds the scale of a module.
struct Scales {
    rank: usize,
    alpha: f64,
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
    rank_stabilised: bool,
}

impl Scales {
    fn of(path: &Path, raw: &RawConfig) -> Result<Self> {
        Ok(Self {
            rank: raw.r,
            alpha: raw.lora_alpha,
            ranks: patterns(path, "rank_pattern", &raw.rank_pattern)?,
            alphas: patterns(path, "alpha_pattern", &raw.alpha_pattern)?,
            rank_stabilised: raw.use_rslora,
        })
    }

    fn of_module(&self, path: &Path, module: &str, rank: usize) -> Result<f32> {
        let find = |patterns: &[(Regex, f64)]| patterns.iter().find(|(key, _)| key.is_match(module)).map(|(_, v)| *v);
        let stated = find(&self.ranks).unwrap_or(self.rank as f64);
        if stated != rank as f64 {
            let problem = format!("module `{module}`: expected rank {stated}, got factors of rank {rank}");
            return Err(Error::file(path, problem));
        }
        let alpha = find(&self.alphas).unwrap_or(self.alpha);
        // Nearest f32; it is checked to be finite with the factors.
        Ok((alpha / if self.rank_stabilised { stated.sqrt() } else { stated }) as f32)
    }
}

/// PEFT reads each key as a regular expression for the end of a module's name; the first that matches counts.
fn patterns(path: &Path, key: &str, patterns: &Map<String, Value>) -> Result<Vec<(Regex, f64)>> {
    patterns
        .iter()
        .map(|(pattern, value)| {
            let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
                .map_err(|_| Error::file(path, format!("`{key}`: expected a regular expression, got {pattern:?}")))?;
            let value = value
                .as_f64()
                .ok_or_else(|| Error::file(path, format!("`{key}.{pattern}`: expected a number, got {value}")))?;
            Ok((regex, value))
        })
        .collect()
}

fn refuse_variants(path: &Path, raw: &RawConfig) -> Result<()> {
    // Allowed values beside null, false and empty ones.
    const PLAIN: [(&str, &[&str]); 10] = [
        ("bias", &["none"]),
        ("fan_in_fan_out", &[]),
        ("use_dora", &[]),
        ("lora_bias", &[]),
        ("modules_to_save", &[]),
        ("trainable_token_indices", &[]),
        ("target_parameters", &[]),
        ("alora_invocation_tokens", &[]),
        ("layer_replication", &[]),
        ("use_qalora", &[]),
    ];
    for (key, allowed) in PLAIN {
        let Some(value) = raw.rest.get(key) else { continue };
        let plain = match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => allowed.contains(&text.as_str()),
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            _ => false,
        };
        if !plain {
            return Err(Error::file(path, format!("`{key}`: expected plain LoRA, got {value}"))
                .hint("merge this adapter with PEFT and use the result as a checkpoint"));
        }
    }
    // These start from changed base weights, which the factors alone do not describe.
    if let Some(init) = raw.init_lora_weights.as_str()
        && ["pissa", "olora", "corda", "loftq"].iter().any(|kind| init.to_lowercase().starts_with(kind))
    {
        return Err(Error::file(path, format!("`init_lora_weights`: expected an untouched base model, got {init}"))
            .hint("convert it with PEFT's `path_initial_model_for_weight_conversion`"));
    }
    Ok(())
}

/// A `[r, d_in]` and B `[d_out, r]`.
type Factors = (Array2<f32>, Array2<f32>);

/// Reads the factors and joins each module's A and B.
fn pair(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Factors>> {
    let header = Header::parse(path, bytes)?;
    let (mut a, mut b) = (BTreeMap::new(), BTreeMap::new());
    for entry in &header.entries {
        let refuse = |problem: String| Error::file(path, format!("tensor `{}`: {problem}", entry.name));
        let name = entry.name.strip_prefix(PREFIX).ok_or_else(|| refuse(format!("expected a name in `{PREFIX}`")))?;
        let (module, side) = match (name.strip_suffix(LORA_A), name.strip_suffix(LORA_B)) {
            (Some(module), _) => (module, &mut a),
            (_, Some(module)) => (module, &mut b),
            _ => return Err(refuse(format!("expected a name in `{LORA_A}` or `{LORA_B}`"))),
        };
        let &[rows, columns] = entry.shape.as_slice() else {
            return Err(refuse(format!("expected a matrix, got shape {:?}", entry.shape)));
        };
        let float = Float::of(entry.dtype).ok_or_else(|| refuse(format!("expected a float, got {}", entry.dtype)))?;
        let mut values = vec![0.0; rows * columns];
        float.widen(&bytes[entry.begin..entry.end], &mut values);
        let array = Array2::from_shape_vec((rows, columns), values).map_err(|error| refuse(error.to_string()))?;
        side.insert(module.to_owned(), array);
    }
    let mut pairs = BTreeMap::new();
    for (module, a) in a {
        let b = b.remove(&module).ok_or_else(|| Error::file(path, format!("module `{module}`: got A without B")))?;
        pairs.insert(module, (a, b));
    }
    if let Some(module) = b.keys().next() {
        return Err(Error::file(path, format!("module `{module}`: got B without A")));
    }
    if pairs.is_empty() {
        return Err(Error::file(path, "expected factors, got none"));
    }
    Ok(pairs)
}
