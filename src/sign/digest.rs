//! SHA-256 digests as a manifest carries them: computed over bytes or by streaming a file, written in lower hex.
//!
//! Files are read in chunks of 1 MiB, so that a digest of a shard of any size costs constant memory. This module knows
//! nothing of folders and signatures; [`super::folder`] decides which files are worth a digest.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// Bytes read at once while a file is digested.
const CHUNK: usize = 1 << 20;

/// A SHA-256 digest; displayed, parsed and serialised as 64 lower hex digits.
///
/// *Example*
/// ```
/// let empty = immunise::sign::Digest::of_bytes(b"");
/// assert!(empty.to_string().starts_with("e3b0c442"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Digests bytes that are in memory.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Digests a file as it is read, in constant memory.
    ///
    /// *Errors* [`Error::Io`] when the file cannot be opened or read.
    pub fn of_file(path: &Path) -> Result<Self> {
        Self::stream(path).map_err(|source| Error::io(path, source))
    }

    /// Digests the concatenation of the raw bytes of `digests`, in that order: the root of a manifest.
    pub fn of_digests<'a>(digests: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut hasher = Sha256::new();
        digests.into_iter().for_each(|digest| hasher.update(digest.0));
        Self(hasher.finalize().into())
    }

    /// The raw digest.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn stream(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut chunk = vec![0; CHUNK];
        loop {
            match file.read(&mut chunk) {
                Ok(0) => return Ok(Self(hasher.finalize().into())),
                Ok(read) => hasher.update(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}

/// Text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 lower hex digits, got {0:?}")]
pub struct NotADigest(String);

impl FromStr for Digest {
    type Err = NotADigest;

    /// Upper case is refused: every digest then has one spelling, and equal text means equal bytes.
    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let malformed = || NotADigest(text.chars().take(80).collect());
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(malformed()),
        };
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| malformed())?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_of_abc_is_the_published_one() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of_bytes(b"abc").to_string(), expected);
        assert_eq!(expected.parse(), Ok(Digest::of_bytes(b"abc")));
    }

    #[test]
    fn a_file_of_several_chunks_digests_as_its_bytes_do() {
        let bytes: Vec<u8> = (0..CHUNK + CHUNK / 2 + 7).map(|i| u8::try_from(i % 251).expect("below 251")).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        assert_eq!(Digest::of_file(file.path()).unwrap(), Digest::of_bytes(&bytes));
    }

    #[test]
    fn only_64_lower_hex_digits_are_a_digest() {
        let good = Digest::of_bytes(b"").to_string();
        for bad in [String::new(), good[1..].into(), format!("{good}0"), good.to_uppercase(), good.replace('e', "é")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?} was accepted");
        }
    }
}
