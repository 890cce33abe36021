//! The state of a long computation between two steps, as bytes: bit for bit, so that what is resumed ends where an
//! undisturbed run does.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// What errors name.
const SUBJECT: &str = "kept state";

/// Named lists of f32 and small values that serde knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    numbers: BTreeMap<String, Vec<f32>>,
    values: BTreeMap<String, String>,
}

impl Snapshot {
    /// Keeps a list of numbers.
    pub fn put_numbers(&mut self, name: impl Into<String>, numbers: Vec<f32>) {
        self.numbers.insert(name.into(), numbers);
    }

    /// The numbers kept under `name`.
    ///
    /// # Errors
    /// When there are none.
    pub fn numbers(&self, name: &str) -> Result<&[f32]> {
        self.numbers.get(name).map(Vec::as_slice).ok_or_else(|| missing(name))
    }

    /// Keeps a small value. Floating-point numbers belong among the numbers, or are kept as their bits.
    ///
    /// # Errors
    /// When serde cannot write it as JSON.
    pub fn put(&mut self, name: impl Into<String>, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(value).map_err(|error| Error::input(SUBJECT, error.to_string()))?;
        self.values.insert(name.into(), text);
        Ok(())
    }

    /// The value kept under `name`.
    ///
    /// # Errors
    /// When there is none, or another kind of value.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let text = self.values.get(name).ok_or_else(|| missing(name))?;
        serde_json::from_str(text).map_err(|error| Error::input(format!("{SUBJECT}, `{name}`"), error.to_string()))
    }

    /// As a safetensors file: numbers as tensors of one dimension, values as its metadata.
    ///
    /// # Errors
    /// When the format cannot hold it.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let bytes: Vec<(&String, Vec<u8>)> = self
            .numbers
            .iter()
            .map(|(name, list)| (name, list.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let views = bytes
            .iter()
            .map(|(name, bytes)| Ok((*name, TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(broken)?;
        let values: HashMap<String, String> = self.values.clone().into_iter().collect();
        safetensors::serialize(views, Some(values)).map_err(broken)
    }

    /// Reads what [`Snapshot::to_bytes`] wrote.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let values = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let tensors = SafeTensors::deserialize(bytes).map_err(broken)?;
        let read = |view: &TensorView<'_>| {
            view.data().as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect::<Vec<f32>>()
        };
        let numbers = tensors.iter().map(|(name, view)| (name.to_owned(), read(&view))).collect();
        Ok(Self { numbers, values })
    }
}

fn missing(name: &str) -> Error {
    Error::input(SUBJECT, format!("expected `{name}`, got nothing of that name"))
}

fn broken(error: safetensors::SafeTensorError) -> Error {
    Error::input(SUBJECT, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_comes_back() {
        let mut snapshot = Snapshot::default();
        let odd = vec![0.1_f32, -0.0, f32::MIN_POSITIVE / 4.0, f32::NAN, 1e30];
        snapshot.put_numbers("a/b", odd.clone());
        snapshot.put_numbers("none", vec![]);
        snapshot.put("step", &17_usize).unwrap();
        snapshot.put("loss", &0.1_f64.to_bits()).unwrap();
        let back = Snapshot::from_bytes(&snapshot.to_bytes().unwrap()).unwrap();
        let bits = |list: &[f32]| list.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(back.numbers("a/b").unwrap()), bits(&odd));
        assert!(back.numbers("none").unwrap().is_empty());
        assert_eq!(back.get::<usize>("step").unwrap(), 17);
        assert_eq!(f64::from_bits(back.get("loss").unwrap()), 0.1);
    }

    #[test]
    fn what_is_missing_or_damaged_is_named() {
        let snapshot = Snapshot::default();
        assert!(snapshot.numbers("x").unwrap_err().to_string().contains("`x`"));
        assert!(snapshot.get::<u32>("y").unwrap_err().to_string().contains("`y`"));
        let mut bytes = snapshot.to_bytes().unwrap();
        bytes.truncate(9);
        assert_eq!(Snapshot::from_bytes(&bytes).unwrap_err().exit_code(), 3);
    }
}
