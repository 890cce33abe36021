//! A model on disk in Hugging Face layout: lazy, atomic, byte-preserving.
//!
//! Owns what a folder must look like to be a checkpoint, where each tensor's bytes are, and how a changed copy is
//! written. It knows nothing of what the tensors mean: the blueprint of a family asks for names and shapes. Tensors are
//! never re-serialised, because that re-orders them; a patch keeps each header and rewrites data in place.
//!
//! [`gguf`], [`npy`] and [`torch_file`] read the other files that tensors come in: what attackers publish, never weights
//! that are patched.

pub mod block_quant;
pub mod config;
pub mod diff;
pub mod files;
pub mod gguf;
pub mod header;
pub mod index;
pub mod npy;
pub mod pickle;
pub mod private_key;
pub mod reader;
pub mod staging;
pub mod torch_file;
pub mod writer;

pub use config::Config;
pub use diff::{Diff, diff};
pub use files::Digest;
pub use private_key::refuse_private_keys;
pub use reader::{Checkpoint, TensorInfo};
pub use safetensors::Dtype;
pub use staging::Staged;
pub use torch_file::Tensors;
pub use writer::{PatchReport, Patches, TensorPatch, patch};
