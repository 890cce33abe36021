//! Downloads from a hub that misbehaves: a local server that drops, lies, stalls and redirects, over real HTTP.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use immunise::Result;
use immunise::event::Silent;
use immunise::hub::{Cache, Hub, RepoId, Snapshot};
use immunise::pipeline::model::is_published;
use immunise::sign::attestation::{self, ATTESTATION_FILE, Evidence, Outcome};
use immunise::sign::{Digest, Manifest, Resource, SIGNATURE_FILE, SigningKey, sign_folder_as, verify_folder};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server treats the content of `model.safetensors`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Closes the connection after half of what was asked for, so many times.
    Drops(usize),
    /// Answers 503, so many times.
    Busy(usize),
    /// Sends other bytes of the same length, always.
    WrongBytes,
    /// Sends other bytes of the same length for what is not in large-file storage, always.
    WrongText,
    /// Sends more bytes than it listed, always.
    TooMany,
    /// Sends the content in small pieces.
    Slow,
    /// Sends half of the second of two shards and holds the connection, once.
    Stalls,
    /// Ignores ranges and drops once.
    NoRanges,
    /// Sends the content from another host.
    Redirects,
    /// Answers 503 so many times to whoever asks for the second page of the list.
    BusyPage(usize),
    /// Names a next page on every page of the list.
    Endless,
    /// Refuses everything.
    Gated,
    /// Knows nothing.
    Missing,
}

struct Server {
    address: String,
    log: Arc<Mutex<Vec<Request>>>,
}

#[derive(Debug, Clone)]
struct Request {
    path: String,
    authorised: bool,
    range: Option<u64>,
}

const REPORT: &str = "immunisation/report.json";
const RECIPE: &str = "immunisation/recipe.yaml";
/// Files of the same content.
const EQUAL: [&str; 4] = ["a/__init__.py", "b/__init__.py", "c/__init__.py", "d/__init__.py"];
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

fn files() -> BTreeMap<&'static str, Vec<u8>> {
    let weights: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    BTreeMap::from([
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"version\":\"1.0\"}".to_vec()),
        ("LICENSE AGREEMENT #1 (50%).txt", b"do no harm".to_vec()),
        ("model.safetensors", weights),
        ("pytorch_model.bin", b"never wanted".to_vec()),
    ])
}

/// The same weights in two shards.
fn sharded() -> BTreeMap<&'static str, Vec<u8>> {
    let mut files = files();
    let mut first = files.remove("model.safetensors").unwrap();
    let second = first.split_off(300_000);
    let map = BTreeMap::from([("a", SHARDS[0]), ("b", SHARDS[1])]);
    files.insert("model.safetensors.index.json", serde_json::json!({"weight_map": map}).to_string().into_bytes());
    files.extend([(SHARDS[0], first), (SHARDS[1], second)]);
    files
}

/// A model that was hardened, as it is published: attested, signed, and with files that none but the signature asks for.
static HARDENED: LazyLock<BTreeMap<&'static str, Vec<u8>>> = LazyLock::new(|| {
    let mut files = files();
    files.remove("pytorch_model.bin");
    let beside = [REPORT, RECIPE, "immunisation/report.html", "immunisation/bom.cdx.json", "README.md", "merges.bpe"];
    files
        .extend(beside.into_iter().chain(["assets/before and after.svg"]).map(|name| (name, name.as_bytes().to_vec())));
    files.extend(EQUAL.map(|name| (name, vec![])));
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    for (name, bytes) in &files {
        fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        fs::write(dir.join(name), bytes).unwrap();
    }
    let mut about = Manifest::of_folder_as(dir, "hardened").unwrap().resources().to_vec();
    about.retain(|file| file.name != "README.md");
    let evidence = Evidence {
        version: "0.1.0".into(),
        files: about,
        recipe: Resource { name: RECIPE.into(), digest: Digest::of_bytes(RECIPE.as_bytes()) },
        base: vec![],
        outcome: Outcome::Passed,
        passed: vec![],
        warned: vec![],
        failed: vec![],
    };
    let key = SigningKey::read(&key("p256.pem"), None).unwrap();
    attestation::write(dir, &evidence, Some(&key)).unwrap();
    sign_folder_as(dir, "hardened", &key).unwrap();
    files.extend([ATTESTATION_FILE, SIGNATURE_FILE].map(|name| (name, fs::read(dir.join(name)).unwrap())));
    // The hub's own.
    files.insert(".gitattributes", b"*.safetensors filter=lfs".to_vec());
    files
});

fn key(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/oms/keys").join(name)
}

fn sha256(bytes: &[u8]) -> String {
    Digest::of_bytes(bytes).to_string()
}

/// What Git calls a file of this content.
fn blob_of(bytes: &[u8]) -> String {
    let content = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    digest(&SHA1_FOR_LEGACY_USE_ONLY, &content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The path that an address means.
fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend(part[2..].bytes());
    }
    String::from_utf8(bytes).unwrap()
}

impl Server {
    /// Starts a server; `elsewhere` is the address that it redirects to.
    fn start(fault: Fault, elsewhere: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (seen, left) = (Arc::clone(&log), Arc::new(Mutex::new(fault)));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, left, elsewhere) = (Arc::clone(&seen), Arc::clone(&left), elsewhere.clone());
                thread::spawn(move || {
                    let _ = answer(stream, &seen, &left, elsewhere.as_deref());
                });
            }
        });
        Self { address, log }
    }

    fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    left: &Mutex<Fault>,
    elsewhere: Option<&str>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut range, mut authorised) = (None, false);
    for line in lines.by_ref() {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("range: bytes=") {
            range = value.trim_end_matches('-').parse().ok();
        }
        authorised |= line.starts_with("authorization: bearer secret");
    }
    seen.lock().unwrap().push(Request { path: path.clone(), authorised, range });
    let fault = *left.lock().unwrap();
    let held = match path.trim_start_matches("/api/models").split('/').nth(2) {
        Some("sharded") => sharded(),
        Some("hardened") => HARDENED.clone(),
        _ => files(),
    };
    let mut send = |status: &str, headers: &str, length: usize, body: &[u8]| {
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n")?;
        stream.write_all(body)
    };
    match fault {
        Fault::Gated => return send("403 Forbidden", "", 0, b""),
        Fault::Missing => return send("404 Not Found", "", 0, b""),
        _ => {}
    }
    if path.starts_with("/api/models/org/") && path.contains("/revision/") {
        let body = format!("{{\"sha\": \"{COMMIT}\"}}");
        return send("200 OK", "", body.len(), body.as_bytes());
    }
    if path.starts_with("/api/models/org/") && path.contains("/tree/") {
        let rows: Vec<serde_json::Value> = held
            .iter()
            .map(|(name, bytes)| {
                let mut row =
                    serde_json::json!({"type": "file", "path": name, "size": bytes.len(), "oid": blob_of(bytes)});
                if name.ends_with(".safetensors") {
                    row["lfs"] = serde_json::json!({"oid": sha256(bytes), "size": bytes.len()});
                }
                row
            })
            .collect();
        // Two rows a page, as the hub has a thousand.
        let (list, page) = path.split_once("&page=").unwrap_or((&path, "0"));
        let page: usize = page.parse().unwrap();
        if let Fault::BusyPage(n @ 1..) = fault
            && page == 1
        {
            *left.lock().unwrap() = Fault::BusyPage(n - 1);
            return send("503 Service Unavailable", "", 0, b"");
        }
        let mut pages = rows.chunks(2).skip(page);
        let body = serde_json::to_string(pages.next().unwrap_or_default())?;
        let more = pages.next().is_some() || fault == Fault::Endless;
        let link = more.then(|| format!("Link: <{list}&page={}>; rel=\"next\"\r\n", page + 1));
        return send("200 OK", &link.unwrap_or_default(), body.len(), body.as_bytes());
    }
    let name = ["/resolve/", "/blob/"].iter().find_map(|part| path.split_once(part)).unwrap_or_default().1;
    let name = &*decoded(name.trim_start_matches(COMMIT).trim_start_matches('/'));
    let Some(bytes) = held.get(name).cloned() else { return send("404 Not Found", "", 0, b"") };
    if !name.ends_with(".safetensors") {
        let wrong = fault == Fault::WrongText && name == "config.json";
        return send("200 OK", "", bytes.len(), if wrong { b"[]" } else { &bytes });
    }
    if fault == Fault::Stalls && name == SHARDS[1] {
        *left.lock().unwrap() = Fault::None;
        send("200 OK", "", bytes.len(), &bytes[..bytes.len() / 2])?;
        thread::sleep(Duration::from_secs(30));
        return Ok(());
    }
    if let (Fault::Redirects, Some(elsewhere)) = (fault, elsewhere) {
        return send("302 Found", &format!("Location: {elsewhere}/blob/model.safetensors\r\n"), 0, b"");
    }
    let from = range.filter(|_| fault != Fault::NoRanges).unwrap_or(0) as usize;
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let rest = &bytes[from..];
    match fault {
        Fault::Busy(n) if n > 0 => {
            *left.lock().unwrap() = Fault::Busy(n - 1);
            send("503 Service Unavailable", "", 0, b"")
        }
        Fault::Drops(n) if n > 0 => {
            *left.lock().unwrap() = Fault::Drops(n - 1);
            send(status, "", rest.len(), &rest[..rest.len() / 2])
        }
        Fault::NoRanges if range.is_none() => send("200 OK", "", rest.len(), &rest[..rest.len() / 2]),
        Fault::WrongBytes => send(status, "", rest.len(), &vec![7; rest.len()]),
        Fault::TooMany => send(status, "", rest.len() + 9, &[rest, &[0; 9]].concat()),
        Fault::Slow => {
            let (head, tail) = rest.split_at(rest.len().min(64));
            send(status, "", rest.len(), head)?;
            tail.chunks(100_000).try_for_each(|piece| {
                thread::sleep(Duration::from_millis(30));
                stream.write_all(piece)
            })
        }
        _ => send(status, "", rest.len(), rest),
    }
}

fn hub(server: &Server, root: &std::path::Path) -> Hub {
    Hub::new(Cache::at(root), &server.address, Some("secret\n".into())).with_pause(Duration::from_millis(1))
}

fn fetch(server: &Server, root: &std::path::Path) -> Result<Snapshot> {
    hub(server, root).fetch(&RepoId::parse("org/name").unwrap(), &Silent)
}

fn intact(snapshot: &Snapshot) {
    assert_eq!(snapshot.revision.as_deref(), Some(COMMIT));
    for (name, bytes) in files() {
        let path = snapshot.dir.join(name);
        if name.ends_with(".bin") {
            assert!(!path.exists(), "{name} is of no use");
        } else {
            assert!(fs::read(&path).unwrap() == bytes, "{name}");
        }
    }
}

#[test]
fn passing_faults_are_survived() {
    for fault in [Fault::None, Fault::Drops(3), Fault::Busy(3), Fault::NoRanges, Fault::Slow] {
        let (server, root) = (Server::start(fault, None), tempfile::tempdir().unwrap());
        intact(&fetch(&server, root.path()).unwrap_or_else(|error| panic!("{fault:?}: {error}")));
        assert_eq!(fs::read_to_string(root.path().join("models--org--name/refs/main")).unwrap(), COMMIT);
    }
}

#[test]
fn a_page_of_the_list_that_fails_is_asked_for_again_by_itself() {
    let (server, root) = (Server::start(Fault::BusyPage(3), None), tempfile::tempdir().unwrap());
    intact(&fetch(&server, root.path()).unwrap());
    let asked = |end: &str| server.requests().iter().filter(|request| request.path.ends_with(end)).count();
    assert_eq!([asked("?recursive=true"), asked("&page=1"), asked("&page=2")], [1, 4, 1]);

    let (server, root) = (Server::start(Fault::BusyPage(99), None), tempfile::tempdir().unwrap());
    let error = fetch(&server, root.path()).unwrap_err();
    assert!(error.to_string().contains("503") && error.exit_code() == 3, "{error}");
}

#[test]
fn a_list_without_an_end_is_given_up() {
    let (server, root) = (Server::start(Fault::Endless, None), tempfile::tempdir().unwrap());
    let error = fetch(&server, root.path()).unwrap_err();
    assert!(error.to_string().contains("at most 100 pages") && error.exit_code() == 3, "{error}");
}

#[test]
fn a_download_goes_on_where_it_stopped() {
    // More drops than there are attempts: the first run fails, the second needs the rest only.
    let (server, root) = (Server::start(Fault::Drops(6), None), tempfile::tempdir().unwrap());
    let error = fetch(&server, root.path()).unwrap_err();
    assert!(error.to_string().contains("goes on from there"), "{error}");
    assert!(!root.path().join("models--org--name/refs/main").exists(), "nothing points to a snapshot in the making");
    intact(&fetch(&server, root.path()).unwrap());
    let ranges: Vec<u64> = server.requests().iter().filter_map(|request| request.range).collect();
    assert!(ranges.len() >= 6 && ranges.is_sorted(), "{ranges:?}");
}

#[test]
fn bytes_that_do_not_match_the_digest_never_count() {
    let (weights, config) = (sha256(&files()["model.safetensors"]), blob_of(&files()["config.json"]));
    for (fault, name, blob) in [
        (Fault::WrongBytes, "model.safetensors", &weights),
        (Fault::TooMany, "model.safetensors", &weights),
        (Fault::WrongText, "config.json", &config),
    ] {
        let (server, root) = (Server::start(fault, None), tempfile::tempdir().unwrap());
        let error = fetch(&server, root.path()).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains(&format!("{name} did not arrive")), "{error}");
        let blob = root.path().join("models--org--name/blobs").join(blob);
        assert!(!blob.exists() && !blob.with_extension("incomplete").exists());
    }
}

#[test]
fn a_process_killed_in_the_second_shard_leaves_the_rest_to_the_next() {
    let (server, root) = (Server::start(Fault::Stalls, None), tempfile::tempdir().unwrap());
    let mut child = Command::new(env!("CARGO_BIN_EXE_immunise"))
        .args(["recipe", "new", "org/sharded"])
        .env("HF_ENDPOINT", &server.address)
        .env("HF_HUB_CACHE", root.path())
        .env("HF_TOKEN", "secret")
        .env_remove("HF_HUB_OFFLINE")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let files = sharded();
    let blob = |name: &str| root.path().join("models--org--sharded/blobs").join(sha256(&files[name]));
    let half = || fs::metadata(blob(SHARDS[1]).with_extension("incomplete")).is_ok_and(|found| found.len() > 0);
    while !(half() && blob(SHARDS[0]).exists()) {
        assert_eq!(child.try_wait().unwrap(), None, "the download ended before it was killed");
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = server.requests().len();
    let snapshot = hub(&server, root.path()).fetch(&RepoId::parse("org/sharded").unwrap(), &Silent).unwrap();
    for shard in SHARDS {
        assert!(fs::read(snapshot.dir.join(shard)).unwrap() == files[shard], "{shard}");
    }
    let requests = &server.requests()[before..];
    let of = |shard: &str| requests.iter().filter(|request| request.path.ends_with(shard)).collect::<Vec<_>>();
    assert!(of(SHARDS[0]).is_empty(), "what was whole is not fetched again");
    assert!(matches!(of(SHARDS[1])[..], [request] if request.range.is_some_and(|from| from > 0)), "{requests:?}");
}

#[test]
fn of_a_hardened_model_everything_arrives_and_verifies() {
    let (server, root) = (Server::start(Fault::None, None), tempfile::tempdir().unwrap());
    let snapshot = hub(&server, root.path()).fetch(&RepoId::parse("org/hardened").unwrap(), &Silent).unwrap();
    intact(&snapshot);
    for (name, bytes) in &*HARDENED {
        assert_eq!(&fs::read(snapshot.dir.join(name)).unwrap(), bytes, "{name}");
    }
    let equal = server.requests().into_iter().filter(|request| request.path.ends_with("__init__.py")).count();
    assert_eq!(equal, 1, "what has the same content is fetched once");
    let key = SigningKey::read(&key("p256.pem"), None).unwrap().verifying_key();
    let manifest = verify_folder(&snapshot.dir, &key).unwrap();
    let attested = attestation::check(&snapshot.dir, &manifest, &key).unwrap().unwrap();
    assert_eq!((attested.result, attested.sealed), (Some(Outcome::Passed), Some(true)));
    assert!(is_published(&snapshot.dir));
    // Links in a folder of the snapshot stay within the cache, too.
    let listed = immunise::checkpoint::files::list(&snapshot.dir).unwrap();
    assert!(listed.iter().any(|file| file == REPORT), "{listed:?}");
    assert!(!is_published(&fetch(&server, root.path()).unwrap().dir));
}

#[test]
fn a_hardened_model_of_the_hub_passes_verify_by_name_commit_and_folder() {
    let (server, root) = (Server::start(Fault::None, None), tempfile::tempdir().unwrap());
    let verify = |reference: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_immunise"))
            .args(["verify", reference, "--key"])
            .arg(key("p256.pub.pem"))
            .env("HF_ENDPOINT", &server.address)
            .env("HF_HUB_CACHE", root.path())
            .env("HF_TOKEN", "secret")
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let passes = |reference: &str| {
        let (code, text) = verify(reference);
        assert!(code == Some(0) && text.contains("measured as passed"), "{reference}: {text}");
    };
    let repo = root.path().join("models--org--hardened");
    let dir = repo.join("snapshots").join(COMMIT);
    let (pinned, folder) = (format!("org/hardened@{COMMIT}"), dir.display().to_string());
    passes("org/hardened");
    let before = server.requests().len();
    passes(&pinned);
    passes(&folder);
    assert_eq!(server.requests().len(), before, "what is all there is asked for no more");
    // As another program leaves the cache that fetches no more than it loads.
    for name in [SIGNATURE_FILE, ATTESTATION_FILE, REPORT] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    assert_eq!(verify(&folder).0, Some(4));
    passes(&pinned);
    passes(&folder);
    // What is there and wrong stays so.
    fs::write(repo.join("blobs").join(blob_of(b"{}")), "[]").unwrap();
    for reference in ["org/hardened", &pinned, &folder] {
        let (code, text) = verify(reference);
        assert!(code == Some(4) && text.contains("config.json: edited"), "{reference}: {text}");
    }
}

#[test]
fn names_and_revisions_of_any_characters_are_asked_for_as_they_are() {
    let (server, root) = (Server::start(Fault::None, None), tempfile::tempdir().unwrap());
    intact(&hub(&server, root.path()).fetch(&RepoId::parse("org/name@v 1/é#?").unwrap(), &Silent).unwrap());
    let paths: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
    for path in [
        "/api/models/org/name/revision/v%201%2F%C3%A9%23%3F".to_owned(),
        format!("/org/name/resolve/{COMMIT}/LICENSE%20AGREEMENT%20%231%20%2850%25%29.txt"),
    ] {
        assert!(paths.contains(&path), "{path} not in {paths:?}");
    }
}

#[test]
fn an_address_that_cannot_be_asked_is_not_asked_again() {
    let root = tempfile::tempdir().unwrap();
    for (endpoint, token) in
        [("http://not a host", None), ("huggingface.co", None), ("http://127.0.0.1:9", Some("a\nb"))]
    {
        let patient = Hub::new(Cache::at(root.path()), endpoint, token.map(str::to_owned));
        let patient = patient.with_pause(Duration::from_secs(1));
        let error = patient.fetch(&RepoId::parse("org/name").unwrap(), &Silent).unwrap_err();
        let text = error.to_string();
        assert!(error.exit_code() == 3 && text.contains(endpoint) && text.contains("HF_ENDPOINT"), "{text}");
        assert!(!text.contains("attempts") && !text.contains("a\nb"), "{text}");
    }
}

#[test]
fn the_token_is_for_the_hub_alone() {
    let other = Server::start(Fault::None, None);
    let server = Server::start(Fault::Redirects, Some(other.address.clone()));
    let root = tempfile::tempdir().unwrap();
    intact(&fetch(&server, root.path()).unwrap());
    assert!(server.requests().iter().all(|request| request.authorised));
    let there = other.requests();
    assert!(!there.is_empty() && there.iter().all(|request| !request.authorised), "{there:?}");
}

#[test]
fn offline_and_known_commits_need_no_request() {
    let (server, root) = (Server::start(Fault::None, None), tempfile::tempdir().unwrap());
    let name = RepoId::parse("org/name").unwrap();
    let error = hub(&server, root.path()).offline().fetch(&name, &Silent).unwrap_err();
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    assert!(server.requests().is_empty());
    fetch(&server, root.path()).unwrap();
    let before = server.requests().len();
    let pinned = RepoId::parse(&format!("org/name@{COMMIT}")).unwrap();
    intact(&hub(&server, root.path()).fetch(&pinned, &Silent).unwrap());
    intact(&hub(&server, root.path()).offline().fetch(&name, &Silent).unwrap());
    assert_eq!(server.requests().len(), before);
}

#[test]
fn refusals_are_explained() {
    for (fault, hint) in [(Fault::Gated, "accept its terms"), (Fault::Missing, "no such model")] {
        let (server, root) = (Server::start(fault, None), tempfile::tempdir().unwrap());
        let error = fetch(&server, root.path()).unwrap_err();
        assert!(error.to_string().contains(hint) && error.exit_code() == 3, "{error}");
    }
    // Nobody listens there.
    let root = tempfile::tempdir().unwrap();
    let nowhere = Hub::new(Cache::at(root.path()), "http://127.0.0.1:9", None).with_pause(Duration::ZERO);
    let error = nowhere.fetch(&RepoId::parse("org/name").unwrap(), &Silent).unwrap_err();
    assert_eq!(error.exit_code(), 3);
}
