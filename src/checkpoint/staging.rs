//! A folder, or a file, that appears at its final place complete, or not at all.
//!
//! Everything is written into a hidden sibling of the target, so that publishing is one rename within a file system;
//! whoever looks at the target sees no half-written model. Dropping an unpublished folder removes it. What a killed process
//! leaves behind is removed by the next one with the same target: a folder in the making is locked, and the kernel lets go of
//! the lock when its owner ends, however it ends.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::Duration;

use rayon::prelude::*;
use tempfile::{NamedTempFile, TempDir};

use crate::{Error, Result};

/// A folder in the making; readable by its owner only until it is published.
#[derive(Debug)]
pub struct Staged {
    dir: TempDir,
    /// Tells other processes that the folder is not abandoned.
    _lock: Option<File>,
}

/// Attempts, and the pause between them, at the lock under which folders are made and removed.
const ATTEMPTS: (usize, Duration) = (20, Duration::from_millis(50));
/// Random characters that end a hidden folder's name.
const RANDOM: usize = 6;
/// Start of the names of files in the making.
pub const PARTIAL: &str = ".partial-";

impl Staged {
    /// Makes an empty folder beside `target`, creating the folders above it.
    ///
    /// *Errors*: [`Error::Input`] when `target` exists and is not an empty folder (nobody should learn that after
    /// hours of work); [`Error::Io`].
    pub fn beside(target: &Path) -> Result<Self> {
        check_target(target)?;
        let parent = parent_of(target);
        fs::create_dir_all(parent).map_err(|error| Error::io(parent, error))?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!(".{name}.partial-");
        // Held while one is made, so that nobody takes it for abandoned before it is locked.
        let making = patiently_locked(parent);
        if making.is_some() {
            remove_abandoned(parent, &prefix);
        }
        let dir = tempfile::Builder::new().prefix(&prefix).rand_bytes(RANDOM).tempdir_in(parent);
        let dir = dir.map_err(|error| Error::io(parent, error))?;
        let lock = locked(dir.path());
        Ok(Self { dir, _lock: lock })
    }

    /// Where the folder is for now.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file, replacing one of the same name.
    ///
    /// *Errors*: [`Error::Input`] when `relative` leads out of the folder; [`Error::Io`].
    pub fn write(&self, relative: &str, bytes: &[u8]) -> Result<()> {
        let path = self.place(relative)?;
        fs::write(&path, bytes).map_err(|error| Error::io(&path, error))?;
        set_file_mode(&path)
    }

    /// Path of a file to be made in the folder, with the folders above it created.
    ///
    /// *Errors*: as [`write`](Self::write).
    pub fn place(&self, relative: &str) -> Result<PathBuf> {
        let inside = relative.split('/').all(|part| !part.is_empty())
            && !relative.contains('\\')
            && Path::new(relative).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(Error::input(format!("{relative:?}"), "expected a path inside the folder"));
        }
        let path = self.path().join(relative);
        let parent = parent_of(&path);
        fs::create_dir_all(parent).map_err(|error| Error::io(parent, error))?;
        Ok(path)
    }

    /// Moves the folder to `target`, with every byte on disk first: files get mode 0644, folders 0755.
    ///
    /// *Errors*: [`Error::Input`] when `target` exists and is not an empty folder; [`Error::Io`]. The folder is removed
    /// then, as when dropped.
    pub fn publish(self, target: &Path) -> Result<()> {
        let (mut folders, mut files) = (vec![self.path().to_owned()], Vec::new());
        let mut at = 0;
        while let Some(folder) = folders.get(at).cloned() {
            for entry in fs::read_dir(&folder).map_err(|error| Error::io(&folder, error))? {
                let entry = entry.map_err(|error| Error::io(&folder, error))?;
                let kind = entry.file_type().map_err(|error| Error::io(entry.path(), error))?;
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() {
                    files.push(entry.path());
                } else {
                    return Err(Error::file(&entry.path(), "expected a regular file"));
                }
            }
            at += 1;
        }
        files.par_iter().try_for_each(|file| {
            set_file_mode(file)?;
            sync(file)
        })?;
        // Innermost first: a folder's own entry is safe once what it lists is.
        for folder in folders.iter().rev() {
            set_mode(folder, 0o755)?;
            sync_folder(folder)?;
        }
        check_target(target)?;
        fs::rename(self.path(), target).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => occupied(target),
            io::ErrorKind::CrossesDevices => {
                Error::file(target, format!("expected the file system of {}, got another", self.path().display()))
            }
            _ => Error::io(target, error),
        })?;
        // Nothing is left at the old path for the guard to remove.
        let _ = self.dir.keep();
        sync_folder(parent_of(target))
    }
}

/// Locks a folder for as long as the file is open; nothing where folders can't be locked, or another process holds it.
fn locked(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    file.try_lock().ok().map(|()| file)
}

/// As [`locked`], after others that hold it for a moment; nothing when one holds it for long.
fn patiently_locked(folder: &Path) -> Option<File> {
    (0..ATTEMPTS.0).find_map(|attempt| {
        if attempt > 0 {
            thread::sleep(ATTEMPTS.1);
        }
        locked(folder)
    })
}

/// Removes what killed processes left of folders in the making. Nothing depends on it, so nothing is said when it fails.
fn remove_abandoned(parent: &Path, prefix: &str) {
    let made_here = |name: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.len() == RANDOM && rest.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && entry.file_name().to_str().is_some_and(made_here) {
            let path = entry.path();
            if let Some(_abandoned) = locked(&path) {
                let _ = fs::remove_dir_all(&path);
            }
        }
    }
}

/// The folder that holds `path`; `.` for a bare name.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes a file under a temporary name beside its place, flushes it to the disk and renames it: a reader sees the old file or the new
/// one. Missing folders are made; permissions are those of any new file, where a temporary file's own would leave it readable by
/// nobody else. A killed process can leave a file whose name begins with [`PARTIAL`].
///
/// *Errors*: [`Error::Io`].
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    written_beside(path, content)?.persist(path).map_err(|error| Error::io(path, error.error))?;
    sync_folder(parent_of(path))
}

/// As [`write_atomically`], and only where nothing is.
///
/// *Errors*: [`Error::Io`], also when something is at `path`.
pub fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    written_beside(path, content)?.persist_noclobber(path).map_err(|error| Error::io(path, error.error))?;
    sync_folder(parent_of(path))
}

/// The temporary file that is to be renamed to `path`, on the disk.
fn written_beside(path: &Path, content: &[u8]) -> Result<NamedTempFile> {
    let failed = |error| Error::io(path, error);
    let folder = parent_of(path);
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.prefix(PARTIAL).tempfile_in(folder).map_err(failed)?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    Ok(file)
}

/// Whether a folder can be made at `target`: nothing is there, or an empty folder.
///
/// *Errors*: [`Error::Input`] when something is; [`Error::Io`].
pub fn check_target(target: &Path) -> Result<()> {
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(target, error)),
        Ok(metadata) if metadata.is_dir() => {
            let mut entries = fs::read_dir(target).map_err(|error| Error::io(target, error))?;
            if entries.next().is_some() { Err(occupied(target)) } else { Ok(()) }
        }
        Ok(_) => Err(Error::file(target, "expected a folder to be made here, got a file or link")),
    }
}

/// Whether something can be made in `folder`, which may be yet to be made itself; nothing is left of the trial.
///
/// *Errors*: [`Error::Io`] naming the nearest folder that is there.
pub fn check_writable(folder: &Path) -> Result<()> {
    let place = std::path::absolute(folder).map_err(|error| Error::io(folder, error))?;
    let there = place.ancestors().find(|folder| folder.exists()).unwrap_or(&place);
    tempfile::tempfile_in(there).map(drop).map_err(|error| Error::io(there, error))
}

fn occupied(target: &Path) -> Error {
    Error::file(target, "expected no folder or an empty one, got one with files in it")
        .hint("nothing is overwritten; choose another folder or remove this one")
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| Error::io(path, error))
}

/// Folders can be opened, and so synchronised, on Unix only.
fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(unix) { sync(path) } else { Ok(()) }
}

pub(super) fn set_file_mode(path: &Path) -> Result<()> {
    set_mode(path, 0o644)
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|error| Error::io(path, error))
}

#[cfg(not(unix))]
fn set_mode(_: &Path, _: u32) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_in_use_is_not() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        let (left, other) = (root.path().join(".out.partial-Ab3dE9"), root.path().join(".out.partial-notes-of-mine"));
        for folder in [&left, &other] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("x"), "x").unwrap();
        }
        let first = Staged::beside(&target).unwrap();
        assert!(!left.exists() && other.exists());
        let second = Staged::beside(&target).unwrap();
        assert!(first.path().exists() && second.path().exists());
    }

    #[test]
    fn a_place_is_tried_where_it_will_be_and_nothing_is_made() {
        let root = tempfile::tempdir().unwrap();
        assert!(check_writable(&root.path().join("a/b")).is_ok());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        fs::write(root.path().join("file"), "").unwrap();
        let error = check_writable(&root.path().join("file/a/b")).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("file")), "{error}");
    }

    #[test]
    fn a_new_file_takes_the_place_of_none_and_leaves_nothing_half_written() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("new/file");
        write_new(&path, b"first").unwrap();
        let error = write_new(&path, b"second").unwrap_err();
        assert!(error.to_string().contains("nothing is overwritten"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"first");
        write_atomically(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(root.path().join("new")).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_somebody_else_has_locked_is_no_obstacle() {
        let root = tempfile::tempdir().unwrap();
        let _held = locked(root.path()).unwrap();
        let staged = Staged::beside(&root.path().join("out")).unwrap();
        staged.write("a", b"1").unwrap();
        staged.publish(&root.path().join("out")).unwrap();
    }
}
