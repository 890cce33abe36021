//! Steering vectors of `torch.save`: one file for a block, as CAA and EasyEdit write them, a folder of such files, or a dict.
//!
//! Both tools add `multiplier · vector` to the output of the block in the file's name, from the end of the instruction on:
//! the positions called `last` here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::arrays::{self, block_in};
use super::directions::{Directions, Vectors, vector};
use super::{Op, Terms};
use crate::checkpoint::torch_file::{self, Tensors};
use crate::intervention::Edit;
use crate::model::{Blueprint, Point};
use crate::{Error, Result};

pub(super) fn load(path: &Path, terms: &Terms, blueprint: &Blueprint) -> Result<(Edit, Vec<usize>)> {
    let vectors = if path.is_dir() {
        let mut vectors = BTreeMap::new();
        for (number, file) in files(path)? {
            let Tensors::One(array) = torch_file::load(&file)? else {
                return Err(Error::file(&file, "expected one tensor, got several"));
            };
            if vectors.insert(number, vector(&file, "the tensor", &array)?).is_some() {
                return Err(Error::file(path, format!("expected one file for block {number}, got two")));
            }
        }
        Vectors::ByBlock(vectors)
    } else {
        match torch_file::load(path)? {
            Tensors::Named(named) => arrays::vectors(path, named)?,
            Tensors::One(array) => match block_in(&file_name(path)) {
                Some(number) => Vectors::ByBlock([(number, vector(path, "the tensor", &array)?)].into()),
                None => arrays::vectors(path, [("the tensor".to_owned(), array)].into())?,
            },
        }
    };
    Directions { path, vectors, point: Point::ResidPost, op: Some(Op::Add) }.edit(terms, blueprint)
}

/// The files of a folder whose names say a block, by block.
pub(super) fn files(folder: &Path) -> Result<Vec<(i64, PathBuf)>> {
    let io = |error| Error::io(folder, error);
    let mut files = vec![];
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "pt") {
            files.extend(block_in(&file_name(&path)).map(|number| (number, path)));
        }
    }
    files.sort();
    Ok(files)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
