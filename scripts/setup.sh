#!/usr/bin/env sh
# Installs what building deepfuse needs and is missing: LLVM 22 (headers and shared library), lld 22. Debian and Ubuntu; elsewhere it says what to install.
set -eu
lacks_llvm() { ! { command -v llvm-config-22 >/dev/null 2>&1 || llvm-config --version 2>/dev/null | grep -q '^22\.'; }; }
lacks_lld() { ! { command -v ld.lld-22 >/dev/null 2>&1 || command -v ld.lld >/dev/null 2>&1; }; }
lacks_cc() { ! command -v cc >/dev/null 2>&1; }

if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: cargo is missing; install Rust 1.88 or later from https://rustup.rs and run this again" >&2
    exit 6
fi
lacks_llvm || lacks_lld || lacks_cc || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: LLVM 22 with headers and lld are missing. Fedora: dnf install llvm-devel lld gcc libzstd-devel (LLVM 22)." >&2
    exit 6
fi
sudo=
if [ "$(id -u)" != 0 ]; then sudo=sudo; fi
echo "setup: installing llvm-22-dev, lld-22 and libzstd-dev" >&2
$sudo apt-get update -qq
if ! $sudo apt-get install -y -qq --no-install-recommends llvm-22-dev lld-22 libzstd-dev gcc libc6-dev >/dev/null; then
    echo "setup: apt has no llvm-22-dev here. Add the LLVM repository for your release (https://apt.llvm.org, llvm-toolchain-22) and run this again." >&2
    exit 6
fi
