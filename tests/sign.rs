//! Signing a model folder and verifying one, against signatures and keys that something else made (fixtures/oms) and
//! against every way of tampering with a signed folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use immunise::Error;
use immunise::sign::attestation::{self, ATTESTATION_FILE, Attested, Evidence, Material, Outcome};
use immunise::sign::{
    Chain, Curve, Digest, Manifest, Resource, SigningKey, Trust, VerifyingKey, sign_folder, sign_folder_as,
    sign_folder_certified, verify_folder, verify_folder_certified,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const CURVES: [&str; 3] = ["p256", "p384", "p521"];
const PASSPHRASE: &str = "correct horse";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/oms").join(name)
}

fn key(name: &str) -> SigningKey {
    SigningKey::read(&fixture("keys").join(name), None).unwrap()
}

/// A copy of fixtures/oms/model, in a folder of that name.
struct Model {
    _parent: TempDir,
    dir: PathBuf,
    curve: &'static str,
}

impl Model {
    fn unsigned() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("model");
        fs::create_dir_all(dir.join("a")).unwrap();
        for name in ["README.md", "a.txt", "a/b", "config.json", "model.safetensors"] {
            fs::copy(fixture("model").join(name), dir.join(name)).unwrap();
        }
        Self { _parent: parent, dir, curve: "p256" }
    }

    fn signed() -> Self {
        Self::signed_on("p256")
    }

    fn signed_on(curve: &'static str) -> Self {
        let model = Self { curve, ..Self::unsigned() };
        sign_folder(&model.dir, &model.key()).unwrap();
        model
    }

    fn key(&self) -> SigningKey {
        key(&format!("{}.pem", self.curve))
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// Moves a file or folder out of the model and puts a link to it in its place.
    #[cfg(unix)]
    fn link(&self, name: &str) {
        fs::rename(self.path(name), self.dir.with_file_name("elsewhere")).unwrap();
        std::os::unix::fs::symlink("../elsewhere", self.path(name)).unwrap();
    }

    fn cut(&self, name: &str) {
        let bytes = fs::read(self.path(name)).unwrap();
        fs::write(self.path(name), &bytes[..bytes.len() / 2]).unwrap();
    }

    /// Edits a file, and the payload to say so, without the key.
    fn fit_payload(&self) {
        self.write("config.json", "{}");
        let honest = Manifest::of_folder(&self.dir).unwrap();
        self.edit_bundle(|bundle| bundle["dsseEnvelope"]["payload"] = json!(STANDARD.encode(honest.to_statement())));
    }

    /// Adds weights that the signer says are none of the signature's business.
    fn leave_out(&self) {
        self.write("model-2.safetensors", "");
        self.resign(|statement| {
            let ignored = &mut statement["predicate"]["serialization"]["ignore_paths"];
            ignored.as_array_mut().unwrap().push(json!("model-2.safetensors"));
        });
    }

    /// The same files as the hub's cache keeps them: a snapshot of links into `blobs` of the model.
    #[cfg(unix)]
    fn cached(self) -> Self {
        let repo = self._parent.path().join("hub/models--org--name");
        let dir = repo.join("snapshots/0123456789abcdef0123456789abcdef01234567");
        fs::create_dir_all(repo.join("blobs")).unwrap();
        fs::create_dir_all(dir.join("a")).unwrap();
        for name in ["README.md", "a.txt", "a/b", "config.json", "model.safetensors", "model.sig"] {
            let blob = name.replace('/', "-");
            fs::rename(self.path(name), repo.join("blobs").join(&blob)).unwrap();
            let up = "../".repeat(2 + name.matches('/').count());
            std::os::unix::fs::symlink(format!("{up}blobs/{blob}"), dir.join(name)).unwrap();
        }
        Self { dir, ..self }
    }

    /// Makes a file of a snapshot a link to `target`.
    #[cfg(unix)]
    fn relink(&self, name: &str, target: &str) {
        self.remove(name);
        std::os::unix::fs::symlink(target, self.path(name)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn verify(&self) -> Result<Manifest, Error> {
        verify_folder(&self.dir, &self.key().verifying_key())
    }

    /// What verification says, after checking that it fails with exit code 4 and names `subject`.
    #[track_caller]
    fn refused(&self, subject: &str) -> String {
        let error = self.verify().expect_err("the folder verified");
        assert_eq!(error.exit_code(), 4, "{error}");
        assert!(matches!(&error, Error::Signature { subject: named, .. } if named == subject), "{error}");
        error.to_string()
    }

    fn bundle(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("model.sig")).unwrap()).unwrap()
    }

    fn edit_bundle(&self, edit: impl FnOnce(&mut Value)) {
        let mut bundle = self.bundle();
        edit(&mut bundle);
        fs::write(self.path("model.sig"), bundle.to_string()).unwrap();
    }

    fn edit_payload(bundle: &mut Value, edit: impl FnOnce(&mut Value)) {
        let payload = &mut bundle["dsseEnvelope"]["payload"];
        let mut statement = serde_json::from_slice(&STANDARD.decode(payload.as_str().unwrap()).unwrap()).unwrap();
        edit(&mut statement);
        *payload = json!(STANDARD.encode(statement.to_string()));
    }

    /// Replaces the signature by one that holds, made with the right key over an edited statement.
    fn resign(&self, edit: impl FnOnce(&mut Value)) {
        self.edit_bundle(|bundle| {
            Self::edit_payload(bundle, edit);
            let payload = STANDARD.decode(bundle["dsseEnvelope"]["payload"].as_str().unwrap()).unwrap();
            let signature = self.key().sign(&immunise::sign::dsse::pae("application/vnd.in-toto+json", &payload));
            bundle["dsseEnvelope"]["signatures"][0]["sig"] = json!(STANDARD.encode(signature));
        });
    }
}

// Known answers and round trips.

#[test]
fn signatures_are_byte_for_byte_the_known_ones() {
    for curve in CURVES {
        let model = Model::unsigned();
        sign_folder(&model.dir, &key(&format!("{curve}.pem"))).unwrap();
        let expected = fs::read_to_string(fixture("known").join(format!("{curve}.sig"))).unwrap();
        assert_eq!(fs::read_to_string(model.path("model.sig")).unwrap(), expected, "{curve}");
    }
}

#[test]
fn every_form_of_a_key_signs_alike() {
    for curve in CURVES {
        let plain = key(&format!("{curve}.pem"));
        let sec1 = key(&format!("{curve}.sec1.pem"));
        let encrypted = fixture("keys").join(format!("{curve}.encrypted.pem"));
        let encrypted = SigningKey::read(&encrypted, Some(PASSPHRASE)).unwrap();
        let expected = plain.sign(b"sample");
        assert_eq!(sec1.sign(b"sample"), expected, "{curve}");
        assert_eq!(encrypted.sign(b"sample"), expected, "{curve}");

        let public = VerifyingKey::read(&fixture("keys").join(format!("{curve}.pub.pem"))).unwrap();
        assert_eq!(public, plain.verifying_key());
        assert!(public.verify(b"sample", &expected) && !public.verify(b"Sample", &expected));
        // The hint is what sha256sum says of OpenSSL's file.
        let text = fs::read(fixture("keys").join(format!("{curve}.pub.pem"))).unwrap();
        assert_eq!(public.hint(), Digest::of_bytes(&text).to_string());
        assert_eq!(public.to_spki_pem().as_bytes(), text);
    }
}

#[test]
fn folders_signed_by_the_reference_implementation_verify() {
    for curve in CURVES {
        let model = Model::unsigned();
        fs::copy(fixture("reference").join(format!("{curve}.sig")), model.path("model.sig")).unwrap();
        let manifest = verify_folder(&model.dir, &key(&format!("{curve}.pem")).verifying_key()).unwrap();
        let names: Vec<_> = manifest.resources().iter().map(|resource| resource.name.as_str()).collect();
        // By path, not by code point: the order that was signed is kept.
        assert_eq!(names, ["README.md", "a/b", "a.txt", "config.json", "model.safetensors"]);
    }
}

#[test]
fn signing_twice_gives_the_same_bytes_and_ignores_the_older_signature() {
    let model = Model::signed();
    let first = fs::read(model.path("model.sig")).unwrap();
    let manifest = sign_folder(&model.dir, &key("p256.pem")).unwrap();
    assert_eq!(fs::read(model.path("model.sig")).unwrap(), first);
    assert_eq!(model.verify().unwrap(), manifest);
    assert_eq!(manifest.name(), "model");
}

#[test]
fn a_folder_can_be_signed_under_the_name_that_it_will_have() {
    let (model, other) = (Model::signed(), Model::unsigned());
    let elsewhere = other.dir.with_file_name(".tmp-8271");
    fs::rename(&other.dir, &elsewhere).unwrap();
    sign_folder_as(&elsewhere, "model", &key("p256.pem")).unwrap();
    assert_eq!(fs::read(elsewhere.join("model.sig")).unwrap(), fs::read(model.path("model.sig")).unwrap());
}

#[test]
fn a_renamed_folder_still_verifies() {
    let model = Model::signed();
    let elsewhere = model.dir.with_file_name("copy");
    fs::rename(&model.dir, &elsewhere).unwrap();
    verify_folder(&elsewhere, &key("p256.pem").verifying_key()).unwrap();
}

#[test]
fn git_s_own_files_are_left_out_in_the_root_only() {
    let model = Model::signed();
    fs::create_dir(model.path(".git")).unwrap();
    fs::write(model.path(".git/HEAD"), "ref").unwrap();
    fs::write(model.path(".gitattributes"), "*.safetensors filter=lfs").unwrap();
    model.verify().unwrap();

    fs::write(model.path("a/.gitattributes"), "").unwrap();
    assert!(model.refused("a/.gitattributes").contains("not signed"));
}

#[cfg(unix)]
#[test]
fn a_snapshot_of_the_hub_s_cache_verifies_and_is_not_signed() {
    for curve in CURVES {
        let model = Model::signed_on(curve).cached();
        model.verify().unwrap();
        let error = sign_folder(&model.dir, &model.key()).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains("symbolic link"), "{error}");
    }
    let model = certified("p256", &["intermediate"], "p256").cached();
    verify_folder_certified(&model.dir, &trusting("root", &[])).unwrap();
}

#[cfg(unix)]
#[test]
fn in_a_snapshot_only_links_to_blobs_of_the_model_are_followed() {
    type Tampering = fn(&Model);
    let cases: [(&str, Tampering, &str, &str); 9] = [
        ("a blob edited", |m| m.write("../../blobs/config.json", "{ }"), "config.json", "edited"),
        ("another blob", |m| m.relink("config.json", "../../blobs/a.txt"), "config.json", "edited"),
        ("a blob gone", |m| m.remove("../../blobs/config.json"), "config.json", "`blobs`"),
        ("a folder", |m| m.relink("a.txt", "../../blobs"), "a.txt", "`blobs`"),
        ("a folder of the cache", |m| m.relink("a.txt", "../../snapshots"), "a.txt", "`blobs`"),
        ("out of blobs", |m| elsewhere(m, "../../config.json"), "config.json", "`blobs`"),
        ("another model", |m| elsewhere(m, "../../../models--org--other/blobs/config.json"), "config.json", "`blobs`"),
        ("by way of blobs", by_way_of_blobs, "config.json", "`blobs`"),
        ("the signature", |m| m.relink("model.sig", "/etc/hostname"), "model.sig", "`blobs`"),
    ];
    for (what, tamper, subject, says) in cases {
        let model = Model::signed().cached();
        tamper(&model);
        let message = model.refused(subject);
        assert!(message.contains(says), "{what}: expected {says:?} in {message}");
    }
    // The same links are none of a snapshot's where no commit names the folder, and where `blobs` itself leads away.
    let model = Model::signed().cached();
    let renamed = model.dir.with_file_name("main");
    fs::rename(&model.dir, &renamed).unwrap();
    let error = verify_folder(&renamed, &model.key().verifying_key()).unwrap_err();
    assert!(error.exit_code() == 4 && error.to_string().starts_with("model.sig: "), "{error}");
    let model = Model::signed().cached();
    let blobs = model.path("../../blobs");
    fs::rename(&blobs, model.path("../../moved")).unwrap();
    std::os::unix::fs::symlink("moved", &blobs).unwrap();
    model.refused("model.sig");
}

/// Moves the bytes of a link of a snapshot to `place` and links to them there.
#[cfg(unix)]
fn elsewhere(model: &Model, place: &str) {
    fs::create_dir_all(model.path(place).parent().unwrap()).unwrap();
    model.rename("../../blobs/config.json", place);
    model.relink("config.json", place);
}

/// Makes the blob of a file a link out of `blobs`, to the same bytes.
#[cfg(unix)]
fn by_way_of_blobs(model: &Model) {
    model.rename("../../blobs/config.json", "../../config.json");
    std::os::unix::fs::symlink("../config.json", model.path("../../blobs/config.json")).unwrap();
}

#[test]
fn what_a_download_leaves_in_the_root_is_of_no_model() {
    let model = Model::signed();
    let leave = |folder: &str| {
        fs::create_dir_all(model.path(folder).join("download")).unwrap();
        fs::write(model.path(folder).join("download/config.json.metadata"), "").unwrap();
        fs::write(model.path(folder).join(".gitignore"), "*").unwrap();
    };
    leave(".cache/huggingface");
    model.verify().unwrap();
    // Nor is it signed, which the signature says; an upload leaves it out.
    let signed = sign_folder(&model.dir, &model.key()).unwrap();
    assert_eq!(signed.resources().len(), 5);
    assert!(signed.ignore_paths().iter().any(|path| path == ".cache/huggingface"), "{:?}", signed.ignore_paths());
    model.verify().unwrap();
    fs::remove_dir_all(model.path(".cache")).unwrap();
    model.verify().unwrap();

    for other in [".cache/other", ".cache", ".cache/huggingface-2", "a/.cache/huggingface", "cache/huggingface"] {
        leave(other);
        assert!(model.refused(&format!("{other}/.gitignore")).contains("not signed"), "{other}");
        fs::remove_dir_all(model.path(other)).unwrap();
    }
    fs::create_dir_all(model.path(".cache")).unwrap();
    model.write(".cache/huggingface", "a file");
    assert!(model.refused(".cache/huggingface").contains("not signed"));
}

#[test]
fn what_somebody_signed_in_the_folder_of_downloads_has_to_be_there() {
    let model = Model::signed();
    let name = ".cache/huggingface/a";
    fs::create_dir_all(model.path(".cache/huggingface")).unwrap();
    model.write(name, "signed");
    let mut resources = model.verify().unwrap().resources().to_vec();
    resources.push(Resource { name: name.into(), digest: Digest::of_bytes(b"signed") });
    let manifest = Manifest::new("model", resources).unwrap();
    manifest.check_folder(&model.dir).unwrap();
    model.write(name, "edited");
    assert!(manifest.check_folder(&model.dir).unwrap_err().to_string().contains("edited"));
    model.remove(name);
    assert!(manifest.check_folder(&model.dir).unwrap_err().to_string().contains("missing"));
}

#[cfg(unix)]
#[test]
fn the_signature_is_as_readable_as_any_file_and_leaves_nothing_beside_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let model = Model::signed();
    let mode = |name: &str| {
        fs::write(model.path("plain"), "").unwrap();
        fs::metadata(model.path(name)).unwrap().permissions().mode()
    };
    assert_eq!(mode("model.sig"), mode("plain"));
    let mut names: Vec<_> = fs::read_dir(&model.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["README.md", "a", "a.txt", "config.json", "model.safetensors", "model.sig", "plain"]);
}

// Folders that cannot be signed.

#[test]
fn an_empty_folder_is_not_signed() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join(".gitignore"), "").unwrap();
    let error = sign_folder(dir.path(), &key("p256.pem")).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(!dir.path().join("model.sig").exists());
}

#[cfg(unix)]
#[test]
fn a_folder_with_a_link_is_not_signed() {
    let model = Model::unsigned();
    std::os::unix::fs::symlink("config.json", model.path("a/link")).unwrap();
    let error = sign_folder(&model.dir, &key("p256.pem")).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("a/link: expected a regular file, got a symbolic link"), "{error}");
}

// Tampering: exit code 4, and the message names the file.

/// What is done to a signed folder, the file that verification must name, and a part of what it must say.
type Tampering = (&'static str, fn(&Model), &'static str, &'static str);

const TAMPERING: &[Tampering] = &[
    ("edited", |m| m.write("model.safetensors", "Weights\n"), "model.safetensors", "edited"),
    ("edited by one bit", |m| m.write("a/b", "c\n"), "a/b", "edited"),
    ("added", |m| m.write("a/pytorch_model.bin", ""), "a/pytorch_model.bin", "added"),
    ("deleted", |m| m.remove("a/b"), "a/b", "missing"),
    ("renamed", |m| m.rename("config.json", "Config.json"), "Config.json", "\nconfig.json: missing"),
    ("hidden from Git in a folder", |m| m.write("a/.gitattributes", ""), "a/.gitattributes", "not signed"),
    ("replaced by a link to the same bytes", |m| m.link("config.json"), "config.json", "symbolic link"),
    ("folder replaced by a link", |m| m.link("a"), "a", "\na/b: missing"),
    ("signature replaced by a link", |m| m.link("model.sig"), "model.sig", "regular file"),
    ("signature deleted", |m| m.remove("model.sig"), "model.sig", "got none"),
    ("signature emptied", |m| m.write("model.sig", ""), "model.sig", "empty file"),
    ("signature of an empty object", |m| m.write("model.sig", "{}"), "model.sig", "key method"),
    ("signature cut short", |m| m.cut("model.sig"), "model.sig", "signature bundle"),
    (
        "another media type",
        |m| m.edit_bundle(|b| b["mediaType"] = json!("application/vnd.dev.sigstore.bundle+json;version=0.3")),
        "model.sig",
        "mediaType",
    ),
    ("two signatures", |m| m.edit_bundle(repeat_signature), "model.sig", "expected one signature, got 2"),
    ("no signature", |m| m.edit_bundle(|b| b["dsseEnvelope"]["signatures"] = json!([])), "model.sig", "got 0"),
    (
        "another payload type",
        |m| m.edit_bundle(|b| b["dsseEnvelope"]["payloadType"] = json!("text/plain")),
        "model.sig",
        "payloadType",
    ),
    ("payload edited to fit the edited file", Model::fit_payload, "model.sig", "does not hold"),
    ("payload with a space more", |m| m.edit_bundle(add_space), "model.sig", "does not hold"),
    (
        "wrong root, signed",
        |m| m.resign(|s| s["subject"][0]["digest"]["sha256"] = json!(Digest::of_bytes(b""))),
        "model.sig",
        "root digest",
    ),
    (
        "another statement, signed",
        |m| m.resign(|s| s["predicateType"] = json!("https://slsa.dev/provenance/v1")),
        "model.sig",
        "predicateType",
    ),
    (
        "no resources, signed",
        |m| m.resign(|s| s["predicate"]["resources"] = json!([])),
        "model.sig",
        "at least one file",
    ),
    ("a file twice, signed", |m| m.resign(repeat_resource), "model.sig", "got it twice"),
    (
        "a name that climbs, signed",
        |m| m.resign(|s| s["predicate"]["resources"][0]["name"] = json!("../README.md")),
        "model.sig",
        "relative name",
    ),
    ("weights left out, signed", Model::leave_out, "model-2.safetensors", "not signed"),
    (
        "links allowed, signed",
        |m| m.resign(|s| s["predicate"]["serialization"]["allow_symlinks"] = json!(true)),
        "model.sig",
        "allow_symlinks",
    ),
];

fn repeat_signature(bundle: &mut Value) {
    let signatures = bundle["dsseEnvelope"]["signatures"].as_array_mut().unwrap();
    signatures.push(signatures[0].clone());
}

fn repeat_resource(statement: &mut Value) {
    let resources = statement["predicate"]["resources"].as_array_mut().unwrap();
    resources.push(resources[0].clone());
}

fn add_space(bundle: &mut Value) {
    let payload = STANDARD.decode(bundle["dsseEnvelope"]["payload"].as_str().unwrap()).unwrap();
    bundle["dsseEnvelope"]["payload"] = json!(STANDARD.encode([&payload[..], b" "].concat()));
}

#[cfg(unix)]
#[test]
fn every_tampering_is_refused_by_name_on_every_curve() {
    for curve in CURVES {
        for (what, tamper, subject, says) in TAMPERING {
            let model = Model::signed_on(curve);
            model.verify().unwrap_or_else(|error| panic!("{curve}, before `{what}`: {error}"));
            tamper(&model);
            let message = model.refused(subject);
            assert!(message.contains(says), "{curve}, {what}: expected {says:?} in {message}");
        }
    }
}

#[test]
fn every_difference_is_listed() {
    let model = Model::signed();
    fs::write(model.path("README.md"), "").unwrap();
    fs::remove_file(model.path("a.txt")).unwrap();
    fs::write(model.path("z"), "").unwrap();
    let message = model.refused("README.md");
    assert_eq!(message.lines().count(), 3, "{message}");
}

#[test]
fn every_edited_byte_of_the_signature_is_noticed() {
    let model = Model::signed();
    let bundle = model.bundle();
    let signature = STANDARD.decode(bundle["dsseEnvelope"]["signatures"][0]["sig"].as_str().unwrap()).unwrap();
    for at in 0..signature.len() {
        let mut edited = signature.clone();
        edited[at] ^= 1;
        model.edit_bundle(|bundle| bundle["dsseEnvelope"]["signatures"][0]["sig"] = json!(STANDARD.encode(edited)));
        model.refused("model.sig");
    }
}

#[test]
fn another_key_is_refused_with_and_without_its_hint() {
    let model = Model::signed();
    let other = SigningKey::generate().unwrap().verifying_key();
    let error = verify_folder(&model.dir, &other).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().starts_with("model.sig: ") && error.to_string().contains(&other.hint()), "{error}");

    model.edit_bundle(|bundle| bundle["verificationMaterial"]["publicKey"]["hint"] = json!(other.hint()));
    let error = verify_folder(&model.dir, &other).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("does not hold"), "{error}");
}

#[test]
fn a_key_on_another_curve_is_refused() {
    let model = Model::signed();
    let error = verify_folder(&model.dir, &key("p384.pem").verifying_key()).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().starts_with("model.sig: "), "{error}");
}

#[test]
fn a_missing_folder_is_not_a_signature_problem() {
    let error = verify_folder(&fixture("nowhere"), &key("p256.pem").verifying_key()).unwrap_err();
    assert_eq!(error.exit_code(), 3);
}

// Keys.

#[test]
fn a_file_that_is_no_ec_private_key_is_refused_and_described() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let damaged = fs::read_to_string(fixture("keys/p256.pem")).unwrap().replacen("MIGH", "MIGI", 1);
    let keys = |name: &str| fixture("keys").join(name);
    let cases = [
        (keys("rsa.pem"), "got an RSA private key"),
        (keys("ed25519.pem"), "got an Ed25519 private key"),
        (keys("secp256k1.pem"), "got an EC private key on secp256k1"),
        (keys("p256.pub.pem"), "got a public key"),
        (keys("p256.encrypted.pem"), "got an encrypted key and no passphrase"),
        (write("garbage.pem", b"garbage"), "got a file without a PEM key"),
        (write("empty.pem", b""), "got a file without a PEM key"),
        (write("der.pem", &[0x30, 0x81, 0x87, 0xff]), "got a binary file"),
        (write("large.pem", &[b'-'; 70_000]), "got a file of more than 65536 bytes"),
        (write("damaged.pem", damaged.as_bytes()), "got a damaged PKCS#8 key"),
        (write("sec1.pem", b"-----BEGIN EC PRIVATE KEY-----\nAQI=\n-----END EC PRIVATE KEY-----"), "damaged SEC1 key"),
        (write("rsa1.pem", b"-----BEGIN RSA PRIVATE KEY-----\nAQI=\n-----END RSA PRIVATE KEY-----"), "an RSA private"),
    ];
    for (path, expected) in cases {
        let error = SigningKey::read(&path, None).expect_err(expected);
        assert_eq!(error.exit_code(), 3);
        let message = error.to_string();
        assert!(message.contains(path.file_name().unwrap().to_str().unwrap()), "{message}");
        assert!(message.contains("expected") && message.contains(expected), "expected {expected}, got {message}");
    }
    assert_eq!(SigningKey::read(&dir.path().join("none.pem"), None).unwrap_err().exit_code(), 3);
}

#[test]
fn a_wrong_passphrase_is_refused_and_not_repeated() {
    let error = SigningKey::read(&fixture("keys/p256.encrypted.pem"), Some("wrong pony")).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("its passphrase does not open"), "{error}");
    assert!(!error.to_string().contains("pony"), "{error}");
}

#[test]
fn a_file_that_is_no_ec_public_key_is_refused_and_described() {
    for (name, expected) in [("p256.pem", "got a private key"), ("rsa.pem", "got a private key")] {
        let error = VerifyingKey::read(&fixture("keys").join(name)).expect_err(expected);
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains(expected) && error.to_string().contains("K.pub.pem"), "{error}");
    }
}

#[test]
fn a_generated_pair_reads_back_and_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("K.pem");
    let key = SigningKey::generate().unwrap();
    let public = key.write_pair(&path, None).unwrap();
    assert_eq!(public, dir.path().join("K.pub.pem"));
    assert_eq!(SigningKey::read(&path, None).unwrap().sign(b"m"), key.sign(b"m"));
    assert_eq!(VerifyingKey::read(&public).unwrap(), key.verifying_key());
    assert_ne!(SigningKey::generate().unwrap().verifying_key(), key.verifying_key());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    let before = fs::read(&path).unwrap();
    let error = key.write_pair(&path, None).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("K.pem"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);

    // With only the public half in the way, no private half is left behind.
    fs::remove_file(&path).unwrap();
    assert!(key.write_pair(&path, None).unwrap_err().to_string().contains("K.pub.pem"));
    assert!(!path.exists());
}

#[test]
fn a_pair_on_any_curve_can_be_encrypted() {
    for curve in [Curve::P256, Curve::P384, Curve::P521] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("K.pem");
        let key = SigningKey::generate_on(curve).unwrap();
        let public = key.write_pair(&path, Some(PASSPHRASE)).unwrap();
        assert!(SigningKey::is_encrypted(&path).unwrap());
        assert_eq!(SigningKey::read(&path, Some(PASSPHRASE)).unwrap().sign(b"m"), key.sign(b"m"));
        assert_eq!(VerifyingKey::read(&public).unwrap(), key.verifying_key());
        for wrong in [None, Some("another")] {
            assert_eq!(SigningKey::read(&path, wrong).unwrap_err().exit_code(), 3);
        }
    }
    assert!(!SigningKey::is_encrypted(&fixture("keys/p256.pem")).unwrap());
}

#[test]
fn debug_output_shows_no_key() {
    let key = key("p256.pem");
    let scalar = "c9afa9d8";
    assert!(!format!("{key:?}").to_lowercase().contains(scalar));
    assert!(!format!("{key:?}").contains("201, 175, 169"));
}

// Attestation.

/// A folder with evidence about all of its files but the card, signed.
fn attested(sealed: bool) -> Model {
    let model = Model::unsigned();
    let files = Manifest::of_folder(&model.dir).unwrap().resources().to_vec();
    let digest = Digest::of_bytes(b"recipe");
    let evidence = Evidence {
        version: "0.1.0".into(),
        files: files.into_iter().filter(|file| file.name != "README.md").collect(),
        recipe: Resource { name: "immunisation/recipe.yaml".into(), digest },
        base: vec![Material { uri: Some("https://example.org/base".into()), name: "model.safetensors".into(), digest }],
        outcome: Outcome::Failed,
        passed: vec![],
        warned: vec![],
        failed: vec!["ablation".into()],
    };
    let seal = sealed.then(|| model.key());
    let path = attestation::write(&model.dir, &evidence, seal.as_ref()).unwrap();
    assert_eq!(path, model.path(ATTESTATION_FILE));
    sign_folder(&model.dir, &model.key()).unwrap();
    model
}

fn evidence_of(model: &Model) -> Result<Option<Attested>, Error> {
    attestation::check(&model.dir, &model.verify().unwrap(), &model.key().verifying_key())
}

#[test]
fn the_attestation_is_signed_with_the_model() {
    let model = attested(false);
    let text = fs::read_to_string(model.path(ATTESTATION_FILE)).unwrap();
    model.write(ATTESTATION_FILE, &text.replace("FAILED", "PASSED"));
    assert!(model.refused(ATTESTATION_FILE).contains("edited"));
}

#[test]
fn evidence_is_bound_to_the_files_that_it_is_about() {
    for sealed in [true, false] {
        let model = attested(sealed);
        let attested = evidence_of(&model).unwrap().unwrap();
        assert_eq!((attested.result, attested.statements), (Some(Outcome::Failed), 2));
        assert_eq!(attested.sealed, sealed.then_some(true));
        // Signed again with other weights, old evidence is evidence of something else.
        model.write("model.safetensors", "other weights");
        sign_folder(&model.dir, &model.key()).unwrap();
        let error = evidence_of(&model).unwrap_err();
        assert!(error.exit_code() == 4 && error.to_string().starts_with("model.safetensors: "), "{error}");
        model.write("model-2.safetensors", "");
        model.remove("model.safetensors");
        sign_folder(&model.dir, &model.key()).unwrap();
        assert!(evidence_of(&model).unwrap_err().to_string().contains("attested, but not in the folder"));
    }
    let model = Model::signed();
    assert!(evidence_of(&model).unwrap().is_none());
}

#[test]
fn whatever_lies_beside_the_attested_files_is_refused_whoever_signed_it() {
    for name in [
        "model-2.safetensors",
        "pytorch_model.bin",
        "adapter_config.json",
        "added_tokens.json",
        "modeling_x.py",
        "chat_template.jinja",
        "a/README.md",
        "immunisation/report.json",
    ] {
        let model = attested(true);
        evidence_of(&model).unwrap();
        model.write(name, "{}");
        sign_folder(&model.dir, &model.key()).unwrap();
        let error = evidence_of(&model).unwrap_err();
        assert!(
            error.exit_code() == 4 && error.to_string().starts_with(&format!("{name}: expected evidence")),
            "{error}"
        );
    }
}

#[test]
fn the_card_can_be_edited_and_the_folder_signed_again() {
    for sealed in [true, false] {
        let model = attested(sealed);
        let before = evidence_of(&model).unwrap();
        model.write("README.md", "# A better card\n");
        assert!(model.refused("README.md").contains("edited"));
        sign_folder(&model.dir, &model.key()).unwrap();
        assert_eq!(evidence_of(&model).unwrap(), before);
    }
}

#[test]
fn a_release_key_may_sign_what_a_build_key_sealed() {
    let model = attested(true);
    sign_folder(&model.dir, &key("p384.pem")).unwrap();
    let release = key("p384.pem").verifying_key();
    let manifest = verify_folder(&model.dir, &release).unwrap();
    assert_eq!(attestation::check(&model.dir, &manifest, &release).unwrap().unwrap().sealed, Some(false));
}

// Certificates.

fn chain_of(names: &[&str], curve: &str) -> Chain {
    let dir = tempfile::tempdir().unwrap();
    let text: String = names.iter().map(|name| fs::read_to_string(certificate(name)).unwrap()).collect();
    let path = dir.path().join("chain.pem");
    fs::write(&path, text).unwrap();
    Chain::read(&path, &key(&format!("{curve}.pem")).verifying_key()).unwrap()
}

fn certificate(name: &str) -> PathBuf {
    fixture("certificates").join(format!("{name}.pem"))
}

fn certified(leaf: &str, names: &[&str], curve: &'static str) -> Model {
    let model = Model { curve, ..Model::unsigned() };
    let names: Vec<&str> = std::iter::once(leaf).chain(names.iter().copied()).collect();
    sign_folder_certified(&model.dir, &model.key(), &chain_of(&names, curve)).unwrap();
    model
}

fn trusting(root: &str, identities: &[&str]) -> Trust {
    Trust::read(&certificate(root), identities.iter().map(|name| (*name).to_owned()).collect()).unwrap()
}

#[test]
fn a_certified_signature_holds_for_who_trusts_the_authority() {
    for curve in CURVES {
        let model = certified(curve, &["intermediate"], curve);
        for identities in
            [&[][..], &["https://example.org/release"], &["nobody", "release@example.org"], &["example.org"]]
        {
            let (manifest, signer) = verify_folder_certified(&model.dir, &trusting("root", identities)).unwrap();
            assert_eq!(manifest.resources().len(), 5);
            assert_eq!(signer.key, model.key().verifying_key());
            assert_eq!(signer.names, ["https://example.org/release", "release@example.org", "example.org"]);
        }
    }
}

#[test]
fn a_certified_signature_is_refused_where_anything_of_its_path_is_amiss() {
    let cases: [(&str, Model, Trust, &str); 5] = [
        (
            "another authority",
            certified("p256", &["intermediate"], "p256"),
            trusting("other", &[]),
            "no trusted authority",
        ),
        ("a gap in the path", certified("p256", &[], "p256"), trusting("root", &[]), "no trusted authority"),
        (
            "a server's certificate",
            certified("server", &["intermediate"], "p256"),
            trusting("root", &[]),
            "no trusted authority",
        ),
        (
            "another name",
            certified("p256", &["intermediate"], "p256"),
            trusting("root", &["EXAMPLE.org"]),
            "expected a signature by `EXAMPLE.org`",
        ),
        ("a bare key", Model::signed(), trusting("root", &[]), "expected a signature with certificates"),
    ];
    for (what, model, trust, says) in cases {
        let error = verify_folder_certified(&model.dir, &trust).expect_err(what);
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().starts_with("model.sig: ") && error.to_string().contains(says), "{what}: {error}");
    }
    let model = certified("p256", &["intermediate"], "p256");
    assert!(model.refused("model.sig").contains("with certificates"), "a key does not stand in for roots");
    // The certificates are no part of what is signed: another signer's are noticed by the signature.
    let other = certified("p384", &["intermediate"], "p384").bundle();
    model.edit_bundle(|bundle| bundle["verificationMaterial"] = other["verificationMaterial"].clone());
    let error = verify_folder_certified(&model.dir, &trusting("root", &[])).unwrap_err();
    assert!(error.to_string().contains("does not hold"), "{error}");
}

#[test]
fn certificates_that_cannot_sign_are_refused_before_signing() {
    let p256 = key("p256.pem").verifying_key();
    for (path, says) in [
        (certificate("p384"), "got one of another key"),
        (certificate("agreement"), "for digital signatures"),
        (fixture("keys/p256.pub.pem"), "got a PEM block `PUBLIC KEY`"),
        (fixture("README.md"), "got a file without one"),
    ] {
        let error = Chain::read(&path, &p256).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains(says), "{says}: {error}");
    }
}

// Interoperation with the reference implementation; tests/interop/model_signing.sh sets it up.

/// The `model_signing` executable of PyPI's model-signing.
fn model_signing() -> std::ffi::OsString {
    std::env::var_os("IMMUNISE_MODEL_SIGNING").expect("IMMUNISE_MODEL_SIGNING names the executable")
}

#[test]
#[ignore = "needs IMMUNISE_MODEL_SIGNING"]
fn the_reference_implementation_and_this_one_accept_and_refuse_each_other_s_folders() {
    let tool = model_signing();
    let run = |action: &str, model: &Model, option: &str, key: &str| {
        let mut command = Command::new(&tool);
        command.arg(action).arg("key").arg(&model.dir).arg("--signature").arg(model.path("model.sig"));
        command.arg(option).arg(fixture("keys").join(key)).output().unwrap()
    };
    for curve in CURVES {
        let (private, public) = (format!("{curve}.pem"), format!("{curve}.pub.pem"));
        let ours = Model::unsigned();
        fs::write(ours.path(".gitattributes"), "").unwrap();
        sign_folder(&ours.dir, &key(&private)).unwrap();
        let output = run("verify", &ours, "--public_key", &public);
        assert!(output.status.success(), "{curve}: {}", String::from_utf8_lossy(&output.stderr));
        fs::write(ours.path("config.json"), "{}").unwrap();
        assert!(!run("verify", &ours, "--public_key", &public).status.success(), "{curve}");

        let theirs = Model::unsigned();
        fs::write(theirs.path(".gitattributes"), "").unwrap();
        let output = run("sign", &theirs, "--private_key", &private);
        assert!(output.status.success(), "{curve}: {}", String::from_utf8_lossy(&output.stderr));
        verify_folder(&theirs.dir, &key(&private).verifying_key()).unwrap();
        fs::write(theirs.path("config.json"), "{}").unwrap();
        assert_eq!(verify_folder(&theirs.dir, &key(&private).verifying_key()).unwrap_err().exit_code(), 4, "{curve}");
    }
}

#[test]
#[ignore = "needs IMMUNISE_MODEL_SIGNING"]
fn the_reference_implementation_and_this_one_accept_each_other_s_certificates() {
    let tool = model_signing();
    for curve in CURVES {
        let run = |action: &str, model: &Model, options: &[(&str, PathBuf)]| {
            let mut command = Command::new(&tool);
            command.arg(action).arg("certificate").arg(&model.dir).arg("--signature").arg(model.path("model.sig"));
            for (name, path) in options {
                command.arg(name).arg(path);
            }
            command.output().unwrap()
        };
        let ours = certified(curve, &["intermediate"], curve);
        for (root, holds) in [("root", true), ("other", false)] {
            let output = run("verify", &ours, &[("--certificate_chain", certificate(root))]);
            assert_eq!(output.status.success(), holds, "{curve}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let theirs = Model { curve, ..Model::unsigned() };
        let output = run(
            "sign",
            &theirs,
            &[
                ("--private_key", fixture("keys").join(format!("{curve}.pem"))),
                ("--signing_certificate", certificate(curve)),
                ("--certificate_chain", certificate("intermediate")),
            ],
        );
        assert!(output.status.success(), "{curve}: {}", String::from_utf8_lossy(&output.stderr));
        verify_folder_certified(&theirs.dir, &trusting("root", &["example.org"])).unwrap();
    }
}
