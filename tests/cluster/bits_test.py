#!/usr/bin/env python3
"""Real processes give the numbers of embedded mode, over each fabric, with 1 to 7 workers.

usage: bits_test.py BIN_DIR [ucx|mpi]...

With --combine per_expert they are the same bits, log-probability by log-probability, under eight streams of four deployments:
one or two routers, replicas, every placement, layers of uneven size, while a deployment comes and goes, and while experts move.
With --combine per_worker they are within the bound that docs/numerics-and-speed.md states.
"""
import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
from array import array
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from chaos import NAME, Chaos, Up  # noqa: E402
from chaos_load import Load, expected_answers, request_body  # noqa: E402
from moiety_cluster import MODEL, ROOT, Server, call, wait_until, write_subset  # noqa: E402

RAGGED = ROOT / "tests/golden/fixtures/emo-ragged"  # 6, 4 and 9 routed experts in its layers
ANSWERS = 8
FLEETS = {
    "ucx": [["--workers", "1"], ["--workers", "2", "--placement", "round_robin"], ["--workers", "3", "--routers", "2"],
            ["--workers", "4", "--placement", "eplb_hierarchical"], ["--workers", "7", "--placement", "eplb"],
            ["--workers", "4", "--replicas", "2", "--capacity", "40"], ["--workers", "2", "--router-expert-bytes", "8m"],
            ["--workers", "4", "--capacity", "24", "--placement", "id"]],
    "mpi": [["--workers", "1"], ["--workers", "2", "--placement", "round_robin"], ["--workers", "3", "--routers", "2"],
            ["--workers", "4", "--replicas", "2", "--capacity", "40", "--placement", "id"], ["--workers", "7", "--placement", "eplb"],
            ["--workers", "2", "--routers", "2", "--router-expert-bytes", "8m"],
            ["--workers", "4", "--capacity", "24", "--placement", "eplb_hierarchical"]],
}
PER_WORKER_FLEETS = [["--workers", "1"], ["--workers", "2", "--placement", "round_robin"], ["--workers", "3", "--routers", "2"],
                     ["--workers", "4", "--replicas", "2", "--capacity", "40"], ["--workers", "7", "--placement", "id"]]
PER_WORKER_WORST = 0.02  # of the logits' standard deviation


def owners(up):
    """(layer, expert) -> workers, of the published epoch."""
    code, placement = call("GET", up.admin + "/v1/placement")
    assert code == 200, placement
    return {(layer, expert): each for layer, experts in enumerate(placement["layers"]) for expert, each in enumerate(experts)}


def all_compute(up, num_workers):
    """Whether heartbeats of all workers say that they computed something."""
    return sum(w["rows_processed"] > 0 for w in up.status()["workers"]) == num_workers


def end(load, what):
    wait_until(lambda: load.finished >= ANSWERS or load.failed or load.wrong, "all answers", timeout=60)
    stuck = load.stop()
    print(f"{what}: {load.finished} answers, failed {load.failed[:3]}, wrong {load.wrong[:3]}, stuck {stuck}", flush=True)
    assert not load.failed and not load.wrong and not stuck


def check(chaos, fabric, flags, extra):
    with Up(chaos.args.bin_dir, chaos.work, "--fabric", fabric, *flags, *chaos.deploys) as up:
        load = chaos.load(up.addresses)
        wait_until(lambda: load.finished >= ANSWERS // 2 or load.failed or load.wrong, "half of the answers", timeout=60)
        up.command("deploy", "extra", "--subset", str(extra))  # experts move while tokens flow
        up.command("undeploy", "extra")
        wait_until(lambda: all_compute(up, int(flags[1])), "all workers compute", timeout=30)
        if "--capacity" in flags and "--replicas" not in flags:  # there is room without one worker
            before = owners(up)
            up.command("drain", "0")
            assert all(0 not in each for each in owners(up).values()), "worker 0 still holds experts"
            moved = sum(before[expert] != each for expert, each in owners(up).items())
            assert moved > 0, "nothing moved"
            up.command("drain", "0", "--undo")
        end(load, f"{fabric} {' '.join(flags)}")


class Ragged:
    """A checkpoint whose layers have uneven numbers of experts, with a tokenizer, and what one process answers for it."""

    def __init__(self, chaos):
        self.chaos, self.folder = chaos, chaos.work / "emo-ragged"
        shutil.copytree(RAGGED, self.folder)
        shutil.copy(MODEL / "tokenizer.json", self.folder)  # prompts are ids: only to spell the answers
        self.bodies = []
        for seed in range(12):
            body = request_body(self.folder.name, chaos.rng, 20 + 5 * seed)
            self.bodies.append(dict(body, prompt=[3 + token % 380 for token in body["prompt"]]))
        with Server(chaos.args.bin_dir, model=self.folder) as server:
            self.expected = expected_answers(("127.0.0.1", server.port), self.bodies)

    def check(self, fabric):
        flags = ["--workers", "3", "--routers", "2", "--capacity", "5", "--placement", "round_robin"]
        with Up(self.chaos.args.bin_dir, self.chaos.work, "--fabric", fabric, *flags, model=self.folder) as up:
            sizes = [len(layer) for layer in call("GET", up.admin + "/v1/placement")[1]["layers"]]
            assert len(set(sizes)) == 3, f"layers are even: {sizes}"
            load = Load(up.addresses, self.bodies, self.expected, self.chaos.args.streams)
            wait_until(lambda: all_compute(up, 3), "all workers compute", timeout=30)
            up.command("drain", "1")
            up.command("drain", "1", "--undo")
            end(load, f"{fabric} {' '.join(flags)}, uneven layers")


class Bound:
    """Log-probabilities of what is likely after random prompts, against those of one process, as far as both go the same way."""

    def __init__(self, chaos):
        self.chaos = chaos
        subsets = {NAME: None, **{f"{NAME}:{name}": file for name, file in chaos.subsets.items()}}
        self.prompts = [[0] + [chaos.rng.randrange(2, 8000) for _ in range(31)] for _ in range(8)]
        self.questions = [(model, prompt) for model in subsets for prompt in self.prompts]
        self.spread = {model: self.spread_of(subset) for model, subset in subsets.items()}
        with Server(chaos.args.bin_dir, *chaos.deploys) as server:
            self.expected = self.ask(("127.0.0.1", server.port))

    def spread_of(self, subset):
        """Standard deviation of all logits after the prompts."""
        ids, logits = self.chaos.work / "ids.safetensors", self.chaos.work / "logits.safetensors"
        values = array("q", [token for prompt in self.prompts for token in prompt]).tobytes()
        header = json.dumps({"input_ids": {"dtype": "I64", "shape": [len(self.prompts), len(self.prompts[0])],
                                           "data_offsets": [0, len(values)]}}).encode()
        ids.write_bytes(len(header).to_bytes(8, "little") + header + values)
        subprocess.run([self.chaos.args.bin_dir / "moiety", "logits", "-m", MODEL, "--input", ids, "--output", logits, "--json",
                        *(["--subset", subset] if subset else [])], check=True, capture_output=True, timeout=60)
        raw = logits.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        begin, stop = json.loads(raw[8:8 + size])["logits"]["data_offsets"]
        numbers = array("f", raw[8 + size + begin:8 + size + stop])
        mean = sum(numbers) / len(numbers)
        return math.sqrt(sum((number - mean) ** 2 for number in numbers) / len(numbers))

    def ask(self, address):
        """Per question and step the most likely tokens with their log-probabilities. Eight at a time, so that batches mix deployments."""
        answers = [None] * len(self.questions)

        def work(first):
            for number in range(first, len(self.questions), 8):
                model, prompt = self.questions[number]
                status, answer = call("POST", "http://{}:{}/v1/completions".format(*address), {
                    "model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True, "logprobs": 5})
                if status == 200:
                    answers[number] = answer["choices"][0]["logprobs"]["top_logprobs"]

        threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert None not in answers, "a question has no answer"
        return answers

    def difference(self, mine, theirs):
        """The largest of any log-probability, up to the first step at which another token is the likeliest (a near tie)."""
        worst = 0.0
        for here, there in zip(mine, theirs):
            common = here.keys() & there.keys()
            assert len(common) >= 4, f"{here} instead of {there}"  # the fifth may be a near tie
            worst = max(worst, *(abs(here[token] - there[token]) for token in common))
            if max(here, key=here.get) != max(there, key=there.get):
                break
        return worst

    def check(self, fabric, flags):
        """The worst difference in the logits' standard deviations."""
        with Up(self.chaos.args.bin_dir, self.chaos.work, "--fabric", fabric, *flags, *self.chaos.deploys, combine="per_worker") as up:
            answers = [self.ask(address) for address in up.addresses]
            wait_until(lambda: all_compute(up, int(flags[1])), "all workers compute", timeout=30)
        worst = max(self.difference(mine, theirs) / self.spread[model]
                    for each in answers for (model, _), mine, theirs in zip(self.questions, each, self.expected))
        print(f"{fabric} {' '.join(flags)}, per_worker: worst log-probability off by {worst:.2g} of the logits' spread", flush=True)
        # A log-probability is a logit less the logarithm of a sum over all: each may be off by the bound.
        assert worst <= 2 * PER_WORKER_WORST
        assert worst == 0 or flags[1] != "1", "one worker adds in slot order"
        return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bin_dir", type=Path)
    parser.add_argument("fabrics", nargs="*")
    args = parser.parse_args()
    args.seed, args.streams, args.fabric, args.short = 11, 8, None, False
    with tempfile.TemporaryDirectory(prefix="moiety-bits-") as folder:
        chaos = Chaos(args, Path(folder))
        extra = Path(folder) / "extra.json"
        write_subset(args.bin_dir, extra, seed=200)
        chaos.prepare(least_tokens=30, most_tokens=100)
        assert {body["model"] for body in chaos.bodies} == {NAME, *(f"{NAME}:{name}" for name in ("red", "green", "blue"))}
        ragged, bound = Ragged(chaos), Bound(chaos)
        for fabric in args.fabrics or FLEETS:
            for flags in FLEETS[fabric]:
                check(chaos, fabric, flags, extra)
            ragged.check(fabric)
            worst = max(bound.check(fabric, flags) for flags in PER_WORKER_FLEETS)
            assert worst > 0, "nothing was added in another order: this is not per_worker"


if __name__ == "__main__":
    main()
