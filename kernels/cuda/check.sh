#!/usr/bin/env bash
# Compiles every kernel for every architecture, without a GPU and without a CUDA toolkit, and runs those that multiply with B,
# attention and products of few rows on the CPU, where there is a C++ compiler. Fetches NVRTC once.
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

if ! command -v c++ >/dev/null; then
    echo "no C++ compiler (c++): the kernels were compiled, and none was run"
    exit
fi
# Some systems spread addresses further than the sanitizer's own memory allows.
run=(env ASAN_OPTIONS=detect_leaks=0)
if setarch "$(uname -m)" -R true 2>/dev/null; then run+=(setarch "$(uname -m)" -R); fi
for name in readers attention product; do
    binary=${CARGO_TARGET_DIR:-target}/emulated-$name
    c++ -std=c++20 -O1 -g -Wall -Wno-unknown-pragmas -Wno-unused-function -fsanitize=address,undefined -fno-sanitize-recover=all \
        -o "$binary" "kernels/tests/emulated/$name.cpp"
    "${run[@]}" "$binary"
done
