//! NumPy's `.npy`: one array of floats, its header read without evaluating it.

use std::path::Path;

use ndarray::{ArrayD, IxDyn};
use regex::Regex;

use super::reader::Float;
use super::torch_file::Stored;
use crate::{Error, Result};

const MAGIC: &[u8] = b"\x93NUMPY";
/// Elements of an array, at most.
const MAX_ELEMENTS: usize = 1 << 28;

/// Whether a file begins as NumPy begins it.
#[must_use]
pub fn is_npy(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Reads the array of the file whose bytes are `file`, brought to f32; `path` only names it in errors.
///
/// *Errors*: [`Error::Input`] for a damaged header, elements that aren't little-endian floats (objects are pickles),
/// column-major order, or another number of bytes than the shape needs.
pub fn read(path: &Path, file: &[u8]) -> Result<ArrayD<f32>> {
    let refuse = |problem: String| Error::file(path, problem);
    let damaged = || refuse("expected a NumPy header, got a damaged one (cut off?)".into());
    let (length, begin): (Option<usize>, usize) = match file.get(MAGIC.len()) {
        Some(1) => (file.get(8..10).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]]))), 10),
        Some(2 | 3) => (file.get(8..12).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize), 12),
        _ => (None, 0),
    };
    let header = length.and_then(|length| file.get(begin..begin.checked_add(length)?)).ok_or_else(damaged)?;
    let text = std::str::from_utf8(header).map_err(|_| damaged())?;
    let field = |pattern: &str| -> Option<String> {
        let found = Regex::new(pattern).ok()?.captures(text)?;
        Some(found[1].to_owned())
    };
    let kind = field(r"'descr':\s*'([^']*)'").ok_or_else(damaged)?;
    let stored = match kind.as_str() {
        "<f8" => Stored::Double,
        "<f4" => Stored::Float(Float::F32),
        "<f2" => Stored::Float(Float::F16),
        _ => {
            let error = refuse(format!("`descr`: expected `<f4`, `<f2` or `<f8`, got `{kind}`"));
            return Err(if kind.contains('O') {
                error.hint("arrays of objects are pickles, which can run code when they are read")
            } else {
                error
            });
        }
    };
    let shape = field(r"'shape':\s*\(([0-9, ]*)\)").ok_or_else(damaged)?;
    let shape: Vec<usize> = shape
        .split(',')
        .map(str::trim)
        .filter(|dim| !dim.is_empty())
        .map(|dim| dim.parse().map_err(|_| damaged()))
        .collect::<Result<_>>()?;
    if field(r"'fortran_order':\s*(True|False)").ok_or_else(damaged)? == "True" && shape.len() > 1 {
        return Err(refuse("expected rows one after the other, got column-major order".into())
            .hint("save `numpy.ascontiguousarray(array)`"));
    }
    let count = shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim)).filter(|count| *count <= MAX_ELEMENTS);
    let count = count.ok_or_else(|| refuse(format!("expected at most {MAX_ELEMENTS} elements, got {shape:?}")))?;
    let data = &file[begin + header.len()..];
    if data.len() != count * stored.size() {
        let (expected, got) = (count * stored.size(), data.len());
        return Err(refuse(format!("expected {expected} bytes for shape {shape:?}, got {got}")));
    }
    let mut values = vec![0.0; count];
    stored.widen(data, &mut values);
    ArrayD::from_shape_vec(IxDyn(&shape), values).map_err(|error| refuse(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let length = (header.len() as u16).to_le_bytes();
        [MAGIC, &[1, 0], &length, header.as_bytes(), data].concat()
    }

    #[test]
    fn arrays_of_every_float_are_read() {
        let header = |kind| format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': (2, 1), }}\n");
        let single = [1.5f32, -2.0].map(f32::to_le_bytes).concat();
        let double = [1.5f64, -2.0].map(f64::to_le_bytes).concat();
        for (kind, data) in [("<f4", single), ("<f8", double)] {
            let array = read(Path::new("v.npy"), &file(&header(kind), &data)).unwrap();
            assert_eq!((array.shape(), array[[0, 0]], array[[1, 0]]), (&[2, 1][..], 1.5, -2.0));
        }
    }

    #[test]
    fn what_is_no_array_of_floats_is_refused() {
        for (header, data, expected) in [
            ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", 8, "arrays of objects are pickles"),
            ("{'descr': '<i8', 'fortran_order': False, 'shape': (1,), }", 8, "got `<i8`"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }", 16, "column-major"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 4, "expected 8 bytes"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", 0, "elements"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os'),), }", 4, "damaged"),
            ("", 0, "damaged"),
        ] {
            let error = read(Path::new("v.npy"), &file(header, &vec![0; data])).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("v.npy"), "{expected:?} not in {error:?}");
        }
        let whole = file("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", &[0; 4]);
        for end in MAGIC.len()..whole.len() {
            assert!(read(Path::new("v.npy"), &whole[..end]).is_err(), "{end}");
        }
    }
}
