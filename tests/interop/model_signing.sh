#!/bin/sh
# Checks src/sign against PyPI's model-signing in both directions, on all three curves.
#
#   tests/interop/model_signing.sh [VENV]
#
# VENV is a Python virtual environment to use or to make (default: target/model-signing). Needs the network once, to
# install into it. pyopenssl is listed because model-signing 1.1.1 imports it without declaring it.
set -eu
cd "$(dirname "$0")/../.."
venv=${1:-target/model-signing}
if [ ! -x "$venv/bin/model_signing" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet model-signing==1.1.1 pyopenssl
fi
venv=$(cd "$venv" && pwd)
IMMUNISE_MODEL_SIGNING="$venv/bin/model_signing" cargo test --test sign reference_implementation -- --ignored --nocapture
