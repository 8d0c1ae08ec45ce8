#!/usr/bin/env bash
# Decoding beside busy neighbours: tokens/s of `deepfuse-run bench` next to 0, 1 and 2 processes that only burn CPU, interleaved.
#   scripts/neighbours.sh MODEL.dfz [THREADS] [ROUNDS] [RUNNER..]
set -euo pipefail
model=$1 threads=${2:-2} rounds=${3:-5}
shift $(($# < 3 ? $# : 3))
[ $# -gt 0 ] || set -- target/dist/deepfuse-run
work=$(mktemp -d)
busy=()
stop() {
  for pid in "${busy[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
  busy=()
}
trap 'stop; rm -rf "$work"' EXIT

for round in $(seq "$rounds"); do
  for neighbours in 0 1 2; do
    for _ in $(seq "$neighbours"); do
      yes >/dev/null &
      busy+=($!)
    done
    for runner in "$@"; do
      "$runner" --json bench "$model" --prompt-tokens 8 --new-tokens 32 --samples 1 --threads "$threads" 2>/dev/null |
        grep -o '"phase":"decode"[^}]*"tokens_per_s":[0-9.]*' | head -1 | grep -o '[0-9.]*$' >>"$work/$(basename "$runner").$neighbours"
    done
    stop
  done
done

median() { sort -n "$1" | awk '{ v[NR] = $1 } END { print (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2) }'; }
for runner in "$@"; do
  quiet=$(median "$work/$(basename "$runner").0")
  for neighbours in 0 1 2; do
    file=$work/$(basename "$runner").$neighbours
    awk -v n="$neighbours" -v q="$quiet" -v m="$(median "$file")" -v name="$(basename "$runner")" -v all="$(sort -n "$file" | tr '\n' ' ')" \
      'BEGIN { printf "%-12s busy %d: %6.1f tokens/s, %3.0f %% of quiet   (%s)\n", name, n, m, 100 * m / q, all }'
  done
done
