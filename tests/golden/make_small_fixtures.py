#!/usr/bin/env python3
"""Makes the checkpoints of tests/golden/fixtures/small: one for each flag of the architectures.

usage: make_small_fixtures.py OUT_DIR      needs PyPI torch, transformers 5, safetensors

They are tiny, and differ from each other in what the larger ones beside them leave at its default:
windows, kinds of RoPE, biases, dense layers, normalisation, the fused form of experts. Files are as
make_fixtures.py describes them, without hidden.L. Whatever transformers can run is its output; the
plain reference must agree, and computes EMO and DeepSeek v1 alone.
"""

import json, math, os, sys
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import make_fixtures as base
from make_fixtures import R, bf16, f16


class Reference(base.Reference):
    """Adds what the flags below need: windows by layer, all of yarn."""

    def rope(self, p, kind):
        if kind != "yarn":
            return super().rope(p, kind)
        th, D = p["rope_theta"], self.D
        old = p.get("original_max_position_embeddings") or self.c["max_position_embeddings"]
        factor = p.get("factor") or self.c["max_position_embeddings"] / old
        turns = lambda n: D * math.log(old / (n * 2 * math.pi)) / (2 * math.log(th))
        lo, hi = turns(p.get("beta_fast") or 32), turns(p.get("beta_slow") or 1)
        if p.get("truncate", True):
            lo, hi = math.floor(lo), math.ceil(hi)
        lo, hi = max(lo, 0), min(hi, D - 1)
        ramp = ((torch.arange(D // 2).double() - lo) / ((hi - lo) or 0.001)).clamp(0, 1)
        f = 1.0 / th ** (torch.arange(0, D, 2).double() / D)
        log = 0.1 * math.log(factor)
        scale = log + 1
        if p.get("mscale") and p.get("mscale_all_dim"):
            scale = (p["mscale"] * log + 1) / (p["mscale_all_dim"] * log + 1)
        scale = p.get("attention_factor") or scale
        return (f / factor * ramp + f * (1 - ramp)).float(), scale

    def attention(self, x, p):
        types = self.c.get("layer_types")
        window = self.c.get("sliding_window")
        if types and types[int(p.split(".")[2])] != "sliding_attention":
            self.c = self.c | dict(sliding_window=None)
        out = super().attention(x, p)
        self.c = self.c | dict(sliding_window=window)
        return out


base.Reference = Reference


def shrink(d):
    """Leaves out what tests do not read."""
    file = d + "/expected.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not k.startswith("hidden")}, file)


def fuse(d):
    """Stores experts as transformers 5 holds them in memory: one tensor per projection and layer."""
    file = d + "/model.safetensors"
    mixtral = json.load(open(d + "/config.json"))["model_type"] == "mixtral"
    out, parts = {}, {}
    for name, w in load_file(file).items():
        if ".router.layer." in name or "_linear." in name:  # granite
            name = name.replace("router.layer.weight", "router.weight")
            name = name.replace("input_linear.weight", "experts.gate_up_proj")
            out[name.replace("output_linear.weight", "experts.down_proj")] = w
            continue
        name = name.replace(".block_sparse_moe.", ".mlp.") if mixtral else name
        if ".experts." not in name:
            out[name] = w
            continue
        prefix, rest = name.split(".experts.")
        number, projection = rest.split(".")[:2]
        kind = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.get(projection, projection)
        parts.setdefault(prefix, {}).setdefault(kind, {})[int(number)] = w
    for prefix, kinds in parts.items():
        stack = lambda kind: torch.stack([kinds[kind][i] for i in range(len(kinds[kind]))])
        out[prefix + ".experts.gate_up_proj"] = torch.cat([stack("gate_proj"), stack("up_proj")], 1)
        out[prefix + ".experts.down_proj"] = stack("down_proj")
    save_file(out, file, metadata={"format": "pt"})


def from_hf(d, mt, kw, seed, dtype=bf16, old=False, fused=False, T=40):
    small = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        vocab_size=64,
    )
    base.from_hf(d, mt, small | kw, seed, dtype, 1, old, B=1, T=T)
    if fused:
        fuse(d)
    shrink(d)


def from_reference(d, cfg, shapes, seed):
    base.from_reference(d, cfg, shapes, seed, bf16, 1, B=1)
    shrink(d)


def make_mixtral(o):
    small = dict(intermediate_size=24, num_local_experts=5)
    window = dict(num_experts_per_tok=3, sliding_window=7, head_dim=10, num_key_value_heads=1)
    from_hf(o + "/mixtral-window", "mixtral", small | window | dict(rope_parameters=R(1e6)), 1)
    l3 = dict(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    )
    llama3 = dict(num_experts_per_tok=1, rope_parameters=R(5e5, "llama3", **l3))
    from_hf(o + "/mixtral-llama3", "mixtral", small | llama3, 2, f16, True, fused=True, T=60)


def make_qwen(o):
    small = dict(num_hidden_layers=4, intermediate_size=40, moe_intermediate_size=12, num_experts=6)
    two = small | dict(shared_expert_intermediate_size=20, num_experts_per_tok=3)
    sparse = dict(decoder_sparse_step=2, norm_topk_prob=True, qkv_bias=False)
    from_hf(
        o + "/qwen2_moe-sparse",
        "qwen2_moe",
        two | sparse | dict(rope_parameters=R(1e6)),
        3,
        fused=True,
    )
    window = dict(use_sliding_window=True, sliding_window=9, max_window_layers=3)
    from_hf(
        o + "/qwen2_moe-window", "qwen2_moe", two | window | dict(rope_parameters=R(1e4)), 4
    )
    mixed = dict(
        mlp_only_layers=[1, 2],
        attention_bias=True,
        head_dim=20,
        num_experts_per_tok=4,
        tie_word_embeddings=True,
        norm_topk_prob=False,
        rope_parameters=R(1e4, "linear", factor=3.0),
    )
    from_hf(o + "/qwen3_moe-mixed", "qwen3_moe", small | mixed, 5, f16, old=True)
    yarn = dict(
        factor=4.0,
        original_max_position_embeddings=32,
        beta_fast=16.0,
        beta_slow=2.0,
        mscale=0.7,
        mscale_all_dim=0.4,
        truncate=False,
    )
    last = dict(
        num_hidden_layers=2,
        use_sliding_window=True,
        sliding_window=20,
        head_dim=16,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        rope_parameters=R(1e4, "yarn", **yarn),
    )
    from_hf(o + "/qwen3_moe-window", "qwen3_moe", small | last, 6, f16, fused=True, T=60)


def make_others(o):
    clip = dict(
        intermediate_size=16,
        num_experts=6,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        clip_qkv=0.9,
        attention_bias=True,
        rope_parameters=R(5e4),
    )
    from_hf(o + "/olmoe-clip", "olmoe", clip, 7)
    bias = dict(
        num_key_value_heads=1,
        intermediate_size=16,
        num_local_experts=5,
        num_experts_per_tok=5,
        attention_bias=True,
        attention_multiplier=0.4,
        embedding_multiplier=1.5,
        residual_multiplier=0.8,
        logits_scaling=0.5,
        rope_parameters=R(1e4),
    )
    from_hf(o + "/granitemoe-bias", "granitemoe", bias, 8, fused=True)
    c, sh = base.emo(L=2, H=32, I=12, E=7, top=3, V=64, kv=2, dtype="bfloat16")
    c["rope_scaling"] = dict(type="yarn", factor=2.0, attention_factor=1.3)
    from_reference(o + "/emo-yarn", c, sh, 9)


def make_deepseek(o):
    small = dict(H=32, I=40, MI=12, E=6, V=64, dtype="bfloat16")
    c, sh = base.deepseek(**small, L=5, dense=1, shared=1, kv=2, norm=True, scale=1.5)
    c |= dict(moe_layer_freq=2, attention_bias=True, topk_method="greedy", n_group=1)
    for l in range(5):
        p = f"model.layers.{l}."
        for n, width in dict(q=32, k=16, v=16, o=32).items():
            sh[p + f"self_attn.{n}_proj.bias"] = (width,)
        if l in (1, 3):  # dense: not a multiple of moe_layer_freq
            sh = {k: s for k, s in sh.items() if not k.startswith(p + "mlp.")}
            for n, s in dict(gate=(40, 32), up=(40, 32), down=(32, 40)).items():
                sh[p + f"mlp.{n}_proj.weight"] = s
    from_reference(o + "/deepseek-norm", c, sh, 10)
    c, sh = base.deepseek(**small, L=2, dense=1, shared=0)
    c |= dict(n_shared_experts=None, rope_scaling=dict(type="linear", factor=2.0))
    from_reference(o + "/deepseek-plain", c, sh, 11)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for make in (make_mixtral, make_qwen, make_others, make_deepseek):
        make(sys.argv[1])
