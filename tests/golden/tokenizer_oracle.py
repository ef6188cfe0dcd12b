"""Writes what PyPI `tokenizers` makes of many texts and token sequences, as JSON lines.

  {"text": ..., "ids": [...], "template": [...]}       encode without and with special tokens
  {"ids": [...], "decoded": ..., "visible": ...}       decode with and without special tokens

The cases depend only on the seed and on the tokenizer's added tokens.
"""

import argparse
import functools
import json
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer

FIXED = [
    "", " ", "\n", "\t", "\r\n", "a", "Hello, world!", "don't I'll we've they're I'm he'd it's",
    "DON'T I'LL WE'VE THEY'RE I'M HE'D IT'S", "'s't're've'm'll'd", "it\u2019s \u017fo 'S '\u017f",
    "x = [i ** 2 for i in range(10)]  # squares\n\tif x:\n\t\tprint(f\"{x!r}\")\n",
    "#include <vector>\nint main() {\n  return 0;\n}\n\n\n", "SELECT * FROM t WHERE a >= 1.5e-3;",
    "<html lang=\"de\">&nbsp;&auml;</html>", "https://example.org/a/b?c=d&e=%20#f", "a.b@c.example",
    "\U0001F468\u200D\U0001F469\u200D\U0001F467\u200D\U0001F466 \U0001F3F3\uFE0F\u200D\U0001F308",
    "\U0001F44D\U0001F3FD\U0001F1E9\U0001F1EA\u2764\uFE0F\U0001FAE8\U0001FA77\U0001F6DC",
    "e\u0301 \u00e9 A\u030a \u00c5 \u212b o\u0308\u0304\u0323 \u1e9b\u0323 \ufb01 \uff21",
    "\u0130stanbul \u0131\u0307 \u01c5 \u03a3\u03c3\u03c2 \u1e9e\u00df", "\u202eright to left\u202c",
    "a\u00a0b\u1680c\u180ed\u2003e\u2028f\u2029g\u202fh\u205fi\u3000j\u200bk\u0085l\x0bm\x0cn\ufeffo",
    "\x00\x01\x02\x07\x08\x1b[31m\x7f\x80\x9f", "\ufffd\ufffe\uffff\U0010ffff\ue000",
    "1 12 123 1234 12345 3.14159 1,000,000 \u00bd \u2167 \u0661\u0662\u0663 \u4e00\u4e8c \u2460",
    "0x1F 1e10 v1.2.3-rc4 2024-02-29T12:34:56Z", "   leading", "trailing   ", "a  b   c    d",
    "\n\n\n \n \t\n x\n", "  \r\n\r\n  \r", "!!!???...---===", "\u2014\u2026\u00ab\u201equoted\u201c\u00bb",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f \uc548\ub155\ud558\uc138\uc694",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u05e9\u05dc\u05d5\u05dd",
    "\U00013460\U00016d43\U00010d4a\U0002ebf0\U00031350\U00011f04\U00011f50\U0001d2c0\u2ffc\u31ef\u1c89\ua7dc",
    "a" * 5000, "ab" * 20000, " " * 20000, " " * 5000 + "x", "\n" * 3000, "\u00e4" * 3000,
    "\u4e2d" * 3000, "1" * 3000, "!" * 3000, "aA" * 3000, "A" * 5000, " \n" * 3000,
]

# First and last code point of blocks that cover the scripts in use.
BLOCKS = [
    (0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x17F), (0x180, 0x24F), (0x250, 0x2AF), (0x2B0, 0x2FF),
    (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x500, 0x52F), (0x530, 0x58F), (0x590, 0x5FF),
    (0x600, 0x6FF), (0x700, 0x74F), (0x780, 0x7BF), (0x7C0, 0x7FF), (0x900, 0x97F), (0x980, 0x9FF),
    (0xA00, 0xA7F), (0xA80, 0xAFF), (0xB00, 0xB7F), (0xB80, 0xBFF), (0xC00, 0xC7F), (0xC80, 0xCFF),
    (0xD00, 0xD7F), (0xD80, 0xDFF), (0xE00, 0xE7F), (0xE80, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F),
    (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137F), (0x13A0, 0x13FF), (0x1400, 0x167F),
    (0x1680, 0x169F), (0x16A0, 0x16FF), (0x1780, 0x17FF), (0x1800, 0x18AF), (0x1E00, 0x1EFF),
    (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x209F), (0x20A0, 0x20CF), (0x2100, 0x214F),
    (0x2150, 0x218F), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2300, 0x23FF), (0x2460, 0x24FF),
    (0x2500, 0x257F), (0x2600, 0x27BF), (0x2800, 0x28FF), (0x2C00, 0x2C5F), (0x2D30, 0x2D7F),
    (0x2E80, 0x2EFF), (0x3000, 0x303F), (0x3040, 0x30FF), (0x3100, 0x312F), (0x3130, 0x318F),
    (0x3200, 0x33FF), (0x4E00, 0x9FFF), (0xA000, 0xA48F), (0xA4D0, 0xA4FF), (0xA840, 0xA87F),
    (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFE00, 0xFE6F), (0xFF00, 0xFFEF),
    (0x10000, 0x100FF), (0x10330, 0x1034F), (0x10380, 0x103DF), (0x10900, 0x1091F),
    (0x12000, 0x123FF), (0x13000, 0x1342F), (0x1D100, 0x1D1FF), (0x1D400, 0x1D7FF),
    (0x1E900, 0x1E95F), (0x1F000, 0x1F0FF), (0x1F100, 0x1F1FF), (0x1F300, 0x1F5FF),
    (0x1F600, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1FAFF), (0x20000, 0x2A6DF),
    (0xE0000, 0xE007F),
]

COMBINING = [
    (0x300, 0x36F), (0x483, 0x487), (0x591, 0x5BD), (0x64B, 0x655), (0x8D3, 0x8FF), (0x93C, 0x94D),
    (0xE34, 0xE3A), (0x1AB0, 0x1ACE), (0x1DC0, 0x1DFF), (0x20D0, 0x20F0), (0x3099, 0x309A),
    (0x11930, 0x1193E), (0x113B8, 0x113D0), (0x1611E, 0x16129), (0x1E130, 0x1E136),
]
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\t", "\t\t", "\r", "\r\n", "\u00a0", "\u2003", "\u3000",
          "\x0b", "\x0c", "\u0085", "\u2028", "\u180e"]
WORDS = ["the", "Expert", "GATE", "don't", "x1", "naive", "na\u00efve", "stra\u00dfe", "\u6771\u4eac",
         "\u043c\u0438\u0440", "123", "4567", "3.5", "{", "}", "();", "->", "==", "//", "\"q\"", "'ll",
         "\U0001F600", "\u0301", "_", "__init__", "camelCase", "ALL_CAPS", "$9.99", "50%", "@user", "#tag"]


EMOJI = ["\U0001F468", "\U0001F469", "\U0001F467", "\U0001F3FD", "\u200d", "\ufe0f", "\u2764", "\U0001F1E9",
         "\U0001F1EA", "\U0001F3F4", "\U000E0067", "\U000E007F", "1\ufe0f\u20e3", "\U0001F9D1\u200d\U0001F680", " "]


def texts(tokenizer: Tokenizer, rng: random.Random, scale: int) -> list[str]:
    """About 900 texts, and 400 more for each step of `scale` above 1."""
    def characters(low: int, high: int, most: int) -> str:
        codes = (rng.randint(low, high) for _ in range(rng.randint(1, most)))
        return "".join(chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF)

    cases = list(FIXED)
    for low, high in BLOCKS:
        cases.append(characters(low, high, 40))
        cases.append(" ".join(characters(low, high, 8) for _ in range(6)))
        cases.append(rng.choice(WORDS).join(characters(low, high, 5) for _ in range(5)))
    for _ in range(120 * scale):
        cases.append("".join(rng.choice(SPACES + WORDS[:6]) for _ in range(rng.randint(1, 20))))
    for _ in range(150 * scale):
        parts = [rng.choice(WORDS) + rng.choice(SPACES + ["", ""]) for _ in range(rng.randint(1, 30))]
        cases.append("".join(parts))
    for _ in range(100 * scale):
        cases.append(characters(0x01, 0x7F, 80))
    for _ in range(100 * scale):
        cases.append(characters(0x01, 0x10FFFF, 40))
    for _ in range(100 * scale):  # bytes of any kind, as text
        data = rng.randbytes(rng.randint(1, 60))
        cases.append(data.decode(rng.choice(["latin-1", "utf-8", "utf-16-le", "cp437"]), errors="replace"))
    for _ in range(60 * scale):
        cases.append("".join(rng.choice(EMOJI) for _ in range(rng.randint(1, 12))))
    for _ in range(80 * scale):
        marks = [chr(rng.randint(*rng.choice(COMBINING))) for _ in range(rng.randint(1, 6))]
        cases.append("".join([rng.choice("aeoAO\u0915\u304b\u1112\U000105d2"), *marks, "\u0307", "z"]))
        first = rng.choice([rng.randrange(0x3400), rng.randrange(0xA000, 0xD700), rng.randrange(0x10000, 0x1FC00)])
        cases.append("".join(map(chr, range(first, first + 200))))
    for _ in range(60 * scale):
        cases.append("".join(rng.choice("0123456789., \u0660\u0967\u00b2") for _ in range(rng.randint(1, 25))))
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    rng.shuffle(added)
    for content in added[:20 * scale]:
        cases += [content, content + content, f"a{content}b", f" {content} ", f"{content[:-1]} {content[1:]}",
                  f"\n{content}\n\n", content[:-1] + content, content.upper()]
    for _ in range(80 * scale if added else 0):
        pool = added + WORDS + SPACES
        cases.append("".join(rng.choice(rng.choice([added, pool])) for _ in range(rng.randint(1, 12))))
    return cases


# Thousands of characters that tables do not tell apart: Han, Hangul, Tangut, Han. A sample of them will do.
UNIFORM = (range(0x3500, 0x9F00), range(0xAD00, 0xD700), range(0x17100, 0x18700), range(0x20100, 0x2A600),
           range(0x2A800, 0x2F700), range(0x2FB00, 0x32300))


@functools.cache
def every_character() -> list[str]:
    """Every character that some table may tell from its neighbours, beside each other and beside letters."""
    codes = [code for code in range(0x110000) if code < 0x33000 and not 0xD800 <= code < 0xE000
             or 0xE0000 <= code < 0xE0200 or code & 0xFFFF in (0, 0xFFFE, 0xFFFF)]
    codes = [code for code in codes if code % 16 == 5 or not any(code in uniform for uniform in UNIFORM)]
    cases = []
    for begin in range(0, len(codes), 1000):
        characters = list(map(chr, codes[begin:begin + 1000]))
        cases += ["".join(characters), "a".join(characters)]
    return cases


def sequences(tokenizer: Tokenizer, rng: random.Random) -> list[list[int]]:
    size = tokenizer.get_vocab_size()
    special = [i for i, token in tokenizer.get_added_tokens_decoder().items()]
    short = [i for i in range(size) if len(tokenizer.id_to_token(i) or "") < 3]
    cases = [[], [size + 1000], *([i] for i in special)]
    for _ in range(150):
        cases.append([rng.randrange(size) for _ in range(rng.randint(1, 40))])
    for _ in range(150):  # mostly pieces of characters
        cases.append([rng.choice(rng.choice([short, short, special or short]))
                      for _ in range(rng.randint(1, 40))])
    return cases


def write_cases(tokenizer_folder: Path, output: Path, seed: int = 20, scale: int = 1, share: slice | None = None) -> int:
    """Returns the number of texts. `share`: these of every_character(), and fewer texts and sequences else."""
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rng = random.Random(seed)
    cases = list(dict.fromkeys(texts(tokenizer, rng, scale)))
    if share:
        cases = [text for text in cases if len(text) < 100][:200] + every_character()[share]
    encoded = [(text, tokenizer.encode(text, add_special_tokens=False).ids) for text in cases]
    with output.open("w", encoding="utf-8") as file:
        for text, ids in encoded:
            template = tokenizer.encode(text, add_special_tokens=True).ids
            file.write(json.dumps({"text": text, "ids": ids, "template": template}) + "\n")
        decoded = [] if share else [ids for _, ids in encoded]
        for ids in decoded + sequences(tokenizer, rng):
            case = {"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                    "visible": tokenizer.decode(ids, skip_special_tokens=True)}
            file.write(json.dumps(case) + "\n")
    return len(encoded)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--scale", type=int, default=1)
    arguments = parser.parse_args()
    count = write_cases(arguments.tokenizer, arguments.output, arguments.seed, arguments.scale)
    print(f"{count} texts", file=sys.stderr)
