//! Brings a model from a hub into the shared cache: pinned to a commit, resumed where it stopped, checked before it counts.
//!
//! The cache's layout is hf-hub's and Python's. What that crate leaves out is here: no request when offline, the token for
//! the hub's own host only, ranges, digests, and a look at the disk before the first byte.

use std::collections::HashSet;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hf_hub::{CacheRepo, Repo, RepoType};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use serde_json::Value;

use super::http::{Endpoint, Fault, segment};
use super::{Cache, RepoId, Snapshot, expand, home, is_commit, variable};
use crate::event::{Event, Observer};
use crate::{Error, Result};

/// Files fetched side by side.
const PARALLEL: usize = 4;

/// What to do where the hub was not reached, and where it was lost in the middle of a file.
const UNREACHED: &str = "is there a network, and is `ORG/NAME` right? a folder of this name would be taken instead";
const ARRIVED: &str = "what has arrived is kept: the next try goes on from there";

/// Pages of one list that are read; the hub puts a thousand rows on each.
const MAX_PAGES: usize = 100;

/// Attempts at one request or file before a passing fault becomes final.
const ATTEMPTS: u32 = 5;

/// Space that is left free on the disk, bytes.
const SPARE: u64 = 64 << 20;

/// The signature of a model, which covers whatever lies beside it.
const SIGNATURE: &str = "model.sig";

/// Where the evidence of a hardened model lies.
const EVIDENCE: &str = "immunisation/";

/// Where models come from.
#[derive(Debug, Clone)]
pub struct Hub {
    cache: Cache,
    endpoint: Endpoint,
    offline: bool,
    /// Pause before the second attempt, doubled before every further one.
    pause: Duration,
}

/// One file of a repository, as the hub lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    path: String,
    size: u64,
    /// Name of its blob in the cache: the digest below, or Git's, which is SHA-1.
    etag: String,
    /// SHA-256 of its content, for files in large-file storage.
    sha256: Option<String>,
}

impl Hub {
    /// The hub that the environment names: `HF_ENDPOINT`, `HF_HUB_OFFLINE`, and the token in `HF_TOKEN`, in the file
    /// `HF_TOKEN_PATH` or in `HF_HOME/token`, the first that is set; `HF_HOME` is `~/.cache/huggingface` unless it is set, wherever
    /// the cache is.
    #[must_use]
    pub fn from_env() -> Self {
        let set = |key: &str| env::var(key).ok().filter(|value| !value.is_empty());
        let offline =
            set("HF_HUB_OFFLINE").is_some_and(|value| !matches!(value.as_str(), "0" | "false" | "no" | "off"));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Self { offline, ..Self::new(Cache::from_env(), &endpoint, token(variable)) }
    }

    /// A hub at `endpoint` (scheme, host and port) with a cache of its own choice.
    #[must_use]
    pub fn new(cache: Cache, endpoint: &str, token: Option<String>) -> Self {
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        Self { cache, endpoint: Endpoint::new(endpoint, token), offline: false, pause: Duration::from_millis(500) }
    }

    /// The same hub without any request: what is not in the cache is not there.
    #[must_use]
    pub fn offline(self) -> Self {
        Self { offline: true, ..self }
    }

    /// The same hub with another pause between attempts.
    #[must_use]
    pub fn with_pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// The files of a model, from the cache where they are complete, else from the hub.
    ///
    /// # Errors
    /// [`Error::Input`] when the model is not there, gated, has no safetensors, does not arrive intact, or the disk is too
    /// small; [`Error::Io`] when the cache cannot be written.
    pub fn fetch(&self, repo: &RepoId, observer: &dyn Observer) -> Result<Snapshot> {
        let known = self.cache.find(repo).ok().filter(|snapshot| is_complete(&snapshot.dir));
        // A commit never changes; a branch may have moved on.
        match known.filter(|_| self.offline || repo.is_pinned()) {
            Some(snapshot) => Ok(snapshot),
            None => self.complete(repo, observer),
        }
    }

    /// As [`Hub::fetch`], where the hub is asked what belongs to a known commit, too: another program may have fetched what it
    /// loads and left out the signature and what else it covers.
    ///
    /// # Errors
    /// As [`Hub::fetch`]; [`Error::Input`] when offline.
    pub fn complete(&self, repo: &RepoId, observer: &dyn Observer) -> Result<Snapshot> {
        if self.offline {
            let hint = "HF_HUB_OFFLINE is set: unset it, or give a folder";
            return Err(Error::input(&repo.name, "expected a downloaded model, got none").hint(hint));
        }
        let commit = self.commit(repo)?;
        let files = self.wanted(repo, &commit)?;
        let pinned = Repo::with_revision(repo.name.clone(), RepoType::Model, repo.revision.clone());
        let place = hf_hub::Cache::new(self.cache.root().to_owned()).repo(pinned);
        let dir = self.cache.repo_dir(repo).join("snapshots").join(&commit);
        // Files of the same content share a blob, which two must not write at once.
        let mut named = HashSet::new();
        let blobs: Vec<&Listed> = files.iter().filter(|file| named.insert(&file.etag)).collect();
        self.check_space(repo, &place, &blobs)?;
        observer.event(Event::StageStarted { stage: "download".into(), units: blobs.len() });
        self.fetch_all(repo, &commit, &place, &blobs, observer)?;
        for file in &files {
            link(&place.blob_path(&file.etag), &dir, &file.path)?;
        }
        // Last, so that a name never points to a snapshot in the making.
        if !repo.is_pinned() {
            place.create_ref(&commit).map_err(|error| Error::io(self.cache.repo_dir(repo), error))?;
        }
        Ok(Snapshot { dir, source: repo.name.clone(), revision: Some(commit) })
    }

    fn commit(&self, repo: &RepoId) -> Result<String> {
        let path = format!("api/models/{}/revision/{}", repo.name, segment(&repo.revision));
        let answer = self.patiently(&repo.name, UNREACHED, || self.endpoint.json(&repo.name, &path))?;
        let commit = answer["sha"].as_str().filter(|sha| is_commit(sha));
        commit.map(str::to_owned).ok_or_else(|| Error::input(&repo.name, "expected the hub to name a commit, got none"))
    }

    /// The rows of a list of the API, page by page: one that fails is asked for again by itself.
    fn rows(&self, repo: &str, path: &str) -> Result<Vec<Value>> {
        let (mut rows, mut url) = (vec![], self.endpoint.address(path));
        for _ in 0..MAX_PAGES {
            let (page, next) = self.patiently(repo, UNREACHED, || self.endpoint.page(repo, &url))?;
            rows.extend(page);
            match next {
                Some(next) => url = next,
                None => return Ok(rows),
            }
        }
        Err(Error::input(repo, format!("expected a list of at most {MAX_PAGES} pages, got more")))
    }

    /// The files that make the model, see [`chosen`].
    fn wanted(&self, repo: &RepoId, commit: &str) -> Result<Vec<Listed>> {
        let path = format!("api/models/{}/tree/{commit}?recursive=true", repo.name);
        let files = chosen(self.rows(&repo.name, &path)?.iter().filter_map(listed).collect());
        if !files.iter().any(|file| file.path.ends_with(".safetensors")) {
            let hint = "other formats are not read; look for a converted copy of the model";
            return Err(Error::input(&repo.name, "expected weights as safetensors, got none").hint(hint));
        }
        Ok(files)
    }

    fn check_space(&self, repo: &RepoId, place: &CacheRepo, files: &[&Listed]) -> Result<()> {
        let root = self.cache.root();
        fs::create_dir_all(root).map_err(|error| Error::io(root, error))?;
        let missing = |file: &&Listed| {
            let blob = place.blob_path(&file.etag);
            let have = size_of(&blob).max(size_of(&partial(&blob)));
            file.size.saturating_sub(have)
        };
        let needed: u64 = files.iter().map(missing).sum();
        let free = fs4::available_space(root).map_err(|error| Error::io(root, error))?;
        if needed + SPARE > free {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            return Err(Error::input(
                &repo.name,
                format!(
                    "expected {} MiB of free disk in {}, got {} MiB",
                    mib(needed + SPARE),
                    root.display(),
                    mib(free)
                ),
            )
            .hint("HF_HOME moves the cache"));
        }
        Ok(())
    }

    fn fetch_all(
        &self,
        repo: &RepoId,
        commit: &str,
        place: &CacheRepo,
        files: &[&Listed],
        observer: &dyn Observer,
    ) -> Result<()> {
        let (next, done, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::SeqCst)) {
                if failed.lock().is_ok_and(|failed| failed.is_some()) {
                    return;
                }
                match self.fetch_one(repo, commit, &place.blob_path(&file.etag), file) {
                    Ok(()) => observer.event(Event::UnitFinished {
                        stage: "download".into(),
                        done: done.fetch_add(1, Ordering::SeqCst) + 1,
                        units: files.len(),
                        detail: file.path.clone(),
                    }),
                    Err(error) => {
                        if let Ok(mut failed) = failed.lock() {
                            failed.get_or_insert(error);
                        }
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..PARALLEL.min(files.len()) {
                scope.spawn(work);
            }
        });
        failed.into_inner().ok().flatten().map_or(Ok(()), Err)
    }

    fn fetch_one(&self, repo: &RepoId, commit: &str, blob: &Path, file: &Listed) -> Result<()> {
        if size_of(blob) == file.size && blob.is_file() {
            return Ok(());
        }
        let part = partial(blob);
        if let Some(parent) = part.parent() {
            fs::create_dir_all(parent).map_err(|error| Error::io(parent, error))?;
        }
        let name = file.path.split('/').map(segment).collect::<Vec<_>>().join("/");
        let url = self.endpoint.address(&format!("{}/resolve/{commit}/{name}", repo.name));
        self.patiently(&repo.name, ARRIVED, || self.append(repo, &url, &part, file))?;
        fs::rename(&part, blob).map_err(|error| Error::io(blob, error))
    }

    /// Completes a partial file and checks it; what does not match is thrown away.
    fn append(&self, repo: &RepoId, url: &str, part: &Path, file: &Listed) -> std::result::Result<(), Fault> {
        let broken = |error| Fault::Final(Error::io(part, error));
        let have = match size_of(part) {
            have if have > file.size => 0,
            have => have,
        };
        if have < file.size || file.size == 0 {
            let response = self.endpoint.get(&repo.name, url, have)?;
            // A server that knows no ranges sends everything again.
            let from = if response.status().as_u16() == 206 { have } else { 0 };
            let mut out = OpenOptions::new().create(true).write(true).truncate(false).open(part).map_err(broken)?;
            out.set_len(from).map_err(broken)?;
            std::io::Seek::seek(&mut out, std::io::SeekFrom::End(0)).map_err(broken)?;
            let mut body = response.into_body().into_reader().take(file.size - from + 1);
            let mut buffer = vec![0; 1 << 20];
            loop {
                let read = body.read(&mut buffer).map_err(|error| Fault::Passing(format!("{}: {error}", file.path)))?;
                if read == 0 {
                    break;
                }
                out.write_all(&buffer[..read]).map_err(broken)?;
            }
            out.sync_all().map_err(broken)?;
        }
        let size = size_of(part);
        if size < file.size {
            return Err(Fault::Passing(format!("{} ended after {size} of {} bytes", file.path, file.size)));
        }
        if size != file.size || !is_intact(part, file).map_err(broken)? {
            fs::remove_file(part).map_err(broken)?;
            return Err(Fault::Passing(format!("{} did not arrive as the hub describes it", file.path)));
        }
        Ok(())
    }

    /// Tries again after passing faults; `hint` is for whoever reads of the last one.
    fn patiently<T>(
        &self,
        repo: &str,
        hint: &str,
        mut attempt: impl FnMut() -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        let mut number = 0;
        loop {
            number += 1;
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Passing(_)) if number < ATTEMPTS => thread::sleep(self.pause * 2_u32.pow(number - 1)),
                Err(Fault::Passing(problem)) => {
                    return Err(Error::input(repo, format!("{problem}, in {ATTEMPTS} attempts")).hint(hint));
                }
            }
        }
    }
}

/// The token as Hugging Face's tools find it.
fn token(lookup: impl Fn(&str) -> Option<PathBuf>) -> Option<String> {
    let given = lookup("HF_TOKEN").and_then(|token| token.to_str().map(str::to_owned));
    let file = || lookup("HF_TOKEN_PATH").map_or_else(|| home(&lookup).join("token"), |path| expand(path, &lookup));
    given.filter(|token| !token.trim().is_empty()).or_else(|| fs::read_to_string(file()).ok())
}

/// One row of the hub's listing, if it is a file with a safe name.
fn listed(row: &Value) -> Option<Listed> {
    let path = row["path"].as_str().filter(|_| row["type"] == "file")?;
    let safe = !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\\');
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let sha256 = row["lfs"]["oid"].as_str().map(|oid| oid.trim_start_matches("sha256:").to_owned());
    let etag = sha256.clone().or_else(|| row["oid"].as_str().map(str::to_owned)).filter(|etag| hex(etag))?;
    let size = row["lfs"]["size"].as_u64().or_else(|| row["size"].as_u64())?;
    safe.then(|| Listed { path: path.to_owned(), size, etag, sha256 })
}

/// Of a signed model all files, since the signature covers them and nothing may lie beside them; of any other, those that are
/// wanted.
fn chosen(mut files: Vec<Listed>) -> Vec<Listed> {
    if !files.iter().any(|file| file.path == SIGNATURE) {
        files.retain(|file| is_wanted(&file.path));
    }
    files
}

/// Whether a file is of use: weights, configuration, tokenizer, template, card and licence at the top level, and the evidence of
/// a hardened model.
fn is_wanted(path: &str) -> bool {
    let top = !path.contains('/');
    let text = [".json", ".jinja", ".md", ".txt", ".model"].iter().any(|end| path.ends_with(end));
    let legal = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"].iter().any(|start| path.starts_with(start));
    path.starts_with(EVIDENCE) || top && (text || legal || path.ends_with(".safetensors"))
}

/// Whether a snapshot holds a configuration and all the weights that it speaks of.
fn is_complete(dir: &Path) -> bool {
    let index = fs::read_to_string(dir.join("model.safetensors.index.json")).ok();
    let weights = match index.and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
        Some(index) => index["weight_map"]
            .as_object()
            .is_some_and(|map| map.values().all(|file| file.as_str().is_some_and(|file| dir.join(file).is_file()))),
        None => dir.join("model.safetensors").is_file(),
    };
    weights && dir.join("config.json").is_file() && dir.join("tokenizer.json").is_file()
}

fn partial(blob: &Path) -> PathBuf {
    blob.with_extension("incomplete")
}

fn size_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Whether a file has the digest that the hub lists: SHA-256 in large-file storage, else Git's name of the blob, SHA-1 over
/// `blob SIZE`, a zero and the content.
fn is_intact(path: &Path, listed: &Listed) -> std::io::Result<bool> {
    let (mut hash, expected) = match &listed.sha256 {
        Some(sha256) => (Context::new(&SHA256), sha256),
        None => (Context::new(&SHA1_FOR_LEGACY_USE_ONLY), &listed.etag),
    };
    if listed.sha256.is_none() {
        hash.update(format!("blob {}\0", listed.size).as_bytes());
    }
    let (mut file, mut buffer) = (File::open(path)?, vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            let digest: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok(digest == *expected);
        }
        hash.update(&buffer[..read]);
    }
}

/// Makes the file `name` of the snapshot `dir` lead to `blob`, by a relative link where the system has them.
fn link(blob: &Path, dir: &Path, name: &str) -> Result<()> {
    let path = &dir.join(name);
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|error| Error::io(parent, error))?;
    if path.is_file() {
        return Ok(());
    }
    // A link that leads nowhere is not a file, but its name is taken.
    if path.symlink_metadata().is_ok() {
        fs::remove_file(path).map_err(|error| Error::io(path, error))?;
    }
    #[cfg(unix)]
    let made = {
        let up = "../".repeat(2 + name.matches('/').count());
        std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(blob.file_name().unwrap_or_default()), path)
    };
    #[cfg(not(unix))]
    let made = fs::copy(blob, path).map(|_| ());
    made.map_err(|error| Error::io(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_makes_the_model_is_wanted() {
        for path in [
            "config.json",
            "model-00001-of-00002.safetensors",
            "tokenizer.model",
            "LICENSE",
            "chat_template.jinja",
            "immunisation/attestation.intoto.jsonl",
            "immunisation/report.html",
        ] {
            assert!(is_wanted(path), "{path}");
        }
        for path in [
            "pytorch_model.bin",
            "original/consolidated.00.pth",
            "onnx/model.json",
            "onnx/immunisation/report.json",
            "immunisation",
            ".gitattributes",
            "m.gguf",
        ] {
            assert!(!is_wanted(path), "{path}");
        }
    }

    #[test]
    fn of_a_signed_model_everything_is_wanted() {
        let kept = |paths: &[&str]| {
            let row = |path: &&str| listed(&json!({"type": "file", "path": path, "size": 1, "oid": "0a"}));
            chosen(paths.iter().filter_map(row).collect()).len()
        };
        let model = ["config.json", "model.safetensors", "assets/plot.svg", "merges.bpe", ".gitattributes"];
        assert_eq!(kept(&model), 2);
        assert_eq!(kept(&[&model[..], &["onnx/model.sig"]].concat()), 2);
        assert_eq!(kept(&[&model[..], &[SIGNATURE]].concat()), 6);
    }

    #[test]
    fn the_token_lies_in_the_home_wherever_the_cache_is() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in
            [("hf", "home"), ("xdg/huggingface", "xdg"), ("u/.cache/huggingface", "user"), ("hub", "no")]
        {
            fs::create_dir_all(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("token"), text).unwrap();
        }
        let at = |name: &str| folder.path().join(name).display().to_string();
        let found = |set: &[(&str, &str)]| {
            token(|key| set.iter().find(|(name, _)| *name == key).map(|(_, value)| value.into())).unwrap()
        };
        let (user, cache) = (at("u"), at("hub/hub"));
        let base = [("HOME", user.as_str()), ("HF_HUB_CACHE", cache.as_str())];
        let with = |more: &[(&str, &str)]| found(&[&base[..], more].concat());
        assert_eq!(with(&[]), "user");
        assert_eq!(with(&[("XDG_CACHE_HOME", &at("xdg"))]), "xdg");
        assert_eq!(with(&[("XDG_CACHE_HOME", &at("xdg")), ("HF_HOME", &at("hf"))]), "home");
        let file = at("xdg/huggingface/token");
        assert_eq!(with(&[("HF_HOME", &at("hf")), ("HF_TOKEN_PATH", &file)]), "xdg");
        assert_eq!(with(&[("HF_TOKEN_PATH", &file), ("HF_TOKEN", "given")]), "given");
        assert_eq!(with(&[("HF_TOKEN_PATH", "~/.cache/huggingface/token"), ("HF_TOKEN", " ")]), "user");
    }

    #[test]
    fn a_blob_outside_of_large_file_storage_has_the_digest_that_git_gives_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "hello\n").unwrap();
        // printf 'hello\n' | git hash-object --stdin
        let row =
            json!({"type": "file", "path": "a.txt", "size": 6, "oid": "ce013625030ba8dba906f756967f9e9ca394464a"});
        let listed = listed(&row).unwrap();
        assert!(is_intact(file.path(), &listed).unwrap());
        fs::write(file.path(), "Hello\n").unwrap();
        assert!(!is_intact(file.path(), &listed).unwrap());
    }

    #[test]
    fn a_listing_cannot_write_outside_the_cache() {
        let row = |path: &str, oid: &str| listed(&json!({"type": "file", "path": path, "size": 1, "oid": oid}));
        assert!(row("config.json", "0a1b").is_some());
        for (path, oid) in [("../config.json", "0a"), ("/etc/x.json", "0a"), ("a\\b.json", "0a"), ("c.json", "../x")] {
            assert!(row(path, oid).is_none(), "{path} {oid}");
        }
    }
}
