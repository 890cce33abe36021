//! Names the sources that numbers depend on, so that what one build measured is not taken for what another would measure;
//! compiles the GPU's kernels where the feature `cuda` asks for them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// Folders of `src` that say nothing about numbers.
const APART: [&str; 4] = ["cli", "hub", "report", "sign"];

/// Files of them that do: kept units hold intervals, and end where a series of looks says so.
const STATISTICS: [&str; 3] = ["agreement.rs", "interval.rs", "sequential.rs"];

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?);
    let mut files = Vec::new();
    for entry in fs::read_dir(root.join("src"))? {
        let path = entry?.path();
        if path.is_dir() && !APART.iter().any(|name| path.ends_with(name)) {
            println!("cargo::rerun-if-changed={}", path.display());
            collect(&path, &mut files)?;
        }
    }
    for name in STATISTICS {
        let file = root.join("src/report").join(name);
        println!("cargo::rerun-if-changed={}", file.display());
        files.push(file);
    }
    // Versions of the libraries that compute; a packaged crate may come without.
    let lock = root.join("Cargo.lock");
    if lock.is_file() {
        println!("cargo::rerun-if-changed={}", lock.display());
        files.push(lock);
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.strip_prefix(&root).unwrap_or(&file).hash(&mut hasher);
        fs::read(&file)?.hash(&mut hasher);
    }
    println!("cargo::rustc-env=IMMUNISE_SOURCES={:016x}", hasher.finish());
    if env::var_os("CARGO_FEATURE_CUDA").is_some() { compile_kernels(&root) } else { Ok(()) }
}

/// The fused kernels as intermediate code, which the driver translates: for every GPU that the toolkits of today know, unless
/// told otherwise.
fn compile_kernels(root: &Path) -> io::Result<()> {
    for variable in ["CUDA_COMPUTE_CAP", "NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let capability: String =
        env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "75".into()).chars().filter(char::is_ascii_digit).collect();
    let out = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?).join("fused.ptx");
    let status = Command::new(nvcc())
        .args(["-ptx", "-O3", &format!("-arch=compute_{capability}"), "-o"])
        .arg(&out)
        .arg(root.join("src/model/cuda/fused.cu"))
        .status()
        .map_err(|error| {
            io::Error::other(format!("the feature `cuda` needs nvcc, on the path or below $CUDA_HOME: {error}"))
        })?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("nvcc ended with {status}"))) }
}

/// The compiler that `$NVCC` names, else the one of a toolkit's folder, else the one on the path.
fn nvcc() -> PathBuf {
    let named = env::var_os("NVCC").map(PathBuf::from);
    let folders = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let mut below = folders.map(|folder| PathBuf::from(folder).join("bin/nvcc"));
    named.or_else(|| below.find(|path| path.is_file())).unwrap_or_else(|| "nvcc".into())
}

/// All files below `folder`.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
