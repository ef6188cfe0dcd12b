"""Compares Moiety's tokenizer with PyPI `tokenizers`, token for token; exits 1 where they differ.

  --bundled    on the bundled tokenizer.json, and on variants of it that use the other parts
  --fallback   on tokenizers over characters with byte fallback, made here
  --characters on variants of the bundled file that tell every character from every other
  --real       on the tokenizers of four published models (real_tokenizers.py)

Needs `tokenizers` in the Python that runs this, and the built program tokenizer_check.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import real_tokenizers
import tokenizer_characters
import tokenizer_fallback
import tokenizer_variants
from tokenizer_oracle import write_cases

BUNDLED = Path(__file__).resolve().parents[2] / "models" / "moiety-tiny-emo" / "tokenizer.json"


class Comparison:
    def __init__(self, program: Path, seed: int):
        self.program = program
        self.seed = seed
        self.failures = 0

    def run(self, name: str, content: str, whole: bool, share: slice | None) -> None:
        """`whole`: over at least 2,000 texts; `share`: over these texts of all characters; else over 700 texts."""
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "tokenizer.json").write_text(content, encoding="utf-8")
            cases = Path(folder) / "cases.jsonl"
            count = write_cases(Path(folder), cases, self.seed, 3 if whole else 1, share)
            print(f"{name}: ", end="", flush=True)
            done = subprocess.run([self.program, folder, cases], check=False)
        least = 2000 if whole else 200 if share else 700
        if done.returncode != 0 or count < least:
            print(f"{name}: FAILED with {count} texts (at least {least} are needed)", file=sys.stderr)
            self.failures += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, required=True, help="the program tokenizer_check")
    parser.add_argument("--seed", type=int, default=20)
    for kind in ("bundled", "fallback", "characters", "real"):
        parser.add_argument(f"--{kind}", action="store_true")
    parser.add_argument("--shares", type=int, default=1, metavar="N",
                        help="with --characters: each variant meets one Nth of them, the next variant the next")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    arguments = parser.parse_args()
    comparison = Comparison(arguments.check, arguments.seed)
    files = []
    bundled = BUNDLED.read_text(encoding="utf-8")
    if arguments.bundled:
        files += tokenizer_variants.variants(bundled)
    if arguments.fallback:
        files += tokenizer_fallback.variants()
    characters = list(tokenizer_characters.variants(bundled)) if arguments.characters else []
    files += characters
    try:
        for name in real_tokenizers.PACKAGES if arguments.real else ():
            path = real_tokenizers.ensure(name) / "tokenizer.json"
            files.append((name, path.read_text(encoding="utf-8")))
    except real_tokenizers.Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    if not files:
        parser.error("nothing to compare: give --bundled, --fallback, --characters or --real")
    for number, (name, content) in enumerate(files):
        if arguments.only in name:
            whole = name in ("as it is", "Mixtral") or name in real_tokenizers.PACKAGES
            share = slice(number % arguments.shares, None, arguments.shares) if (name, content) in characters else None
            comparison.run(name, content, whole, share)
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    sys.exit(main())
