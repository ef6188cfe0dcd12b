#!/usr/bin/env python3
"""Makes the golden checkpoints: small, randomly weighted, with what an fp32 forward pass computes.

usage: make_fixtures.py OUT_DIR           needs PyPI torch, transformers 5, safetensors

One folder per checkpoint: config.json and model*.safetensors as a user would download them, and
expected.safetensors:
  input_ids        i64 [B, T]        rows have equal length, no padding
  logits           f32 [B, T, V]     computed from the weights as saved (so F16/BF16 rounding is in the
                                     weights, not in the sums)
  hidden.L         f32 [B, T, H]     residual stream after layer L (before the final norm)
  gate_logits.L    f32 [B, T, E]     raw gate logits of MoE layer L (before any softmax, mask or bias)
  greedy_ids       i64 [B, 32]       greedy continuation of each row
  greedy_margin    f32 [B, 32]       top-1 minus top-2 logit at each of those steps
`Reference` below is an independent forward pass. For every architecture that transformers has, it
must agree with transformers (checked here, 1e-4); EMO and DeepSeek v1, whose code transformers does
not carry, are computed by it alone.
"""

import argparse, json, math, os
import torch, torch.nn.functional as F
from safetensors.torch import save_file, load_file

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_grad_enabled(False)


class Reference:
    """Plain fp32 forward pass over a state dict with Hugging Face names, one branch per difference."""

    def __init__(self, cfg, w):
        self.c, self.w = cfg, {k: v.float() for k, v in w.items()}
        self.mt = cfg["model_type"]
        self.H = cfg["num_attention_heads"]
        self.KV = cfg.get("num_key_value_heads") or self.H
        self.D = cfg.get("head_dim") or cfg["hidden_size"] // self.H
        self.L = cfg["num_hidden_layers"]
        self.eps = cfg["rms_norm_eps"]
        rp = cfg.get("rope_parameters") or {
            **(cfg.get("rope_scaling") or {}),
            "rope_theta": cfg.get("rope_theta"),
        }
        self.inv, self.att = self.rope(rp, rp.get("rope_type") or rp.get("type") or "default")

    def rope(self, p, kind):
        th, D = p["rope_theta"], self.D
        f = 1.0 / th ** (torch.arange(0, D, 2).double() / D)
        if kind == "linear":
            return (f / p["factor"]).float(), 1.0
        if kind == "llama3":
            old = p["original_max_position_embeddings"]
            lo, hi = old / p["low_freq_factor"], old / p["high_freq_factor"]
            wl = 2 * math.pi / f
            sm = (old / wl - p["low_freq_factor"]) / (p["high_freq_factor"] - p["low_freq_factor"])
            mid = (1 - sm) * f / p["factor"] + sm * f
            return torch.where(wl > lo, f / p["factor"], torch.where(wl < hi, f, mid)).float(), 1.0
        if kind == "yarn":
            old = p.get("original_max_position_embeddings") or self.c["max_position_embeddings"]
            bf, bs = p.get("beta_fast") or 32, p.get("beta_slow") or 1
            dim = lambda rot: D * math.log(old / (rot * 2 * math.pi)) / (2 * math.log(th))
            lo, hi = max(math.floor(dim(bf)), 0), min(math.ceil(dim(bs)), D - 1)
            ramp = ((torch.arange(D // 2).double() - lo) / max(hi - lo, 1e-3)).clamp(0, 1)
            a = p.get("attention_factor") or (0.1 * math.log(p["factor"]) + 1.0)
            return (f / p["factor"] * ramp + f * (1 - ramp)).float(), a
        return f.float(), 1.0

    def norm(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.w[name]

    def lin(self, x, name):
        y = x @ self.w[name + ".weight"].t()
        b = self.w.get(name + ".bias")
        return y if b is None else y + b

    def attention(self, x, p):
        B, T, _ = x.shape
        q, k, v = (self.lin(x, f"{p}.{n}_proj") for n in "qkv")
        if self.mt == "olmoe":
            q, k = self.norm(q, p + ".q_norm.weight"), self.norm(k, p + ".k_norm.weight")
            c = self.c.get("clip_qkv")
            if c:
                q, k, v = (z.clamp(-c, c) for z in (q, k, v))
        q, k, v = (
            q.view(B, T, self.H, self.D),
            k.view(B, T, self.KV, self.D),
            v.view(B, T, self.KV, self.D),
        )
        if self.mt == "qwen3_moe":
            q, k = self.norm(q, p + ".q_norm.weight"), self.norm(k, p + ".k_norm.weight")
        t = torch.outer(torch.arange(T).float(), self.inv)
        t = torch.cat([t, t], -1)[None, :, None]
        cos, sin = t.cos() * self.att, t.sin() * self.att
        rot = lambda z: torch.cat([-z[..., self.D // 2 :], z[..., : self.D // 2]], -1)
        q, k = q * cos + rot(q) * sin, k * cos + rot(k) * sin
        k, v = (z.repeat_interleave(self.H // self.KV, 2) for z in (k, v))
        a = torch.einsum("bqhd,bkhd->bhqk", q, k) * self.c.get("attention_multiplier", self.D**-0.5)
        i = torch.arange(T)
        m = i[:, None] < i[None]
        win = self.c.get("sliding_window")
        if win and (self.mt == "mixtral" or self.c.get("use_sliding_window")):
            m |= i[:, None] - i[None] >= win
        return self.lin(
            torch.einsum("bhqk,bkhd->bqhd", a.masked_fill(m, -math.inf).softmax(-1), v).reshape(
                B, T, -1
            ),
            p + ".o_proj",
        )

    def ffn(self, x, p, g="gate_proj", u="up_proj", d="down_proj"):
        return self.lin(F.silu(self.lin(x, f"{p}.{g}")) * self.lin(x, f"{p}.{u}"), f"{p}.{d}")

    def expert(self, x, l, e):
        p = f"model.layers.{l}"
        if self.mt == "mixtral":
            return self.ffn(x, f"{p}.block_sparse_moe.experts.{e}", "w1", "w3", "w2")
        if self.mt == "granitemoe":
            g, u = (x @ self.w[p + ".block_sparse_moe.input_linear.weight"][e].t()).chunk(2, -1)
            return (F.silu(g) * u) @ self.w[p + ".block_sparse_moe.output_linear.weight"][e].t()
        return self.ffn(x, f"{p}.mlp.experts.{e}")

    def moe(self, x, l, keep=None):
        c, p = self.c, f"model.layers.{l}"
        top = c["num_experts_per_tok"]
        name = {
            "mixtral": ".block_sparse_moe.gate",
            "granitemoe": ".block_sparse_moe.router.layer",
        }.get(self.mt, ".mlp.gate")
        logits = self.lin(x, p + name)
        raw = logits
        n = logits.shape[-1]
        extra = 0
        if self.mt == "emo":
            sh = c["num_shared_experts"]
            n -= sh
            top = min(top - sh, n)
            logits = logits[..., :n]
            for e in range(n, n + sh):
                extra = (
                    extra + self.expert(x, l, e) / sh
                )  # softmax over the shared logits: 1 for one expert
        if keep is not None:
            logits = logits.masked_fill(~torch.tensor([i in keep for i in range(n)]), -math.inf)
        if self.mt == "granitemoe":
            v, idx = logits.topk(top, -1)
            wt = v.softmax(-1)
        else:
            wt, idx = logits.softmax(-1).topk(top, -1)
            if self.mt == "mixtral" or c.get("norm_topk_prob"):
                wt = wt / wt.sum(-1, keepdim=True)
            if self.mt == "deepseek":
                wt = wt * c.get("routed_scaling_factor", 1.0)
        full = torch.zeros(*x.shape[:-1], n).scatter(-1, idx, wt)
        y = sum(full[..., e : e + 1] * self.expert(x, l, e) for e in range(n)) + extra
        if self.mt == "qwen2_moe":
            y = y + torch.sigmoid(self.lin(x, p + ".mlp.shared_expert_gate")) * self.ffn(
                x, p + ".mlp.shared_expert"
            )
        if self.mt == "deepseek" and c.get("n_shared_experts"):
            y = y + self.ffn(x, p + ".mlp.shared_experts")
        return y, raw

    def __call__(self, ids, keep=None):
        c = self.c
        x = self.w["model.embed_tokens.weight"][ids] * c.get("embedding_multiplier", 1.0)
        hid, gates = [], {}
        rm = c.get("residual_multiplier", 1.0)
        n1, n2 = (
            ("pre_attention_layernorm", "pre_feedforward_layernorm")
            if self.mt == "emo"
            else ("input_layernorm", "post_attention_layernorm")
        )
        for l in range(self.L):
            p = f"model.layers.{l}"
            x = x + self.attention(self.norm(x, f"{p}.{n1}.weight"), p + ".self_attn") * rm
            h = self.norm(x, f"{p}.{n2}.weight")
            if f"{p}.mlp.gate_proj.weight" in self.w:
                y = self.ffn(h, p + ".mlp")
            else:
                y, gates[l] = self.moe(h, l, keep and keep[l])
            x = x + y * rm
            hid.append(x)
        head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])
        return (
            self.norm(x, "model.norm.weight") @ head.t() / c.get("logits_scaling", 1.0),
            hid,
            gates,
        )


def randomise(sd, g):
    for k, v in sd.items():
        if "norm" in k.split(".")[-2] and v.dim() == 1:
            v.uniform_(0.6, 1.4, generator=g)
        elif v.dim() == 1:
            v.normal_(0, 0.2, generator=g)
        else:
            scale = (
                3.0 if (".gate.weight" in k or "router" in k) else 2.0 if "lm_head" in k else 1.0
            )
            v.normal_(0, scale / math.sqrt(v.shape[-1]), generator=g)
            if "embed" in k:
                v.mul_(math.sqrt(v.shape[-1]) * 0.7 if "lm" not in k else 1)


def v4(cfg):
    """The same configuration as transformers 4 wrote it: what most published checkpoints carry."""
    c = dict(cfg)
    rp = dict(c.pop("rope_parameters"))
    c["rope_theta"] = rp.pop("rope_theta")
    kind = rp.pop("rope_type")
    c["rope_scaling"] = None if kind == "default" else {**rp, "rope_type": kind}
    c["torch_dtype"] = c.pop("dtype")
    c["transformers_version"] = "4.57.1"
    if c["model_type"] in ("qwen3_moe", "olmoe", "qwen2_moe") and "num_local_experts" in c:
        c["num_experts"] = c.pop("num_local_experts")
    c.pop("layer_types", None)
    return c


def write(d, cfg, w, dtype, shards):
    os.makedirs(d, exist_ok=True)
    json.dump(cfg, open(d + "/config.json", "w"), indent=2, sort_keys=True)
    w = {k: v.to(dtype).contiguous().clone() for k, v in w.items()}
    if shards == 1:
        save_file(w, d + "/model.safetensors", metadata={"format": "pt"})
    else:
        ks = list(w)
        per = -(-len(ks) // shards)
        wm = {}
        for i in range(shards):
            fn = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = ks[i * per : (i + 1) * per]
            wm.update({k: fn for k in part})
            save_file({k: w[k] for k in part}, f"{d}/{fn}", metadata={"format": "pt"})
        json.dump(
            {
                "metadata": {"total_size": sum(v.numel() * v.element_size() for v in w.values())},
                "weight_map": wm,
            },
            open(d + "/model.safetensors.index.json", "w"),
            indent=1,
            sort_keys=True,
        )
    return {k: v.float() for k, v in w.items()}


def expected(d, fwd, V, g, B=2, T=40, steps=32):
    ids = torch.randint(3, V, (B, T), generator=g)
    lg, hid, gates = fwd(ids)
    out = (
        {"input_ids": ids, "logits": lg}
        | {f"hidden.{i}": h for i, h in enumerate(hid)}
        | {f"gate_logits.{l}": v for l, v in gates.items()}
    )
    cur, gi, gm = ids, [], []
    for _ in range(steps):
        t = fwd(cur)[0][:, -1].topk(2, -1)
        gi.append(t.indices[:, 0])
        gm.append(t.values[:, 0] - t.values[:, 1])
        cur = torch.cat([cur, gi[-1][:, None]], 1)
    out |= {"greedy_ids": torch.stack(gi, 1), "greedy_margin": torch.stack(gm, 1)}
    save_file({k: v.contiguous().clone() for k, v in out.items()}, d + "/expected.safetensors")
    return ids, lg


def from_hf(d, mt, kw, seed, dtype=torch.float32, shards=1, old=False, B=2, T=40):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    g = torch.Generator().manual_seed(seed)
    c = CONFIG_MAPPING[mt](
        **{
            **dict(
                vocab_size=384,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
                attn_implementation="eager",
            ),
            **kw,
        }
    )
    m = AutoModelForCausalLM.from_config(c).float().eval()
    randomise({k: v for k, v in m.state_dict().items() if v.is_floating_point()}, g)
    if getattr(c, "tie_word_embeddings", False):
        m.tie_weights()
        m.get_input_embeddings().weight.mul_(0.35)
    [p.copy_(p.to(dtype).float()) for p in m.parameters()]
    m.save_pretrained(d)
    w = load_file(d + "/model.safetensors") if os.path.exists(d + "/model.safetensors") else None
    cfg = json.load(open(d + "/config.json"))
    [os.remove(d + "/" + f) for f in os.listdir(d)]
    cfg["dtype"] = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[
        dtype
    ]
    if old:
        cfg = v4(cfg)
    w = write(d, cfg, w, dtype, shards)
    gl = {}
    names = [
        n
        for n, _ in m.named_modules()
        if n.endswith((".mlp.gate", ".block_sparse_moe.gate", ".router.layer", ".mlp.router"))
    ]

    def fwd(ids):
        gl.clear()
        hooks = []
        for n in names:
            mod = m.get_submodule(n)
            l = int(n.split(".")[2])
            wt = getattr(mod, "weight", None)
            if wt is not None:
                hooks.append(
                    mod.register_forward_pre_hook(
                        lambda mo, a, l=l: gl.__setitem__(
                            l,
                            (
                                a[0].reshape(-1, a[0].shape[-1]).float() @ mo.weight.float().t()
                                + (mo.bias if getattr(mo, "bias", None) is not None else 0)
                            ).view(*ids.shape, -1),
                        )
                    )
                )
        hs = []
        layers = m.model.layers
        for ly in layers:
            hooks.append(
                ly.register_forward_hook(
                    lambda mo, a, o: hs.append((o[0] if isinstance(o, tuple) else o).float())
                )
            )
        o = m(input_ids=ids, use_cache=False)
        [h.remove() for h in hooks]
        return o.logits.float(), hs, dict(gl)

    ids, lg = expected(d, fwd, c.vocab_size, g, B, T)
    note = ""
    if mt in ("olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "granitemoe"):
        r = Reference(json.load(open(d + "/config.json")), w)(ids)
        err = (r[0] - lg).abs().max() / lg.std()
        note = f"reference differs by {err:.1e} of the spread"
        assert err < 1e-4, (mt, err)
        assert all(torch.allclose(r[2][l], v, atol=1e-3) for l, v in fwd(ids)[2].items())
    print(
        f"{os.path.basename(d):28s} {sum(v.numel() for v in w.values()):8d} weights  logits spread {lg.std():.2f}  {note}",
        flush=True,
    )


def from_reference(d, cfg, shapes, seed, dtype=torch.float32, shards=1, prune=None, B=2, T=40):
    g = torch.Generator().manual_seed(seed)
    w = {k: torch.empty(s) for k, s in shapes.items()}
    randomise(w, g)
    w = write(d, cfg, w, dtype, shards)
    ids, lg = expected(d, Reference(cfg, w), cfg["vocab_size"], g, B, T)
    print(
        f"{os.path.basename(d):28s} {sum(v.numel() for v in w.values()):8d} weights  logits spread {lg.std():.2f}",
        flush=True,
    )
    return w


def emo(L=3, H=64, heads=4, I=32, E=12, top=4, V=384, theta=500000.0, dtype="float32", **kw):
    cfg = dict(
        architectures=["EmoForCausalLM"],
        model_type="emo",
        vocab_size=V,
        hidden_size=H,
        intermediate_size=I,
        num_hidden_layers=L,
        num_attention_heads=heads,
        num_key_value_heads=kw.pop("kv", heads),
        hidden_act="silu",
        max_position_embeddings=256,
        rms_norm_eps=1e-6,
        rope_theta=theta,
        rope_scaling=None,
        attention_bias=False,
        attention_dropout=0.0,
        tie_word_embeddings=False,
        num_experts=E,
        num_shared_experts=1,
        num_experts_per_tok=top,
        norm_topk_prob=False,
        always_active_experts=None,
        output_router_logits=True,
        router_aux_loss_coef=0.01,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        torch_dtype=dtype,
        use_cache=True,
        transformers_version="4.57.1",
        **kw,
    )
    KV = cfg["num_key_value_heads"] * (H // heads)
    sh = {"model.embed_tokens.weight": (V, H), "model.norm.weight": (H,), "lm_head.weight": (V, H)}
    per = kw.get("num_experts_per_layer") or [E] * L
    for l in range(L):
        p = f"model.layers.{l}."
        sh |= {
            p + f"self_attn.{n}_proj.weight": s
            for n, s in dict(q=(H, H), k=(KV, H), v=(KV, H), o=(H, H)).items()
        }
        sh |= {
            p + "pre_attention_layernorm.weight": (H,),
            p + "pre_feedforward_layernorm.weight": (H,),
            p + "mlp.gate.weight": (per[l], H),
        }
        for e in range(per[l]):
            sh |= {
                p + f"mlp.experts.{e}.gate_proj.weight": (I, H),
                p + f"mlp.experts.{e}.up_proj.weight": (I, H),
                p + f"mlp.experts.{e}.down_proj.weight": (H, I),
            }
    return cfg, sh


def emo_pruned(d, cfg, w, keep, dtype, seed, ragged):
    """What the authors' pruning writes: experts renumbered in ascending original order, shared last.

    Must equal the full model under a mask.
    """
    out = {k: v for k, v in w.items() if ".mlp." not in k}
    n = cfg["num_experts"] - 1
    c = dict(cfg)
    for l, ks in enumerate(keep):
        p = f"model.layers.{l}.mlp."
        ids = sorted(ks) + [n]
        out[p + "gate.weight"] = w[p + "gate.weight"][ids]
        for new, e in enumerate(ids):
            for m in ("gate_proj", "up_proj", "down_proj"):
                out[p + f"experts.{new}.{m}.weight"] = w[p + f"experts.{e}.{m}.weight"]
    sizes = [len(k) + 1 for k in keep]
    c["num_experts"] = max(sizes)
    c["num_experts_per_tok"] = min(cfg["num_experts_per_tok"], min(sizes))
    c["torch_dtype"] = str(dtype).split(".")[1]
    if ragged:
        c["num_experts_per_layer"] = sizes
    wr = write(d, c, out, dtype, 1)
    g = torch.Generator().manual_seed(seed)
    ids, lg = expected(d, Reference(c, wr), c["vocab_size"], g)
    json.dump(
        dict(
            experts_kept_per_layer=[sorted(k) + [n] for k in keep],
            prune_keep_k=max(sizes),
            method="random",
            num_calibration=0,
            seed=seed,
        ),
        open(d + "/pruning_metadata.json", "w"),
        indent=1,
    )
    full = Reference(cfg, {k: v.to(dtype) for k, v in w.items()})(ids, [set(k) for k in keep])[0]
    err = float((full - lg).abs().max() / lg.std())
    assert err < 1e-4, err
    print(
        f"{os.path.basename(d):28s} pruned to {sizes}: equals the masked full model within {err:.1e} of the spread",
        flush=True,
    )


def deepseek(
    L=3,
    H=64,
    heads=4,
    I=96,
    MI=24,
    E=12,
    top=3,
    shared=2,
    dense=1,
    V=384,
    kv=4,
    norm=False,
    dtype="bfloat16",
    scale=1.0,
    **kw,
):
    cfg = dict(
        architectures=["DeepseekForCausalLM"],
        model_type="deepseek",
        vocab_size=V,
        hidden_size=H,
        intermediate_size=I,
        moe_intermediate_size=MI,
        num_hidden_layers=L,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        n_shared_experts=shared,
        n_routed_experts=E,
        num_experts_per_tok=top,
        moe_layer_freq=1,
        first_k_dense_replace=dense,
        norm_topk_prob=norm,
        scoring_func="softmax",
        routed_scaling_factor=scale,
        hidden_act="silu",
        max_position_embeddings=256,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        rope_scaling=None,
        attention_bias=False,
        attention_dropout=0.0,
        tie_word_embeddings=False,
        aux_loss_alpha=0.001,
        seq_aux=True,
        bos_token_id=1,
        eos_token_id=2,
        torch_dtype=dtype,
        use_cache=True,
        transformers_version="4.36.0",
        **kw,
    )
    KV = kv * (H // heads)
    sh = {"model.embed_tokens.weight": (V, H), "model.norm.weight": (H,), "lm_head.weight": (V, H)}
    ffn = lambda p, i: {
        p + "gate_proj.weight": (i, H),
        p + "up_proj.weight": (i, H),
        p + "down_proj.weight": (H, i),
    }
    for l in range(L):
        p = f"model.layers.{l}."
        sh |= {
            p + f"self_attn.{n}_proj.weight": s
            for n, s in dict(q=(H, H), k=(KV, H), v=(KV, H), o=(H, H)).items()
        }
        sh |= {p + "input_layernorm.weight": (H,), p + "post_attention_layernorm.weight": (H,)}
        if l < dense:
            sh |= ffn(p + "mlp.", I)
            continue
        sh |= {p + "mlp.gate.weight": (E, H)}
        sh |= ffn(p + "mlp.shared_experts.", MI * shared) if shared else {}
        for e in range(E):
            sh |= ffn(p + f"mlp.experts.{e}.", MI)
    return cfg, sh


R = lambda theta, kind="default", **kw: dict(rope_theta=theta, rope_type=kind, **kw)
YARN = dict(factor=4.0, original_max_position_embeddings=64)
L3 = dict(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16


def make_all(o):
    c, sh = emo()
    w = from_reference(o + "/emo", c, sh, 1, f32, 3)
    emo_pruned(
        o + "/emo-pruned",
        c,
        w,
        [[0, 3, 4, 8, 10], [1, 2, 5, 6, 7], [2, 4, 6, 8, 9]],
        bf16,
        2,
        False,
    )
    emo_pruned(
        o + "/emo-ragged",
        c,
        w,
        [[0, 3, 4, 8, 10, 2], [1, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7, 9]],
        f32,
        3,
        True,
    )
    c, sh = deepseek()
    from_reference(o + "/deepseek", c, sh, 4, bf16)
    base = dict(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    from_hf(
        o + "/olmoe",
        "olmoe",
        base
        | dict(
            num_key_value_heads=4,
            intermediate_size=32,
            num_experts=16,
            num_experts_per_tok=4,
            rope_parameters=R(10000.0),
        ),
        5,
        f32,
        1,
        True,
    )
    from_hf(
        o + "/mixtral",
        "mixtral",
        base
        | dict(
            intermediate_size=96,
            num_local_experts=8,
            num_experts_per_tok=2,
            rope_parameters=R(1e6),
            sliding_window=None,
        ),
        6,
        f16,
        1,
        True,
    )
    from_hf(
        o + "/qwen2_moe",
        "qwen2_moe",
        base
        | dict(
            intermediate_size=112,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=80,
            num_experts=12,
            num_experts_per_tok=4,
            mlp_only_layers=[0],
            norm_topk_prob=False,
            use_sliding_window=False,
            rope_parameters=R(1e6),
        ),
        7,
        bf16,
        2,
        True,
    )
    from_hf(
        o + "/qwen3_moe",
        "qwen3_moe",
        base
        | dict(
            head_dim=32,
            intermediate_size=96,
            moe_intermediate_size=24,
            num_experts=16,
            num_experts_per_tok=4,
            norm_topk_prob=True,
            rope_parameters=R(1e6),
        ),
        8,
        bf16,
        1,
        True,
    )
    from_hf(
        o + "/qwen3_moe-yarn",
        "qwen3_moe",
        base
        | dict(
            head_dim=16,
            intermediate_size=96,
            moe_intermediate_size=32,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            rope_parameters=R(1e6, "yarn", **YARN),
        ),
        9,
        f32,
        1,
        False,
        T=100,
    )
    from_hf(
        o + "/granitemoe",
        "granitemoe",
        base
        | dict(
            intermediate_size=32,
            num_local_experts=10,
            num_experts_per_tok=3,
            tie_word_embeddings=True,
            attention_multiplier=0.2,
            embedding_multiplier=3.0,
            residual_multiplier=0.6,
            logits_scaling=2.0,
            rope_parameters=R(10000.0),
        ),
        10,
        f32,
        1,
        True,
    )


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    a = ap.parse_args()
    torch.set_num_threads(1)
    make_all(a.out)
