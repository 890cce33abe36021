#!/usr/bin/env bash
# Everything that needs a GPU, in one go: the build, parity with the CPU, and the table of benches/accelerator.
# Needs nvcc, a driver, and optionally IMMUNISE_PYTHON (a Python with torch) for the other side of the table.
set -euo pipefail
cd "$(dirname "$0")/.."
nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv
cargo test --release --locked --features cuda --test parity -- --nocapture accelerator
cargo bench --locked --features cuda --bench accelerator
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cargo run --release --locked --features cuda -- demo --device cuda --out "$out/demo" --allow-fail
