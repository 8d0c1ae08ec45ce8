#!/usr/bin/env python3
"""Measures an artifact beside llama.cpp, on this machine, in turns: prompts, decoding, depth, batches. Prints a table of medians.

usage: beside.py MODEL.dfz MODEL.gguf [--runner target/release/deepfuse-run] [--threads 2] [--rounds 5] [--depths 0,4096] [--flash auto|on|off]
       beside.py --quantize q8_0|q4_0|q4_k_m MODEL.gguf OUT.gguf

It needs `pip install llama-cpp-python`, which builds llama.cpp for this CPU. `to_gguf.py` makes the GGUF of a checkpoint.
Tokens are random and differ between sequences. A prompt's last token alone wants logits, on both sides.
"""
import argparse
import ctypes
import json
import random
import statistics
import subprocess
import sys
import time

import llama_cpp as llama

# prompt tokens, tokens to decode, depth before the prompt, sequences; and what the two phases are called, `None` where nobody asks.
WORK = [
    ((512, 0, 0, 1), ("prompt of 512", None)),
    ((128, 24, 0, 1), ("prompt of 128", "decode")),
    ((128, 12, 4096, 1), ("prompt of 128 at depth 4096", "decode at depth 4096")),
    ((8, 8, 0, 8), (None, "decode of 8 sequences")),
    ((8, 6, 0, 32), (None, "decode of 32 sequences")),
]
SEQUENCES = 32


class Peer:
    """llama.cpp with one model."""

    def __init__(self, path, threads, flash):
        llama.llama_log_set(SILENT, ctypes.c_void_p(0))
        llama.llama_backend_init()
        model = llama.llama_model_default_params()
        model.n_gpu_layers = 0
        self.model = llama.llama_model_load_from_file(path.encode(), model)
        assert self.model, f"llama.cpp cannot load {path}"
        context = llama.llama_context_default_params()
        context.n_ctx = 6144
        context.n_batch = context.n_ubatch = 512
        context.n_seq_max = SEQUENCES
        context.kv_unified = True
        context.n_threads = context.n_threads_batch = threads
        context.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[flash]
        context.no_perf = True
        self.context = llama.llama_init_from_model(self.model, context)
        assert self.context, f"llama.cpp has no context for {path}"
        self.memory = llama.llama_get_memory(self.context)
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(512, 0, 1)

    def step(self, rows):
        """rows: (sequence, position, wants logits)."""
        for start in range(0, len(rows), 512):
            part = rows[start : start + 512]
            self.batch.n_tokens = len(part)
            for i, (sequence, position, logits) in enumerate(part):
                self.batch.token[i] = random.randrange(self.vocab)
                self.batch.pos[i] = position
                self.batch.n_seq_id[i] = 1
                self.batch.seq_id[i][0] = sequence
                self.batch.logits[i] = logits
            result = llama.llama_decode(self.context, self.batch)
            assert result == 0, f"llama_decode: {result}"
        llama.llama_synchronize(self.context)

    def sample(self, prompt, new, depth, sequences):
        """Tokens per second of the prompt and of decoding."""
        llama.llama_memory_clear(self.memory, True)
        for s in range(sequences if depth else 0):
            self.step([(s, p, False) for p in range(depth)])
        times = [time.perf_counter()]
        self.step([(s, depth + p, p == prompt - 1) for s in range(sequences) for p in range(prompt)])
        times.append(time.perf_counter())
        for n in range(new):
            self.step([(s, depth + prompt + n, True) for s in range(sequences)])
        times.append(time.perf_counter())
        return [sequences * n / (b - a) for n, a, b in zip((prompt, new), times, times[1:])]


@llama.llama_log_callback
def SILENT(_level, _text, _data):
    pass


def ours(arguments, prompt, new, depth, sequences):
    """The same, by `deepfuse-run bench`, and the read bandwidth that it measured before its samples."""
    command = [arguments.runner, "--json", "bench", arguments.artifact, "--threads", str(arguments.threads), "--samples", "1"]
    command += ["--prompt-tokens", str(prompt), "--new-tokens", str(new), "--depth", str(depth), "--batch", str(sequences)]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [row["tokens_per_s"] for row in report["rows"]] + [0] * (not new), statistics.median(report["read_gb_per_s"] or [0])


def measure(arguments):
    peer = Peer(arguments.gguf, arguments.threads, arguments.flash)
    peer.sample(*WORK[1][0])
    depths = [int(depth) for depth in arguments.depths.split(",")]
    all_work = [(work, phases) for work, phases in WORK if work[2] in depths]
    names = [name for _, phases in all_work for name in phases if name]
    samples = {name: ([], [], []) for name in names}
    for number in range(arguments.rounds):
        for work, phases in all_work:
            print(f"\rround {number + 1} of {arguments.rounds}: {phases[0] or phases[1]:30}", end="", file=sys.stderr)
            mine, read = ours(arguments, *work)
            for name, a, b in zip(phases, mine, peer.sample(*work)):
                if name:
                    for values, value in zip(samples[name], (a, b, read)):
                        values.append(value)
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    print(f"{arguments.artifact} beside {arguments.gguf}, {arguments.threads} threads, {arguments.rounds} rounds in turns; medians (least .. most), tokens/s")
    print("| work | deepfuse | llama.cpp | ratio | read bandwidth, GB/s |\n|---|---|---|---|---|")
    spread = lambda v: f"{statistics.median(v):.1f} ({min(v):.1f} .. {max(v):.1f})"
    for name in names:
        mine, theirs, read = samples[name]
        ratio = statistics.median(a / b for a, b in zip(mine, theirs))
        print(f"| {name} | {spread(mine)} | {spread(theirs)} | {ratio:.2f} | {spread(read)} |")


def quantize(to, source, out):
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = {"q4_0": 2, "q8_0": 7, "q4_k_m": 15}[to]
    llama.llama_log_set(SILENT, ctypes.c_void_p(0))
    result = llama.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(parameters))
    assert result == 0, f"llama_model_quantize: {result}"


def main():
    if sys.argv[1:2] == ["--quantize"]:
        return quantize(*sys.argv[2:])
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact")
    parser.add_argument("gguf")
    parser.add_argument("--runner", default="target/release/deepfuse-run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depths", default="0,4096", help="tokens before the prompt: only work at these depths")
    parser.add_argument("--flash", choices=["auto", "on", "off"], default="auto")
    measure(parser.parse_args())


main()
