#!/usr/bin/env python3
"""Times the experts of DeepSeek-V3 in kt-kernel (KTransformers) on this machine: 8 experts of 7168 x 2048, each token one of them.

usage: kt_kernel_experts.py [fp8|bf16] [threads] [rows an expert ..]          (needs `pip install --no-deps kt-kernel torch`)

The same work for deepfuse: `cargo run --release -p deepfuse-codegen --example kernels v3_exp THREADS 8,64,256 fp8`. One call is gate, up,
activation and down projection; a median of wall times, best of all beside it, on a quiet machine.
"""
import statistics
import sys
import time

import torch
from kt_kernel import kt_kernel_ext as kt

EXPERTS, HIDDEN, INNER = 8, 7168, 2048
stored = sys.argv[1] if len(sys.argv) > 1 else "fp8"
threads = int(sys.argv[2]) if len(sys.argv) > 2 else 1
rows = [int(r) for r in sys.argv[3:]] or [1, 8, 32]


def weights(outputs, inputs):
    all = [torch.randn(outputs, inputs) / inputs**0.5 for _ in range(EXPERTS)]
    if stored == "bf16":
        return [w.to(torch.bfloat16).contiguous() for w in all], [None] * EXPERTS
    scales = [torch.full((outputs // 128, inputs // 128), 4 / 448 / inputs**0.5) for _ in all]
    return [(w * (448 / 4) * inputs**0.5).clamp(-448, 448).to(torch.float8_e4m3fn).contiguous() for w in all], scales


def pointers(tensors):
    return [[0 if t is None else t.data_ptr() for t in tensors]]


pool = kt.WorkerPoolConfig()
pool.subpool_count, pool.subpool_numa_map, pool.subpool_thread_count = 1, [0], [threads]
cpu = kt.CPUInfer(pool)
kept = {name: weights(*shape) for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER)))}
on_gpu = torch.zeros(EXPERTS, dtype=torch.bool)
config = kt.moe.MOEConfig(EXPERTS, 1, HIDDEN, INNER, on_gpu.data_ptr())
config.layer_idx, config.pool, config.max_len = 0, cpu.backend_, EXPERTS * max(rows)
for name, (values, scales) in kept.items():
    setattr(config, name + "_projs", pointers(values))
    setattr(config, name + "_scales", pointers(scales))
if stored == "fp8":
    config.quant_config.bits, config.quant_config.group_size, config.quant_config.zero_point = 8, 128, False
moe = (kt.moe.AMXFP8_MOE if stored == "fp8" else kt.moe.AMXBF16_MOE)(config)
order = torch.arange(EXPERTS, dtype=torch.int64)
cpu.submit(moe.load_weights_task(order.data_ptr()))
cpu.sync()

print(f"kt-kernel, {stored} weights, {threads} threads, GFLOP/s: median of the calls, best")
for n in rows:
    tokens = n * EXPERTS
    ids = (torch.arange(tokens, dtype=torch.int64) % EXPERTS).reshape(tokens, 1).contiguous()
    scores = torch.ones(tokens, 1)
    x = torch.randn(tokens, HIDDEN).to(torch.bfloat16)
    y = torch.zeros_like(x)
    size = torch.tensor([tokens], dtype=torch.int32)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        cpu.submit(moe.forward_task(size.data_ptr(), 1, ids.data_ptr(), scores.data_ptr(), x.data_ptr(), y.data_ptr(), False))
        cpu.sync()
        times.append(time.perf_counter() - start)
    assert y.float().abs().max() > 0 and torch.isfinite(y.float()).all(), "kt-kernel computed nothing"
    rate = lambda seconds: 6 * tokens * HIDDEN * INNER / seconds / 1e9
    print(f"{n:4} rows an expert: {rate(statistics.median(times[2:])):6.1f} {rate(min(times)):6.1f}")
