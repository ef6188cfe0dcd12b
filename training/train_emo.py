#!/usr/bin/env python3
"""Trains a small EMO-architecture MoE (or a standard MoE twin) on the text of corpus.py.

usage: train_emo.py CORPUS_DIR TOKENIZER_JSON OUT_DIR [--standard] [--minutes 110] ...
Runs on a CPU or one GPU. Needs PyPI torch, numpy, safetensors, tokenizers.
EMO objective (arXiv 2605.06663): per document and layer, routed probabilities are averaged over the
document, the top-d experts form its pool (d ~ U[top_k, num_routed] per document), other logits
become -inf before the softmax; load balancing counts are taken over the whole batch; one shared
expert (the last index) always has weight 1.
Saves a Hugging Face checkpoint (EmoForCausalLM names and config fields) in bf16.
"""

import argparse, glob, json, math, os, random, time
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F


class Cfg:
    vocab_size = 8192
    hidden_size = 256
    num_hidden_layers = 6
    num_attention_heads = 4
    intermediate_size = 64
    num_experts = 64
    num_shared_experts = 1
    num_experts_per_tok = 4
    rope_theta = 500000.0
    rms_norm_eps = 1e-6
    max_position_embeddings = 1024


def rms(x, w, eps):
    return F.rms_norm(x.float(), (x.shape[-1],), w.float(), eps).to(x.dtype)


class Block(nn.Module):
    def __init__(self, c, std):
        super().__init__()
        d, i, e = c.hidden_size, c.intermediate_size, c.num_experts
        self.c = c
        self.std = std
        self.n1 = nn.Parameter(torch.ones(d))
        self.n2 = nn.Parameter(torch.ones(d))
        P = lambda *sh: nn.Parameter(torch.randn(*sh) * 0.02)
        self.qkv = P(d, 3 * d)
        self.o = nn.Parameter(torch.randn(d, d) * 0.02 / math.sqrt(2 * c.num_hidden_layers))
        self.gate = P(d, e - c.num_shared_experts)
        self.wgu = P(e, d, 2 * i)
        self.wd = nn.Parameter(torch.randn(e, i, d) * 0.02 / math.sqrt(2 * c.num_hidden_layers))

    def attention(self, x, cos, sin):
        B, T, d = x.shape
        H = self.c.num_attention_heads
        D = d // H
        q, k, v = (x @ self.qkv.to(x.dtype)).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)
        rot = lambda z: torch.cat([-z[..., D // 2 :], z[..., : D // 2]], -1)
        q = q * cos + rot(q) * sin
        k = k * cos + rot(k) * sin
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).reshape(B, T, d) @ self.o.to(x.dtype)

    def moe(self, x, valid, pool):
        c = self.c
        B, T, d = x.shape
        R = c.num_experts - c.num_shared_experts
        k = c.num_experts_per_tok - c.num_shared_experts
        logits = x.float() @ self.gate  # [B, T, R]
        if pool is not None:  # pool [B]: pool size of each document
            with torch.no_grad():
                p = (logits.softmax(-1) * valid[..., None]).sum(1)  # [B, R]
                rank = p.argsort(-1, descending=True).argsort(-1)
            logits = logits.masked_fill((rank >= pool[:, None])[:, None, :], float("-inf"))
        probs = logits.softmax(-1)
        w, idx = probs.topk(k, dim=-1)
        fidx = idx.reshape(-1)
        n = B * T
        order = fidx.argsort()
        counts = torch.bincount(fidx, minlength=R)
        xf = x.reshape(n, d)
        token = order // k
        sizes = counts.tolist()
        ys = []
        xs = xf[token].split(sizes)
        wgu, wd = self.wgu.to(x.dtype).unbind(0), self.wd.to(x.dtype).unbind(0)
        i = c.intermediate_size
        for e, m in enumerate(sizes):
            if m:
                g, u = (xs[e] @ wgu[e]).chunk(2, -1)
                ys.append((F.silu(g) * u) @ wd[e])
        y = torch.cat(ys) * w.reshape(-1)[order][:, None].to(x.dtype)
        out = torch.zeros_like(xf).index_add(0, token, y)
        g, u = (xf @ wgu[R]).chunk(2, -1)
        out = out + (F.silu(g) * u) @ wd[R]
        v = valid.reshape(n, 1).float()
        with torch.no_grad():
            f = torch.zeros(R, device=x.device).index_add(0, fidx, v.expand(n, k).reshape(-1))
            f = f / f.sum()
        P = (probs.reshape(n, R) * v).sum(0) / v.sum()
        z = (torch.logsumexp(logits, -1).reshape(n, 1).pow(2) * v).sum() / v.sum()
        return out.view(B, T, d), R * (f * P).sum(), z, counts

    def forward(self, x, cos, sin, valid, pool):
        x = x + self.attention(rms(x, self.n1, self.c.rms_norm_eps), cos, sin)
        y, lb, z, counts = self.moe(rms(x, self.n2, self.c.rms_norm_eps), valid, pool)
        return x + y, lb, z, counts


class Model(nn.Module):
    def __init__(self, c, std, dt=torch.float32):
        super().__init__()
        self.c = c
        self.std = std
        self.dt = dt
        self.emb = nn.Parameter(torch.randn(c.vocab_size, c.hidden_size) * 0.02)
        self.blocks = nn.ModuleList([Block(c, std) for _ in range(c.num_hidden_layers)])
        self.norm = nn.Parameter(torch.ones(c.hidden_size))
        self.head = nn.Parameter(torch.randn(c.hidden_size, c.vocab_size) * 0.02)

    def forward(self, ids, valid, train, keep=None):
        c = self.c
        B, T = ids.shape
        D = c.hidden_size // c.num_attention_heads
        f = 1.0 / c.rope_theta ** (torch.arange(0, D, 2, device=ids.device).float() / D)
        t = torch.outer(torch.arange(T, device=ids.device).float(), f)
        t = torch.cat([t, t], -1)
        dt = self.dt
        cos, sin = t.cos().to(dt), t.sin().to(dt)
        x = self.emb[ids].to(dt)
        R = c.num_experts - c.num_shared_experts
        lbs = zs = 0.0
        cnt = []
        for b in self.blocks:
            pool = (
                torch.randint(c.num_experts_per_tok, R + 1, (B,), device=ids.device)
                if train and not self.std
                else None
            )
            x, lb, z, n = b(x, cos, sin, valid, pool)
            lbs = lbs + lb
            zs = zs + z
            cnt.append(n)
        x = rms(x, self.norm, c.rms_norm_eps)
        return x, lbs / len(self.blocks), zs / len(self.blocks), cnt

    def loss(self, x, ids, valid):
        tgt = ids[:, 1:].reshape(-1)
        m = valid[:, 1:].reshape(-1)
        h = x[:, :-1].reshape(-1, self.c.hidden_size)[m]
        n = m.sum()
        return (
            sum(
                F.cross_entropy((a @ self.head.to(x.dtype)).float(), t, reduction="sum")
                for a, t in zip(h.split(1024), tgt[m].split(1024))
            )
            / n,
            n,
        )


def load(corpus, tok_path, split, seq, cache):
    """Rows of up to `seq` tokens of one document each: ids [N, seq], length [N], domain [N], names."""
    path = os.path.join(cache, f"{split}.{seq}.npz")
    if os.path.exists(path):
        z = np.load(path, allow_pickle=True)
        return z["ids"], z["len"], z["dom"], list(z["names"])
    from tokenizers import Tokenizer

    tok = Tokenizer.from_file(tok_path)
    eos = tok.token_to_id("<|endoftext|>")
    names = sorted(
        os.path.basename(p).split(".")[0]
        for p in glob.glob(os.path.join(corpus, f"*.{split}.jsonl"))
    )
    rows, lens, dom = [], [], []
    for di, nm in enumerate(names):
        docs = [json.loads(l)["text"] for l in open(os.path.join(corpus, f"{nm}.{split}.jsonl"))]
        for enc in tok.encode_batch(docs):
            ids = [eos] + enc.ids + [eos]  # EOS also opens a document, as in EMO's data
            for i in range(0, len(ids), seq):
                piece = ids[i : i + seq]
                if len(piece) < 64:
                    continue
                rows.append(
                    np.pad(np.array(piece, np.int32), (0, seq - len(piece)), constant_values=eos)
                )
                lens.append(len(piece))
                dom.append(di)
        print(nm, len(docs), len(rows), flush=True)
    z = dict(
        ids=np.stack(rows),
        len=np.array(lens, np.int32),
        dom=np.array(dom, np.int32),
        names=np.array(names, object),
    )
    os.makedirs(cache, exist_ok=True)
    np.savez(path, **z)
    return z["ids"], z["len"], z["dom"], names


def save(m, c, out, tok_path, std):
    from safetensors.torch import save_file

    os.makedirs(out, exist_ok=True)
    t = {}
    d, i = c.hidden_size, c.intermediate_size
    R = c.num_experts - c.num_shared_experts
    B = lambda x: x.detach().cpu().to(torch.bfloat16).contiguous()
    t["model.embed_tokens.weight"] = B(m.emb)
    t["model.norm.weight"] = B(m.norm)
    t["lm_head.weight"] = B(m.head.t())
    for l, b in enumerate(m.blocks):
        p = f"model.layers.{l}."
        q, k, v = b.qkv.t().reshape(3, d, d)
        for n, w in (("q", q), ("k", k), ("v", v), ("o", b.o.t())):
            t[p + f"self_attn.{n}_proj.weight"] = B(w)
        t[p + "pre_attention_layernorm.weight"] = B(b.n1)
        t[p + "pre_feedforward_layernorm.weight"] = B(b.n2)
        t[p + "mlp.gate.weight"] = B(
            torch.cat([b.gate.t(), torch.zeros(c.num_shared_experts, d, device=b.gate.device)])
        )
        for e in range(c.num_experts):
            t[p + f"mlp.experts.{e}.gate_proj.weight"] = B(b.wgu[e, :, :i].t())
            t[p + f"mlp.experts.{e}.up_proj.weight"] = B(b.wgu[e, :, i:].t())
            t[p + f"mlp.experts.{e}.down_proj.weight"] = B(b.wd[e].t())
    save_file(t, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    cfg = dict(
        architectures=["EmoForCausalLM"],
        model_type="emo",
        vocab_size=c.vocab_size,
        hidden_size=d,
        intermediate_size=i,
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_attention_heads,
        hidden_act="silu",
        max_position_embeddings=c.max_position_embeddings,
        rms_norm_eps=c.rms_norm_eps,
        rope_theta=c.rope_theta,
        rope_scaling=None,
        attention_bias=False,
        tie_word_embeddings=False,
        num_experts=c.num_experts,
        num_shared_experts=c.num_shared_experts,
        num_experts_per_tok=c.num_experts_per_tok,
        norm_topk_prob=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        torch_dtype="bfloat16",
        use_cache=True,
    )
    json.dump(cfg, open(os.path.join(out, "config.json"), "w"), indent=2)
    json.dump(
        dict(eos_token_id=0, pad_token_id=1),
        open(os.path.join(out, "generation_config.json"), "w"),
        indent=2,
    )
    if os.path.exists(tok_path):
        open(os.path.join(out, "tokenizer.json"), "w").write(open(tok_path).read())


@torch.no_grad()
def init_from(m, c, path):
    """Starts from a checkpoint that `save` wrote (weights only: the optimiser starts afresh)."""
    from safetensors.torch import load_file

    t = {}
    [t.update(load_file(f)) for f in sorted(glob.glob(os.path.join(path, "*.safetensors")))]
    i, R = c.intermediate_size, c.num_experts - c.num_shared_experts
    m.emb.copy_(t["model.embed_tokens.weight"])
    m.norm.copy_(t["model.norm.weight"])
    m.head.copy_(t["lm_head.weight"].t())
    for l, b in enumerate(m.blocks):
        p = f"model.layers.{l}."
        a = p + "self_attn."
        b.qkv.copy_(torch.cat([t[a + f"{n}_proj.weight"] for n in "qkv"]).t())
        b.o.copy_(t[a + "o_proj.weight"].t())
        b.n1.copy_(t[p + "pre_attention_layernorm.weight"])
        b.n2.copy_(t[p + "pre_feedforward_layernorm.weight"])
        b.gate.copy_(t[p + "mlp.gate.weight"][:R].t())
        for e in range(c.num_experts):
            x = p + f"mlp.experts.{e}."
            b.wgu[e, :, :i].copy_(t[x + "gate_proj.weight"].t())
            b.wgu[e, :, i:].copy_(t[x + "up_proj.weight"].t())
            b.wd[e].copy_(t[x + "down_proj.weight"].t())


@torch.no_grad()
def evaluate(m, ids, lens, dom, names, n=6, dev="cpu"):
    m.eval()
    r = {}
    for di, nm in enumerate(names):
        sel = np.nonzero(dom == di)[0][:n]
        if not len(sel):
            continue
        x = torch.tensor(ids[sel], dtype=torch.long, device=dev)
        v = (
            torch.arange(x.shape[1], device=dev)[None]
            < torch.tensor(lens[sel], device=dev)[:, None]
        )
        h, *_ = m(x, v, False)
        r[nm] = float(m.loss(h, x, v)[0])
    m.train()
    return r


def main():
    ap = argparse.ArgumentParser()
    A = ap.add_argument
    A("corpus")
    A("tokenizer")
    A("out")
    A("--standard", action="store_true")
    A("--minutes", type=float, default=110)
    A("--seq", type=int, default=512)
    A("--rows", type=int, default=8)
    A("--lr", type=float, default=2e-3)
    A("--lb", type=float, default=0.1)
    A("--z", type=float, default=1e-3)
    A("--seed", type=int, default=0)
    A("--max-steps", type=int, default=0)
    A("--threads", type=int, default=0)
    A("--device", default="cpu")
    A("--cache", default="corpus_cache")
    A("--init", help="a checkpoint to start from")
    A("--bf16", action="store_true", help="only where the CPU has AMX or AVX-512 BF16, or on a GPU")
    a = ap.parse_args()
    torch.manual_seed(a.seed)
    random.seed(a.seed)
    np.random.seed(a.seed)
    dev = a.device
    if a.threads:
        torch.set_num_threads(a.threads)
    c = Cfg()
    m = Model(c, a.standard, torch.bfloat16 if a.bf16 else torch.float32).to(dev)
    if a.init:
        init_from(m, c, a.init)
    print("params %.2fM" % (sum(p.numel() for p in m.parameters()) / 1e6))
    ids, lens, dom, names = load(a.corpus, a.tokenizer, "train", a.seq, a.cache)
    ev = load(a.corpus, a.tokenizer, "eval", a.seq, a.cache)
    full = lens >= 0.75 * a.seq
    ids, lens, dom = ids[full], lens[full], dom[full]  # little padding
    print("rows", len(ids), "tokens %.1fM" % (lens.sum() / 1e6), "domains", len(names), flush=True)
    decay = [p for p in m.parameters() if p.dim() > 1 and p is not m.emb]
    rest = [p for p in m.parameters() if not (p.dim() > 1 and p is not m.emb)]
    opt = torch.optim.AdamW(
        [dict(params=decay, weight_decay=0.1), dict(params=rest, weight_decay=0.0)],
        lr=a.lr,
        betas=(0.9, 0.95),
        eps=1e-8,
        fused=True,
    )
    t0 = time.time()
    step = seen = 0
    ep = []
    log = open(
        os.path.join(
            os.path.dirname(a.out.rstrip("/")) or ".", os.path.basename(a.out.rstrip("/")) + ".log"
        ),
        "a",
    )
    last = t0
    hist = []
    while True:
        el = time.time() - t0
        frac = (step / a.max_steps) if a.max_steps else el / (a.minutes * 60)
        if frac >= 1:
            break
        warm = min(1.0, (step + 1) / 100)
        lr = a.lr * warm * (1.0 if frac < 0.3 else max(0.0, (1 - frac) / 0.7))
        for g in opt.param_groups:
            g["lr"] = lr
        if len(ep) < a.rows:
            ep = list(np.random.permutation(len(ids)))
        sel = np.array([ep.pop() for _ in range(a.rows)])
        x = torch.tensor(ids[sel], dtype=torch.long, device=dev)
        v = torch.arange(a.seq, device=dev)[None] < torch.tensor(lens[sel], device=dev)[:, None]
        h, lb, z, cnt = m(x, v, True)
        ce, n = m.loss(h, x, v)
        (ce + a.lb * lb + a.z * z).backward()
        g = torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        seen += int(n)
        hist.append(float(ce.detach()))
        if step % 50 == 0:
            now = time.time()
            line = (
                f"step {step} frac {frac:.3f} loss {np.mean(hist[-50:]):.3f} lb {float(lb):.3f} "
                f"z {float(z):.2f} gn {float(g):.2f} lr {lr:.1e} tok {seen/1e6:.2f}M "
                f"tok/s {50*a.rows*a.seq/(now-last):.0f}"
            )
            last = now
            print(line, flush=True)
            log.write(line + "\n")
            log.flush()
        if step % 400 == 0:
            r = evaluate(m, *ev[:3], ev[3], n=3, dev=dev)
            line = "eval mean %.3f " % np.mean(list(r.values())) + " ".join(
                f"{k}:{x:.2f}" for k, x in r.items()
            )
            print(line, flush=True)
            log.write(line + "\n")
            save(m, c, a.out, a.tokenizer, a.standard)
            last = time.time()
    save(m, c, a.out, a.tokenizer, a.standard)
    r = evaluate(m, *ev[:3], ev[3], n=40, dev=dev)
    line = "final eval mean %.3f " % np.mean(list(r.values())) + " ".join(
        f"{k}:{x:.2f}" for k, x in r.items()
    )
    print(line, flush=True)
    log.write(line + "\n")


if __name__ == "__main__":
    main()
