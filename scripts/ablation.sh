#!/usr/bin/env sh
# What each group of fusions is worth: the model compiled without it and measured beside the whole one, taking turns, so that a machine that changes
# changes both. Two artifacts (three with int8) are on the disk at a time. Where costs choose the same code without a group nothing is measured.
# usage: scripts/ablation.sh CHECKPOINT [deepfuse binary] [threads] [rounds] [part of a group's name]
set -eu
checkpoint=$1
deepfuse=${2:-target/release/deepfuse}
threads=${3:-2}
rounds=${4:-5}
only=${5:-}
out=$(mktemp -d -p .)
trap 'rm -rf "$out"' EXIT

named() { "$deepfuse" explain "$checkpoint" 2>/dev/null | awk -v p="$1" '/^rules$/ { on = 1 } on && index($1, p) == 1 { print $1 }' | sort -u; }

compiled() { # artifact, then flags of `compile`
    artifact=$1
    shift
    rm -rf "$artifact"
    "$deepfuse" compile "$checkpoint" "$@" -o "$artifact" >"$out/log" 2>&1 || { cat "$out/log" >&2 && exit 1; }
}

same_code() { cmp -s "$1/model.plan" "$2/model.plan" && cmp -s "$1"/kernels-*.so "$2"/kernels-*.so; }

# A sample of an artifact: prompt, decode, then decode at each further depth, tokens/s; read bandwidth, GB/s.
sample() {
    "$deepfuse" bench "$1" --threads "$threads" --samples 1 --prompt-tokens 128 --new-tokens 16 --depth "$2" 2>/dev/null |
        awk '/^read bandwidth/ { read = $3 } /^prefill  / && $3 == 0 { prompt = $4 } /^decode  / { decode = decode " " $4 }
            END { print prompt decode, read }'
}

median() { cut -d' ' -f"$2" "$1" | sort -n | awk '{ x[NR] = $1 } END { print (x[int((NR + 1) / 2)] + x[int((NR + 2) / 2)]) / 2 }'; }

pair() { # file of samples without, with, column: medians and their ratio
    without=$(median "$1" "$3")
    with=$(median "$2" "$3")
    awk -v a="$without" -v b="$with" 'BEGIN { printf "%.1f -> %.1f (%+.1f %%)", a, b, 100 * (b / a - 1) }'
}

measure() { # depths, whole artifact, flags of both, name, then rules to turn off
    depths=$1 whole=$2 flags=$3 name=$4
    shift 4
    case $name in *"$only"*) ;; *) return 0 ;; esac
    for rule in "$@"; do flags="$flags --disable-rule $rule"; done
    # shellcheck disable=SC2086  # a list of flags
    compiled "$out/without.dfz" $flags
    if same_code "$out/without.dfz" "$whole"; then
        echo "| $name | costs choose the same code without it | | | |"
        return 0
    fi
    : >"$out/a" && : >"$out/b"
    for _ in $(seq "$rounds"); do
        sample "$out/without.dfz" "$depths" >>"$out/a"
        sample "$whole" "$depths" >>"$out/b"
    done
    deep=- read=4
    if [ "$depths" != 0 ]; then deep=$(pair "$out/a" "$out/b" 3); else read=3; fi
    echo "| $name | $(pair "$out/a" "$out/b" 1) | $(pair "$out/a" "$out/b" 2) | $deep | $(median "$out/a" $read), $(median "$out/b" $read) |"
}

without() { measure 0 "$out/whole.dfz" '' "$@"; }
deep() { measure 0,4096 "$out/whole.dfz" '' "$@"; }

compiled "$out/whole.dfz"
echo "tokens/s without -> with, medians of $rounds each, taking turns; $threads threads"
echo
echo '| fusion | prompt of 128 | decode | decode at depth 4096 | GB/s read, without and with |'
echo '|---|---|---|---|---|'
# shellcheck disable=SC2046  # lists of rules
{
    deep 'absorbed attention' absorb-key absorb-value
    deep 'context split among workers' split-context
    without 'attention without scores in memory' mla-absorbed mla-expanded
    without 'SwiGLU of dense layers' swiglu
    without 'SwiGLU of experts' expert-swiglu
    without "experts' weighted sum" expert-down
    without "router's weight before the down projection" weight-before-down
    without 'experts by token' swiglu-by-token down-by-token
    without 'shared expert among the routed' shared-expert
    without 'residual and norm' add-norm
    without 'norm in the next projection' norm-weight norm-linear
    without 'projections of one input joined' join-projections
    without 'norm, rope and cache write' rope-cache
    without 'router in one kernel' $(named route-)
    without 'last layer for rows that want logits' $(named select-)
    without 'head of bf16 rows' linear-wide
    without 'scales and copies' $(named scale-) $(named reshape-) $(named slice-) widen-narrow split-projection
    without 'all of them' all
}
case 'norm with int8 codes (int8)' in *"$only"*)
    compiled "$out/int8.dfz" --quant int8
    measure 0 "$out/int8.dfz" '--quant int8' 'norm with int8 codes (int8)' norm-quantize add-norm-quantize
    ;;
esac
