#!/usr/bin/env sh
# Installs what building deepfuse needs and is missing: LLVM 22 (headers and shared library), lld, a C compiler. It installs with apt
# (Debian, Ubuntu); elsewhere it says what to install. Rust itself must be there.
set -eu

has() { command -v "$1" >/dev/null 2>&1; }
fail() { echo "setup: $1" >&2; exit 6; }

has_llvm() {
    if [ -n "${LLVM_SYS_221_PREFIX:-}" ]; then
        "$LLVM_SYS_221_PREFIX/bin/llvm-config" --version 2>/dev/null | grep -q '^22\.'
    else
        has llvm-config-22 || llvm-config --version 2>/dev/null | grep -q '^22\.'
    fi
}
# Linking kernels takes any lld; deepfuse also finds the one that some Rust toolchains bring.
has_lld() { [ -n "${DEEPFUSE_LLD:-}" ] || has ld.lld-22 || has ld.lld || has rust-lld; }

has cargo || fail "cargo is missing; install Rust 1.95 or later with rustup and run this again"

missing=
has_llvm || missing="$missing llvm-22-dev"
has_lld || missing="$missing lld-22"
has cc || missing="$missing gcc libc6-dev"
[ -n "$missing" ] || exit 0

has apt-get || fail "missing, by their Debian names:$missing
  Fedora: dnf install llvm-devel lld gcc (LLVM must be version 22)
  LLVM 22 in another place: set LLVM_SYS_221_PREFIX to its directory, and DEEPFUSE_LLD to the path of ld.lld"

sudo=
if [ "$(id -u)" != 0 ]; then
    has sudo || fail "missing:$missing; install them as root"
    sudo=sudo
fi
echo "setup: installing$missing" >&2
$sudo apt-get update -qq
# shellcheck disable=SC2086  # a list of packages
$sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null || fail "apt could not install$missing
  Debian 12 has LLVM 22 in its security suite. A release without it: add the LLVM project's apt repository for LLVM 22, then run this again."
