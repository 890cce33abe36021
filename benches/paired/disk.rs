//! What a publisher waits for besides arithmetic: merging, digests, and the program's start.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use immunise::adapter::{Adapter, AdapterSet, peft};
use immunise::math::seed::Stream;
use immunise::model::Module;
use ndarray::Array2;

use crate::folder::write;
use crate::pair::{Outcome, Pair};
use crate::shape::smollm2;

const PROGRAM: &str = env!("CARGO_BIN_EXE_immunise");

/// Adapters into all maps of a checkpoint of a gigabyte, and the digests of what was written, against a copy with digests.
pub fn merge() -> Outcome<Vec<Pair>> {
    let mut blueprint = smollm2(60, 49152);
    (blueprint.d_model, blueprint.d_ff, blueprint.n_heads, blueprint.n_kv_heads) = (1024, 2816, 16, 4);
    let root = tempfile::tempdir()?;
    let base = root.path().join("base");
    write(&base, &blueprint, 4)?;
    let mut stream = Stream::new(3, "adapters");
    let mut set = AdapterSet::new();
    for layer in 0..blueprint.n_layers {
        for module in Module::ALL {
            let ([out, into], rank) = (blueprint.weight_shape(module), 8);
            let a = Array2::from_shape_vec((rank, into), stream.uniform(rank * into, 0.02))?;
            let b = Array2::from_shape_vec((out, rank), stream.uniform(out * rank, 0.02))?;
            set.insert(blueprint.weight_location(module, layer).tensor, Adapter::new(a, b, 1.0)?);
        }
    }
    let adapters = root.path().join("adapters");
    peft::save(&set, &adapters, "base")?;
    let key = root.path().join("key.pem");
    finish(Command::new(PROGRAM).args(["keygen", "--out"]).arg(&key))?;

    let (ours, theirs) = (root.path().join("ours"), root.path().join("theirs"));
    let merged = || -> Outcome<f64> {
        clear(&ours)?;
        let start = Instant::now();
        finish(Command::new(PROGRAM).arg("merge").arg(&base).arg(&adapters).arg("--out").arg(&ours))?;
        finish(Command::new(PROGRAM).arg("sign").arg(&ours).arg("--key").arg(&key))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let copied = || -> Outcome<f64> {
        clear(&theirs)?;
        let script = "cp --reflink=never -r \"$1\" \"$2\" && sync \"$2\"/* \"$2\" && sha256sum \"$2\"/*";
        let start = Instant::now();
        finish(Command::new("sh").args(["-c", script, "sh"]).arg(&base).arg(&theirs))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let size = size(&base)?;
    let what = format!("merge into all {} maps and sign, {:.2} GB", set.len(), size as f64 / 1e9);
    Ok(vec![Pair::run(what, "cp, fsync, sha256sum", 5, merged, copied)?])
}

/// `--help` against an empty shell: what every call of the program costs.
pub fn start() -> Outcome<Vec<Pair>> {
    let timed = |program: &str, arguments: &[&str]| -> Outcome<f64> {
        let start = Instant::now();
        finish(Command::new(program).args(arguments))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let ours = || timed(PROGRAM, &["--help"]);
    Ok(vec![Pair::run("start, `--help`", "sh -c :", 30, ours, || timed("sh", &["-c", ":"]))?])
}

fn finish(command: &mut Command) -> Outcome<()> {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

fn clear(dir: &Path) -> Outcome<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    Ok(())
}

fn size(dir: &Path) -> Outcome<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(dir)? {
        total += entry?.metadata()?.len();
    }
    Ok(total)
}
