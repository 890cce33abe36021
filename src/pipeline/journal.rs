//! The run folder: what a run has finished, so that a killed one goes on where it stopped.
//!
//! ```text
//! RUN/lock            held while a run uses the folder
//! RUN/run.json        inputs of the last run: tool, recipe, base, data
//! RUN/units/<hash>    finished units, each with its key and the SHA-256 of its content
//! RUN/adapters/…      adapters of the stages, in PEFT's form
//! RUN/report.*        the last report, whether it was published or not
//! RUN/metrics.json    times, memory, what the cast to the stored type lost
//! ```
//!
//! A unit's key holds everything that its result depends on, so a run of other inputs never finds a unit that is not its
//! own: changing a threshold or a later stage keeps what still holds. A unit is written to a temporary file, flushed to the
//! disk and renamed; one that is damaged counts as not finished. Attacked weights are never kept, only edits.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::checkpoint::Digest;
use crate::checkpoint::staging::{PARTIAL, check_writable, write_atomically};
use crate::defence::UnitStore;
use crate::{Error, Result};

const LOCK: &str = "lock";
const UNITS: &str = "units";
const INPUTS: &str = "run.json";
/// First word of a unit file; the number changes with its layout.
const MAGIC: &str = "immunise-unit-1";

/// Asks a run to stop at the next unit's boundary; shared with a signal handler.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks to stop.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// What a run's results depend on, by name, for the message when a run folder is used for other inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs(pub BTreeMap<String, String>);

impl Inputs {
    /// Names of what is not the same in `other`.
    fn differences(&self, other: &Self) -> Vec<String> {
        let names = self.0.keys().chain(other.0.keys().filter(|key| !self.0.contains_key(*key)));
        names.filter(|key| self.0.get(*key) != other.0.get(*key)).cloned().collect()
    }
}

/// What was found in a run folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing: a new run.
    Nothing,
    /// A run of the same inputs, with this many finished units.
    Same(usize),
    /// A run of other inputs: these differ; of its units only those that do not depend on them are used.
    Other(Vec<String>),
}

/// An open, locked run folder.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    stop: Stop,
    // The lock ends with the file.
    _lock: File,
}

impl Journal {
    /// Opens or makes the run folder `dir` and locks it; `fresh` forgets everything that a former run left there.
    ///
    /// # Errors
    /// [`Error::Input`] when another process uses the folder, or it is neither empty nor a run folder; [`Error::Io`].
    pub fn open(dir: &Path, fresh: bool, stop: Stop) -> Result<Self> {
        Self::check_place(dir)?;
        // The lock comes first: without it a killed run's folder would be taken for another's.
        create(dir)?;
        let file = hold(dir, OpenOptions::new().create(true).truncate(false).write(true))?;
        create(&dir.join(UNITS))?;
        let journal = Self { dir: dir.to_owned(), stop, _lock: file };
        remove_partial(dir)?;
        remove_partial(&dir.join(UNITS))?;
        if fresh {
            for folder in [UNITS, "adapters"] {
                remove(&dir.join(folder))?;
            }
            for file in ["metrics.json", "report.json", "report.html", INPUTS] {
                remove(&dir.join(file))?;
            }
            create(&dir.join(UNITS))?;
        }
        Ok(journal)
    }

    /// Whether `dir` is a run folder or can become one.
    ///
    /// # Errors
    /// [`Error::Input`] when there are other files in it; [`Error::Io`].
    pub fn check_place(dir: &Path) -> Result<()> {
        if dir.is_dir() && !is_empty(dir)? && !is_run(dir)? {
            return Err(Error::file(dir, "expected a run folder or an empty one, got one with other files")
                .hint("choose another with `--run DIR`"));
        }
        check_writable(dir)
    }

    /// Whether a run has begun in the folder `dir`.
    #[must_use]
    pub fn is_in(dir: &Path) -> bool {
        dir.join(INPUTS).is_file()
    }

    /// The run folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Compares `inputs` with those of the former run and writes them down.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn begin(&self, inputs: &Inputs) -> Result<Found> {
        let path = self.dir.join(INPUTS);
        let former: Option<Inputs> = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let found = match former {
            None => Found::Nothing,
            Some(former) if former == *inputs => Found::Same(self.units()?),
            Some(former) => Found::Other(inputs.differences(&former)),
        };
        let text = serde_json::to_vec_pretty(inputs).expect("a map of strings always serialises");
        self.write(INPUTS, &text)?;
        Ok(found)
    }

    /// Takes over the finished units of the run folder `part`, which must be of the same `inputs`; returns their keys.
    ///
    /// # Errors
    /// [`Error::Input`] when `part` is no run folder, is in use, or is of other inputs; [`Error::Io`].
    pub fn take(&mut self, part: &Path, inputs: &Inputs) -> Result<Vec<String>> {
        let _lock = hold(part, OpenOptions::new().write(true))?;
        let former = part.join(INPUTS);
        let bytes = fs::read(&former).map_err(|error| Error::io(&former, error))?;
        let former: Inputs = serde_json::from_slice(&bytes).map_err(|e| Error::file(&former, e.to_string()))?;
        let others = inputs.differences(&former);
        if !others.is_empty() {
            return Err(Error::file(
                part,
                format!("expected a part of this run, got one with another {}", others.join(", ")),
            ));
        }
        let units = part.join(UNITS);
        let mut taken = vec![];
        for entry in fs::read_dir(&units).map_err(|error| Error::io(&units, error))? {
            let path = entry.map_err(|error| Error::io(&units, error))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PARTIAL)) {
                continue;
            }
            let bytes = fs::read(&path).map_err(|error| Error::io(&path, error))?;
            let (key, content) = opened(&bytes).ok_or_else(|| {
                Error::file(&path, "expected a finished unit, got a damaged one").hint("run that part again")
            })?;
            if self.get(key).as_deref() != Some(content) {
                self.put(key, content)?;
            }
            taken.push(key.to_owned());
        }
        Ok(taken)
    }

    /// Writes a file of the run folder: complete or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, relative: &str, bytes: &[u8]) -> Result<()> {
        write_atomically(&self.dir.join(relative), bytes)
    }

    /// Returns [`Error::Interrupted`] when somebody asked the run to stop.
    ///
    /// # Errors
    /// Only that one.
    pub fn check(&self) -> Result<()> {
        if self.stop.requested() { Err(Error::Interrupted { run: self.dir.clone() }) } else { Ok(()) }
    }

    fn units(&self) -> Result<usize> {
        let dir = self.dir.join(UNITS);
        Ok(fs::read_dir(&dir).map_err(|error| Error::io(&dir, error))?.count())
    }

    fn unit(&self, key: &str) -> PathBuf {
        self.dir.join(UNITS).join(Digest::of(key.as_bytes()).to_string())
    }
}

impl UnitStore for Journal {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        let bytes = fs::read(self.unit(key)).ok()?;
        let (kept, content) = opened(&bytes)?;
        (kept == key).then(|| content.to_vec())
    }

    /// Keeps the unit, then stops the run if somebody asked for it.
    fn put(&mut self, key: &str, bytes: &[u8]) -> Result<()> {
        if key.contains('\n') {
            return Err(Error::input(format!("unit {key:?}"), "expected a key of one line"));
        }
        let mut content = format!("{MAGIC} {}\n{key}\n", Digest::of(bytes)).into_bytes();
        content.extend_from_slice(bytes);
        write_atomically(&self.unit(key), &content)?;
        self.check()
    }
}

/// A part of a store with keys of its own, for a stage that names its units without knowing the rest of the run.
pub struct Scoped<'a> {
    inner: &'a mut dyn UnitStore,
    scope: String,
}

impl<'a> Scoped<'a> {
    /// The part of `inner` whose keys start with `scope`.
    pub fn new(inner: &'a mut dyn UnitStore, scope: impl Into<String>) -> Self {
        Self { inner, scope: scope.into() }
    }
}

impl UnitStore for Scoped<'_> {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.inner.get(&format!("{}/{key}", self.scope))
    }

    fn put(&mut self, key: &str, bytes: &[u8]) -> Result<()> {
        self.inner.put(&format!("{}/{key}", self.scope), bytes)
    }
}

/// Key and content of a unit file, if it is whole.
fn opened(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
    let (head, key, content) = (parts.next()?, parts.next()?, parts.next()?);
    let expected = format!("{MAGIC} {}", Digest::of(content));
    (head == expected.as_bytes()).then_some((std::str::from_utf8(key).ok()?, content))
}

/// Locks the run folder `dir` for as long as the returned file is open.
fn hold(dir: &Path, options: &OpenOptions) -> Result<File> {
    let lock = dir.join(LOCK);
    let file = options.open(&lock).map_err(|error| Error::io(&lock, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::file(dir, "expected a free run folder, got one that another process uses")
                .hint("wait for it, or choose another with `--run DIR`"))
        }
        Err(TryLockError::Error(error)) => Err(Error::io(&lock, error)),
    }
}

fn is_empty(dir: &Path) -> Result<bool> {
    Ok(fs::read_dir(dir).map_err(|error| Error::io(dir, error))?.next().is_none())
}

/// Whether a run has used the folder: there are its lock, to which nothing is ever written, and its inputs, or nothing but what a
/// measurement keeps, which writes no inputs down.
fn is_run(dir: &Path) -> Result<bool> {
    const KEPT: [&str; 4] = [LOCK, UNITS, "report.json", "report.html"];
    let lock = fs::symlink_metadata(dir.join(LOCK));
    if !lock.is_ok_and(|lock| lock.is_file() && lock.len() == 0) {
        return Ok(false);
    }
    if Journal::is_in(dir) {
        return Ok(true);
    }
    for entry in fs::read_dir(dir).map_err(|error| Error::io(dir, error))? {
        let name = entry.map_err(|error| Error::io(dir, error))?.file_name();
        if !name.to_str().is_some_and(|name| KEPT.contains(&name) || name.starts_with(PARTIAL)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn create(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|error| Error::io(dir, error))
}

/// Removes a file or folder of the run folder, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

/// Removes what killed runs left of files in the making; nobody else is in a locked folder.
fn remove_partial(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|error| Error::io(dir, error))? {
        let entry = entry.map_err(|error| Error::io(dir, error))?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(PARTIAL)) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(seed: &str) -> Inputs {
        Inputs(BTreeMap::from([("recipe".into(), "r".into()), ("seed".into(), seed.into())]))
    }

    #[test]
    fn what_was_put_is_there_after_reopening() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        let mut journal = Journal::open(&dir, false, Stop::default()).unwrap();
        assert_eq!(journal.begin(&inputs("0")).unwrap(), Found::Nothing);
        journal.put("a/b", b"one\ntwo\n").unwrap();
        drop(journal);
        let journal = Journal::open(&dir, false, Stop::default()).unwrap();
        assert_eq!(journal.begin(&inputs("0")).unwrap(), Found::Same(1));
        assert_eq!(journal.get("a/b").as_deref(), Some(&b"one\ntwo\n"[..]));
        assert_eq!(journal.get("a/c"), None);
        assert_eq!(journal.begin(&inputs("1")).unwrap(), Found::Other(vec!["seed".into()]));
    }

    #[cfg(unix)]
    #[test]
    fn a_run_folder_is_read_by_whoever_may_read_new_files() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let plain = root.path().join("plain");
        fs::write(&plain, "").unwrap();
        let mut journal = Journal::open(&root.path().join("run"), false, Stop::default()).unwrap();
        journal.begin(&inputs("0")).unwrap();
        journal.put("a", b"one").unwrap();
        let unit = fs::read_dir(journal.dir().join(UNITS)).unwrap().next().unwrap().unwrap().path();
        assert_eq!([mode(&journal.dir().join(INPUTS)), mode(&unit)], [mode(&plain); 2]);
    }

    #[test]
    fn a_damaged_unit_counts_as_not_finished() {
        let root = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(root.path(), false, Stop::default()).unwrap();
        journal.put("unit", b"content").unwrap();
        let path = journal.unit("unit");
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..20], b""] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(journal.get("unit"), None);
        }
        fs::write(&path, &whole).unwrap();
        assert!(journal.get("unit").is_some());
    }

    #[test]
    fn what_a_kill_left_half_written_is_removed_and_no_unit() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        Journal::open(&dir, false, Stop::default()).unwrap().put("unit", b"content").unwrap();
        let left = [dir.join(".partial-aB3dEf"), dir.join(UNITS).join(".partial-zY9xWv")];
        left.iter().for_each(|path| fs::write(path, "half").unwrap());
        let journal = Journal::open(&dir, false, Stop::default()).unwrap();
        assert_eq!(journal.units().unwrap(), 1);
        assert!(left.iter().all(|path| !path.exists()));
    }

    #[test]
    fn a_run_folder_is_used_by_one_process_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let first = Journal::open(root.path(), false, Stop::default()).unwrap();
        let error = Journal::open(root.path(), false, Stop::default()).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        drop(first);
        Journal::open(root.path(), false, Stop::default()).unwrap();
    }

    #[test]
    fn fresh_forgets_and_a_folder_of_something_else_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("run");
        let mut journal = Journal::open(&run, false, Stop::default()).unwrap();
        journal.put("unit", b"content").unwrap();
        drop(journal);
        assert_eq!(Journal::open(&run, true, Stop::default()).unwrap().get("unit"), None);
        let error = Journal::open(root.path(), true, Stop::default()).unwrap_err();
        assert!(error.to_string().contains("other files"), "{error}");
        assert!(run.is_dir());
    }

    #[test]
    fn a_lock_alone_makes_no_run_folder_of_what_somebody_else_keeps() {
        for (lock, others) in [
            ("", &["adapters/a", "report.json"][..]),
            ("", &["units/a", "report.json", "notes.txt"]),
            ("pid 7", &["run.json"]),
        ] {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join(LOCK), lock).unwrap();
            for other in others {
                fs::create_dir_all(root.path().join(other).parent().unwrap()).unwrap();
                fs::write(root.path().join(other), "mine").unwrap();
            }
            for fresh in [false, true] {
                let error = Journal::open(root.path(), fresh, Stop::default()).unwrap_err();
                assert!(error.to_string().contains("other files"), "{others:?}: {error}");
                assert!(others.iter().all(|other| root.path().join(other).is_file()), "{others:?}");
            }
        }
    }

    #[test]
    fn a_measurement_s_folder_has_no_inputs_and_is_opened_again() {
        let root = tempfile::tempdir().unwrap();
        Journal::open(root.path(), false, Stop::default()).unwrap().put("unit", b"content").unwrap();
        for name in ["report.json", "report.html", ".partial-aB3dEf"] {
            fs::write(root.path().join(name), "").unwrap();
        }
        assert!(Journal::open(root.path(), false, Stop::default()).unwrap().get("unit").is_some());
        // What is not a measurement's is a run's, which has inputs.
        let journal = Journal::open(root.path(), false, Stop::default()).unwrap();
        journal.begin(&inputs("0")).unwrap();
        journal.write("adapters/00-et/a", b"").unwrap();
        drop(journal);
        Journal::open(root.path(), true, Stop::default()).unwrap();
        assert!(!root.path().join("adapters").exists() && !Journal::is_in(root.path()));
    }

    #[test]
    fn a_stop_lets_the_unit_finish_first() {
        let root = tempfile::tempdir().unwrap();
        let stop = Stop::default();
        let mut journal = Journal::open(root.path(), false, stop.clone()).unwrap();
        stop.request();
        assert_eq!(journal.put("unit", b"content").unwrap_err().exit_code(), 130);
        assert!(journal.get("unit").is_some(), "the unit that was being finished is kept");
    }

    #[test]
    fn scopes_keep_their_units_apart() {
        let mut store = crate::defence::Forgetful::default();
        Scoped::new(&mut store, "a").put("block 0", b"1").unwrap();
        assert_eq!(Scoped::new(&mut store, "b").get("block 0"), None);
        assert_eq!(Scoped::new(&mut store, "a").get("block 0").as_deref(), Some(&b"1"[..]));
    }
}
