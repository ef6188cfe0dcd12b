#!/usr/bin/env python3
"""Writes the inputs from which fuzzing starts.

usage: seeds.py NAME DIR        NAME is a target, such as config_fuzz; one without seeds gets none
"""

import copy
import glob
import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FIXTURES = os.path.join(ROOT, "tests", "golden", "fixtures")
TEXT = "The gate don't 12345  \n\n\tpicks\u00e4 \u4f60\u597d \U0001F468\u200d\U0001F469 <s>x</s>\x07".encode()


def read(path):
    with open(path, "rb") as f:
        return f.read()


def fixtures(name):
    folders = sorted(glob.glob(os.path.join(FIXTURES, "*")) + glob.glob(os.path.join(FIXTURES, "small", "*"))) + [os.path.join(ROOT, "models", "moiety-tiny-emo")]
    for folder in folders:
        for path in sorted(glob.glob(os.path.join(folder, name))):
            yield read(path)


def chat_template_fuzz():
    """A few templates of each kind; more come from mutation."""
    sys.path.insert(0, os.path.join(ROOT, "tests", "golden"))
    from template_random import random_templates
    from template_snippets import snippets

    for template in [*snippets(), *random_templates(1, 300)]:
        yield template.encode("utf-8", "surrogatepass")


def config_fuzz():
    yield from fixtures("config.json")
    yield b'{"eos_token_id":[2,3],"bos_token_id":1}'


def generation_config_fuzz():
    yield from fixtures("generation_config.json")
    yield (b'{"do_sample":true,"temperature":0.7,"top_p":0.8,"top_k":20,"min_p":0.05,"max_new_tokens":100,'
           b'"repetition_penalty":1.05,"eos_token_id":[1,2],"transformers_version":"4.51.0"}')


def safetensors_fuzz():
    """The first byte is the size of the data, the rest a header or a shard index."""
    yield b"\x08" + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    yield b"\x0c" + (
        b'{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    )
    yield b"\x00" + b'{"metadata":{"total_size":8},"weight_map":{"a":"model.safetensors"}}'
    for content in fixtures("model*.safetensors"):
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        yield b"\x00" + header[:4000]


def byte_level_file():
    """A whole byte-level tokenizer.json, as small as it can be: every byte needs a token."""
    whole = json.loads(read(os.path.join(ROOT, "models", "moiety-tiny-emo", "tokenizer.json")))
    vocab = sorted(whole["model"]["vocab"], key=whole["model"]["vocab"].get)[:300]
    merges = [pair for pair in whole["model"]["merges"] if all(t in vocab for t in [*pair, "".join(pair)])]
    whole["model"] |= {"vocab": {token: i for i, token in enumerate(vocab)}, "merges": merges}
    whole["added_tokens"] = whole["added_tokens"][:1]
    return whole


def tokenizer_fuzz():
    """A tokenizer.json, a zero byte and a text."""
    def seed(file):
        return json.dumps(file, ensure_ascii=False, separators=(",", ":")).encode() + b"\0" + TEXT

    mark = "\u2581"
    replace = {"type": "Replace", "pattern": {"String": mark}, "content": " "}
    vocab = ["<unk>", "<s>", "<0xC3>", "<0xA4>", mark, "a", "e", "t", "h", "th", "the", mark + "t", mark + "the", "1"]
    file = {
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": mark}, replace | {"pattern": {"String": " "}, "content": mark}]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [
            replace, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
            "special_tokens": {"<s>": {"ids": [1]}}},
        "added_tokens": [{"id": 1, "content": "<s>", "special": True, "lstrip": True, "rstrip": True},
                         {"id": 14, "content": "picks", "normalized": True, "single_word": True}],
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
                  "vocab": {token: i for i, token in enumerate(vocab)},
                  "merges": [["t", "h"], ["th", "e"], f"{mark} t", f"{mark} the"]},
    }
    yield seed(file)
    metaspace = {"type": "Metaspace", "replacement": mark, "prepend_scheme": "first", "split": False}
    file = copy.deepcopy(file) | {"normalizer": {"type": "NFKC"}, "pre_tokenizer": metaspace, "decoder": metaspace}
    file["model"] |= {"byte_fallback": False, "fuse_unk": False, "ignore_merges": True}
    yield seed(file)
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}|\\s+(?!\\S)"}, "behavior": "MergedWithNext", "invert": True},
        {"type": "Digits", "individual_digits": True}, metaspace]}
    yield seed(file)
    yield seed(byte_level_file())


def text_fuzz():
    yield TEXT
    yield TEXT + b"\xff\xe2\x82\xf0\x9f\x98"


def planner_files_fuzz():
    yield (b'{"format":"moiety.subset/1","checkpoint":"00","domains":["d"],"method":"mean_prob",'
           b'"experts_kept_per_layer":[[0,2],null,[1,3]]}')
    yield (b'{"format":"moiety.profile/1","checkpoint":"00","layers":[{"num_routed":2,"num_shared":1,"top_k":1},'
           b'{"num_routed":0,"num_shared":0,"top_k":0}],"domains":{"d":{"tokens":7,"text_sha256":"ab",'
           b'"mean_prob":[[0.25,0.75],null]}}}')


def completion_request_fuzz():
    yield b'{"model":"emo","prompt":"Hello","max_tokens":8,"stream":true,"stream_options":{"include_usage":true}}'
    yield (b'{"model":"emo","prompt":[[1,2],[3]],"n":2,"temperature":0.7,"top_p":0.9,"top_k":4,"min_p":0.1,'
           b'"presence_penalty":0.5,"frequency_penalty":-0.5,"logit_bias":{"5":-100},"seed":7,"logprobs":3,'
           b'"stop":["a","b"],"stop_token_ids":[2],"echo":false,"user":"x","min_tokens":1}')


def main(argv):
    if len(argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    name, folder = argv[1:]
    seeds = globals().get(name, lambda: [])
    for i, seed in enumerate(seeds()):
        with open(os.path.join(folder, f"seed-{i}"), "wb") as f:
            f.write(seed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
