//! The manifest of a model folder (name, files, digests, root) and its form as an in-toto statement.
//!
//! The statement is that of OpenSSF Model Signing v1.0, method `files` with SHA-256, which is all that the reference
//! verifier handles. Whoever parses one hands over the bytes that were signed: the order of the resources is part of
//! what the root digest covers, so nothing here sorts before it has checked. Signing is [`super::bundle`]'s business.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::folder::{self, Links};
pub use crate::checkpoint::files::DOWNLOADS;
use crate::checkpoint::files::GIT;
use crate::error::{Error, Result};

/// Name of the signature file in the root of a model folder.
pub const SIGNATURE_FILE: &str = "model.sig";

/// Root-level entries that a signature leaves out and says so: Git's own files, and the signature itself.
pub const IGNORED: [&str; 5] = {
    let [git, attributes, github, ignore] = GIT;
    [git, attributes, github, ignore, SIGNATURE_FILE]
};

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// `/`-separated name relative to the model folder.
    pub name: String,
    /// SHA-256 of the file's bytes.
    pub digest: Digest,
}

/// The files of a model and their digests: at least one file, every name relative and used once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    name: String,
    root: Digest,
    resources: Vec<Resource>,
    ignore_paths: Vec<String>,
}

impl Manifest {
    /// The manifest of these resources, sorted by code point of their names.
    ///
    /// *Errors* [`Error::Input`] naming the offending file, or the model when there are no files.
    pub fn new(name: &str, mut resources: Vec<Resource>) -> Result<Self> {
        resources.sort_unstable();
        check(&resources).map_err(|(subject, problem)| Error::input(subject.unwrap_or(name), problem))?;
        Ok(Self {
            name: name.to_owned(),
            root: Digest::of_digests(resources.iter().map(|resource| &resource.digest)),
            resources,
            ignore_paths: IGNORED.map(str::to_owned).to_vec(),
        })
    }

    /// The manifest of a folder, named after it.
    ///
    /// *Errors* [`Error::Input`] for an empty folder, a folder without a name (`/`), a symbolic link, or a file whose
    /// name does not travel; [`Error::Io`] when something cannot be read.
    pub fn of_folder(dir: &Path) -> Result<Self> {
        let absolute = dir.canonicalize().map_err(|source| Error::io(dir, source))?;
        let name = absolute.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::file(dir, "expected a folder with a name in UTF-8"))?;
        Self::of_folder_as(dir, name)
    }

    /// The manifest of a folder under a name of the caller's choice: one that is still in its temporary place is
    /// signed under the name that it will have.
    ///
    /// *Errors* as [`Manifest::of_folder`].
    pub fn of_folder_as(dir: &Path, name: &str) -> Result<Self> {
        let ignored: Vec<&str> = IGNORED.into_iter().chain([DOWNLOADS]).collect();
        let listing = folder::list(dir, &ignored, &Links::NONE)?;
        if let Some((name, problem)) = listing.unsignable.first() {
            return Err(Error::file(&dir.join(name), problem)
                .hint("a signed model holds regular files only, with names that travel"));
        }
        if listing.files.is_empty() {
            return Err(Error::file(dir, "expected a model folder, got one without files"));
        }
        let mut manifest = Self::new(name, folder::digests(dir, &listing.files)?)?;
        if dir.join(DOWNLOADS).is_dir() {
            manifest.ignore_paths.push(DOWNLOADS.into());
        }
        Ok(manifest)
    }

    /// The model's name: informative only, a renamed folder still verifies.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 over the concatenated raw digests in listed order.
    #[must_use]
    pub const fn root(&self) -> Digest {
        self.root
    }

    /// The files, in the order that was signed.
    #[must_use]
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// The entries that the signer left out.
    #[must_use]
    pub fn ignore_paths(&self) -> &[String] {
        &self.ignore_paths
    }

    /// The in-toto statement that is signed, as JSON; equal manifests give equal bytes.
    #[must_use]
    pub fn to_statement(&self) -> Vec<u8> {
        let statement = Statement {
            kind: STATEMENT_TYPE.into(),
            subject: vec![Subject { name: self.name.clone(), digest: SubjectDigest { sha256: self.root } }],
            predicate_type: PREDICATE_TYPE.into(),
            predicate: Predicate {
                serialization: Serialization {
                    method: "files".into(),
                    hash_type: "sha256".into(),
                    allow_symlinks: false,
                    ignore_paths: self.ignore_paths.clone(),
                },
                resources: self.resources.iter().map(Descriptor::from).collect(),
            },
        };
        serde_json::to_vec(&statement).expect("strings, booleans and lists always serialise")
    }

    /// Reads a statement whose signature has been verified.
    ///
    /// *Errors* [`Error::Signature`] on `model.sig` for anything but the statement of the OpenSSF model-signing specification:
    /// another type, an unknown or repeated key, another serialisation, no files, a name that is absolute, repeated
    /// or climbs out of the folder, a root digest that the resources do not give.
    pub fn from_statement(payload: &[u8]) -> Result<Self> {
        let invalid = |problem: String| Error::signature(SIGNATURE_FILE, format!("signed statement: {problem}"));
        // The types first, leniently: a statement of another type has other fields, and that isn't what is wrong.
        if let Ok(peek) = serde_json::from_slice::<Peek>(payload) {
            for (field, expected, got) in [
                ("_type", STATEMENT_TYPE, peek.kind),
                ("predicateType", PREDICATE_TYPE, peek.predicate_type),
                ("serialization.method", "files", peek.predicate.serialization.method),
            ] {
                if let Some(got) = got.filter(|got| got != expected) {
                    return Err(invalid(format!("expected {field} `{expected}`, got `{got}`")));
                }
            }
        }
        let statement: Statement = serde_json::from_slice(payload).map_err(|error| invalid(error.to_string()))?;
        let serialization = statement.predicate.serialization;
        if serialization.hash_type != "sha256" {
            return Err(invalid(format!("expected hash_type `sha256`, got `{}`", serialization.hash_type)));
        }
        if serialization.allow_symlinks {
            return Err(invalid("expected allow_symlinks false, got true".into()));
        }
        let [subject] = <[Subject; 1]>::try_from(statement.subject)
            .map_err(|subjects| invalid(format!("expected one subject, got {}", subjects.len())))?;
        let resources = statement.predicate.resources.into_iter().map(Resource::try_from);
        let resources = resources.collect::<Result<Vec<_>, String>>().map_err(invalid)?;
        check(&resources).map_err(|(subject, problem)| match subject {
            Some(name) => invalid(format!("{name:?}: {problem}")),
            None => invalid(problem.into()),
        })?;
        let root = Digest::of_digests(resources.iter().map(|resource| &resource.digest));
        if root != subject.digest.sha256 {
            let claimed = subject.digest.sha256;
            return Err(invalid(format!("expected root digest {root} from its resources, got {claimed}")));
        }
        Ok(Self { name: subject.name, root, resources, ignore_paths: serialization.ignore_paths })
    }

    /// Checks that the files of `dir` are exactly those of this manifest.
    ///
    /// Only Git's own files, the signature and [`DOWNLOADS`] may lie beside them, whatever else the signer chose to leave out:
    /// nothing that a loader could pick up goes unsigned. In a snapshot of the hub's cache a link to a file in `blobs` of the
    /// same model is that file; any other link is a difference.
    ///
    /// *Errors* [`Error::Signature`] whose subject is the first differing file and whose problem lists every
    /// difference (edited, missing, not signed, not a regular file; a renamed file is missing under one name and not
    /// signed under the other); [`Error::Io`] when something cannot be read.
    pub fn check_folder(&self, dir: &Path) -> Result<()> {
        let recorded = |name: &&str| *name == SIGNATURE_FILE || self.ignore_paths.iter().any(|path| path == name);
        let mut ignored: Vec<&str> = IGNORED.into_iter().filter(recorded).collect();
        let download = |file: &Resource| file.name.strip_prefix(DOWNLOADS).is_some_and(|rest| rest.starts_with('/'));
        if !self.resources.iter().any(download) {
            ignored.push(DOWNLOADS);
        }
        let listing = folder::list(dir, &ignored, &Links::of_cached(dir))?;
        let signed: BTreeMap<&str, Digest> = self.resources.iter().map(|r| (r.name.as_str(), r.digest)).collect();

        let mut differences: BTreeMap<String, String> = listing.unsignable.into_iter().collect();
        let (known, unknown): (Vec<_>, Vec<_>) =
            listing.files.into_iter().partition(|name| signed.contains_key(name.as_str()));
        let here: HashSet<&str> = known.iter().map(String::as_str).collect();
        for name in signed.keys().filter(|name| !here.contains(*name)) {
            differences.entry((*name).to_owned()).or_insert_with(|| "missing: signed, but not in the folder".into());
        }
        for name in unknown {
            differences.insert(name, "added: in the folder, but not signed".into());
        }
        for Resource { name, digest } in folder::digests(dir, &known)? {
            let expected = signed[name.as_str()];
            if digest != expected {
                differences.insert(name, format!("edited: expected sha256 {expected}, got {digest}"));
            }
        }

        let mut differences = differences.into_iter();
        let Some((subject, problem)) = differences.next() else { return Ok(()) };
        let others = differences.map(|(name, difference)| format!("\n{name}: {difference}"));
        let problem = std::iter::once(problem).chain(others).collect::<String>();
        Err(Error::signature(subject, problem))
    }
}

/// What is wrong with a list of resources, and with which of them where it is one.
fn check(resources: &[Resource]) -> Result<(), (Option<&str>, &'static str)> {
    if resources.is_empty() {
        return Err((None, "expected at least one file, got none"));
    }
    let mut seen = HashSet::new();
    for Resource { name, .. } in resources {
        let climbs = |segment: &str| matches!(segment, "" | "." | "..");
        if name.split('/').any(climbs) || name.contains(['\\', '\0']) {
            return Err((Some(name), "expected a relative name inside the model folder"));
        }
        if !seen.insert(name) {
            return Err((Some(name), "expected every file once, got it twice"));
        }
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectDigest {
    sha256: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Descriptor>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Serialization {
    method: String,
    hash_type: String,
    allow_symlinks: bool,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Descriptor {
    name: String,
    algorithm: String,
    digest: Digest,
}

impl From<&Resource> for Descriptor {
    fn from(resource: &Resource) -> Self {
        Self { name: resource.name.clone(), algorithm: "sha256".into(), digest: resource.digest }
    }
}

impl TryFrom<Descriptor> for Resource {
    type Error = String;

    fn try_from(descriptor: Descriptor) -> Result<Self, String> {
        let Descriptor { name, algorithm, digest } = descriptor;
        if algorithm == "sha256" {
            Ok(Self { name, digest })
        } else {
            Err(format!("{name:?}: expected algorithm `sha256`, got `{algorithm}`"))
        }
    }
}

/// The fields that say which kind of statement this is, whatever surrounds them.
#[derive(Deserialize)]
struct Peek {
    #[serde(rename = "_type")]
    kind: Option<String>,
    #[serde(rename = "predicateType")]
    predicate_type: Option<String>,
    #[serde(default)]
    predicate: PeekPredicate,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PeekPredicate {
    serialization: PeekSerialization,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PeekSerialization {
    method: Option<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn manifest() -> Manifest {
        let resource = |name: &str| Resource { name: name.into(), digest: Digest::of_bytes(name.as_bytes()) };
        Manifest::new("m", vec![resource("b"), resource("a/c"), resource("a.txt")]).unwrap()
    }

    /// The statement of [`manifest`] after `edit`, parsed.
    fn reparsed(edit: impl FnOnce(&mut Value)) -> Result<Manifest> {
        let mut statement: Value = serde_json::from_slice(&manifest().to_statement()).unwrap();
        edit(&mut statement);
        Manifest::from_statement(&serde_json::to_vec(&statement).unwrap())
    }

    #[test]
    fn resources_are_listed_in_code_point_order() {
        let names: Vec<_> = manifest().resources.into_iter().map(|resource| resource.name).collect();
        assert_eq!(names, ["a.txt", "a/c", "b"]);
    }

    #[test]
    fn the_root_is_the_digest_of_the_raw_digests_in_listed_order() {
        let raw: Vec<u8> = manifest().resources.iter().flat_map(|r| *r.digest.as_bytes()).collect();
        assert_eq!(manifest().root, Digest::of_bytes(&raw));
    }

    #[test]
    fn a_foreign_order_is_kept_because_the_root_covers_it() {
        let parsed = reparsed(|statement| {
            let resources = statement["predicate"]["resources"].as_array_mut().unwrap();
            resources.swap(0, 1);
            let digests: Vec<Digest> =
                resources.iter().map(|r| r["digest"].as_str().unwrap().parse().unwrap()).collect();
            statement["subject"][0]["digest"]["sha256"] = json!(Digest::of_digests(&digests));
        })
        .unwrap();
        assert_eq!(parsed.resources[0].name, "a/c");
    }

    #[test]
    fn every_departure_from_the_statement_is_refused_with_exit_code_4() {
        type Edit = fn(&mut Value);
        let cases: &[(&str, Edit)] = &[
            ("_type", |s| s["_type"] = json!("https://in-toto.io/Statement/v0.1")),
            ("predicateType", |s| s["predicateType"] = json!("https://model_signing/Digests/v0.1")),
            ("shards", |s| s["predicate"]["serialization"] = json!({"method": "shards", "shard_size": 9})),
            ("blake3", |s| s["predicate"]["serialization"]["hash_type"] = json!("blake3")),
            ("allow_symlinks", |s| s["predicate"]["serialization"]["allow_symlinks"] = json!(true)),
            ("`evidence`", |s| s["predicate"]["evidence"] = json!(1)),
            ("`extra`", |s| s["extra"] = json!(1)),
            ("got 2", |s| s["subject"] = json!([s["subject"][0], s["subject"][0]])),
            ("got 0", |s| s["subject"] = json!([])),
            ("root digest", |s| s["subject"][0]["digest"]["sha256"] = json!(Digest::of_bytes(b""))),
            ("root digest", |s| s["predicate"]["resources"].as_array_mut().unwrap().swap(0, 1)),
            ("at least one file", |s| s["predicate"]["resources"] = json!([])),
            ("got it twice", |s| s["predicate"]["resources"][1]["name"] = json!("b")),
            ("../b", |s| s["predicate"]["resources"][0]["name"] = json!("../b")),
            ("a/../../b", |s| s["predicate"]["resources"][0]["name"] = json!("a/../../b")),
            ("/etc/passwd", |s| s["predicate"]["resources"][0]["name"] = json!("/etc/passwd")),
            ("relative name", |s| s["predicate"]["resources"][0]["name"] = json!("")),
            ("relative name", |s| s["predicate"]["resources"][0]["name"] = json!("./b")),
            ("relative name", |s| s["predicate"]["resources"][0]["name"] = json!("a//b")),
            ("relative name", |s| s["predicate"]["resources"][0]["name"] = json!("..\\b")),
            ("relative name", |s| s["predicate"]["resources"][0]["name"] = json!("b\0")),
            ("sha512", |s| s["predicate"]["resources"][0]["algorithm"] = json!("sha512")),
            ("64 lower hex digits", |s| s["predicate"]["resources"][0]["digest"] = json!("AB")),
        ];
        for (expected, edit) in cases {
            let error = reparsed(edit).expect_err(expected);
            assert_eq!(error.exit_code(), 4, "{error}");
            assert!(error.to_string().starts_with("model.sig: "), "{error}");
            assert!(error.to_string().contains(expected), "expected {expected}, got {error}");
        }
    }

    #[test]
    fn a_repeated_json_key_is_refused() {
        let text = String::from_utf8(manifest().to_statement()).unwrap();
        for key in ["\"_type\"", "\"predicate\"", "\"name\"", "\"sha256\""] {
            let twice = text.replacen(key, &format!("{key}:0,{key}"), 1);
            assert_eq!(Manifest::from_statement(twice.as_bytes()).expect_err(key).exit_code(), 4);
        }
        let trailing = format!("{text} {{}}");
        assert_eq!(Manifest::from_statement(trailing.as_bytes()).unwrap_err().exit_code(), 4);
    }

    proptest! {
        #[test]
        fn parsing_undoes_writing(
            name in "\\PC{0,12}",
            files in proptest::collection::btree_map(
                "[^/\\\\\0.][^/\\\\\0]{0,6}(/[^/\\\\\0.][^/\\\\\0]{0,6}){0,3}", any::<[u8; 32]>(), 1..12,
            ),
        ) {
            let resources = files.into_iter().map(|(name, digest)| Resource { name, digest: digest.into() }).collect();
            let manifest = Manifest::new(&name, resources).unwrap();
            prop_assert_eq!(&Manifest::from_statement(&manifest.to_statement()).unwrap(), &manifest);
        }

        #[test]
        fn no_bytes_make_parsing_panic(bytes in any::<Vec<u8>>()) {
            prop_assert_eq!(Manifest::from_statement(&bytes).unwrap_err().exit_code(), 4);
        }
    }
}
