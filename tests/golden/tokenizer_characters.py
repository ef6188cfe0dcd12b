"""tokenizer.json variants in whose ids every choice shows that a part makes about a character.

A pattern's matches show as another text, the pieces of a pre_tokenizer by the space that ByteLevel puts before each.
"""

import json
from collections.abc import Iterator

from tokenizer_variants import BYTE_LEVEL, split, with_added_tokens, with_parts

PATTERNS = [
    r"\w", r"\W+", r"[\w]", r"[^\w]", r"[\W]", r"\b.", r"\B.", r"\b\w+\b", r"\d|\h", r"\D\s", r"[^\S\n]|\H{2}", r"(?i:\w\b)",
    r"\p{Han}", r"\p{Latin}|\p{Greek}", r"\p{Common}", r"\p{Inherited}|\p{Cyrillic}", r"\P{Han}+", r"\p{^Arabic}+",
    r"\p{Kawi}|\p{Hira}|\p{kana}|\p{Nag Mundari}|\p{tulu-tigalari}|\p{Garay}|\p{Sunu}", r"(?i:\p{Thai}|\p{Alphabetic})",
    r"\R+|\p{InLatin-1 Supplement}|\p{In_CJK_Unified_Ideographs}|\p{inkawi}", r"\p{InGreekandCoptic}|[\p{InCJKUnifiedIdeographsExtensionI}\p{Lu}]",
    r"\P{InBasicLatin}+", r"(?i:\p{Lu}|[^\S\p{L}])", r"\p{Alphabetic}", r"\p{Uppercase}", r"\p{Lowercase}", r"\p{Emoji}", r"\p{Emoji_Presentation}|\p{Extended_Pictographic}",
    r"\p{Emoji_Modifier_Base}|\p{Ideographic}", r"\p{Math}|\p{Dash}", r"\p{XDigit}|\p{Blank}|\p{Cntrl}", r"\p{Word}", r"\p{Alnum}",
    r"\p{L}", r"\p{Lu}", r"\p{Ll}", r"\p{Lm}|\p{Lt}", r"\p{Mn}", r"\P{Mn}+", r"\p{Mc}|\p{Me}", r"\p{N}", r"\p{P}", r"\p{So}|\p{Sm}",
    r"\p{Cn}", r"\p{C}", r"\p{Cf}|\p{Co}|\p{Z}", r"\p{LC}", r"\p{Uppercase_Letter}|\p{Dash_Punctuation}",
    r"[[:alpha:]]", r"[[:punct:]]", r"[[:^punct:]]+", r"[[:upper:][:digit:]]", r"[^[:lower:][:space:]]", r"[[:word:]&&[^_]]", r"[[:alnum:]]",
    r"[\p{L}&&\p{Latin}]", r"[\p{L}&&[^\p{Han}a-z]]+", r"[^\W\d_]+", r"[a[\u0400-\u04ff]&&[^\u0410-\u0420]]", r"[^a-c&&b-d[x]]",
    r"[^[^\p{Greek}]\p{Lu}]", r"[\P{L}a-f]+", r"[[a]-z&&[^\^]]|[a^]|[+--]", r"(?<=[\p{L}&&[^a]])\p{Han}|(?<!\w)\p{L}", r"[\p{Mn}\d]",
]
BEFORE_BYTE_LEVEL = {
    "Punctuation": {"type": "Punctuation", "behavior": "Isolated"},
    "Punctuation, contiguous": {"type": "Punctuation", "behavior": "Contiguous"},
    "Punctuation, merged with next": {"type": "Punctuation", "behavior": "MergedWithNext"},
    "Whitespace": {"type": "Whitespace"},
    "WhitespaceSplit": {"type": "WhitespaceSplit"},
    "BertPreTokenizer": {"type": "BertPreTokenizer"},
    "UnicodeScripts": {"type": "UnicodeScripts"},
    "CharDelimiterSplit": {"type": "CharDelimiterSplit", "delimiter": "a"},
    "FixedLength": {"type": "FixedLength", "length": 3},
}
BERT = {"type": "BertNormalizer", "clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
NORMALIZERS = {
    "StripAccents": [{"type": "StripAccents"}],
    "StripAccents after NFD": [{"type": "NFD"}, {"type": "StripAccents"}],
    "Nmt": [{"type": "Nmt"}],
    "BertNormalizer": [BERT | {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}],
    "BertNormalizer, clean_text": [BERT | {"clean_text": True}],
    "BertNormalizer, handle_chinese_chars": [BERT | {"handle_chinese_chars": True}],
    "BertNormalizer, strip_accents": [BERT | {"strip_accents": True}],
    "BertNormalizer, lowercase without accents": [BERT | {"lowercase": True}],
}
SPACED = BYTE_LEVEL | {"add_prefix_space": True}
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
# Beyond ByteLevel, parts see the characters that spell bytes.
AROUND_BYTE_LEVEL = {
    "Digits": [BYTE_LEVEL, {"type": "Digits", "individual_digits": True}],
    "Split at spelled spaces": [BYTE_LEVEL, split({"Regex": "\u0120+|\u010a"}, "MergedWithNext")],
    "Punctuation, then ByteLevel again": [BYTE_LEVEL, {"type": "Punctuation", "behavior": "Isolated"}, SPACED],
    "pattern and Whitespace": [BYTE_LEVEL | {"use_regex": True}, {"type": "Whitespace"}],
    "UnicodeScripts and FixedLength": [BYTE_LEVEL, {"type": "UnicodeScripts"}, {"type": "FixedLength", "length": 2}],
    "Metaspace": [BYTE_LEVEL, METASPACE],
    "ByteLevel twice": [SPACED | {"use_regex": True}, BYTE_LEVEL],
}


def variants(text: str) -> Iterator[tuple[str, str]]:
    original = json.loads(text)
    for pattern in PATTERNS:
        replace = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "|x|"}
        yield f"characters: {pattern}", json.dumps(with_parts(original, [], [replace]))
    for name, part in BEFORE_BYTE_LEVEL.items():
        file = with_parts(original, [part])
        file["pre_tokenizer"]["pretokenizers"][-1] = SPACED
        yield f"characters: {name}", json.dumps(file)
    for name, parts in NORMALIZERS.items():
        yield f"characters: {name}", json.dumps(with_parts(original, [], parts))
    for name, parts in AROUND_BYTE_LEVEL.items():
        yield f"ByteLevel, then {name}", json.dumps(
            original | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}})
    for steps in ([split({"Regex": "\u0120"}, "MergedWithNext")], [BYTE_LEVEL], [{"type": "Whitespace"}]):
        file = original | {"normalizer": {"type": "ByteLevel"},
                           "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
        yield f"ByteLevel as normalizer, then {steps[0]['type']}", json.dumps(file)
    added = with_added_tokens(original)
    added["normalizer"] = {"type": "ByteLevel"}
    added["pre_tokenizer"] = split({"Regex": "\u0120"}, "MergedWithNext")
    yield "ByteLevel as normalizer, added tokens", json.dumps(added)
    yield "ByteLevel as normalizer, NFC and Lowercase after it", json.dumps(original | {
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": " "}, {"type": "ByteLevel"}, {"type": "Lowercase"}, {"type": "NFC"}]},
        "pre_tokenizer": None})
