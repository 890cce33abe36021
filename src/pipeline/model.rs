//! A model made ready to be measured: found, opened, loaded, digested.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::bundled;
use super::device::{Activations, Demand, Machine, Placement, Residency};
use crate::checkpoint::{Checkpoint, Digest, files};
use crate::event::{Event, Observer};
use crate::hub;
use crate::model::prompt::PromptEncoder;
use crate::model::{Decoder, families};
use crate::sign::SIGNATURE_FILE;
use crate::{Error, Result};

/// Folder of the evidence inside a published model.
pub const EVIDENCE: &str = "immunisation";

/// The model card.
pub const CARD: &str = "README.md";

/// A model's folder and what reports call it.
#[derive(Debug)]
pub struct Located {
    /// The folder.
    pub dir: PathBuf,
    /// Hub id, `builtin:tiny-chat`, or the folder's own name: never a path.
    pub source: String,
    /// Commit, for a model of the hub.
    pub revision: Option<String>,
    // Removes the unpacked bundled model with this value.
    _unpacked: Option<TempDir>,
}

impl Located {
    /// A folder in the making that is to appear at `out`.
    #[must_use]
    pub fn staged(dir: &Path, out: &Path) -> Self {
        let source = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { dir: dir.to_owned(), source, revision: None, _unpacked: None }
    }

    /// The hub id, for a model of the hub.
    #[must_use]
    pub fn hub_id(&self) -> Option<&str> {
        self.revision.as_ref().map(|_| self.source.as_str())
    }
}

/// Finds what `reference` means: a folder, `ORG/NAME[@REVISION]` of the hub, downloaded where it is not in the shared cache,
/// or `builtin:tiny-chat`.
///
/// # Errors
/// As [`hub::resolve`] and [`bundled::unpack`].
pub fn locate(reference: &str, observer: &dyn Observer) -> Result<Located> {
    if reference == bundled::REFERENCE {
        let folder = tempfile::tempdir().map_err(|error| Error::io(std::env::temp_dir(), error))?;
        bundled::unpack(folder.path())?;
        let dir = folder.path().to_owned();
        return Ok(Located { dir, source: reference.to_owned(), revision: None, _unpacked: Some(folder) });
    }
    if reference.starts_with("builtin:") {
        return Err(Error::usage(format!("no model `{reference}` in this build"))
            .hint(format!("there is `{}`", bundled::REFERENCE)));
    }
    let snapshot = hub::resolve(reference, observer)?;
    let source = if snapshot.revision.is_some() { snapshot.source } else { folder_name(&snapshot.dir)? };
    Ok(Located { dir: snapshot.dir, source, revision: snapshot.revision, _unpacked: None })
}

/// The last part of a folder's real path, so that `.` has a name too.
///
/// # Errors
/// [`Error::Io`] when there is no such folder; [`Error::Input`] for a root.
pub fn folder_name(dir: &Path) -> Result<String> {
    let real = dir.canonicalize().map_err(|error| Error::io(dir, error))?;
    let name = real.file_name().ok_or_else(|| Error::file(dir, "expected a folder with a name"))?;
    Ok(name.to_string_lossy().into_owned())
}

/// A checkpoint with everything that measuring needs in memory.
pub struct Model {
    /// Where it came from.
    pub located: Located,
    /// The files.
    pub checkpoint: Arc<Checkpoint>,
    /// The weights, in memory or in the files.
    pub decoder: Decoder,
    /// Tokenizer and chat template.
    pub encoder: PromptEncoder,
    /// Where its numbers are while it is used.
    pub placement: Placement,
    /// SHA-256 by file of everything that makes the model: card, signature and evidence aside.
    pub digests: BTreeMap<String, String>,
}

impl Model {
    /// Opens, loads and digests a located model; what is odd about it goes to `observer`. What the
    /// run demands decides where weights and activations are (see [`Machine::place`]).
    ///
    /// # Errors
    /// As [`Checkpoint::open`], [`Decoder::load`] and [`PromptEncoder::open`].
    pub fn load(located: Located, machine: &Machine, demand: Demand, observer: &dyn Observer) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(&located.dir)?);
        for warning in checkpoint.warnings() {
            observer.event(Event::Warning(warning.clone()));
        }
        let encoder = PromptEncoder::open(&located.dir)?;
        let placement = machine.place(&families::blueprint(checkpoint.config())?, demand);
        let decoder = match placement.weights {
            Residency::Held => Decoder::load(&checkpoint, &machine.device)?,
            Residency::Stored => Decoder::stream(&checkpoint, &machine.device)?,
        };
        let decoder = decoder.recomputing(placement.activations == Activations::Recomputed);
        Ok(Self { digests: digests(&checkpoint)?, located, checkpoint, decoder, encoder, placement })
    }

    /// As [`Model::load`], from a reference.
    ///
    /// # Errors
    /// As [`locate`] and [`Model::load`].
    pub fn open(reference: &str, machine: &Machine, demand: Demand, observer: &dyn Observer) -> Result<Self> {
        Self::load(locate(reference, observer)?, machine, demand, observer)
    }

    /// One digest over all files that make the model.
    #[must_use]
    pub fn identity(&self) -> String {
        identity(&self.digests)
    }

    /// Digests of what decides how prompts are written and where answers end, by file: configurations, tokenizer and templates. Prompts of
    /// another model that is measured beside this one are written by these files too.
    #[must_use]
    pub fn encoder_digests(&self) -> BTreeMap<&str, &str> {
        let decides = |file: &str| {
            let ending = Path::new(file).extension().and_then(|ending| ending.to_str());
            matches!(ending, Some("json" | "jinja" | "model" | "txt")) && !file.ends_with(".index.json")
        };
        self.digests.iter().filter(|(file, _)| decides(file)).map(|(file, digest)| (&**file, &**digest)).collect()
    }
}

/// One digest over digests by file.
pub(super) fn identity(digests: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    for (file, digest) in digests {
        hash.update(file.as_bytes());
        hash.update([0]);
        hash.update(digest.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// [`measured_digests`] as text.
pub(super) fn digests(checkpoint: &Checkpoint) -> Result<BTreeMap<String, String>> {
    Ok(measured_digests(checkpoint)?.into_iter().map(|(file, digest)| (file, digest.to_string())).collect())
}

/// Digests of the files that decide what a model computes and says.
///
/// # Errors
/// As [`Checkpoint::digests`].
pub fn measured_digests(checkpoint: &Checkpoint) -> Result<BTreeMap<String, Digest>> {
    let mut digests = checkpoint.digests()?;
    digests.retain(|file, _| !is_beside(file));
    Ok(digests)
}

/// Whether a folder is that of a published model: there is evidence or a signature in it.
#[must_use]
pub fn is_published(dir: &Path) -> bool {
    dir.join(EVIDENCE).is_dir() || dir.join(SIGNATURE_FILE).is_file()
}

/// Refuses to put a file into a published model, whose signature is about the files that are there.
///
/// # Errors
/// [`Error::Input`] naming the folder when `out` lies in a published model.
pub fn keep_apart(out: &Path) -> Result<()> {
    match files::resolved(out).ancestors().skip(1).find(|dir| is_published(dir)) {
        Some(dir) => {
            let problem = "expected a folder outside of a published model, got one inside";
            Err(Error::file(dir, problem).hint("another file there would break the signature; choose another folder"))
        }
        None => Ok(()),
    }
}

/// Whether a file says something about the model instead of being a part of it.
fn is_beside(file: &str) -> bool {
    file == CARD || file == SIGNATURE_FILE || file.strip_prefix(EVIDENCE).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Silent;

    #[test]
    fn evidence_is_not_part_of_the_model() {
        for file in ["README.md", "model.sig", "immunisation/report.json"] {
            assert!(is_beside(file), "{file}");
        }
        for file in ["config.json", "model.safetensors", "docs/README.md", "immunisation.txt"] {
            assert!(!is_beside(file), "{file}");
        }
    }

    #[test]
    fn a_builtin_nobody_knows_is_a_usage_error() {
        let error = locate("builtin:big-chat", &Silent).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("builtin:tiny-chat"), "{error}");
    }
}
