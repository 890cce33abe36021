//! The keys that sign and verify: ECDSA on P-256 with SHA-256, P-384 with SHA-384, P-521 with SHA-512.
//!
//! Signatures are deterministic (RFC 6979), so that signing the same folder twice gives the same bytes. Keys come as
//! PKCS#8, encrypted PKCS#8 or SEC1 in PEM; where a passphrase comes from (environment, file) is the caller's business,
//! and no message here ever holds key material.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use p256::ecdsa::signature::{Signer, Verifier as _};
use p256::elliptic_curve::Generate as _;
use p256::elliptic_curve::common::getrandom::SysRng;
use pkcs8::der::zeroize::Zeroizing;
use pkcs8::spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};
use pkcs8::{
    DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _,
    EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef,
};

use super::digest::Digest;
use super::pem;
use crate::error::{Error, Result};

/// A key file larger than this is something else: 64 KiB.
const MAX_KEY_FILE: u64 = 64 << 10;
const CURVES: &str = "on P-256, P-384 or P-521";
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";

/// A private key. Its `Debug` form shows the curve only, and the scalar is wiped when it is dropped.
#[derive(Debug, Clone)]
pub enum SigningKey {
    /// NIST P-256, signing SHA-256.
    P256(p256::ecdsa::SigningKey),
    /// NIST P-384, signing SHA-384.
    P384(p384::ecdsa::SigningKey),
    /// NIST P-521, signing SHA-512.
    P521(p521::ecdsa::SigningKey),
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyingKey {
    /// NIST P-256, verifying SHA-256.
    P256(p256::ecdsa::VerifyingKey),
    /// NIST P-384, verifying SHA-384.
    P384(p384::ecdsa::VerifyingKey),
    /// NIST P-521, verifying SHA-512.
    P521(p521::ecdsa::VerifyingKey),
}

impl SigningKey {
    /// A new P-256 key from the operating system's randomness.
    ///
    /// *Errors* [`Error::Input`] when the system has no randomness to give.
    pub fn generate() -> Result<Self> {
        Self::generate_on(Curve::P256)
    }

    /// A new key on a curve.
    ///
    /// *Errors* as [`SigningKey::generate`].
    pub fn generate_on(curve: Curve) -> Result<Self> {
        match curve {
            Curve::P256 => p256::ecdsa::SigningKey::try_generate().map(Self::P256),
            Curve::P384 => p384::ecdsa::SigningKey::try_generate().map(Self::P384),
            Curve::P521 => p521::ecdsa::SigningKey::try_generate().map(Self::P521),
        }
        .map_err(|error| Error::input("system randomness", error.to_string()))
    }

    /// Whether the file holds a key that takes a passphrase.
    ///
    /// *Errors* as [`SigningKey::read`] when the file cannot be read at all.
    pub fn is_encrypted(path: &Path) -> Result<bool> {
        Ok(pem::first_key(&read_text(path)?).is_ok_and(|block| block.label == ENCRYPTED))
    }

    /// Reads a private key: PKCS#8, encrypted PKCS#8 (with its passphrase) or SEC1, in PEM.
    ///
    /// *Errors* [`Error::Io`] when the file cannot be read; [`Error::Input`] naming the file, what was expected and what
    /// it holds: another kind of key, another curve, an encrypted key without or with the wrong passphrase, damage.
    pub fn read(path: &Path, passphrase: Option<&str>) -> Result<Self> {
        Self::parse(&read_text(path)?, passphrase).map_err(|Unusable { found, hint }| {
            let error = Error::file(path, format!("expected an EC private key {CURVES}, got {found}"));
            if let Some(hint) = hint { error.hint(hint) } else { error }
        })
    }

    fn parse(text: &str, passphrase: Option<&str>) -> Result<Self, Unusable> {
        let block = pem::first_key(text)?;
        match block.label.as_str() {
            "PRIVATE KEY" => Self::from_pkcs8(&block.der),
            ENCRYPTED => Self::from_encrypted(&block.der, passphrase),
            "EC PRIVATE KEY" => Self::from_sec1(&block.der),
            "PUBLIC KEY" => Err(Unusable::with_hint("a public key", "signing takes the private key of the pair")),
            label => Err(Unusable::from(label_in_words(label))),
        }
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, Unusable> {
        let damaged = || Unusable::from("a damaged PKCS#8 key".to_owned());
        let info = PrivateKeyInfoRef::try_from(der).map_err(|_| damaged())?;
        match Curve::of(&info.algorithm, "private")? {
            Curve::P256 => p256::ecdsa::SigningKey::from_pkcs8_der(der).map(Self::P256),
            Curve::P384 => p384::ecdsa::SigningKey::from_pkcs8_der(der).map(Self::P384),
            Curve::P521 => p521::ecdsa::SigningKey::from_pkcs8_der(der).map(Self::P521),
        }
        .map_err(|_| damaged())
    }

    fn from_encrypted(der: &[u8], passphrase: Option<&str>) -> Result<Self, Unusable> {
        use pkcs8::pkcs5::Error::{DecryptFailed, EncryptFailed};
        let hint = "re-encrypt it with `openssl pkcs8 -topk8 -v2 aes-256-cbc`";
        let Some(passphrase) = passphrase else {
            return Err(Unusable::with_hint("an encrypted key and no passphrase", "give its passphrase"));
        };
        let info = EncryptedPrivateKeyInfoRef::try_from(der)
            .map_err(|_| Unusable::with_hint("an encrypted key in an unknown or damaged form", hint))?;
        let wrong = || Unusable::from("an encrypted key that its passphrase does not open".to_owned());
        let key = info.decrypt(passphrase).map_err(|error| match error {
            // A wrong passphrase shows as bad padding, or by chance as good padding around bytes that aren't DER.
            pkcs8::Error::EncryptedPrivateKey(DecryptFailed | EncryptFailed) | pkcs8::Error::Asn1(_) => wrong(),
            error => Unusable::with_hint(format!("an encrypted key of an unsupported form ({error})"), hint),
        })?;
        Self::from_pkcs8(key.as_bytes())
    }

    /// SEC1 may leave its curve unnamed; then the length of the scalar decides, so the curves are tried smallest first.
    fn from_sec1(der: &[u8]) -> Result<Self, Unusable> {
        let p256 = || p256::SecretKey::from_sec1_der(der).map(|key| Self::P256(key.into()));
        let p384 = || p384::SecretKey::from_sec1_der(der).map(|key| Self::P384(key.into()));
        let p521 = || p521::SecretKey::from_sec1_der(der).map(|key| Self::P521(key.into()));
        p256()
            .or_else(|_| p384())
            .or_else(|_| p521())
            .map_err(|_| Unusable::from("a damaged SEC1 key or one on another curve".to_owned()))
    }

    /// Signs `message`; the same message gives the same DER-encoded signature.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::P256(key) => Signer::<p256::ecdsa::Signature>::sign(key, message).to_der().as_bytes().to_vec(),
            Self::P384(key) => Signer::<p384::ecdsa::Signature>::sign(key, message).to_der().as_bytes().to_vec(),
            Self::P521(key) => Signer::<p521::ecdsa::Signature>::sign(key, message).to_der().as_bytes().to_vec(),
        }
    }

    /// The public key of the pair.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        match self {
            Self::P256(key) => VerifyingKey::P256(*key.verifying_key()),
            Self::P384(key) => VerifyingKey::P384(*key.verifying_key()),
            Self::P521(key) => VerifyingKey::P521(*key.verifying_key()),
        }
    }

    /// The key as unencrypted PKCS#8 PEM; the text is wiped when it is dropped.
    #[must_use]
    pub fn to_pkcs8_pem(&self) -> Zeroizing<String> {
        match self {
            Self::P256(key) => key.to_pkcs8_pem(LineEnding::LF),
            Self::P384(key) => key.to_pkcs8_pem(LineEnding::LF),
            Self::P521(key) => key.to_pkcs8_pem(LineEnding::LF),
        }
        .expect("a valid key has an encoding")
    }

    /// The key as encrypted PKCS#8 PEM (scrypt, AES-256-CBC).
    fn to_encrypted_pem(&self, passphrase: &str) -> Result<Zeroizing<String>> {
        let failed = |error: &dyn std::fmt::Display| Error::input("private key", format!("not encrypted: {error}"));
        let plain = match self {
            Self::P256(key) => key.to_pkcs8_der(),
            Self::P384(key) => key.to_pkcs8_der(),
            Self::P521(key) => key.to_pkcs8_der(),
        }
        .map_err(|error| failed(&error))?;
        let info = PrivateKeyInfoRef::try_from(plain.as_bytes()).map_err(|error| failed(&error))?;
        let sealed = info.encrypt_with_rng(&mut SysRng, passphrase).map_err(|error| failed(&error))?;
        sealed.to_pem(ENCRYPTED, LineEnding::LF).map_err(|error| failed(&error))
    }

    /// Writes the pair: `K.pem`, readable by its owner only and encrypted where there is a passphrase, and `K.pub.pem`,
    /// whose path is returned.
    ///
    /// *Errors* [`Error::Input`] naming the file that exists already (no key is ever overwritten); [`Error::Io`] when
    /// one cannot be written. Either both files are there afterwards or neither.
    pub fn write_pair(&self, path: &Path, passphrase: Option<&str>) -> Result<PathBuf> {
        let public = path.with_extension("pub.pem");
        if public == path {
            return Err(Error::usage(format!("expected a name for the private key, got `{}`", path.display())));
        }
        let private = match passphrase {
            Some(passphrase) => self.to_encrypted_pem(passphrase)?,
            None => self.to_pkcs8_pem(),
        };
        create(path, 0o600, |file| file.write_all(private.as_bytes()))?;
        let text = self.verifying_key().to_spki_pem();
        if let Err(error) = create(&public, 0o644, |file| file.write_all(text.as_bytes())) {
            // The private key was made a moment ago and nothing was signed with it.
            fs::remove_file(path).map_err(|source| Error::io(path, source))?;
            return Err(error);
        }
        Ok(public)
    }
}

impl VerifyingKey {
    /// Reads a public key: `SubjectPublicKeyInfo` in PEM.
    ///
    /// *Errors* [`Error::Io`] when the file cannot be read; [`Error::Input`] naming the file, what was expected and what
    /// it holds.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read_text(path)?).map_err(|Unusable { found, hint }| {
            let error = Error::file(path, format!("expected an EC public key {CURVES}, got {found}"));
            if let Some(hint) = hint { error.hint(hint) } else { error }
        })
    }

    fn parse(text: &str) -> Result<Self, Unusable> {
        let block = pem::first_key(text)?;
        if block.label != "PUBLIC KEY" {
            let found = label_in_words(&block.label);
            return Err(if block.label.ends_with("PRIVATE KEY") {
                Unusable::with_hint(found, "verifying takes the public key of the pair, `K.pub.pem` beside `K.pem`")
            } else {
                found.into()
            });
        }
        Self::read_spki(&block.der)
    }

    /// The key of a `SubjectPublicKeyInfo` in DER, if it is on one of the curves.
    pub(super) fn from_spki(der: &[u8]) -> Option<Self> {
        Self::read_spki(der).ok()
    }

    fn read_spki(der: &[u8]) -> Result<Self, Unusable> {
        let damaged = || Unusable::from("a damaged public key".to_owned());
        let info = SubjectPublicKeyInfoRef::try_from(der).map_err(|_| damaged())?;
        match Curve::of(&info.algorithm, "public")? {
            Curve::P256 => p256::ecdsa::VerifyingKey::from_public_key_der(der).map(Self::P256),
            Curve::P384 => p384::ecdsa::VerifyingKey::from_public_key_der(der).map(Self::P384),
            Curve::P521 => p521::ecdsa::VerifyingKey::from_public_key_der(der).map(Self::P521),
        }
        .map_err(|_| damaged())
    }

    /// Whether the DER-encoded `signature` over `message` holds.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::P256(key) => {
                p256::ecdsa::Signature::from_der(signature).is_ok_and(|s| key.verify(message, &s).is_ok())
            }
            Self::P384(key) => {
                p384::ecdsa::Signature::from_der(signature).is_ok_and(|s| key.verify(message, &s).is_ok())
            }
            Self::P521(key) => {
                p521::ecdsa::Signature::from_der(signature).is_ok_and(|s| key.verify(message, &s).is_ok())
            }
        }
    }

    /// The key as `SubjectPublicKeyInfo` PEM: LF line ends, 64 columns, a final newline.
    #[must_use]
    pub fn to_spki_pem(&self) -> String {
        match self {
            Self::P256(key) => key.to_public_key_pem(LineEnding::LF),
            Self::P384(key) => key.to_public_key_pem(LineEnding::LF),
            Self::P521(key) => key.to_public_key_pem(LineEnding::LF),
        }
        .expect("a valid key has an encoding")
    }

    /// Lower hex SHA-256 of [`Self::to_spki_pem`], as `sha256sum K.pub.pem` prints it.
    #[must_use]
    pub fn hint(&self) -> String {
        Digest::of_bytes(self.to_spki_pem().as_bytes()).to_string()
    }
}

/// An elliptic curve of NIST's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// P-256, with SHA-256.
    P256,
    /// P-384, with SHA-384.
    P384,
    /// P-521, with SHA-512.
    P521,
}

impl Curve {
    /// The curve of an EC key, or in words what kind of `side` (private, public) key it is.
    fn of(algorithm: &AlgorithmIdentifierRef<'_>, side: &str) -> Result<Self, Unusable> {
        let oid = algorithm.oid.to_string();
        let kind = match oid.as_str() {
            "1.2.840.10045.2.1" => {
                return match algorithm.parameters_oid().map(|oid| oid.to_string()).as_deref() {
                    Ok("1.2.840.10045.3.1.7") => Ok(Self::P256),
                    Ok("1.3.132.0.34") => Ok(Self::P384),
                    Ok("1.3.132.0.35") => Ok(Self::P521),
                    Ok("1.3.132.0.10") => Err(format!("an EC {side} key on secp256k1").into()),
                    Ok(curve) => Err(format!("an EC {side} key on curve {curve}").into()),
                    Err(_) => Err(format!("an EC {side} key with unnamed curve parameters").into()),
                };
            }
            "1.2.840.113549.1.1.1" => "an RSA",
            "1.2.840.113549.1.1.10" => "an RSA-PSS",
            "1.2.840.10040.4.1" => "a DSA",
            "1.3.101.110" => "an X25519",
            "1.3.101.112" => "an Ed25519",
            "1.3.101.113" => "an Ed448",
            _ => return Err(format!("a {side} key of algorithm {oid}").into()),
        };
        Err(format!("{kind} {side} key").into())
    }
}

/// Why a key file cannot be used: what it holds, and what to do.
struct Unusable {
    found: String,
    hint: Option<&'static str>,
}

impl Unusable {
    fn with_hint(found: impl Into<String>, hint: &'static str) -> Self {
        Self { found: found.into(), hint: Some(hint) }
    }
}

impl From<String> for Unusable {
    fn from(found: String) -> Self {
        Self { found, hint: None }
    }
}

fn label_in_words(label: &str) -> String {
    match label {
        "RSA PRIVATE KEY" => "an RSA private key".into(),
        "EC PRIVATE KEY" | "PRIVATE KEY" | ENCRYPTED => "a private key".into(),
        "OPENSSH PRIVATE KEY" => "an OpenSSH private key".into(),
        "CERTIFICATE" => "a certificate".into(),
        _ => format!("a PEM block `{label}`"),
    }
}

fn read_text(path: &Path) -> Result<Zeroizing<String>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|source| Error::io(path, source))?;
    file.take(MAX_KEY_FILE + 1).read_to_end(&mut bytes).map_err(|source| Error::io(path, source))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_KEY_FILE) {
        return Err(Error::file(path, format!("expected a PEM key, got a file of more than {MAX_KEY_FILE} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| {
        Error::file(path, "expected a PEM key, got a binary file").hint("convert DER with `openssl pkey -inform DER`")
    })?;
    Ok(Zeroizing::new(text))
}

/// Writes a new file, or leaves none; `mode` is its permissions where there are such.
fn create(path: &Path, mode: u32, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = options.open(path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => {
            Error::file(path, "expected a new file, got one that exists").hint("keys are never overwritten")
        }
        _ => Error::io(path, source),
    })?;
    let written = write(&mut file).and_then(|()| file.sync_all());
    drop(file);
    written.map_err(|source| {
        // It was made a moment ago. Why it can't be written says more than why it can't be removed.
        let _ = fs::remove_file(path);
        Error::io(path, source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_cannot_be_written_whole_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.pub.pem");
        let full = |file: &mut File| -> io::Result<()> {
            file.write_all(b"-----BEGIN")?;
            Err(io::ErrorKind::StorageFull.into())
        };
        let error = create(&path, 0o644, full).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("k.pub.pem")), "{error}");
        assert!(!path.exists());
        // What was there before is neither touched nor removed.
        fs::write(&path, "older").unwrap();
        assert!(create(&path, 0o644, full).unwrap_err().to_string().contains("never overwritten"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "older");
    }
}
