#!/usr/bin/env python3
"""Trains the byte-level BPE tokenizer on 1.6 MB of each domain's training text.

usage: train_tokenizer.py VOCAB_SIZE OUT.json
Reads corpus/*.train.jsonl in the current folder. Needs PyPI tokenizers.
"""

import json, glob, os, random, sys
from tokenizers import Tokenizer, models, trainers, pre_tokenizers, decoders, Regex

random.seed(0)
V = int(sys.argv[1])
out = sys.argv[2]


def it():
    for p in sorted(glob.glob("corpus/*.train.jsonl")):
        n = 0
        lines = open(p).readlines()
        random.shuffle(lines)
        for l in lines:
            t = json.loads(l)["text"]
            n += len(t.encode())
            yield t
            if n > 1.6e6:
                break


tok = Tokenizer(models.BPE())
# GPT-2-family pre-tokenizer in its cl100k/OLMo form: contractions, letters with one leading symbol,
# up to 3 digits, punctuation, newlines, spaces.
pat = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
tok.pre_tokenizer = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(pat), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
tok.decoder = decoders.ByteLevel()
tr = trainers.BpeTrainer(
    vocab_size=V,
    special_tokens=["<|endoftext|>", "<|padding|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
tok.train_from_iterator(it(), tr)
tok.save(out)
for p in sorted(glob.glob("corpus/*.eval.jsonl")):
    t = "".join(json.loads(l)["text"] for l in open(p).readlines()[:20])
    n = len(tok.encode(t).ids)
    print(os.path.basename(p), "bytes/token %.2f" % (len(t.encode()) / n))
print(tok.get_vocab_size(), tok.token_to_id("<|endoftext|>"), tok.token_to_id("<|padding|>"))
