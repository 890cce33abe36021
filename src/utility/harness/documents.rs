//! Data sets of task files: JSON lines on this machine, pinned by their digest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::template::Document;
use crate::checkpoint::{Digest, files};
use crate::data::load::without_line;
use crate::{Error, Result};

/// The rows of a file.
#[derive(Debug)]
pub(super) struct Documents {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Rows with their 1-based lines.
    pub rows: Vec<(usize, Document)>,
    /// Fields that any row has.
    pub fields: BTreeSet<String>,
}

impl Documents {
    /// Reads JSON lines.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Input`] naming the line that is no object, or for a file without rows.
    pub fn read(path: &Path) -> Result<Self> {
        let text = files::read_text(path, files::MAX_LIST)?;
        let mut rows: Vec<(usize, Document)> = vec![];
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |got: String| {
                let problem = format!("line {}: expected a JSON object, got {got}", number + 1);
                Error::file(path, problem).hint("data sets of task files are JSON lines, one question a line")
            };
            match serde_json::from_str(line) {
                Ok(Value::Object(row)) => rows.push((number + 1, row)),
                Ok(other) => {
                    return Err(wrong(format!("`{}`", other.to_string().chars().take(40).collect::<String>())));
                }
                Err(error) => return Err(wrong(format!("`{}`", without_line(&error)))),
            }
        }
        if rows.is_empty() {
            return Err(Error::file(path, "expected one question at least, got none"));
        }
        let fields = rows.iter().flat_map(|(_, row)| row.keys().cloned()).collect();
        Ok(Self { path: path.into(), digest: Digest::of(text.as_bytes()), rows, fields })
    }
}
