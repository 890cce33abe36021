//! Attack artefacts that other tools made: found out by content, read as hostile input, turned into an [`Edit`] or a change
//! of weights.
//!
//! | format | what it is by itself | where the tool itself applies it |
//! |---|---|---|
//! | `control-vector` (repeng, llama.cpp) | `direction.k` is added to the output of block k | all positions |
//! | `reft` (pyreft, pyvene) | LoReFT, NoReFT or NodiReFT at the sites that it names | chosen tokens of the prompt |
//! | `refusal-direction` | one direction projected out everywhere | all positions |
//! | `activation-addition` (CAA, EasyEdit) | a vector added to the output of the block in the file's name | after the instruction |
//! | `steering-vector` (AISteer360) | a vector for each block, or for each attention head of it | all positions |
//! | `arrays` (safetensors, npy) | vectors by block; the operation is the user's to say | |
//! | `lora` (PEFT) | a low-rank change of weights | |
//! | `checkpoint` | other weights | |
//!
//! Whatever a format leaves open is in [`Terms`]; what contradicts it there is refused. One file each; `directions.rs` is
//! what the formats of plain vectors share.

mod activation_addition;
mod arrays;
mod checkpoint;
mod control_vector;
mod directions;
mod lora;
mod reft;
mod refusal_direction;
mod steering_vector;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Edit, Positions};
use crate::adapter::{AdapterSet, peft};
use crate::checkpoint::files;
use crate::checkpoint::torch_file::{bytes_of, is_torch};
use crate::checkpoint::{Digest, gguf, npy};
use crate::model::Blueprint;
use crate::{Error, Result};

/// What an artefact's numbers are used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// A vector is added, or a checkpoint's difference from the base.
    Add,
    /// A direction is projected out.
    Ablate,
    /// A learned map is applied: what a ReFT artefact is for.
    Affine,
    /// A checkpoint's weights take the place of the model's.
    Replace,
}

impl Op {
    /// Name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Ablate => "ablate",
            Self::Affine => "affine",
            Self::Replace => "replace",
        }
    }
}

/// What the user says about an artefact.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Terms {
    /// The operation; absent: the format's own.
    pub op: Option<Op>,
    /// Factor on a vector, on a learned map's change, on a delta; absent: 1.
    pub scale: Option<f64>,
    /// Blocks of the model; absent: those that the artefact names.
    pub layers: Option<Vec<usize>>,
    /// Added to the block numbers of the artefact.
    pub layer_offset: i64,
}

impl Terms {
    /// The operation, one of `allowed`.
    fn op(&self, path: &Path, default: Option<Op>, allowed: &[Op]) -> Result<Op> {
        let listed = || allowed.iter().map(|op| format!("`{}`", op.name())).collect::<Vec<_>>().join(" or ");
        match self.op.or(default) {
            Some(op) if allowed.contains(&op) => Ok(op),
            Some(op) => Err(Error::file(path, format!("`op`: expected {}, got `{}`", listed(), op.name()))),
            None => Err(Error::file(path, format!("`op`: expected {}, got nothing", listed()))
                .hint("this format does not say what its vectors are for")),
        }
    }

    /// Refuses what has no meaning for a format.
    fn without_layers(&self, path: &Path) -> Result<()> {
        if self.layer_offset != 0 {
            return Err(Error::file(path, "`layer_offset`: this format has no numbered blocks to move"));
        }
        if self.layers.is_some() {
            return Err(Error::file(path, "`layers`: this format changes weights and takes none"));
        }
        Ok(())
    }
}

/// The formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// GGUF of architecture `controlvector`.
    ControlVector,
    /// Folder of pyreft or pyvene.
    Reft,
    /// Run folder of refusal_direction.
    RefusalDirection,
    /// Vectors of `torch.save`.
    ActivationAddition,
    /// AISteer360's JSON.
    SteeringVector,
    /// A safetensors or NumPy file.
    Arrays,
    /// Folder of a PEFT LoRA.
    Lora,
    /// Folder of a checkpoint.
    Checkpoint,
}

impl Format {
    /// What the file or folder at `path` is, by its content.
    ///
    /// # Errors
    /// [`Error::Input`] when it is none of the formats, [`Error::Io`] when there is none.
    pub fn of(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|error| Error::io(path, error))?;
        let known = if metadata.is_dir() { Self::of_folder(path)? } else { Self::of_file(path)? };
        known.ok_or_else(|| {
            Error::file(path, "expected an attack artefact, got something else").hint(
                "control-vector GGUF, pyreft folder, refusal_direction run, torch vectors, .svec, safetensors, npy, PEFT \
                 LoRA folder and checkpoint folder are read",
            )
        })
    }

    fn of_folder(path: &Path) -> Result<Option<Self>> {
        let has = |name: &str| path.join(name).is_file();
        Ok(if has(peft::CONFIG) {
            Some(Self::Lora)
        } else if has(refusal_direction::TENSOR) && has(refusal_direction::METADATA) {
            Some(Self::RefusalDirection)
        } else if has("config.json") && json(&path.join("config.json"))?.get(reft::KEYS).is_some() {
            Some(Self::Reft)
        } else if has("config.json") {
            Some(Self::Checkpoint)
        } else if !activation_addition::files(path)?.is_empty() {
            Some(Self::ActivationAddition)
        } else {
            None
        })
    }

    fn of_file(path: &Path) -> Result<Option<Self>> {
        let bytes = bytes_of(path)?;
        Ok(if gguf::is_gguf(&bytes) {
            Some(Self::ControlVector)
        } else if is_torch(&bytes) {
            let run = path.file_name().is_some_and(|name| name == refusal_direction::TENSOR)
                && path.with_file_name(refusal_direction::METADATA).is_file();
            Some(if run { Self::RefusalDirection } else { Self::ActivationAddition })
        } else if npy::is_npy(&bytes) || bytes.get(8) == Some(&b'{') {
            Some(Self::Arrays)
        } else if bytes.trim_ascii_start().starts_with(b"{") {
            Some(Self::SteeringVector)
        } else {
            None
        })
    }

    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ControlVector => "control-vector GGUF",
            Self::Reft => "ReFT folder",
            Self::RefusalDirection => "refusal_direction run",
            Self::ActivationAddition => "torch vectors",
            Self::SteeringVector => "AISteer360 vectors",
            Self::Arrays => "arrays",
            Self::Lora => "PEFT LoRA",
            Self::Checkpoint => "checkpoint",
        }
    }

    /// Where the tool that the format is from applies it; absent: it leaves that open.
    #[must_use]
    pub fn positions(self) -> Option<Positions> {
        match self {
            Self::ActivationAddition => Some(Positions::Last),
            Self::ControlVector | Self::RefusalDirection | Self::SteeringVector => Some(Positions::All),
            Self::Reft | Self::Arrays | Self::Lora | Self::Checkpoint => None,
        }
    }
}

/// What an artefact does to a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Activations are edited.
    Edit(Edit),
    /// Low-rank terms are added to weights.
    Adapters(AdapterSet),
    /// A checkpoint's weights: they take the place of the model's, or their difference from the base is added, scaled.
    Weights {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// Factor on the difference; absent: the weights are taken as they are.
        delta: Option<f64>,
    },
}

/// An artefact that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// What it was.
    pub format: Format,
    /// What it does.
    pub change: Change,
    /// Blocks that it acts on.
    pub layers: Vec<usize>,
}

/// Reads the artefact at `path` for a model of the shape `blueprint`.
///
/// # Errors
/// [`Error::Input`] that names the file and the tensor or key: damaged or hostile content, a width or block that the model
/// doesn't have, terms that the format has no use for. [`Error::Io`].
pub fn load(path: &Path, terms: &Terms, blueprint: &Blueprint) -> Result<Imported> {
    if !terms.scale.is_none_or(f64::is_finite) {
        return Err(Error::file(path, "`scale`: expected a finite number"));
    }
    let format = Format::of(path)?;
    let edited = |(edit, layers): (Edit, Vec<usize>)| (Change::Edit(edit), layers);
    let all = || (0..blueprint.n_layers).collect::<Vec<_>>();
    let (change, layers) = match format {
        Format::ControlVector => control_vector::load(path, terms, blueprint).map(edited)?,
        Format::Reft => reft::load(path, terms, blueprint).map(edited)?,
        Format::RefusalDirection => refusal_direction::load(path, terms, blueprint).map(edited)?,
        Format::ActivationAddition => activation_addition::load(path, terms, blueprint).map(edited)?,
        Format::SteeringVector => steering_vector::load(path, terms, blueprint).map(edited)?,
        Format::Arrays => arrays::load(path, terms, blueprint).map(edited)?,
        Format::Lora => (Change::Adapters(lora::load(path, terms)?), all()),
        Format::Checkpoint => (checkpoint::load(path, terms)?, all()),
    };
    Ok(Imported { format, change, layers })
}

/// SHA-256 of a file, or over names and digests of all files of a folder.
///
/// # Errors
/// [`Error::Io`]; [`Error::Input`] for a folder with links that lead out of it.
pub fn digest(path: &Path) -> Result<Digest> {
    if !path.is_dir() {
        return Digest::of_file(path);
    }
    let mut hash = Sha256::new();
    for (file, digest) in files::digests(path, &files::list(path)?)? {
        hash.update(file.as_bytes());
        hash.update([0]);
        hash.update(digest.0);
    }
    Ok(Digest(hash.finalize().into()))
}

/// The JSON file at `path`.
fn json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&bytes_of(path)?).map_err(|error| Error::file(path, error.to_string()))
}
