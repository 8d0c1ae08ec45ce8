#!/usr/bin/env python3
"""Converts a DeepSeek V2 or V3 checkpoint to GGUF, so that llama.cpp can be measured with the same weights.

usage: to_gguf.py CHECKPOINT OUT.gguf [bf16|q8_0]          (needs `pip install numpy gguf`)

The vocabulary is 256 bytes and filler: speed is measured with ids, no text goes through it.
"""
import json
import mmap
import pathlib
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

E4M3 = np.array(
    [(-1) ** (b >> 7) * ((b & 7) / 8 * 2.0**-6 if not b >> 3 & 15 else (1 + (b & 7) / 8) * 2.0 ** ((b >> 3 & 15) - 7)) for b in range(256)],
    np.float32,
)
BLOCK = 128


class Checkpoint:
    """The tensors of all shards, mapped."""

    def __init__(self, directory):
        self.tensors = {}
        for shard in sorted(pathlib.Path(directory).glob("*.safetensors")):
            file = open(shard, "rb")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            size = int.from_bytes(data[:8], "little")
            for name, info in json.loads(data[8 : 8 + size]).items():
                if name != "__metadata__":
                    self.tensors[name] = (data, 8 + size, info)

    def __contains__(self, name):
        return name in self.tensors

    def f32(self, name):
        data, base, info = self.tensors[name]
        begin, end = info["data_offsets"]
        dtype = {"BF16": np.uint16, "F32": np.float32, "F8_E4M3": np.uint8}[info["dtype"]]
        raw = np.frombuffer(data, dtype, (end - begin) // np.dtype(dtype).itemsize, base + begin).reshape(info["shape"])
        if info["dtype"] == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        if info["dtype"] == "F8_E4M3":
            scale = self.f32(name + "_scale_inv").repeat(BLOCK, 0).repeat(BLOCK, 1)
            return E4M3[raw] * scale[: raw.shape[0], : raw.shape[1]]
        return raw


def metadata(w, c, quantized):
    head = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    v3 = "n_group" in c and c.get("scoring_func", "sigmoid" if c["model_type"] == "deepseek_v3" else "softmax") == "sigmoid"
    w.add_name("measured")
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(1)
    w.add_layer_norm_rms_eps(c.get("rms_norm_eps", 1e-6))
    w.add_rope_freq_base(c.get("rope_theta", 10000.0))
    w.add_leading_dense_block_count(c["first_k_dense_replace"])
    w.add_vocab_size(c["vocab_size"])
    w.add_q_lora_rank(c.get("q_lora_rank") or 0)
    w.add_kv_lora_rank(c["kv_lora_rank"])
    w.add_key_length(c["kv_lora_rank"] + c["qk_rope_head_dim"])
    w.add_value_length(c["kv_lora_rank"])
    w.add_key_length_mla(head)
    w.add_value_length_mla(c["v_head_dim"])
    w.add_expert_feed_forward_length(c["moe_intermediate_size"])
    w.add_expert_count(c["n_routed_experts"])
    w.add_expert_used_count(c["num_experts_per_tok"])
    w.add_expert_shared_count(c["n_shared_experts"])
    w.add_expert_weights_scale(c.get("routed_scaling_factor", 1.0))
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if v3 else gguf.ExpertGatingFuncType.SOFTMAX)
    if v3:
        w.add_expert_weights_norm(True)
        w.add_expert_group_count(c["n_group"])
        w.add_expert_group_used_count(c["topk_group"])
    w.add_rope_dimension_count(c["qk_rope_head_dim"])
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if quantized else gguf.LlamaFileType.MOSTLY_BF16)
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("deepseek-llm")
    w.add_token_list(symbols + [f"<{i}>" for i in range(c["vocab_size"] - 256)])
    w.add_token_types([1] * c["vocab_size"])
    w.add_token_merges(["a b"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)
    w.add_add_bos_token(False)


def tensors(c, checkpoint):
    """(name, shape, plain f32?, function that reads it), in the order of the file."""
    hidden, heads, rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    width, experts, inner = c["intermediate_size"], c["n_routed_experts"], c["moe_intermediate_size"]

    def one(name, source, shape, plain=False):
        return name, shape, plain, lambda: checkpoint.f32(source)

    yield one("token_embd.weight", "model.embed_tokens.weight", (c["vocab_size"], hidden))
    yield one("output_norm.weight", "model.norm.weight", (hidden,), True)
    yield one("output.weight", "lm_head.weight", (c["vocab_size"], hidden))
    for layer in range(c["num_hidden_layers"]):
        to, of = f"blk.{layer}.", f"model.layers.{layer}."
        attention, mlp = of + "self_attn.", of + "mlp."
        yield one(to + "attn_norm.weight", of + "input_layernorm.weight", (hidden,), True)
        if c.get("q_lora_rank"):
            lora = c["q_lora_rank"]
            yield one(to + "attn_q_a.weight", attention + "q_a_proj.weight", (lora, hidden))
            yield one(to + "attn_q_a_norm.weight", attention + "q_a_layernorm.weight", (lora,), True)
            yield one(to + "attn_q_b.weight", attention + "q_b_proj.weight", (heads * (nope + rope), lora))
        else:
            yield one(to + "attn_q.weight", attention + "q_proj.weight", (heads * (nope + rope), hidden))
        yield one(to + "attn_kv_a_mqa.weight", attention + "kv_a_proj_with_mqa.weight", (rank + rope, hidden))
        yield one(to + "attn_kv_a_norm.weight", attention + "kv_a_layernorm.weight", (rank,), True)
        kv_b = lambda of=attention: checkpoint.f32(of + "kv_b_proj.weight").reshape(heads, nope + value, rank)
        yield to + "attn_k_b.weight", (heads, rank, nope), False, lambda kv_b=kv_b: kv_b()[:, :nope].transpose(0, 2, 1)
        yield to + "attn_v_b.weight", (heads, value, rank), False, lambda kv_b=kv_b: kv_b()[:, nope:]
        yield one(to + "attn_output.weight", attention + "o_proj.weight", (hidden, heads * value))
        yield one(to + "ffn_norm.weight", of + "post_attention_layernorm.weight", (hidden,), True)
        if layer < c["first_k_dense_replace"]:
            for part, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
                yield one(f"{to}ffn_{part}.weight", f"{mlp}{part}_proj.weight", shape)
            continue
        yield one(to + "ffn_gate_inp.weight", mlp + "gate.weight", (experts, hidden), True)
        if mlp + "gate.e_score_correction_bias" in checkpoint:
            yield one(to + "exp_probs_b.bias", mlp + "gate.e_score_correction_bias", (experts,), True)
        shared = inner * c["n_shared_experts"]
        for part, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            sources = [f"{mlp}experts.{e}.{part}_proj.weight" for e in range(experts)]
            yield f"{to}ffn_{part}_exps.weight", (experts, *shape), False, lambda s=sources: (checkpoint.f32(n) for n in s)
            whole = (shared, hidden) if part != "down" else (hidden, shared)
            yield one(f"{to}ffn_{part}_shexp.weight", f"{mlp}shared_experts.{part}_proj.weight", whole)


def main():
    directory, out = sys.argv[1:3]
    stored = {"bf16": Type.BF16, "q8_0": Type.Q8_0}[sys.argv[3] if len(sys.argv) > 3 else "bf16"]
    config = json.loads((pathlib.Path(directory) / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "deepseek2")
    metadata(writer, config, stored == Type.Q8_0)
    listed = list(tensors(config, Checkpoint(directory)))
    for name, shape, plain, _ in listed:
        if plain:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
        else:
            row = shape[-1] * 2 if stored == Type.BF16 else shape[-1] // 32 * 34
            size = int(np.prod(shape[:-1])) * row
            writer.add_tensor_info(name, (*shape[:-1], row), np.dtype(np.uint8), size, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape, plain, read in listed:
        values = read()
        parts = [values] if isinstance(values, np.ndarray) else list(values)
        data = np.concatenate([np.ascontiguousarray(p, np.float32).reshape(-1, shape[-1]) for p in parts]) if not plain else parts[0]
        assert data.size == np.prod(shape), f"{name}: {data.size} elements, expected {shape}"
        writer.write_tensor_data(np.ascontiguousarray(data, np.float32) if plain else gguf.quants.quantize(data, stored))
    writer.close()


main()
