"""Compares Moiety's tokenizer with PyPI `tokenizers` on one tokenizer.json and on variants of it; exits 1
where they differ.

Needs `tokenizers` in the Python that runs this, and the built program tokenizer_check.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizer_oracle import write_cases
from tokenizer_variants import variants

LEAST_TEXTS = 700


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--check", type=Path, required=True, help="the program tokenizer_check")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--no-variants", action="store_true", help="only the file as it is")
    arguments = parser.parse_args()
    text = (arguments.tokenizer / "tokenizer.json").read_text(encoding="utf-8")
    failures = 0
    for name, variant in variants(text):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "tokenizer.json").write_text(variant, encoding="utf-8")
            cases = Path(folder) / "cases.jsonl"
            count = write_cases(Path(folder), cases, arguments.seed)
            print(f"{name}: ", end="", flush=True)
            done = subprocess.run([arguments.check, folder, cases], check=False)
        if done.returncode != 0 or count < LEAST_TEXTS:
            print(f"{name}: FAILED with {count} texts (at least {LEAST_TEXTS} are needed)", file=sys.stderr)
            failures += 1
        if arguments.no_variants:
            break
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
