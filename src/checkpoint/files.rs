//! The files of a checkpoint's folder: which ones count, and their digests.
//!
//! Links are followed to files only, and only where the hub's cache or the folder itself is the target: whatever is
//! listed here is copied, signed and published, so a link in a downloaded folder must not reach other files of the
//! machine. What is read whole is read up to a limit.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Error, Result, hub};

/// Longest description that is read, bytes: `config.json`, an adapter's, a chat template, a report.
pub const MAX_DESCRIPTION: u64 = 16 << 20;
/// Longest list that is read, bytes: a tokenizer, an index, prompts, a header.
pub const MAX_LIST: u64 = 256 << 20;

/// Git's own entries of a model folder's root: they are of no model.
pub const GIT: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];
/// The folder that `hf download --local-dir` leaves in a model's and `hf upload` leaves out: what is in it is of no model.
pub const DOWNLOADS: &str = ".cache/huggingface";

/// Bytes hashed per read.
const BUFFER: usize = 1 << 20;

/// A SHA-256, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Hashes bytes in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Hashes a file, reading it in pieces.
    ///
    /// *Errors*: [`Error::Io`].
    pub fn of_file(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|error| Error::io(path, error))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(Self(hasher.finalize().into())),
                Ok(n) => hasher.update(&buffer[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(path, error)),
            }
        }
    }
}

/// Refuses a place inside the folder `dir`, be it there or yet to be made: what is written there would become a part of the
/// model in `dir`.
///
/// *Errors*: [`Error::Input`].
pub fn apart(place: &Path, dir: &Path) -> Result<()> {
    if dir.exists() && is_inside(place, dir) {
        return Err(Error::file(place, "expected a place outside of the model's folder, got one inside of it"));
    }
    Ok(())
}

/// Whether `place` is the folder `dir` or lies in it, be they there or yet to be made.
#[must_use]
pub fn is_inside(place: &Path, dir: &Path) -> bool {
    resolved(place).starts_with(resolved(dir))
}

/// Where `path` is, or will be once it is made: links are followed as far as there is something.
#[must_use]
pub fn resolved(path: &Path) -> PathBuf {
    let mut real = PathBuf::new();
    for part in std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components() {
        match part {
            Component::ParentDir => {
                real.pop();
            }
            part => real.push(part),
        }
        real = real.canonicalize().unwrap_or(real);
    }
    real
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong =
            || serde::de::Error::custom(format_args!("expected 64 lower-case hexadecimal digits, got {text:?}"));
        if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(digest))
    }
}

/// Reads a whole file of at most `limit` bytes.
///
/// *Errors*: [`Error::Input`] for a longer one, and for what is no file: a pipe would be waited for without end;
/// [`Error::Io`].
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |error| Error::io(path, error);
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Error::file(path, "expected a regular file"));
    }
    let mut bytes = vec![];
    File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(path, format!("expected at most {limit} bytes, got more")));
    }
    Ok(bytes)
}

/// As [`read`], as text.
///
/// *Errors*: as [`read`], and [`Error::Input`] for bytes that are not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|_| Error::file(path, "expected UTF-8 text, got other bytes"))
}

/// Whether a character can't be seen, or changes the order in which others are: two names that differ in such ones look the
/// same to a person.
#[must_use]
pub fn is_invisible(character: char) -> bool {
    let invisible = ['\u{ad}', '\u{61c}', '\u{180e}', '\u{feff}'];
    character.is_control()
        || invisible.contains(&character)
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
}

/// Whether a path, relative to a model's folder, is an entry that is of no model ([`GIT`], [`DOWNLOADS`]) or lies in one.
#[must_use]
pub fn is_left_out(relative: &Path) -> bool {
    GIT.into_iter().chain([DOWNLOADS]).any(|entry| relative.starts_with(entry))
}

/// Lists the regular files under `dir`, relative with `/` separators, sorted by code point. [`GIT`] and the folder
/// [`DOWNLOADS`] are left out, as a signature leaves them out.
///
/// *Errors*: [`Error::Input`] for a broken link, a link to a folder, to what is left out, or out of the folder and the hub's
/// cache, a special file or a name that is not UTF-8 or has invisible characters; [`Error::Io`] when a folder cannot be read.
pub fn list(dir: &Path) -> Result<Vec<String>> {
    let allowed = Allowed::of(dir)?;
    let mut files = Vec::new();
    walk(dir, "", &allowed, &mut files)?;
    files.sort();
    Ok(files)
}

/// Hashes the named files of `dir`, several at a time.
///
/// *Errors*: [`Error::Io`] when one cannot be read.
pub fn digests(dir: &Path, files: &[String]) -> Result<BTreeMap<String, Digest>> {
    files.par_iter().map(|file| Ok((file.clone(), Digest::of_file(&dir.join(file))?))).collect()
}

/// Real paths of the folders that a link may lead into.
struct Allowed {
    /// The folder itself.
    root: PathBuf,
    /// Its `blobs`, for a snapshot of the hub's cache.
    blobs: Option<PathBuf>,
}

impl Allowed {
    fn of(dir: &Path) -> Result<Self> {
        let root = fs::canonicalize(dir).map_err(|error| Error::io(dir, error))?;
        Ok(Self { root, blobs: hub::blobs_of(dir) })
    }

    /// What a link would have to lead to, where `target` is not that.
    fn refused(&self, target: &Path) -> Option<&'static str> {
        match target.strip_prefix(&self.root) {
            Ok(relative) => is_left_out(relative).then_some("to a file that is published itself"),
            Err(_) if self.blobs.as_ref().is_some_and(|blobs| target.starts_with(blobs)) => None,
            Err(_) => Some("inside the folder"),
        }
    }
}

fn walk(dir: &Path, prefix: &str, allowed: &Allowed, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|error| Error::io(dir, error))? {
        let entry = entry.map_err(|error| Error::io(dir, error))?;
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| Error::file(&path, "expected a file name in UTF-8"))?;
        if name.chars().any(is_invisible) {
            return Err(Error::input(format!("{path:?}"), "expected a file name without invisible characters"));
        }
        let relative = format!("{prefix}{name}");
        let kind = entry.file_type().map_err(|error| Error::io(&path, error))?;
        if is_left_out(Path::new(&relative)) && (kind.is_dir() || relative != DOWNLOADS) {
            continue;
        }
        if kind.is_dir() {
            walk(&path, &format!("{relative}/"), allowed, files)?;
        } else if kind.is_file() {
            files.push(relative);
        } else if kind.is_symlink() {
            check_link(&path, allowed)?;
            files.push(relative);
        } else {
            return Err(Error::file(&path, "expected a regular file"));
        }
    }
    Ok(())
}

fn check_link(path: &Path, allowed: &Allowed) -> Result<()> {
    let target = fs::canonicalize(path)
        .map_err(|_| Error::file(path, "expected a file, got a broken link").hint("the download is incomplete"))?;
    if !target.is_file() {
        return Err(Error::file(path, "expected a file, got a link to something else"));
    }
    match allowed.refused(&target) {
        None => Ok(()),
        Some(expected) => {
            Err(Error::file(path, format!("expected a link {expected}, got one to {}", target.display()))
                .hint("what is listed here is published; put a copy of the file in the folder if it belongs there"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_compared_by_where_they_are_or_will_be() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("a/b")).unwrap();
        let mut inside = vec!["a", "a/b", "a/b/../new", "a/new/deeper", "none/../a/new"];
        let mut outside = vec!["ab", ".", "a/..", "a/../c/new", "none/a"];
        #[cfg(unix)]
        for (to, from) in [("a/b", "in"), (".", "a/out")] {
            std::os::unix::fs::symlink(at(to), at(from)).unwrap();
        }
        if cfg!(unix) {
            inside.extend(["in", "in/new", "in/../new"]);
            outside.extend(["a/out", "a/out/new", "none/../a/out/new"]);
        }
        for place in inside {
            assert!(is_inside(&at(place), &at("a")), "{place}");
            assert!(apart(&at(place), &at("a")).is_err(), "{place}");
        }
        for place in outside {
            assert!(!is_inside(&at(place), &at("a")), "{place}");
            assert!(apart(&at(place), &at("a")).is_ok(), "{place}");
        }
        assert!(is_inside(&at("none/new"), &at("none")) && !is_inside(&at("none"), &at("none/new")));
        assert!(apart(&at("none/new"), &at("none")).is_ok(), "a name of no folder is that of no model");
    }
}
