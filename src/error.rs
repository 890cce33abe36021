//! The library's one error type, and the exit code that each of its kinds stands for.
//!
//! Messages are lower case, name the file, key or tensor, and end in a hint where there is something the reader can do.
//! Anything that a person typed wrongly is [`Error::Usage`] or [`Error::Recipe`]; anything wrong with what was read is
//! [`Error::Input`]; a signature that does not hold is [`Error::Signature`]. The binary maps them to exit codes with
//! [`Error::exit_code`] and adds nothing.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Result of everything in this library that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in the words that the person at the terminal reads.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line, or a value given on it, makes no sense. Exit code 2.
    #[error("{message}{}", Hint(.hint))]
    Usage {
        /// What was expected and what was given.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A recipe with one or more problems, all reported at once. Exit code 2.
    #[error("{}: {}", .path.display(), Problems(.problems))]
    Recipe {
        /// The recipe file, or `<name>` for an embedded one.
        path: PathBuf,
        /// Every problem found, each naming its key.
        problems: Vec<String>,
    },
    /// A file, key or tensor that cannot be used. Exit code 3.
    #[error("{subject}: {problem}{}", Hint(.hint))]
    Input {
        /// The file, key or tensor.
        subject: String,
        /// What is wrong with it: `expected X, got Y`.
        problem: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The operating system refused to read or write. Exit code 3.
    #[error("{}: {source}{}", .path.display(), Hint(&remedy(.source)))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A signature or a signed digest does not hold. Exit code 4.
    #[error("{subject}: {problem}")]
    Signature {
        /// The file that does not match, or the signature file itself.
        subject: String,
        /// What does not match.
        problem: String,
    },
    /// The tensor library failed: out of memory, a missing device, or a shape bug of ours. Exit code 3.
    #[error("tensor computation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The run was interrupted at a unit's boundary; its state is kept. Exit code 130.
    #[error("interrupted; finished units are kept in {}\nhint: the same command goes on from there", .run.display())]
    Interrupted {
        /// The run folder to resume from.
        run: PathBuf,
    },
}

impl Error {
    /// An unusable file, key or tensor.
    pub fn input(subject: impl fmt::Display, problem: impl Into<String>) -> Self {
        Self::Input { subject: subject.to_string(), problem: problem.into(), hint: None }
    }

    /// An unusable file.
    pub fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::input(path.display(), problem)
    }

    /// A wrong command line or option value.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: None }
    }

    /// A system error on `path`.
    pub fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// A signature, or a signed digest, that does not hold.
    pub fn signature(subject: impl fmt::Display, problem: impl Into<String>) -> Self {
        Self::Signature { subject: subject.to_string(), problem: problem.into() }
    }

    /// Adds what the reader can do about it; kinds without a hint are returned unchanged.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Usage { hint, .. } | Self::Input { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// The process exit code that stands for this kind of error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } | Self::Recipe { .. } => 2,
            Self::Input { .. } | Self::Io { .. } | Self::Tensor(_) => 3,
            Self::Signature { .. } => 4,
            Self::Interrupted { .. } => 130,
        }
    }
}

/// What a person can do about a refusal of the system.
fn remedy(source: &io::Error) -> Option<String> {
    let text = match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "make room; the same command goes on from what is finished"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "choose a place that can be written and read"
        }
        io::ErrorKind::AlreadyExists => "nothing is overwritten: choose another name, or remove what is there",
        io::ErrorKind::NotFound => "is the path right, and is the folder there that it is in?",
        io::ErrorKind::IsADirectory => "this is a folder; give a file",
        io::ErrorKind::NotADirectory => "a part of this path is a file; give a folder",
        _ => return None,
    };
    Some(text.to_owned())
}

struct Hint<'a>(&'a Option<String>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Problems of a recipe that are shown before the rest are only counted.
const SHOWN: usize = 20;

struct Problems<'a>(&'a [String]);

impl fmt::Display for Problems<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} problem{}", self.0.len(), if self.0.len() == 1 { "" } else { "s" })?;
        self.0.iter().take(SHOWN).try_for_each(|problem| write!(f, "\n  - {problem}"))?;
        match self.0.len().checked_sub(SHOWN) {
            Some(more @ 1..) => write!(f, "\n  - and {more} more"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hint_follows_the_problem_on_its_own_line() {
        let error = Error::input("config.json", "expected `model_type`, got nothing").hint("is this a checkpoint?");
        assert_eq!(error.to_string(), "config.json: expected `model_type`, got nothing\nhint: is this a checkpoint?");
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn a_recipe_error_lists_every_problem() {
        let error = Error::Recipe { path: "r.yaml".into(), problems: vec!["a".into(), "b".into()] };
        assert_eq!(error.to_string(), "r.yaml: 2 problems\n  - a\n  - b");
        assert_eq!(error.exit_code(), 2);
        let many = |count| Error::Recipe { path: "r.yaml".into(), problems: vec!["a".into(); count] }.to_string();
        assert!(many(SHOWN).ends_with("- a") && many(SHOWN + 3).ends_with("\n  - a\n  - and 3 more"));
    }
}
