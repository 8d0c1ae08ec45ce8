#!/usr/bin/env sh
# What each group of fusions is worth: the model compiled without it, and measured beside the whole. One artifact at a time is on the disk; the
# read bandwidth of each run is printed with it, since machines change.
# usage: scripts/ablation.sh CHECKPOINT [deepfuse binary] [threads]
set -eu
checkpoint=$1
deepfuse=${2:-target/release/deepfuse}
threads=${3:-2}
out=$(mktemp -d -p .)
trap 'rm -rf "$out"' EXIT

measure() { # name, then rules to turn off
    name=$1
    shift
    flags=''
    for rule in "$@"; do flags="$flags --disable-rule $rule"; done
    rm -rf "$out/m.dfz"
    # shellcheck disable=SC2086  # a list of flags
    "$deepfuse" compile "$checkpoint" $flags -o "$out/m.dfz" >/dev/null 2>&1
    "$deepfuse" bench "$out/m.dfz" --threads "$threads" --prompt-tokens 128 --new-tokens 16 2>/dev/null |
        awk -v name="$name" '/^read bandwidth/ { read = $3 } /^prefill  / { prompt = $4 } /^decode  / { print "| " name " | " prompt " | " $4 " | " read " |" }'
}

echo '| turned off | prompt 128, tokens/s | decode, tokens/s | read bandwidth, GB/s |'
echo '|---|---|---|---|'
measure 'nothing'
measure 'rows that want logits selected early' select-add select-rms-norm
measure 'SwiGLU' swiglu expert-swiglu
measure 'experts with their weighted sum' expert-down
measure 'shared expert among the routed' shared-expert
measure 'nothing, again'
