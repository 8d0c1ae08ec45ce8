#!/usr/bin/env sh
# Every golden of tests/checkpoints on every x86 level that this CPU runs, and on AMX by emulation, with f32 and with bf16 activations: the worst of all
# checkpoints, prefill and decoding.
# usage: scripts/levels.sh [deepfuse binary] [level ..]
set -eu
cd "$(dirname "$0")/.."
deepfuse=${1:-target/release/deepfuse}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- x86-64 x86-64-v2 x86-avx2 x86-avx512 x86-avx512-vnni x86-avx512-bf16 x86-amx
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# Of all results of `verify --golden` on standard input: the largest difference, RMS and KL, and how many greedy ids agree.
worst() {
    awk '/_logits/ { for (i = 3; i < NF; i++) if ($i in m && $(i + 1) > m[$i]) m[$i] = $(i + 1) }
        BEGIN { m["max_abs"] = m["rms"] = m["kl"] = 0 }
        $2 == "greedy_ids" { all += $3; off += $5 }
        END { printf "%.1e | %.1e | %.1e | %d of %d", m["max_abs"], m["rms"], m["kl"], all - off, all }'
}

echo '| level | f32: max abs | RMS | KL | greedy ids | bf16: max abs | RMS | KL | greedy ids |'
echo '|---|---|---|---|---|---|---|---|---|'
for level in "$@"; do
    row="| $level"
    emulate=
    [ "$level" != x86-amx ] || emulate='--emulate amx'
    for mode in '--activations f32 --numerics reassociates' ''; do
        for golden in tests/checkpoints/*/golden.safetensors; do
            # shellcheck disable=SC2086  # a list of flags
            "$deepfuse" compile "$(dirname "$golden")" --target "$level" $mode -o "$out/m.dfz" >/dev/null 2>&1
            "$deepfuse" verify "$out/m.dfz" --golden "$golden" $emulate 2>/dev/null || true
            rm -rf "$out/m.dfz"
        done >"$out/results"
        row="$row | $(worst <"$out/results")"
    done
    echo "$row |"
done
