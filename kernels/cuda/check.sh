#!/usr/bin/env bash
# Compiles every kernel for every architecture, without a GPU and without a CUDA toolkit. Fetches NVRTC once.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=13.4.92
venv=${CARGO_TARGET_DIR:-target}/nvrtc-$version

if [ ! -e "$venv/done" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "nvidia-cuda-nvrtc==$version"
    touch "$venv/done"
fi
libraries=$(dirname "$(find "$(realpath "$venv")" -name 'libnvrtc.so*' | head -n 1)")
LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
    cargo test --package loraplex-kernels --test nvrtc -- --include-ignored
