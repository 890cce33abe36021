//! Activations that a block-local stage comes back to: where they lie between uses, and in which type.
//!
//! Where they lie changes no figure: numbers come back as they were kept. The type does, so it is a recipe's choice and not
//! the machine's.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Shape, Tensor};
use safetensors::View as _;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The type that activations are kept in; they are computed with as f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheType {
    /// As they were computed.
    #[default]
    F32,
    /// Half of the memory; rounded to eight bits of precision.
    Bf16,
}

impl CacheType {
    /// Bytes of one number.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// Where activations lie between uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// In the memory of the device that computes with them.
    Device,
    /// In the host's memory.
    Host,
    /// In a temporary file in this folder, which the system takes back when the run ends, however it ends.
    Disk(PathBuf),
}

/// The activations of one block.
pub(super) struct Cache {
    dtype: DType,
    shelf: Shelf,
}

enum Shelf {
    Device,
    Host,
    Disk(Disk),
}

/// A file of activations, and what errors call it.
#[derive(Clone)]
struct Disk {
    file: Arc<Mutex<File>>,
    name: PathBuf,
}

/// One tensor of a cache.
pub(super) struct Kept(Place);

enum Place {
    /// In memory that may be another's than that of the `device` which computes.
    Memory { values: Tensor, device: Device },
    /// At an offset in a file.
    Disk { disk: Disk, at: u64, dtype: DType, shape: Shape, device: Device },
}

impl Cache {
    /// An empty one.
    ///
    /// # Errors
    /// When no file can be made in the room's folder.
    pub fn new(room: &Room, kind: CacheType) -> Result<Self> {
        let shelf = match room {
            Room::Device => Shelf::Device,
            Room::Host => Shelf::Host,
            Room::Disk(folder) => {
                let name = folder.join("activations");
                let file = tempfile::tempfile_in(folder).map_err(|error| Error::io(&name, error))?;
                Shelf::Disk(Disk { file: Arc::new(Mutex::new(file)), name })
            }
        };
        Ok(Self { dtype: kind.dtype(), shelf })
    }

    /// Keeps `values`, f32 and of any shape.
    ///
    /// # Errors
    /// When the disk is full, or a copy from the device fails.
    pub fn keep(&self, values: &Tensor) -> Result<Kept> {
        let device = values.device().clone();
        let values = values.detach().to_dtype(self.dtype)?.contiguous()?;
        Ok(Kept(match &self.shelf {
            Shelf::Device => Place::Memory { values, device },
            Shelf::Host => Place::Memory { values: values.to_device(&Device::Cpu)?, device },
            Shelf::Disk(disk) => {
                let values = values.to_device(&Device::Cpu)?;
                let at = disk.append(&values.data())?;
                let (dtype, shape) = (self.dtype, values.shape().clone());
                Place::Disk { disk: disk.clone(), at, dtype, shape, device }
            }
        }))
    }
}

impl Kept {
    /// The values, f32, on the device that they came from.
    ///
    /// # Errors
    /// When reading fails, or the device is out of memory.
    pub fn take(&self) -> Result<Tensor> {
        let (values, device) = match &self.0 {
            Place::Memory { values, device } => (values.clone(), device),
            Place::Disk { disk, at, dtype, shape, device } => {
                let bytes = disk.read(*at, shape.elem_count() * dtype.size_in_bytes())?;
                (Tensor::from_raw_buffer(&bytes, *dtype, shape.dims(), &Device::Cpu)?, device)
            }
        };
        Ok(values.to_device(device)?.to_dtype(DType::F32)?)
    }
}

impl Disk {
    /// Where `bytes` begin.
    fn append(&self, bytes: &[u8]) -> Result<u64> {
        self.with(|file| {
            let at = file.seek(SeekFrom::End(0))?;
            file.write_all(bytes)?;
            Ok(at)
        })
    }

    fn read(&self, at: u64, length: usize) -> Result<Vec<u8>> {
        self.with(|file| {
            file.seek(SeekFrom::Start(at))?;
            let mut bytes = vec![0; length];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut File) -> std::io::Result<T>) -> Result<T> {
        let poisoned = |_| std::io::Error::other("another worker panicked while it used this file");
        let mut file = self.file.lock().map_err(poisoned).map_err(|error| Error::io(&self.name, error))?;
        act(&mut file).map_err(|error| Error::io(&self.name, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms(folder: &std::path::Path) -> [Room; 3] {
        [Room::Device, Room::Host, Room::Disk(folder.to_owned())]
    }

    #[test]
    fn numbers_come_back_as_they_were_kept_from_every_room() {
        let folder = tempfile::tempdir().unwrap();
        let whole =
            Tensor::new(&[[1.0_f32, -3.25e-7, 1.0 + 1.0 / 512.0], [f32::MIN_POSITIVE, 7e20, 0.1]], &Device::Cpu);
        let whole = whole.unwrap();
        let other = (&whole * 2.0).unwrap().t().unwrap();
        let rounded = |values: &Tensor| values.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        let rows = |values: &Tensor| values.to_vec2::<f32>().unwrap();
        for room in rooms(folder.path()) {
            for (kind, of) in [(CacheType::F32, Tensor::clone as fn(&Tensor) -> Tensor), (CacheType::Bf16, rounded)] {
                let cache = Cache::new(&room, kind).unwrap();
                let kept = [&whole, &other].map(|values| cache.keep(values).unwrap());
                let taken = kept.map(|kept| rows(&kept.take().unwrap()));
                assert_eq!(taken, [rows(&of(&whole)), rows(&of(&other))], "{room:?} {kind:?}");
            }
        }
        assert_ne!(rows(&rounded(&whole)), rows(&whole), "the values are worth rounding");
    }

    // Elsewhere it has one until it is closed.
    #[cfg(unix)]
    #[test]
    fn a_file_of_activations_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(&Room::Disk(folder.path().to_owned()), CacheType::F32).unwrap();
        let kept = cache.keep(&Tensor::ones((2, 3), DType::F32, &Device::Cpu).unwrap()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        drop(cache);
        assert_eq!(
            kept.take().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(),
            6.0,
            "it lives as its tensors do"
        );
    }

    #[test]
    fn a_folder_that_is_gone_is_named() {
        let folder = tempfile::tempdir().unwrap().path().join("gone");
        let error = Cache::new(&Room::Disk(folder), CacheType::F32).err().unwrap();
        assert!(error.to_string().contains("gone"), "{error}");
    }
}
