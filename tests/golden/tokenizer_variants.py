"""tokenizer.json variants of one byte-level BPE file, so that every supported part is compared."""

import copy
import json
from collections.abc import Iterator

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
# As in DeepSeek's first models.
DEEPSEEK = ["[\r\n]", "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u0370-\u0373\u0400-\u0481\u048a-\u052f]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", "\\s+$",
            "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"]
CL100K = ("'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|"
          "\\s+(?!\\S)|\\s")
# PCRE2 reads most of them differently. Over few characters: over all, Oniguruma has no end of steps.
QUANTIFIERS = ["{1,3}+x", "{2}+x", "{2}?x", "{2}??x", "{2}?+x", "{2}*x", "{1,3}?x", "{2,}?", "{2,2}?", "{1,3}??x", "{1,3}?+x", "{1,3}+?x",
               "{1,3}++x", "{2}{2}+x", "{2}{1,3}?x", "?+x", "*+x", "++x"]
# What PCRE2 has too, but for what it is told: groups and searches.
GROUPS = ["(\\p{L})\\1", "(?<q>['\"]).*?\\k<q>|(x)", "(?:(a)|(e)|\\1[a-t]|\\k<2>n)+", "(\\w)(\\w)?\\2\\1", "(?<a>[aeiou])(?<b>.)\\k<b>*+\\k<a>",
          "\\s\\K\\w+|[aeiou]\\K", "\\G\\s*\\w|\\d\\G", "(?!\\G)[a-z]+", "\\R{2}|\\R[^\\n]", "(?>[a-z]{0,3}e|t){2}s?"]
NUMBERS_AND_SPACE = "\\p{N}{1,3}|\\s+"


def split(pattern: dict, behavior: str, invert: bool = False) -> dict:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def with_parts(original: dict, pre_tokenizers: list[dict], normalizers: list[dict] = ()) -> dict:
    file = copy.deepcopy(original)
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*pre_tokenizers, BYTE_LEVEL]}
    if normalizers:
        file["normalizer"] = {"type": "Sequence", "normalizers": list(normalizers)}
    return file


def with_added_tokens(original: dict) -> dict:
    file = with_parts(original, [split({"Regex": "\\s+"}, "MergedWithNext")],
                      [{"type": "NFKC"}, {"type": "Lowercase"}])
    vocab = file["model"]["vocab"]
    next_id = max(*vocab.values(), *(token["id"] for token in file["added_tokens"])) + 1
    contents = {"the": "single_word", "<mask>": "lstrip", "{": "rstrip", "Expert": "normalized",
                "\n\n": "lstrip rstrip", " ": "", "x1": "special single_word", "na\u00efve": "normalized special",
                "\u6771": "single_word", "<m": "", "<mask><mask>": "normalized", "12 3": ""}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for content, chosen in contents.items():
        token = {"id": vocab.get(content, next_id), "content": content}
        # New ids are dense and in order: PyPI tokenizers numbers such tokens itself.
        next_id += token["id"] == next_id
        file["added_tokens"].append(token | {flag: flag in chosen.split() for flag in flags})
    return file


def variants(text: str) -> Iterator[tuple[str, str]]:
    """(name, text of tokenizer.json); the file as it is comes first."""
    original = json.loads(text)
    yield "as it is", text
    gpt2 = copy.deepcopy(original)
    gpt2["pre_tokenizer"] = {**BYTE_LEVEL, "use_regex": True, "add_prefix_space": True}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in original["model"]["merges"]]
    gpt2["model"] |= {"merges": ["#version: 0.2", *merges], "ignore_merges": None}
    yield "GPT-2 pattern, prefix space, merges as strings", json.dumps(gpt2)
    ignore = copy.deepcopy(original)
    ignore["model"]["ignore_merges"] = True
    ignore["model"]["merges"] = ignore["model"]["merges"][::-1]
    yield "ignore_merges", json.dumps(ignore)
    for behavior in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            pieces = [split({"Regex": NUMBERS_AND_SPACE}, behavior, invert)]
            yield f"{behavior}, invert {invert}", json.dumps(with_parts(original, pieces))
    prefixed = with_parts(original, [split({"String": " "}, "Removed"), {"type": "Digits", "individual_digits": False}])
    prefixed["pre_tokenizer"]["pretokenizers"][-1] = {**BYTE_LEVEL, "add_prefix_space": True}
    yield "string pattern, contiguous digits, prefix space on every piece", json.dumps(prefixed)
    digits = [{"type": "Digits", "individual_digits": True}, split({"Regex": "^.|[^\\S\\n]+$|(?i:THE)|a*"}, "Isolated")]
    yield "digits, lines, empty matches", json.dumps(with_parts(original, digits))
    deepseek = [split({"Regex": pattern}, "Isolated") for pattern in DEEPSEEK]
    yield "DeepSeek", json.dumps(with_parts(original, [*deepseek, {"type": "Digits", "individual_digits": True}]))
    yield "cl100k of tiktoken", json.dumps(with_parts(original, [split({"Regex": CL100K}, "Isolated")]))
    for quantifier in QUANTIFIERS:
        word = quantifier.replace("x", "[eiou\\p{N}]")
        pieces = [split({"Regex": f"[eiou\\p{{N}}]{word}|(a[l-t]){word}"}, "Isolated")]
        yield f"quantifier {quantifier}", json.dumps(with_parts(original, pieces))
    for pattern in GROUPS:
        yield f"pattern {pattern}", json.dumps(with_parts(original, [split({"Regex": pattern}, "Isolated")]))
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        replace = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
        yield form, json.dumps(with_parts(original, [split({"Regex": "\\s+"}, "Isolated")], [{"type": form}, replace]))
    yield "added tokens with every flag", json.dumps(with_added_tokens(original))
