#!/usr/bin/env python3
"""Prints the loss of checkpoints over the number of kept experts, per domain.

usage: loss_over_kept.py TOKENIZER_JSON CORPUS_DIR CHECKPOINT... [--calib-rows 24] [--eval-rows 16]

For each domain the experts are chosen per layer by mean gate probability on the calib split, and
the loss is taken on the eval split. Also printed: how alike the domains' profiles are, and what 16
experts of another domain or at random would cost. fp32, on the CPU. Needs what train_emo.py needs.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F

import train_emo

SEQ = 512
CFG = train_emo.Cfg()
NUM_ROUTED = CFG.num_experts - CFG.num_shared_experts
TOP_K = CFG.num_experts_per_tok - CFG.num_shared_experts
LAYERS = range(CFG.num_hidden_layers)


def moe(block, y, logits):
    """The MoE layer of `block`: y [B, T, hidden], masked gate logits [B, T, routed]."""
    n = y.shape[0] * y.shape[1]
    weights, ids = logits.softmax(-1).topk(TOP_K, -1)
    y, weights, ids = y.reshape(n, -1), weights.reshape(n, TOP_K), ids.reshape(n, TOP_K)

    def expert(rows, e):
        gate, up = (rows @ block.wgu[e]).chunk(2, -1)
        return (F.silu(gate) * up) @ block.wd[e]

    out = expert(y, NUM_ROUTED)  # the shared expert is the last one
    for e in range(NUM_ROUTED):
        rows, slots = (ids == e).nonzero(as_tuple=True)
        if len(rows):
            out.index_add_(0, rows, expert(y[rows], e) * weights[rows, slots][:, None])
    return out


def forward(model, ids, valid, keep=None, profile=None):
    """Loss and mean masked mass; adds gate probabilities to profile [layers, routed] if given."""
    head_dim = CFG.hidden_size // CFG.num_attention_heads
    freq = 1.0 / CFG.rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angle = torch.outer(torch.arange(ids.shape[1]).float(), freq)
    angle = torch.cat([angle, angle], -1)
    cos, sin = angle.cos(), angle.sin()
    h = model.emb[ids]
    masses = []
    for layer, block in enumerate(model.blocks):
        h = h + block.attention(train_emo.rms(h, block.n1, CFG.rms_norm_eps), cos, sin)
        y = train_emo.rms(h, block.n2, CFG.rms_norm_eps)
        logits = y.float() @ block.gate
        probs = logits.softmax(-1)
        if profile is not None:
            profile[layer] += (probs * valid[..., None]).sum((0, 1))
        if keep is not None:
            kept = torch.zeros(NUM_ROUTED, dtype=torch.bool)
            kept[keep[layer]] = True
            masses.append(float(((probs * ~kept).sum(-1) * valid).sum() / valid.sum()))
            logits = logits.masked_fill(~kept, -1e30)
        h = h + moe(block, y, logits).view_as(h)
    h = train_emo.rms(h, model.norm, CFG.rms_norm_eps)
    return float(model.loss(h, ids, valid)[0]), float(np.mean(masses)) if masses else 0.0


def rows_of(split, domain, count):
    """Up to `count` rows of one domain: ids and which positions are text."""
    ids, lengths, domains, _ = split
    rows = np.nonzero(domains == domain)[0][:count]
    valid = torch.arange(SEQ)[None] < torch.tensor(lengths[rows])[:, None]
    return torch.tensor(ids[rows], dtype=torch.long), valid


def report(path, calib, evaluation, args):
    names = calib[3]
    model = train_emo.Model(CFG, False)
    train_emo.init_from(model, CFG, path)

    profiles = []
    for domain in range(len(names)):
        ids, valid = rows_of(calib, domain, args.calib_rows)
        total = torch.zeros(CFG.num_hidden_layers, NUM_ROUTED)
        for i in range(0, len(ids), 8):
            forward(model, ids[i : i + 8], valid[i : i + 8], profile=total)
        profiles.append(total / total.sum(-1, keepdim=True))
    profiles = torch.stack(profiles)  # [domains, layers, routed]
    cosine = F.cosine_similarity(profiles[:, None], profiles[None], dim=-1).mean((0, 1))
    print(path)
    print("  mean cosine between domains by layer", " ".join(f"{c:.2f}" for c in cosine))

    def losses(choose):
        """Loss and masked mass per domain, with the experts that choose(domain, layer) keeps."""
        result = []
        for domain in range(len(names)):
            ids, valid = rows_of(evaluation, domain, args.eval_rows)
            keep = [choose(domain, layer) for layer in LAYERS] if choose else None
            result.append(forward(model, ids, valid, keep))
        return np.array(result)

    def top(domain, layer, kept):
        # The shared expert is one of the kept.
        return profiles[domain, layer].topk(kept - 1).indices

    full = losses(None)[:, 0].mean()
    for kept in (64, 32, 16, 8):
        result = losses(None if kept == 64 else lambda d, l: top(d, l, kept))
        loss, mass = result.mean(0)
        by_domain = " ".join(f"{n} {x:.2f}" for n, x in zip(names, result[:, 0]))
        change = 100 * (loss / full - 1)
        print(
            f"  {kept} kept: loss {loss:.3f} ({change:+.1f} %) masked mass {mass:.3f}  {by_domain}"
        )
    other = losses(lambda d, l: top((d + 7) % len(names), l, 16))[:, 0].mean()
    generator = torch.Generator().manual_seed(0)
    random = losses(lambda d, l: torch.randperm(NUM_ROUTED, generator=generator)[:15])[:, 0].mean()
    print(f"  16 kept: loss {other:.3f} with another domain's experts, {random:.3f} at random")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tokenizer")
    parser.add_argument("corpus")
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--calib-rows", type=int, default=24)
    parser.add_argument("--eval-rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", default="corpus_cache", help="folder of tokenized rows")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    calib = train_emo.load(args.corpus, args.tokenizer, "calib", SEQ, args.cache)
    evaluation = train_emo.load(args.corpus, args.tokenizer, "eval", SEQ, args.cache)
    for path in args.checkpoints:
        report(path, calib, evaluation, args)


if __name__ == "__main__":
    main()
