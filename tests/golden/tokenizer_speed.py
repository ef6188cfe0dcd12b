#!/usr/bin/env python3
"""Compares the speed of Moiety's tokenizer with that of PyPI `tokenizers`, on one core.

For each tokenizer and kind of text both encode the same texts in turns, in processor seconds of one thread;
the best round counts. PyPI's figure is the better of encode() and encode_batch_fast(). Prints MB/s and the
ratio; exits 1 where a ratio is below --least.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer  # noqa: E402

import real_tokenizers  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "models" / "moiety-tiny-emo"


def documents(patterns: list[str], most_bytes: int) -> list[str]:
    """Files of this repository, cut to parts of at most 8,000 characters."""
    texts, size = [], 0
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        for start in range(0, len(text), 8000):
            texts.append(text[start : start + 8000])
            size += len(texts[-1].encode())
        if size > most_bytes:
            break
    return texts


def sentences(words: list[str], ends: list[str], between: str, most_bytes: int) -> list[str]:
    """Sentences of words that become rarer down the list, as in a language."""
    rng = random.Random(7)
    texts, size = [], 0
    while size < most_bytes:
        parts = []
        for _ in range(60):
            drawn = [words[int(len(words) ** rng.random()) - 1] for _ in range(rng.randint(4, 14))]
            parts.append(between.join(drawn) + rng.choice(ends))
        texts.append("".join(parts))
        size += len(texts[-1].encode())
    return texts


def made_texts(most_bytes: int) -> dict[str, list[str]]:
    """From this repository and, for the scripts that it has none of, from the words of a vocabulary."""
    vocabulary = Tokenizer.from_file(str(real_tokenizers.ensure("qwen3") / "tokenizer.json"))
    words: dict[str, list[str]] = {"CJK": [], "HIRAGANA": [], "KATAKANA": [], "CYRILLIC": [], "HANGUL": []}
    for i in range(vocabulary.get_vocab_size()):
        text = vocabulary.decode([i]).strip()
        if not text.isalpha() or text.isascii():
            continue
        scripts = {unicodedata.name(c, "?").split()[0] for c in text}
        if len(scripts) == 1 and (script := scripts.pop()) in words:
            words[script].append(text)
    rng = random.Random(6)
    for script in words:
        rng.shuffle(words[script])
    kana = [word for group in zip(words["HIRAGANA"], words["CJK"], words["KATAKANA"]) for word in group]
    english, code = documents(["*.md", "docs/**/*.md", "*/*.md"], most_bytes), documents(["[a-z]*/*.cc"], most_bytes)
    kinds = {
        "english": english,
        "code": code,
        "chinese": sentences(words["CJK"], ["\u3002", "\uff0c", "\uff1f", "\n"], "", most_bytes),
        "japanese": sentences(kana, ["\u3002", "\u3001", "\n"], "", most_bytes),
        "russian": sentences(words["CYRILLIC"], [". ", ", ", "?\n"], " ", most_bytes),
    }
    longest = max(map(len, kinds.values()))
    kinds["mixed"] = [texts[i] for i in range(longest) for texts in list(kinds.values()) if i < len(texts) // 3]
    return kinds


def given_texts(folder: Path) -> dict[str, list[str]]:
    """FOLDER/KIND.jsonl: lines that are texts or objects with a "text"."""
    kinds = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kinds[path.stem] = [line["text"] if isinstance(line, dict) else line for line in lines]
    return kinds


def measure(program: Path, folder: Path, tokenizer: Tokenizer, texts: list[str],
            rounds: int) -> tuple[float, float]:
    """Best processor seconds of PyPI and of Moiety."""

    def one_by_one() -> int:
        return sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)

    def batch() -> int:
        return sum(map(len, tokenizer.encode_batch_fast(texts, add_special_tokens=False)))

    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(json.dumps(text) + "\n" for text in texts)
        file.flush()
        with subprocess.Popen([program, folder, file.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True) as ours:
            theirs_best = ours_best = float("inf")
            for _ in range(rounds):
                for encode in (one_by_one, batch):
                    start = time.process_time()
                    expected = encode()
                    theirs_best = min(theirs_best, time.process_time() - start)
                ours.stdin.write("\n" * 2)
                ours.stdin.flush()
                for _ in range(2):
                    seconds, tokens = ours.stdout.readline().split()
                    if int(tokens) != expected:
                        raise SystemExit(f"{folder}: {tokens} tokens, but PyPI tokenizers makes {expected}")
                    ours_best = min(ours_best, float(seconds))
            ours.stdin.close()
    return theirs_best, ours_best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "tests" / "tokenizer_speed")
    parser.add_argument("--texts", type=Path, help="folder of KIND.jsonl instead of texts of this repository")
    parser.add_argument("--kilobytes", type=int, default=1000, help="of each kind, where texts are made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=float, default=0.0, help="smallest ratio that passes")
    arguments = parser.parse_args()
    try:
        folders = {name: real_tokenizers.ensure(name) for name in real_tokenizers.PACKAGES}
        kinds = given_texts(arguments.texts) if arguments.texts else made_texts(arguments.kilobytes * 1000)
    except real_tokenizers.Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    slow = 0
    print(f"{'tokenizer':12} {'text':12} {'PyPI MB/s':>10} {'Moiety MB/s':>12} {'ratio':>6}")
    for name, folder in {"bundled": BUNDLED, **folders}.items():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for kind, texts in kinds.items():
            size = sum(len(text.encode()) for text in texts) / 1e6
            theirs, ours = measure(arguments.program, folder, tokenizer, texts, arguments.rounds)
            slow += theirs / ours < arguments.least
            print(f"{name:12} {kind:12} {size / theirs:10.2f} {size / ours:12.2f} {theirs / ours:6.2f}", flush=True)
    if slow:
        print(f"{slow} ratios are below {arguments.least}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
