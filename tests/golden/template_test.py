"""Compares Moiety's chat templates with PyPI jinja2, set up as Hugging Face transformers does; exits 1 where they
differ. Both must give the same bytes, or both must fail.

--snippets  small templates for each part of the language, then random ones from --seed
--real      templates of published models, loaded from their folders, over many conversations

Needs `jinja2` in the Python that runs this, and the built program template_check.
"""

import argparse
import json
import subprocess
import sys
import warnings

from real_tokenizers import Unavailable, ensure
from template_conversations import renderings
from template_oracle import Oracle, special_tokens
from template_random import random_templates
from template_snippets import CONTEXT, snippets

REAL = ("qwen3", "deepseek_v3", "llama3")
WITHOUT_TEMPLATE = "gptoss"
# What the engine refuses by name may work in Jinja; only random templates may come across it.
REFUSAL = "is not supported in chat templates here"
ADDRESS = " object at 0x"


class Comparison:
    def __init__(self, check: str):
        self.check = check
        self.oracle = Oracle()
        self.differences = 0

    def answers(self, requests: list[dict]) -> list[dict]:
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        done = subprocess.run([self.check], input=lines, stdout=subprocess.PIPE, check=True, text=True, encoding="utf-8")
        found = [json.loads(line) for line in done.stdout.split("\n") if line]
        if len(found) != len(requests):
            raise RuntimeError(f"{self.check} gave {len(found)} answers to {len(requests)} requests")
        return found

    def report(self, what: str, expected: dict, actual: dict) -> None:
        self.differences += 1
        if self.differences <= 20:
            print(f"{what[:500]}\n  expected {str(expected)[:600]}\n  actual   {str(actual)[:600]}", file=sys.stderr)

    def compare(self, what: str, expected: dict, actual: dict) -> bool:
        """True if both gave text."""
        texts = ("text" in expected) + ("text" in actual)
        if texts and expected != actual:
            self.report(what, expected, actual)
        return texts == 2

    def templates(self, sources: list[str], may_refuse: bool) -> tuple[int, int]:
        """(templates that gave text, templates left out)."""
        context = json.dumps(CONTEXT)
        texts = left_out = 0
        answers = self.answers([{"template": source, "variables": CONTEXT} for source in sources])
        for source, actual in zip(sources, answers):
            expected = self.oracle.render(source, json.loads(context))  # Jinja's indent may change its input
            if may_refuse and (REFUSAL in str(actual) or ADDRESS in str(expected)):
                left_out += 1
                continue
            texts += self.compare(repr(source), expected, actual)
        return texts, left_out

    def real(self, name: str) -> int:
        folder = ensure(name)
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        requests = [{"folder": str(folder), "variables": variables} for variables in renderings()]
        texts = 0
        for request, actual in zip(requests, self.answers(requests)):
            variables = {**special_tokens(config), **request["variables"]}
            expected = self.oracle.render(config["chat_template"], variables)
            texts += self.compare(f"{name}: {json.dumps(request['variables'], ensure_ascii=False)}", expected, actual)
        return texts


def check_snippets(comparison: Comparison, seed: int, count: int) -> None:
    written = snippets()
    texts, _ = comparison.templates(written, may_refuse=False)
    print(f"{len(written)} templates written by hand, {texts} of them give text")
    if len(written) < 1200 or texts < 900:
        raise RuntimeError("the list of templates was not read as meant")
    texts, left_out = comparison.templates(random_templates(seed, count), may_refuse=True)
    print(f"{count} random templates (seed {seed}), {texts} give text, {left_out} use what is refused")
    if texts < count // 5 or left_out > count // 20:
        raise RuntimeError("the random templates compare too little")


def check_real(comparison: Comparison) -> None:
    for name in REAL:
        texts = comparison.real(name)
        print(f"{name}: {texts} conversations give text")
        if texts < 200:
            raise RuntimeError(f"too few conversations for the template of {name}")
    answer = comparison.answers([{"folder": str(ensure(WITHOUT_TEMPLATE)), "variables": {}}])[0]
    if answer != {"parse_error": "no chat template"}:
        comparison.report(f"{WITHOUT_TEMPLATE}, which has no template", {}, answer)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", required=True, help="the program template_check")
    parser.add_argument("--snippets", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1200, help="random templates")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # Python warns of what odd templates compile to
    comparison = Comparison(arguments.check)
    try:
        if arguments.snippets:
            check_snippets(comparison, arguments.seed, arguments.count)
        if arguments.real:
            check_real(comparison)
    except (Unavailable, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{comparison.differences} differences")
    return 1 if comparison.differences or not (arguments.snippets or arguments.real) else 0


if __name__ == "__main__":
    sys.exit(main())
