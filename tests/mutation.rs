//! Every reader of untrusted bytes against mutations of good and hostile files: it refuses or reads, and never panics.
//!
//! This needs no coverage and so no nightly toolchain; `tests/fuzz` drives the same functions with cargo-fuzz. A second for every
//! reader by default; `IMMUNISE_FUZZ_SECONDS=60 cargo test --test mutation -- --nocapture` takes a minute each.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use immunise::math::seed::Stream;

#[path = "fuzz/targets.rs"]
#[expect(dead_code, reason = "cargo-fuzz looks targets up by name")]
mod targets;

/// Longest input, bytes: a file's structure is in its first kilobytes.
const LONGEST: usize = 1 << 14;

/// Values that lengths, counts and offsets are replaced by.
const NUMBERS: [u64; 12] =
    [0, 1, 7, 8, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX];

fn files_of(places: &[&str]) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![];
    for place in places {
        let path = root.join(place);
        if path.is_dir() {
            let mut inner: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            inner.retain(|path| path.is_file());
            inner.sort();
            found.extend(inner);
        } else {
            found.push(path);
        }
    }
    found
}

/// Where a reader's good and hostile files lie.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let places: &[&str] = match target {
        "header" => &[
            "fixtures/hostile/safetensors",
            "fixtures/artefacts/layers.safetensors",
            "fixtures/pico/qwen3/model.safetensors",
        ],
        "index" => &["fixtures/hostile/index"],
        "config" => &[
            "fixtures/hostile/config",
            "fixtures/pico/gemma3_text/config.json",
            "fixtures/pico/phi3/config.json",
            "fixtures/pico/exaone4/config.json",
        ],
        "recipe" => &["fixtures/hostile/recipe", "recipes"],
        "bundle" => &["fixtures/hostile/signature", "fixtures/oms/known", "fixtures/oms/reference"],
        "gguf" => &["fixtures/hostile/gguf", "fixtures/artefacts/control_vector.gguf"],
        "pickle" | "torch" => &["fixtures/hostile/torch", "fixtures/artefacts/by_block.pt", "fixtures/artefacts/caa"],
        "npy" => &["fixtures/hostile/npy", "fixtures/artefacts/direction.npy"],
        other => panic!("no seeds for {other}"),
    };
    let mut seeds: Vec<Vec<u8>> = files_of(places).iter().map(|path| fs::read(path).unwrap()).collect();
    for seed in &mut seeds {
        if target == "pickle"
            && let Some(at) = seed.windows(2).position(|pair| pair == [0x80, 2])
        {
            seed.drain(..at);
        }
        seed.truncate(LONGEST);
    }
    seeds.extend(kept(target));
    seeds
}

/// What coverage-guided fuzzing of the same reader kept (tests/fuzz/corpus.py).
fn kept(target: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fuzz/kept/{target}.txt"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| BASE64_STANDARD.decode(line).unwrap()).collect()
}

/// Changes `data` in one of the ways in which files are damaged or lie.
fn mutate(data: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Stream) {
    let at = if data.is_empty() { 0 } else { random.below(data.len()) };
    match random.below(8) {
        0 if !data.is_empty() => data[at] ^= 1 << random.below(8),
        1 if !data.is_empty() => data[at] = random.below(256) as u8,
        2 => data.truncate(at),
        3 => {
            let length = random.below(16);
            data.drain(at..(at + length).min(data.len()));
        }
        4 => {
            let width = [1, 2, 4, 8][random.below(4)];
            let value = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
            data.iter_mut().skip(at).zip(&value[..width]).for_each(|(byte, new)| *byte = *new);
        }
        5 => {
            // Digits in text stand for lengths too.
            let value = NUMBERS[random.below(NUMBERS.len())].to_string();
            let digits = data[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            drop(data.splice(at..at + digits, value.into_bytes()));
        }
        6 => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len() + 1);
            let part = other[from..(from + random.below(64)).min(other.len())].to_vec();
            drop(data.splice(at..at, part));
        }
        _ => {
            let end = (at + 1 + random.below(32)).min(data.len());
            let part = data[at..end].repeat(1 + random.below(4));
            drop(data.splice(at..at, part));
        }
    }
    data.truncate(LONGEST);
}

#[test]
fn no_mutation_makes_a_reader_panic() {
    let seconds: f64 = std::env::var("IMMUNISE_FUZZ_SECONDS").map_or(0.5, |text| text.parse().expect("seconds"));
    let quiet = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let mut broken = vec![];
    for (name, target) in targets::TARGETS {
        let (seeds, mut random) = (seeds(name), Stream::new(0, name));
        let mut runs = 0_u64;
        let mut slowest = Duration::ZERO;
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        // The seeds themselves first, and all of them.
        while runs < seeds.len() as u64 || Instant::now() < end {
            let mut data =
                seeds[if runs < seeds.len() as u64 { runs as usize } else { random.below(seeds.len()) }].clone();
            if runs >= seeds.len() as u64 {
                (0..=random.below(6)).for_each(|_| mutate(&mut data, &seeds, &mut random));
            }
            runs += 1;
            let begin = Instant::now();
            if panic::catch_unwind(AssertUnwindSafe(|| target(&data))).is_err() {
                broken.push(format!("{name}: {}", data.escape_ascii()));
                break;
            }
            slowest = slowest.max(begin.elapsed());
        }
        println!("{name:<8} {runs:>9} executions of {} seeds, the slowest {slowest:.0?}", seeds.len());
    }
    panic::set_hook(quiet);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
