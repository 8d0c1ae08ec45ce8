#!/usr/bin/env sh
# Prints the tables of docs/measurements.md on correctness: every checkpoint of tests/checkpoints that has a golden, compiled for this
# machine with f32 activations, with bf16 ones, and with bf16 ones and no fusion, and compared with the golden's logits and ids; perplexity
# of tiny-python.
# usage: scripts/correctness.sh [deepfuse binary]
set -eu
cd "$(dirname "$0")/.."
deepfuse=${1:-target/release/deepfuse}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

field() { printf '%s\n' "$1" | awk -v row="$2" -v name="$3" '$2 == row { for (i = 3; i < NF; i++) if ($i == name) { print $(i + 1); exit } }'; }

artifact() { # checkpoint directory, then flags of `compile`
    dir=$1
    shift
    "$deepfuse" compile "$dir" "$@" -o "$out/m.dfz" >/dev/null 2>&1
}

echo '| checkpoint | activations | prefill: max abs | RMS | KL | decode: max abs | RMS | KL | greedy ids |'
echo '|---|---|---|---|---|---|---|---|---|'
for golden in tests/checkpoints/*/golden.safetensors; do
    dir=$(dirname "$golden")
    for mode in 'f32:--activations f32 --numerics reassociates' 'bf16:' 'bf16, unfused:--disable-rule all'; do
        # shellcheck disable=SC2086  # a list of flags
        artifact "$dir" ${mode#*:}
        r=$("$deepfuse" verify "$out/m.dfz" --golden "$golden" 2>/dev/null) || true
        row="| $(basename "$dir") | ${mode%:*}"
        for check in prefill_logits decode_logits; do
            for column in max_abs rms kl; do row="$row | $(field "$r" $check $column)"; done
        done
        echo "$row | $(printf '%s\n' "$r" | awk '$2 == "greedy_ids" { print $3 - $5 " of " $3 }') |"
    done
done

echo
echo '| checkpoint | activations | perplexity of held-out.txt, windows of 256 |'
echo '|---|---|---|'
dir=tests/checkpoints/tiny-python
for mode in 'f32:--activations f32 --numerics reassociates' 'bf16:' 'bf16, unfused:--disable-rule all'; do
    # shellcheck disable=SC2086
    artifact "$dir" ${mode#*:}
    r=$("$deepfuse" verify "$out/m.dfz" --text "$dir/held-out.txt" --window 256 2>/dev/null) || true
    echo "| tiny-python | ${mode%:*} | $(printf '%s\n' "$r" | awk '$2 == "perplexity" { print $3 }') |"
done
