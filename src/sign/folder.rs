//! What lies in a model folder: its regular files by name, everything that cannot be signed, and the files' digests.
//!
//! Links are not followed. A link can point anywhere tomorrow, so its target's bytes today prove nothing about what
//! the next reader of the folder will load. What to do about one is the caller's decision: signing refuses the folder,
//! verifying reports it as a difference. The one exception is for verifying: the hub's cache is made of links, and those of a
//! snapshot into its own `blobs` are as much a part of it as files are.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::digest::Digest;
use super::manifest::{DOWNLOADS, Resource};
use crate::checkpoint::files::is_invisible;
use crate::error::{Error, Result};
use crate::hub;

/// The entries of a folder, in code-point order of their names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// Regular files, by `/`-separated name relative to the folder.
    pub files: Vec<String>,
    /// Entries that no manifest can hold: the name, and what is wrong with it.
    pub unsignable: Vec<(String, String)>,
}

/// Which links stand for the files that they lead to.
#[derive(Debug)]
pub(super) struct Links {
    /// The real path of the folder that they have to lead into; none are followed without one.
    blobs: Option<PathBuf>,
}

impl Links {
    /// No link.
    pub const NONE: Self = Self { blobs: None };

    /// Where `dir` is a snapshot of the hub's cache, the links into `blobs` of the same model.
    pub fn of_cached(dir: &Path) -> Self {
        Self { blobs: hub::blobs_of(dir) }
    }

    /// Whether the link at `path` stands for a regular file, or what is wrong with it.
    pub fn check(&self, path: &Path) -> Result<(), &'static str> {
        let blobs = self.blobs.as_ref().ok_or("expected a regular file, got a symbolic link")?;
        match path.canonicalize() {
            Ok(target) if target.starts_with(blobs) && target.is_file() => Ok(()),
            _ => Err("expected a regular file or a link to one in the model's own `blobs`, got another symbolic link"),
        }
    }
}

/// Lists `dir` recursively, leaving out the entries whose names, relative to it, are in `ignored`; [`DOWNLOADS`] among them is a
/// folder.
///
/// *Errors* [`Error::Io`] when a folder cannot be read.
pub(super) fn list(dir: &Path, ignored: &[&str], links: &Links) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut pending = vec![(dir.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = pending.pop() {
        let failed = |source| Error::io(&folder, source);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(|source| Error::io(entry.path(), source))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if ignored.contains(&name.as_str()) && (kind.is_dir() || name != DOWNLOADS) {
                continue;
            }
            if let Err(problem) = check_segment(&entry.file_name()) {
                listing.unsignable.push((name, problem.into()));
            } else if kind.is_dir() {
                pending.push((entry.path(), format!("{name}/")));
            } else if kind.is_file() {
                listing.files.push(name);
            } else if kind.is_symlink() {
                match links.check(&entry.path()) {
                    Ok(()) => listing.files.push(name),
                    Err(problem) => listing.unsignable.push((name, problem.into())),
                }
            } else {
                listing.unsignable.push((name, "expected a regular file, got a special file".into()));
            }
        }
    }
    listing.files.sort_unstable();
    listing.unsignable.sort_unstable();
    Ok(listing)
}

/// Digests the files `names` of `dir` in parallel, each in constant memory; the result is in the order of `names`.
///
/// *Errors* [`Error::Io`] naming the first file, in that order, that cannot be read.
pub fn digests(dir: &Path, names: &[String]) -> Result<Vec<Resource>> {
    let results: Vec<Result<Resource>> = names
        .par_iter()
        .map(|name| Ok(Resource { name: name.clone(), digest: Digest::of_file(&path_of(dir, name))? }))
        .collect();
    results.into_iter().collect()
}

/// Where the file `name` of a manifest lies in `dir`.
fn path_of(dir: &Path, name: &str) -> PathBuf {
    name.split('/').fold(dir.to_path_buf(), |path, segment| path.join(segment))
}

/// One name has to mean the same file on every system that unpacks the model.
fn check_segment(segment: &OsStr) -> Result<(), &'static str> {
    match segment.to_str() {
        None => Err("expected a name in UTF-8"),
        Some(name) if name.contains('\\') => Err("expected a name without a backslash"),
        Some(name) if name.chars().any(is_invisible) => Err("expected a name without invisible characters"),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_and_in_code_point_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        for name in ["a/b/c", "a.txt", "a/.git", "B", ".git", "é"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let listing = list(dir.path(), &[".git"], &Links::NONE).unwrap();
        // `.` sorts before `/`: by code point `a.txt` comes first, path by path it would not.
        assert_eq!(listing.files, ["B", "a.txt", "a/.git", "a/b/c", "é"]);
        assert!(listing.unsignable.is_empty());
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = digests(dir.path(), &["gone/away".into()]).unwrap_err();
        assert!(error.to_string().contains("away"), "{error}");
        assert_eq!(error.exit_code(), 3);
    }

    #[cfg(unix)]
    #[test]
    fn links_and_odd_names_are_listed_but_never_followed() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("root")).unwrap();
        fs::write(dir.path().join("a\\b"), "").unwrap();
        fs::write(dir.path().join(OsStr::from_bytes(b"\xff")), "").unwrap();
        let listing = list(dir.path(), &[], &Links::of_cached(dir.path())).unwrap();
        let names: Vec<_> = listing.unsignable.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a\\b", "root", "\u{fffd}"]);
    }
}
