"""tokenizer.json files of BPE over characters with byte fallback, as Llama 2, Mixtral and Gemma have them."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
MARK = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]
LANGUAGES = [
    "\u0415\u0436\u0438 \u0438 \u044d\u043a\u0441\u043f\u0435\u0440\u0442\u044b \u043c\u043e\u0434\u0435\u043b\u0438.",
    "\u6771\u4eac\u90fd\u306e\u5929\u6c17\u306f\u6674\u308c\u3067\u3059\u3002", "na\u00efve \u00fcber stra\u00dfe \u00e9t\u00e9",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "x = [i ** 2 for i in range(10)]\n\treturn x", "12 345 67.89",
]


def trained(across_words: bool) -> dict:
    """A small model of the text of this repository; `across_words`: with tokens such as "of the"."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=not across_words)
    trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=SPECIAL + BYTES, show_progress=False,
                                  limit_alphabet=160)
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    lines += (ROOT / "model" / "tokenizer.cc").read_text(encoding="utf-8").splitlines()
    tokenizer.train_from_iterator(lines + LANGUAGES * 20, trainer)
    file = json.loads(tokenizer.to_str())
    # The trainer makes the tokens of bytes special; in published files they are not added tokens at all.
    file["added_tokens"] = [token for token in file["added_tokens"] if token["content"] in SPECIAL]
    file["pre_tokenizer"] = None
    return file


def replace(pattern: str, content: str) -> dict:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def metaspace(scheme: str, split: bool) -> dict:
    return {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": split}


def sequence(kind: str, *steps: dict) -> dict:
    return {"type": "Sequence", kind: list(steps)}


JOINED = [replace(MARK, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
               {"SpecialToken": {"id": "</s>", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                       "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
}


def mixtral(file: dict) -> dict:
    return file | {
        "normalizer": sequence("normalizers", {"type": "Prepend", "prepend": MARK}, replace(" ", MARK)),
        "pre_tokenizer": None,
        "post_processor": BOS,
        "decoder": sequence("decoders", *JOINED, STRIP),
    }


def with_model(file: dict, **changes) -> dict:
    file = copy.deepcopy(file)
    file["model"] |= changes
    return file


def without_some_bytes(file: dict) -> dict:
    """Some characters fall back to bytes, others become <unk>; <unk> and bytes take part in merges."""
    file = copy.deepcopy(file)
    vocab, merges = file["model"]["vocab"], file["model"]["merges"]
    for byte in (0x81, 0x9F, 0xE3):
        token = BYTES[byte]
        vocab[f"gone{byte}"] = vocab.pop(token)
    for left, right in (("<0xF0>", "<0x98>"), ("a", "<0xC2>"), ("<unk>", "e")):
        vocab[left + right] = len(vocab)
        merges.insert(3, [left, right])
    return file


def variants() -> Iterator[tuple[str, str]]:
    words, phrases = trained(False), trained(True)
    yield "Mixtral", json.dumps(mixtral(words))
    yield "Mixtral, merges across words", json.dumps(mixtral(phrases))
    yield "no fusing of unknown, no byte fallback", json.dumps(
        with_model(mixtral(words), fuse_unk=False, byte_fallback=False))
    yield "fusing of unknown, no byte fallback", json.dumps(with_model(mixtral(phrases), byte_fallback=False))
    yield "no unknown token", json.dumps(with_model(mixtral(words), byte_fallback=False, unk_token=None))
    for fuse in (False, True):
        partial = without_some_bytes(with_model(mixtral(words), fuse_unk=fuse))
        yield f"some bytes, merges of bytes and unknown, fuse_unk {fuse}", json.dumps(partial)
    yield "ignore_merges", json.dumps(with_model(mixtral(phrases), ignore_merges=True))
    for scheme in ("always", "first", "never"):
        for split in (False, True):
            file = mixtral(phrases) | {"normalizer": None, "pre_tokenizer": metaspace(scheme, split),
                                       "decoder": metaspace(scheme, split)}
            yield f"Metaspace {scheme}, split {split}", json.dumps(file)
    digits = mixtral(words) | {
        "normalizer": {"type": "Strip", "strip_left": True, "strip_right": False},
        "pre_tokenizer": sequence("pretokenizers", {"type": "Digits", "individual_digits": True},
                                  metaspace("first", True)),
        "decoder": sequence("decoders", *JOINED)}
    yield "Digits before Metaspace, nothing stripped from decoded text", json.dumps(digits)
    removed = digits | {"normalizer": replace("T", ""), "pre_tokenizer": metaspace("first", False)}
    yield "a normalizer that removes the start", json.dumps(removed)
    old = mixtral(words) | {
        "normalizer": None, "post_processor": sequence("processors", BOS),
        "pre_tokenizer": metaspace("never", True) | {"add_prefix_space": False},
        "decoder": sequence("decoders", replace(MARK, " "), STRIP, {"type": "ByteFallback"}, {"type": "Fuse"})}
    yield "add_prefix_space, Strip of every token", json.dumps(old)
    gemma = mixtral(phrases) | {"normalizer": replace(" ", MARK), "decoder": sequence("decoders", *JOINED)}
    gemma["added_tokens"] = gemma["added_tokens"] + [
        {"id": len(gemma["model"]["vocab"]) + i, "content": content, "single_word": False, "lstrip": left,
         "rstrip": False, "normalized": normalized, "special": False}
        for i, (content, left, normalized) in enumerate(
            [("<end_of_turn>", False, False), ("\n\n", False, False), ("of the", True, True), ("  ", False, True)])]
    yield "Gemma, added tokens", json.dumps(gemma)
