//! Laws of the checkpoint on disk: what is not changed is not touched, what is damaged is refused, what is written reads
//! back. `tests/hostile.rs` opens every threat under `fixtures/hostile`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use immunise::adapter::{Adapter, AdapterSet, merge, peft};
use immunise::checkpoint::diff::{Change, FileChange};
use immunise::checkpoint::{Checkpoint, Dtype, Patches, Staged, diff, patch};
use immunise::{Error, Result};
use ndarray::Array2;
use proptest::prelude::*;
use tempfile::TempDir;

const CONFIG: &str = r#"{"model_type":"llama","vocab_size":8,"hidden_size":4,"intermediate_size":6,"num_hidden_layers":1,
"num_attention_heads":2,"num_key_value_heads":1,"rms_norm_eps":1e-5,"max_position_embeddings":32,"rope_theta":10000.0}"#;
const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const UP: &str = "model.layers.0.mlp.up_proj.weight";
const NORM: &str = "model.norm.weight";
const EMBED: &str = "model.embed_tokens.weight";
const STEPS: &str = "steps";

/// A tensor to be written: name, type, shape, values.
type Spec = (&'static str, Dtype, Vec<usize>, Vec<f32>);

fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::I64 => values.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect(),
        other => panic!("no test writes {other}"),
    }
}

/// A safetensors file; `pad` spaces after the header misalign the data on purpose.
fn safetensors(tensors: &[Spec], pad: usize) -> Vec<u8> {
    let mut header = vec![r#""__metadata__":{"format":"pt"}"#.to_owned()];
    let mut data = Vec::new();
    for (name, dtype, shape, values) in tensors {
        let begin = data.len();
        data.extend(encode(*dtype, values));
        header.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{}]}}"#,
            data.len()
        ));
    }
    let header = format!("{{{}}}{}", header.join(","), " ".repeat(pad));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// Numbers that fill a tensor: spread over signs and sizes, reproducible, with both zeros in front.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    let mut values: Vec<f32> = (0..count).map(|_| next()).collect();
    values[0] = -0.0;
    values[1] = 0.0;
    values
}

fn specs(dtype: Dtype) -> Vec<Spec> {
    vec![
        (EMBED, dtype, vec![8, 4], values(32, 1)),
        (Q, dtype, vec![4, 4], values(16, 2)),
        (UP, dtype, vec![6, 4], values(24, 3)),
        (NORM, Dtype::F32, vec![4], values(4, 4)),
        (STEPS, Dtype::I64, vec![2], vec![0.0, 7.0]),
    ]
}

struct Model {
    root: TempDir,
    dir: PathBuf,
}

impl Model {
    fn bare() -> Self {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("base");
        fs::create_dir_all(dir.join("nested")).unwrap();
        fs::write(dir.join("config.json"), CONFIG).unwrap();
        fs::write(dir.join("tokenizer.json"), "{ }\r\n").unwrap();
        fs::write(dir.join("nested/LICENCE"), [0, 255, 10]).unwrap();
        Self { root, dir }
    }

    fn single(dtype: Dtype) -> Self {
        let model = Self::bare();
        fs::write(model.dir.join("model.safetensors"), safetensors(&specs(dtype), 3)).unwrap();
        model
    }

    fn sharded(dtype: Dtype) -> Self {
        let model = Self::bare();
        let specs = specs(dtype);
        let mut map = Vec::new();
        for (at, part) in [&specs[..2], &specs[2..]].iter().enumerate() {
            let name = format!("model-{:05}-of-00002.safetensors", at + 1);
            fs::write(model.dir.join(&name), safetensors(part, at)).unwrap();
            map.extend(part.iter().map(|spec| format!(r#""{}":"{name}""#, spec.0)));
        }
        let index = format!(r#"{{"metadata":{{}},"weight_map":{{{}}}}}"#, map.join(","));
        fs::write(model.dir.join("model.safetensors.index.json"), index).unwrap();
        model
    }

    fn open(&self) -> Checkpoint {
        Checkpoint::open(&self.dir).unwrap()
    }

    fn out(&self) -> PathBuf {
        self.root.path().join("out")
    }

    /// Everything beside the base folder.
    fn siblings(&self) -> Vec<String> {
        let names =
            fs::read_dir(self.root.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "base").collect();
        names.sort();
        names
    }
}

/// Adds a constant to some tensors.
struct Add(Vec<&'static str>, f32);

impl Patches for Add {
    fn names(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    fn apply(&self, _: &str, values: &mut [f32]) -> Result<()> {
        values.iter_mut().for_each(|value| *value += self.1);
        Ok(())
    }
}

/// Plans tensors and changes nothing.
struct Keep(Vec<&'static str>);

impl Patches for Keep {
    fn names(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    fn apply(&self, _: &str, _: &mut [f32]) -> Result<()> {
        Ok(())
    }
}

fn every_model() -> Vec<Model> {
    let dtypes = [Dtype::F32, Dtype::BF16, Dtype::F16];
    dtypes.into_iter().map(Model::single).chain(dtypes.into_iter().map(Model::sharded)).collect()
}

fn failure<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("expected a refusal"),
        Err(error) => error,
    }
}

fn bytes_by_file(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = immunise::checkpoint::files::list(dir).unwrap();
    files.into_iter().map(|file| (file.clone(), fs::read(dir.join(file)).unwrap())).collect()
}

#[test]
fn what_is_stored_is_what_is_read_whatever_the_alignment() {
    for model in every_model() {
        let checkpoint = model.open();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), [EMBED, UP, Q, NORM, STEPS]);
        for (name, dtype, shape, values) in specs(checkpoint.info(Q).unwrap().dtype) {
            let info = checkpoint.info(name).unwrap();
            assert_eq!((info.dtype, &info.shape), (dtype, &shape));
            assert_eq!(checkpoint.bytes(name).unwrap(), encode(dtype, &values));
            if dtype != Dtype::I64 {
                assert_eq!(encode(dtype, &checkpoint.read_f32(name).unwrap()), encode(dtype, &values));
            }
        }
        assert!(checkpoint.warnings().is_empty(), "{:?}", checkpoint.warnings());
    }
}

#[test]
fn a_patch_without_change_is_a_byte_identical_folder() {
    for model in every_model() {
        let base = model.open();
        for patches in [Keep(vec![]), Keep(vec![UP, EMBED, NORM])] {
            let (staged, report) = patch(&base, &model.out(), &patches, &[], &[]).unwrap();
            assert_eq!(bytes_by_file(staged.path()), bytes_by_file(&model.dir));
            assert!(
                report
                    .tensors
                    .iter()
                    .all(|t| (t.changed, t.max_abs, t.relative_norm, t.cast_loss) == (0, 0.0, 0.0, 0.0))
            );
            assert_eq!(report.tensors.len(), patches.0.len());
            let copy = Checkpoint::open(staged.path()).unwrap();
            assert_eq!(diff(&base, &copy).unwrap(), Default::default());
            assert_eq!(base.digests().unwrap(), copy.digests().unwrap());
        }
    }
}

#[test]
fn only_planned_tensors_differ_and_diff_names_exactly_these() {
    for model in every_model() {
        let base = model.open();
        let (staged, report) = patch(&base, &model.out(), &Add(vec![UP], 0.5), &[], &[]).unwrap();
        let changed = Checkpoint::open(staged.path()).unwrap();
        for name in base.names() {
            assert_eq!(base.bytes(name).unwrap() == changed.bytes(name).unwrap(), name != UP, "{name}");
            assert_eq!(base.tensor_digest(name).unwrap() == changed.tensor_digest(name).unwrap(), name != UP);
        }
        let found = diff(&base, &changed).unwrap();
        assert_eq!(found.tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), [UP]);
        assert_eq!(
            found.files.iter().map(|f| (f.path.as_str(), f.change)).collect::<Vec<_>>(),
            [(base.info(UP).unwrap().file.as_str(), FileChange::Content)]
        );
        let Change::Values { changed, elements, max_abs, relative_norm } = found.tensors[0].change else { panic!() };
        assert_eq!((changed, elements), (report.tensors[0].changed, 24));
        assert!((max_abs.unwrap() - 0.5).abs() < 0.01);
        assert!((relative_norm.unwrap() - report.tensors[0].relative_norm).abs() < 0.01);
        assert_eq!(report.tensors[0].cast_loss == 0.0, base.info(UP).unwrap().dtype == Dtype::F32);
    }
}

#[test]
fn diff_reports_what_only_one_side_has() {
    let (first, second) = (Model::single(Dtype::F32), Model::single(Dtype::F32));
    let mut other = specs(Dtype::F32);
    other[1].0 = "model.extra";
    other[2].2 = vec![4, 6];
    fs::write(second.dir.join("model.safetensors"), safetensors(&other, 0)).unwrap();
    fs::remove_file(second.dir.join("tokenizer.json")).unwrap();
    fs::write(second.dir.join("README.md"), "x").unwrap();
    let found = diff(&first.open(), &second.open()).unwrap();
    let changes: Vec<_> = found.tensors.iter().map(|t| (t.name.as_str(), t.change.clone())).collect();
    let layout = Change::Layout { first: "F32 [6, 4]".into(), second: "F32 [4, 6]".into() };
    assert_eq!(changes, [("model.extra", Change::OnlyInSecond), (UP, layout), (Q, Change::OnlyInFirst)]);
    let files: Vec<_> = found.files.iter().map(|f| (f.path.as_str(), f.change)).collect();
    assert_eq!(
        files,
        [
            ("README.md", FileChange::OnlyInSecond),
            ("model.safetensors", FileChange::Content),
            ("tokenizer.json", FileChange::OnlyInFirst)
        ]
    );
}

#[test]
fn the_folder_appears_whole_or_not_at_all() {
    let model = Model::sharded(Dtype::BF16);
    let base = model.open();
    let (staged, _) = patch(&base, &model.out(), &Add(vec![Q], 1.0), &[], &[]).unwrap();
    assert!(!model.out().exists());
    drop(staged);
    assert_eq!(model.siblings(), [""; 0], "a dropped folder leaves nothing behind");

    assert!(patch(&base, &model.out(), &Add(vec![Q], f32::NAN), &[], &[]).is_err());
    assert_eq!(model.siblings(), [""; 0], "a failed patch leaves nothing behind");

    let (staged, _) = patch(&base, &model.out(), &Add(vec![Q], 1.0), &[], &[]).unwrap();
    let expected = bytes_by_file(staged.path());
    staged.publish(&model.out()).unwrap();
    assert_eq!(bytes_by_file(&model.out()), expected);
    assert_eq!(model.siblings(), ["out"]);
}

#[test]
fn a_target_with_files_in_it_is_never_overwritten() {
    let model = Model::single(Dtype::F32);
    let staged = Staged::beside(&model.out()).unwrap();
    fs::create_dir(model.out()).unwrap();
    staged.write("a", b"1").unwrap();
    staged.publish(&model.out()).unwrap();
    assert_eq!(fs::read(model.out().join("a")).unwrap(), b"1", "an empty folder is no obstacle");

    let text = failure(Staged::beside(&model.out())).to_string();
    assert!(text.contains("expected no folder or an empty one"), "{text}");
    let elsewhere = Staged::beside(&model.root.path().join("new")).unwrap();
    assert_eq!(failure(elsewhere.publish(&model.out())).exit_code(), 3);
    assert_eq!(fs::read(model.out().join("a")).unwrap(), b"1");
    assert_eq!(model.siblings(), ["out"]);
    for outside in ["../x", "/x", "", "a/../../x", "a\\b"] {
        assert!(Staged::beside(&model.root.path().join("new")).unwrap().write(outside, b"").is_err(), "{outside}");
    }
}

#[test]
fn extra_files_replace_and_omitted_ones_stay_behind() {
    let model = Model::single(Dtype::F32);
    fs::create_dir_all(model.dir.join(".git/objects")).unwrap();
    fs::write(model.dir.join(".git/objects/x"), "x").unwrap();
    fs::write(model.dir.join(".gitattributes"), "x").unwrap();
    fs::write(model.dir.join("model.sig"), "stale").unwrap();
    let base = model.open();
    let extra: [(&str, &[u8]); 2] = [("tokenizer.json", b"new"), ("immunisation/report.json", b"{}")];
    let (staged, _) = patch(&base, &model.out(), &Keep(vec![]), &extra, &["model.sig", "nested/"]).unwrap();
    let files = bytes_by_file(staged.path());
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["config.json", "immunisation/report.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(files["tokenizer.json"], b"new");
    for extra in ["model.safetensors", "model.safetensors.index.json"] {
        assert!(patch(&base, &model.out(), &Keep(vec![]), &[(extra, b"")], &[]).is_err());
        assert!(patch(&base, &model.out(), &Keep(vec![]), &[], &[extra]).is_err());
    }
}

#[test]
fn plans_that_cannot_be_carried_out_are_refused_by_tensor() {
    let model = Model::single(Dtype::F16);
    let base = model.open();
    let refuse = |patches: &dyn Patches| failure(patch(&base, &model.out(), patches, &[], &[])).to_string();
    assert!(refuse(&Keep(vec!["no.such"])).contains("`no.such`"));
    assert!(refuse(&Keep(vec![UP, UP])).contains("expected one change, got two"));
    assert!(refuse(&Keep(vec![STEPS])).contains("expected F32, BF16 or F16, got I64"));
    assert!(refuse(&Add(vec![UP], f32::INFINITY)).contains(UP));
    // Finite in f32, infinite once stored.
    assert!(refuse(&Add(vec![UP], 1e6)).contains("expected finite new values"));
    let short = BTreeMap::from([(UP.to_owned(), vec![0.0; 23])]);
    assert!(refuse(&short).contains("expected 24 new values, got 23"));
    let text = failure(base.require_shape(UP, &[4, 6])).to_string();
    assert!(text.contains(UP) && text.contains("expected shape [4, 6], got [6, 4]"), "{text}");
}

#[test]
fn a_second_copy_of_the_weights_is_pointed_out() {
    let model = Model::single(Dtype::F32);
    fs::write(model.dir.join("pytorch_model.bin"), "x").unwrap();
    fs::create_dir(model.dir.join("original")).unwrap();
    fs::write(model.dir.join("original/consolidated.00.pth"), "x").unwrap();
    let base = model.open();
    assert_eq!(base.warnings().len(), 2, "{:?}", base.warnings());
    let copies = |omit: &[&str]| patch(&base, &model.out(), &Keep(vec![]), &[], omit).unwrap().1.other_weights;
    assert_eq!(copies(&[]), ["original/consolidated.00.pth", "pytorch_model.bin"]);
    assert_eq!(copies(&["original"]), ["pytorch_model.bin"]);
}

#[test]
fn weights_are_known_by_every_spelling_of_their_ending() {
    let others = [
        "Extra.SafeTensors",
        "PYTORCH_MODEL.BIN",
        "a.ckpt",
        "a.npy",
        "a.npz",
        "a.ot",
        "a.pkl",
        "a.tflite",
        "model.safetensors.1",
        "model.safetensors.bak",
        "model.safetensors.index.json.bak",
    ];
    for model in [Model::single(Dtype::F32), Model::sharded(Dtype::F32)] {
        for name in
            others.iter().chain(&["readme.bin.txt", "npy", "safetensors", "consolidated.safetensors.index.json"])
        {
            fs::write(model.dir.join(name), "x").unwrap();
        }
        let base = model.open();
        assert_eq!(base.other_weights().unwrap(), others);
        let said: Vec<String> =
            others.iter().map(|file| format!("{file}: holds weights too, but is no part of this checkpoint")).collect();
        assert_eq!(base.warnings(), said);
    }
}

/// Files of the root that are of no model, and those that look like them.
#[test]
fn what_is_copied_and_digested_is_what_is_signed() {
    use immunise::sign::Manifest;
    let model = Model::single(Dtype::F32);
    let before = (model.open().files().unwrap(), model.open().digests().unwrap());
    let put = |name: &str| {
        fs::create_dir_all(model.dir.join(name).parent().unwrap()).unwrap();
        fs::write(model.dir.join(name), name).unwrap();
    };
    [
        ".git/config",
        ".gitattributes",
        ".github/workflows/a.yml",
        ".gitignore",
        ".cache/huggingface/download/config.json.metadata",
        ".cache/huggingface/.gitignore",
    ]
    .into_iter()
    .for_each(put);
    assert_eq!((model.open().files().unwrap(), model.open().digests().unwrap()), before);
    let signed = || {
        let manifest = Manifest::of_folder(&model.dir).unwrap();
        manifest.resources().iter().map(|resource| resource.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(signed(), before.0);

    let more = [".cache/other", ".gitkeep", ".gitmodules", "nested/.cache/huggingface/a", "nested/.gitignore"];
    more.into_iter().for_each(put);
    let mut all: Vec<String> = before.0.into_iter().chain(more.map(str::to_owned)).collect();
    all.sort();
    assert_eq!((signed(), model.open().files().unwrap()), (all.clone(), all.clone()));
    let (staged, _) = patch(&model.open(), &model.out(), &Keep(vec![]), &[], &[]).unwrap();
    assert_eq!(bytes_by_file(staged.path()).into_keys().collect::<Vec<_>>(), all);
    assert!(!staged.path().join(".git").exists() && !staged.path().join(".cache/huggingface").exists());
    // A file of that name is no folder of downloads.
    fs::remove_dir_all(model.dir.join(".cache")).unwrap();
    put(".cache/huggingface");
    assert!(signed().contains(&".cache/huggingface".to_owned()));
    assert_eq!(signed(), model.open().files().unwrap());
}

#[cfg(unix)]
#[test]
fn the_hub_caches_links_become_files_and_other_links_are_refused() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let model = Model::single(Dtype::BF16);
    let repo = model.root.path().join("models--org--name");
    let snapshot = repo.join("snapshots/0123456789abcdef0123456789abcdef01234567");
    fs::create_dir_all(snapshot.join("nested")).unwrap();
    fs::create_dir_all(repo.join("blobs")).unwrap();
    for (at, file) in model.open().files().unwrap().iter().enumerate() {
        let blob = repo.join(format!("blobs/{at}"));
        fs::copy(model.dir.join(file), &blob).unwrap();
        fs::set_permissions(&blob, fs::Permissions::from_mode(0o400)).unwrap();
        let up = if file.contains('/') { "../../../" } else { "../../" };
        symlink(format!("{up}blobs/{at}"), snapshot.join(file)).unwrap();
    }
    let cached = Checkpoint::open(&snapshot).unwrap();
    assert_eq!(cached.digests().unwrap(), model.open().digests().unwrap());
    let (staged, _) = patch(&cached, &model.out(), &Add(vec![Q], 1.0), &[], &[]).unwrap();
    staged.publish(&model.out()).unwrap();
    for file in cached.files().unwrap() {
        let metadata = fs::symlink_metadata(model.out().join(&file)).unwrap();
        assert!(metadata.is_file(), "{file}");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o644, "{file}");
    }
    assert_eq!(fs::metadata(model.out()).unwrap().permissions().mode() & 0o777, 0o755);

    let secret = model.root.path().join("secret");
    fs::write(&secret, "key").unwrap();
    for (target, expected) in [
        (secret.as_path(), "expected a link inside the folder"),
        (Path::new("/nowhere"), "got a broken link"),
        (Path::new("nested"), "got a link to something else"),
    ] {
        symlink(target, model.dir.join("notes.txt")).unwrap();
        let text = failure(Checkpoint::open(&model.dir)).to_string();
        assert!(text.contains("notes.txt") && text.contains(expected), "{text}");
        fs::remove_file(model.dir.join("notes.txt")).unwrap();
    }
}

#[test]
fn what_is_not_a_safetensors_checkpoint_says_what_to_do() {
    let model = Model::bare();
    let refuse = |expected: &[&str]| {
        let error = failure(Checkpoint::open(&model.dir));
        assert_eq!(error.exit_code(), 3);
        assert!(expected.iter().all(|part| error.to_string().contains(part)), "{error}");
    };
    refuse(&["expected `model.safetensors` or", "hint: is this the folder"]);
    fs::write(model.dir.join("model-Q4_K.gguf"), "GGUF").unwrap();
    refuse(&["only GGUF weights (`model-Q4_K.gguf`)", "hint: "]);
    fs::write(model.dir.join("pytorch_model.bin"), "x").unwrap();
    refuse(&["only pickled weights (`pytorch_model.bin`)", "hint: ", "convert to safetensors"]);
    fs::write(model.dir.join("model.safetensors"), safetensors(&specs(Dtype::F32), 0)).unwrap();
    let index = r#"{"weight_map":{"a":"other.safetensors"}}"#;
    fs::write(model.dir.join("model.safetensors.index.json"), index).unwrap();
    refuse(&["got both", "hint: loaders disagree"]);
    fs::remove_file(model.dir.join("config.json")).unwrap();
    refuse(&["config.json: expected a file, got nothing", "hint: "]);
    let missing = failure(Checkpoint::open(&model.root.path().join("nowhere"))).to_string();
    assert!(missing.contains("nowhere: expected a folder, got nothing\nhint: "), "{missing}");
}

#[test]
fn a_wrong_total_size_is_a_warning() {
    let model = Model::sharded(Dtype::F32);
    let path = model.dir.join("model.safetensors.index.json");
    let index = fs::read_to_string(&path).unwrap();
    for (size, warnings) in [(320, 0), (321, 1)] {
        fs::write(&path, index.replace(r#""metadata":{}"#, &format!(r#""metadata":{{"total_size":{size}}}"#))).unwrap();
        assert_eq!(model.open().warnings().len(), warnings, "{:?}", model.open().warnings());
    }
}

fn adapter(d_out: usize, d_in: usize, rank: usize, seed: u32, scale: f32) -> Adapter {
    let a = Array2::from_shape_vec((rank, d_in), values(rank * d_in, seed)).unwrap();
    let b = Array2::from_shape_vec((d_out, rank), values(d_out * rank, seed + 100)).unwrap();
    Adapter::new(a, b, scale).unwrap()
}

#[test]
fn a_merge_is_the_weight_plus_every_delta_rounded_once() {
    for model in every_model() {
        let base = model.open();
        let first: AdapterSet =
            [(Q.to_owned(), adapter(4, 4, 2, 5, 2.0)), (UP.to_owned(), adapter(6, 4, 1, 6, 0.5))].into_iter().collect();
        let second: AdapterSet = [(UP.to_owned(), adapter(6, 4, 3, 7, -1.5))].into_iter().collect();
        let sets = [first.clone(), second.clone()];
        let plan = merge::plan(&base, &sets).unwrap();
        let (staged, _) = patch(&base, &model.out(), &plan, &[], &[]).unwrap();
        let merged = Checkpoint::open(staged.path()).unwrap();
        let names: Vec<String> = diff(&base, &merged).unwrap().tensors.into_iter().map(|t| t.name).collect();
        assert_eq!(names, [UP, Q]);
        for (name, adapters) in [(Q, vec![&first.0[Q]]), (UP, vec![&first.0[UP], &second.0[UP]])] {
            let info = base.info(name).unwrap();
            let weight = base.read_f32(name).unwrap();
            let expected: Vec<f32> = (0..weight.len())
                .map(|at| {
                    let (i, j) = (at / info.shape[1], at % info.shape[1]);
                    let terms = adapters.iter().flat_map(|x| {
                        (0..x.rank()).map(move |k| f64::from(x.scale) * f64::from(x.b[[i, k]]) * f64::from(x.a[[k, j]]))
                    });
                    let delta = terms.sum::<f64>();
                    // No change is no addition: -0.0 + 0.0 would be 0.0.
                    if delta == 0.0 { weight[at] } else { (f64::from(weight[at]) + delta) as f32 }
                })
                .collect();
            assert_eq!(merged.bytes(name).unwrap(), encode(info.dtype, &expected), "{name}");
        }
    }
}

#[test]
fn adapters_with_a_zero_b_leave_the_folder_byte_identical() {
    for model in every_model() {
        let base = model.open();
        let mut zero = adapter(6, 4, 2, 8, 1.0);
        zero.b.fill(0.0);
        let sets = [[(UP.to_owned(), zero)].into_iter().collect::<AdapterSet>()];
        let (staged, _) = patch(&base, &model.out(), &merge::plan(&base, &sets).unwrap(), &[], &[]).unwrap();
        assert_eq!(bytes_by_file(staged.path()), bytes_by_file(&model.dir));
        assert_eq!(base.read_f32(UP).unwrap()[0].to_bits(), (-0.0f32).to_bits());
    }
}

#[test]
fn adapters_for_another_model_are_refused_by_tensor() {
    let model = Model::single(Dtype::F32);
    let base = model.open();
    for (name, adapter, expected) in [
        (UP, adapter(4, 6, 1, 1, 1.0), "expected shape [4, 6], got [6, 4]"),
        ("model.layers.9.mlp.up_proj.weight", adapter(6, 4, 1, 1, 1.0), "hint: was the adapter made for this model?"),
        (NORM, adapter(4, 4, 1, 1, 1.0), "biases and norms are not adapted"),
    ] {
        let sets = [[(name.to_owned(), adapter)].into_iter().collect::<AdapterSet>()];
        let text = failure(merge::plan(&base, &sets)).to_string();
        assert!(text.contains(name) && text.contains(expected), "{text}");
    }
}

#[test]
fn adapters_survive_peft_files_bit_for_bit() {
    let root = tempfile::tempdir().unwrap();
    let set: AdapterSet = [
        (Q.to_owned(), adapter(4, 4, 2, 5, 0.1)),
        (UP.to_owned(), adapter(6, 4, 3, 6, 2.0)),
        ("model.layers.10.mlp.up_proj.weight".to_owned(), adapter(6, 4, 2, 7, 0.1)),
    ]
    .into_iter()
    .collect();
    let (first, second) = (root.path().join("first"), root.path().join("second"));
    peft::save(&set, &first, "org/name").unwrap();
    let loaded = peft::load(&first).unwrap();
    assert_eq!(loaded, set);
    peft::save(&loaded, &second, "org/name").unwrap();
    assert_eq!(bytes_by_file(&first), bytes_by_file(&second));
    assert!(failure(peft::save(&set, &first, "org/name")).to_string().contains("got one with files in it"));
    assert!(peft::save(&AdapterSet::new(), &root.path().join("third"), "").is_err());
}

#[test]
fn adapters_that_are_more_than_low_rank_deltas_are_refused_by_key() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("adapter");
    let set: AdapterSet = [(Q.to_owned(), adapter(4, 4, 2, 5, 1.0))].into_iter().collect();
    peft::save(&set, &dir, "org/name").unwrap();
    let path = dir.join("adapter_config.json");
    let good: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let with = |key: &str, value: serde_json::Value| {
        let mut config = good.clone();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
        peft::load(&dir)
    };
    for (key, value) in [
        ("use_dora", true.into()),
        ("bias", "lora_only".into()),
        ("fan_in_fan_out", true.into()),
        ("modules_to_save", serde_json::json!(["lm_head"])),
        ("init_lora_weights", "pissa_niter_16".into()),
        ("peft_type", "IA3".into()),
    ] {
        let text = failure(with(key, value)).to_string();
        assert!(text.contains(&format!("`{key}`")), "{text}");
    }
    let tensor = "`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`";
    for (key, value) in [("target_modules", serde_json::json!(["v_proj"])), ("exclude_modules", "(.*)q_proj".into())] {
        let text = failure(with(key, value)).to_string();
        assert!(text.contains(&format!("`{key}`")) && text.contains(tensor), "{text}");
    }
    assert!(failure(with("lora_alpha", 0.into())).to_string().contains("`lora_alpha`: expected a number other than 0"));
    assert!(failure(with("r", 4.into())).to_string().contains("expected rank 4, got factors of rank 2"));
    let scale = |key: &str, value| with(key, value).unwrap().0[Q].scale;
    assert_eq!(scale("lora_alpha", 6.into()), 3.0);
    assert_eq!(scale("use_rslora", true.into()), 2.0 / 2.0f32.sqrt());
    assert_eq!(scale("alpha_pattern", serde_json::json!({"q_proj": 8, ".*": 4})), 4.0);
    assert_eq!(scale("alpha_pattern", serde_json::json!({"v_proj": 8, "_proj": 4})), 1.0);

    fs::rename(dir.join("adapter_model.safetensors"), dir.join("adapter_model.bin")).unwrap();
    let text = failure(peft::load(&dir)).to_string();
    assert!(text.contains("is a pickle"), "{text}");
}

/// Nearest value of a 16-bit type by search over all of them: ties go to the even bit pattern.
fn nearest(value: f32, widen: impl Fn(u16) -> f32) -> u16 {
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    let distance = |bits: u16| (f64::from(widen(bits)) - f64::from(value)).abs();
    // Magnitudes grow with the bit pattern: find the last one not above the value.
    let (mut low, mut high) = (0u16, 0x7fff);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        let stored = widen(middle);
        if stored.is_nan() || stored > value.abs() { high = middle } else { low = middle }
    }
    let (low, high) = (low | sign, high | sign);
    match distance(low).total_cmp(&distance(high)) {
        std::cmp::Ordering::Less => low,
        std::cmp::Ordering::Greater => high,
        std::cmp::Ordering::Equal => {
            if low % 2 == 0 {
                low
            } else {
                high
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn stored_values_are_the_nearest_with_ties_to_even(
        bits in prop::collection::vec((any::<bool>(), 0u32..0x4700_0000, any::<bool>()), 24),
    ) {
        // Below 2^15, so that f16 does not overflow; half of them are exact ties of bf16.
        let new: Vec<f32> = bits
            .iter()
            .map(|(negative, bits, tie)| {
                let bits = if *tie { (bits & 0xffff_0000) | 0x8000 } else { *bits };
                f32::from_bits(bits | u32::from(*negative) << 31)
            })
            .collect();
        for dtype in [Dtype::BF16, Dtype::F16] {
            let model = Model::single(dtype);
            let base = model.open();
            let patches = BTreeMap::from([(UP.to_owned(), new.clone())]);
            let (staged, _) = patch(&base, &model.out(), &patches, &[], &[]).unwrap();
            let written = Checkpoint::open(staged.path()).unwrap();
            let stored = written.bytes(UP).unwrap().as_chunks::<2>().0;
            for (value, stored) in new.iter().zip(stored) {
                let (reference, searched) = match dtype {
                    Dtype::BF16 => (bf16::from_f32(*value).to_bits(), nearest(*value, |b| bf16::from_bits(b).to_f32())),
                    _ => (f16::from_f32(*value).to_bits(), nearest(*value, |b| f16::from_bits(b).to_f32())),
                };
                prop_assert_eq!(u16::from_le_bytes(*stored), reference);
                prop_assert_eq!(reference, searched, "{:e}", value);
            }
        }
    }

    #[test]
    fn damage_to_a_header_is_refused_or_harmless_but_never_a_crash(at in 0usize..520, byte in any::<u8>(), cut in 0usize..900) {
        let model = Model::single(Dtype::F32);
        let path = model.dir.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] = byte;
        fs::write(&path, &bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(&model.dir) {
            for name in checkpoint.names() {
                let info = checkpoint.info(name).unwrap();
                prop_assert_eq!(checkpoint.bytes(name).unwrap().len() * 8, info.elements() * info.dtype.bitsize());
            }
        }
        let cut = cut.min(bytes.len() - 1);
        fs::write(&path, &bytes[..cut]).unwrap();
        prop_assert!(Checkpoint::open(&model.dir).is_err());
    }
}
