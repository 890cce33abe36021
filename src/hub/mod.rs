//! From what a person calls a model to a folder pinned to a commit.
//!
//! Owns the shared cache's layout (`models--ORG--NAME/{refs,blobs,snapshots}`, the same files that Python uses). This
//! part never makes a request: it finds what is already here; [`download`] brings what is not.

pub mod download;
mod http;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::event::{Event, Observer};
use crate::{Error, Result};
pub use download::Hub;

/// A model's folder and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder.
    pub dir: PathBuf,
    /// `ORG/NAME` on the hub, or the folder as it was given.
    pub source: String,
    /// The commit, 40 hexadecimal digits, for a model of the hub.
    pub revision: Option<String>,
}

/// The folder that holds downloaded models, shared with Python's `huggingface_hub`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// A cache at `root`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The cache that the environment names: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME/hub`,
    /// `XDG_CACHE_HOME/huggingface/hub`, `~/.cache/huggingface/hub`, the first that is set.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_lookup(variable)
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let named = lookup("HF_HUB_CACHE").or_else(|| lookup("HUGGINGFACE_HUB_CACHE"));
        Self { root: named.map_or_else(|| home(&lookup).join("hub"), |path| expand(path, &lookup)) }
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a model, whether it is there or not.
    #[must_use]
    pub fn repo_dir(&self, repo: &RepoId) -> PathBuf {
        self.root.join(format!("models--{}", repo.name.replace('/', "--")))
    }

    /// Finds a downloaded model.
    ///
    /// *Errors*: [`Error::Input`] when it is not here, or its record of the revision is damaged.
    pub fn find(&self, repo: &RepoId) -> Result<Snapshot> {
        let dir = self.repo_dir(repo);
        let commit = if repo.is_pinned() {
            repo.revision.clone()
        } else {
            let path = dir.join("refs").join(&repo.revision);
            let text = fs::read_to_string(&path).map_err(|_| self.not_found(repo))?;
            let commit = text.trim().to_owned();
            if !is_commit(&commit) {
                return Err(Error::file(&path, format!("expected a commit of 40 hexadecimal digits, got {commit:?}")));
            }
            commit
        };
        let snapshot = dir.join("snapshots").join(&commit);
        if !snapshot.is_dir() {
            return Err(self.not_found(repo));
        }
        Ok(Snapshot { dir: snapshot, source: repo.name.clone(), revision: Some(commit) })
    }

    fn not_found(&self, repo: &RepoId) -> Error {
        let (name, revision) = (&repo.name, &repo.revision);
        Error::input(
            name,
            format!("expected a folder or a downloaded model, got neither (`{revision}` in {})", self.root.display()),
        )
        .hint(format!("download it first, for example `hf download {name} --revision {revision}`, or give its folder"))
    }
}

/// A variable of the environment, unless it is empty.
fn variable(key: &str) -> Option<PathBuf> {
    env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The folder of everything that Hugging Face's tools keep: `HF_HOME`, `XDG_CACHE_HOME/huggingface`,
/// `~/.cache/huggingface`, the first that is set.
fn home(lookup: &impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let named = lookup("HF_HOME").or_else(|| Some(lookup("XDG_CACHE_HOME")?.join("huggingface")));
    expand(named.unwrap_or_else(|| "~/.cache/huggingface".into()), lookup)
}

/// A path whose `~` is the user's folder.
fn expand(path: PathBuf, lookup: &impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let user = || lookup("HOME").or_else(|| lookup("USERPROFILE")).unwrap_or_else(|| PathBuf::from("."));
    match path.strip_prefix("~") {
        Ok(rest) => user().join(rest),
        Err(_) => path,
    }
}

/// A model on the hub at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoId {
    /// `ORG/NAME`, or `NAME` for the oldest models.
    pub name: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl RepoId {
    /// Reads `ORG/NAME[@REVISION]`; the revision is `main` unless given.
    ///
    /// *Errors*: [`Error::Usage`].
    pub fn parse(reference: &str) -> Result<Self> {
        let (name, revision) = reference.split_once('@').unwrap_or((reference, "main"));
        let parts: Vec<&str> = name.split('/').collect();
        let plain = |part: &&str| {
            !part.is_empty()
                && part.len() <= 96
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("..")
                && !part.contains("--")
        };
        // The revision becomes a path below `refs`.
        let safe_revision = !revision.is_empty()
            && revision.split('/').all(|part| !matches!(part, "" | "." | ".."))
            && !revision.contains(['\\', ':'])
            && !revision.chars().any(char::is_control);
        if parts.len() > 2 || !parts.iter().all(plain) || !safe_revision {
            return Err(Error::usage(format!("expected a folder or `ORG/NAME[@REVISION]`, got {reference:?}")));
        }
        Ok(Self { name: name.to_owned(), revision: revision.to_owned() })
    }

    /// Whether the revision is a commit, which never changes.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        is_commit(&self.revision)
    }
}

/// Finds the model that `reference` means: an existing folder, or `ORG/NAME[@REVISION]` of the hub that the environment
/// names, downloaded into the shared cache unless it is there.
///
/// *Errors*: [`Error::Usage`] for what is neither; [`Error::Input`] for a name without `ORG/`, for which nothing is asked of
/// the hub; those of [`Hub::fetch`].
pub fn resolve(reference: &str, observer: &dyn Observer) -> Result<Snapshot> {
    match folder(reference)? {
        Some(snapshot) => Ok(snapshot),
        None => {
            let id = RepoId::parse(reference)?;
            if !reference.contains('/') {
                let problem = "expected a folder or a model of the hub, got nothing of that name";
                let hint = format!("write `./{reference}` for a folder, `ORG/{reference}` for a model of the hub");
                return Err(Error::input(reference, problem).hint(hint));
            }
            observer.event(Event::Note(format!("there is no folder `{reference}`: taken as a model of the hub")));
            Hub::from_env().fetch(&id, observer)
        }
    }
}

/// As [`resolve`], in a given cache and without any request.
///
/// *Errors*: [`Error::Usage`]; [`Error::Input`] when it is not on this machine.
pub fn resolve_in(cache: &Cache, reference: &str) -> Result<Snapshot> {
    match folder(reference)? {
        Some(snapshot) => Ok(snapshot),
        None => cache.find(&RepoId::parse(reference)?),
    }
}

/// The folder that `reference` is, unless it can only be a name.
fn folder(reference: &str) -> Result<Option<Snapshot>> {
    let dir = Path::new(reference);
    if dir.is_dir() {
        let (source, revision) = match of_cached(dir) {
            Some((source, revision)) => (source, Some(revision)),
            None => (reference.to_owned(), None),
        };
        return Ok(Some(Snapshot { dir: dir.to_owned(), source, revision }));
    }
    if dir.exists() {
        return Err(Error::file(dir, "expected a folder, got a file")
            .hint("give the folder that holds `config.json` and the weights"));
    }
    let means_path = dir.is_absolute() || reference.starts_with(['.', '~']) || reference.matches('/').count() > 1;
    if means_path && !reference.contains('@') {
        return Err(Error::file(dir, "expected a folder, got nothing"));
    }
    Ok(None)
}

/// Model and commit of a folder that lies in a hub cache, whichever it is.
fn of_cached(dir: &Path) -> Option<(String, String)> {
    let real = fs::canonicalize(dir).ok()?;
    let commit = real.file_name()?.to_str().filter(|name| is_commit(name))?;
    let snapshots = real.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let repo = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    Some((repo.replacen("--", "/", 1), commit.to_owned()))
}

/// The folder that the links of a snapshot lead into: `blobs` of the same model in the same cache, by its real path. `None` for
/// a folder that is no snapshot.
#[must_use]
pub fn blobs_of(dir: &Path) -> Option<PathBuf> {
    of_cached(dir)?;
    Some(fs::canonicalize(dir).ok()?.parent()?.with_file_name("blobs"))
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cache() -> (tempfile::TempDir, Cache, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let repo = root.path().join("models--org--name");
        let snapshot = repo.join("snapshots").join(COMMIT);
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repo.join("refs/refs/pr")).unwrap();
        fs::write(repo.join("refs/main"), COMMIT).unwrap();
        fs::write(repo.join("refs/refs/pr/1"), format!("{COMMIT}\n")).unwrap();
        fs::write(repo.join("refs/bad"), "../../..").unwrap();
        let cache = Cache::at(root.path());
        (root, cache, snapshot)
    }

    #[test]
    fn names_tags_and_commits_lead_to_the_snapshot() {
        let (_root, cache, dir) = cache();
        let expected = Snapshot { dir, source: "org/name".into(), revision: Some(COMMIT.into()) };
        for reference in ["org/name", "org/name@main", "org/name@refs/pr/1", &format!("org/name@{COMMIT}")] {
            assert_eq!(resolve_in(&cache, reference).unwrap(), expected, "{reference}");
        }
        let by_path = resolve_in(&cache, expected.dir.to_str().unwrap()).unwrap();
        assert_eq!(by_path, expected);
    }

    #[test]
    fn any_other_folder_has_no_revision() {
        let root = tempfile::tempdir().unwrap();
        let text = root.path().to_str().unwrap();
        let snapshot = resolve_in(&Cache::at("/nowhere"), text).unwrap();
        assert_eq!(snapshot, Snapshot { dir: root.path().into(), source: text.into(), revision: None });
    }

    #[test]
    fn what_is_not_here_is_said_with_a_hint() {
        let (_root, cache, _) = cache();
        for reference in ["org/other", "org/name@v2", "org/name@ffffffffffffffffffffffffffffffffffffffff"] {
            let error = resolve_in(&cache, reference).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains("hint: download it first"), "{error}");
        }
        assert_eq!(resolve_in(&cache, "/no/such/folder").unwrap_err().exit_code(), 3);
        assert!(resolve_in(&cache, "org/name@bad").unwrap_err().to_string().contains("expected a commit"));
    }

    #[test]
    fn references_cannot_leave_the_cache() {
        let (_root, cache, _) = cache();
        for reference in ["org/name@../x", "org/name@/etc", "org/..@main", "org/na--me", "a/b/c@main", "org/name@", ""]
        {
            let error = resolve_in(&cache, reference).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{reference}: {error}");
        }
    }

    #[test]
    fn only_a_snapshot_has_blobs() {
        let (root, _, dir) = cache();
        let repo = fs::canonicalize(root.path()).unwrap().join("models--org--name");
        assert_eq!(blobs_of(&dir), Some(repo.join("blobs")));
        for other in [dir.parent().unwrap(), root.path(), Path::new("/nowhere")] {
            assert_eq!(blobs_of(other), None, "{}", other.display());
        }
    }

    #[test]
    fn the_environment_is_read_in_pythons_order() {
        let root = |set: &[(&str, &str)]| {
            Cache::from_lookup(|key| set.iter().find(|(name, _)| *name == key).map(|(_, value)| value.into())).root
        };
        let home = ("HOME", "/h");
        assert_eq!(root(&[home]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(root(&[home, ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(root(&[home, ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")]), Path::new("/h/hf/hub"));
        assert_eq!(root(&[home, ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
    }
}
