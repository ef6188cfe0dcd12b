#!/usr/bin/env python3
"""The main job on the bundled checkpoint: one pool of experts, two domains, workers left out.

usage: demo.py BIN_DIR [--work-dir DIR]

Runs the programs of BIN_DIR (build/bin) on ports that the system picks, shows each command, and ends what it started.
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = ("python", "german")
PROMPTS = {
    "python": "<|endoftext|>import os\n\n\ndef read_file(path):\n    \"\"\"Return the",
    "german": "<|endoftext|>Das Programm gibt eine Meldung aus, wenn die Datei",
}
MAX_TOKENS = 24
LONG_ANSWER = 400  # tokens, so that there is time to kill a worker


def say(text=""):
    print(text, flush=True)


def title(text):
    say(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}")


def run(command, **kwargs):
    """Runs a command, shown as one would type it."""
    shown = [Path(command[0]).name] + [str(c) for c in command[1:]]
    say("$ " + " ".join(shown))
    done = subprocess.run([str(c) for c in command], text=True, stdout=subprocess.PIPE, timeout=300, **kwargs)
    if done.returncode != 0:
        sys.exit(f"demo: {shown[0]} {shown[1]} failed with status {done.returncode}")
    return done.stdout


def fetch(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


class Demo:
    def __init__(self, bin_dir, work):
        self.moiety = bin_dir / "moiety"
        self.work = work
        self.api = self.admin = None

    def status(self):
        return json.loads(subprocess.run([self.moiety, "status", "--admin", self.admin, "--json"], check=True, text=True,
                                         stdout=subprocess.PIPE, timeout=60).stdout)

    def ask(self, model, domain):
        prompt = PROMPTS[domain]
        answer = fetch(f"{self.api}/v1/completions",
                       {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0})
        text = answer["choices"][0]["text"]
        mass = answer["moiety"]["masked_mass"]
        say(f"  {model}, masked mass {mass:.3f}")
        say("    " + (prompt.removeprefix("<|endoftext|>") + "\033[7m" * sys.stdout.isatty() + text
                      + "\033[0m" * sys.stdout.isatty()).replace("\n", "\n    "))
        return mass

    def fleet(self, when):
        status = self.status()
        fleet = status["fleet"]
        say(f"  {when}: {fleet['workers_running']} of {status['max_workers']} workers, "
            f"{fleet['experts_resident']} of {fleet['routed_experts']} routed experts, "
            f"{fleet['bytes_resident'] / 2**20:.1f} MiB of expert weights resident")
        for worker in status["workers"]:
            say(f"    worker {worker['id']}: {worker['experts_resident']} experts, "
                f"{worker['bytes_resident'] / 2**20:.1f} MiB")
        return status

    def kill_a_worker(self, name):
        """Kills a worker while it works for a streamed answer."""
        body = {"model": name, "prompt": PROMPTS["python"], "max_tokens": LONG_ANSWER, "temperature": 0, "ignore_eos": True}
        undisturbed = fetch(f"{self.api}/v1/completions", body)["choices"][0]["text"]
        victim = next(w for w in self.status()["workers"] if w["state"] == "serving")
        request = urllib.request.Request(f"{self.api}/v1/completions", data=json.dumps(dict(body, stream=True)).encode(),
                                         headers={"Content-Type": "application/json"})
        text, frames, pause, last = "", 0, 0.0, None
        with urllib.request.urlopen(request, timeout=60) as response:
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                frame = json.loads(line[6:])
                if "error" in frame:
                    sys.exit(f"demo: the answer ended with {frame['error']}")
                text += "".join(choice["text"] for choice in frame["choices"])
                now = time.monotonic()
                pause, last = max(pause, now - (last or now)), now
                frames += 1
                if frames == LONG_ANSWER // 4:
                    say(f"  token {frames}: SIGKILL to worker {victim['id']} (pid {victim['pid']})")
                    os.kill(victim["pid"], signal.SIGKILL)
        if text != undisturbed:
            sys.exit("demo: the answer is not the one without the kill")
        say(f"  all {LONG_ANSWER} tokens came, the same as without the kill; the longest pause was {1e3 * pause:.0f} ms")

    def main(self, model_dir):
        text, profile = self.work / "text", self.work / "emo.profile"
        title("1. Domain text from this machine")
        run([ROOT / "training/domains", "-o", text, "--domains", ",".join(DOMAINS)])

        title("2. Which experts does each domain use?")
        domains = [x for d in DOMAINS for x in ("--domain", f"{d}={text / d}.calib.jsonl")]
        say(run([self.moiety, "profile", "-m", model_dir, *domains, "-o", profile]).rstrip())
        for domain in DOMAINS:
            say(run([self.moiety, "select", "--profile", profile, "--domains", domain, "--keep", "16",
                     "-o", self.work / f"{domain}.json"]).rstrip())

        title("3. What does keeping 16 of 64 experts per layer cost?")
        losses = {}
        for domain in DOMAINS:
            scores = json.loads(run([self.moiety, "eval", "-m", model_dir, "--text", text / f"{domain}.eval.jsonl",
                                     "--subset", self.work / f"{domain}.json", "--limit", "8", "--json"]))["total"]
            losses[domain] = scores
            say(f"  {domain}: loss {scores['loss_full']:.3f} full, {scores['loss_subset']:.3f} subset "
                f"({100 * scores['loss_change']:+.1f} %), same first choice {100 * scores['top1_agreement']:.0f} %")

        title("4. A cluster of 4 workers with the full model")
        up = json.loads(run([self.moiety, "up", "-m", model_dir, "--workers", "4", "--port", "0", "--admin-port", "0",
                             "--combine", "per_expert", "--run-dir", self.work / "run", "--fresh", "-d", "--json"]))
        self.api, self.admin = up["api"], up["admin"]
        name = fetch(f"{self.api}/v1/models")["data"][0]["id"]
        for domain in DOMAINS:
            self.ask(name, domain)
        before = self.fleet("before")

        title("5. A worker dies in mid-answer, and the answer goes on")
        self.kill_a_worker(name)

        title("6. Two domains from the same pool of experts")
        for domain in DOMAINS:
            say(run([self.moiety, "deploy", domain, "--subset", self.work / f"{domain}.json",
                     "--admin", self.admin]).rstrip())
        masses = {domain: self.ask(f"{name}:{domain}", domain) for domain in DOMAINS}

        title("7. Without the full model, the workers that nobody needs are let go")
        say(run([self.moiety, "undeploy", name, "--admin", self.admin]).rstrip())
        for domain in DOMAINS:
            self.ask(f"{name}:{domain}", domain)
        after = self.fleet("after")
        say()
        say(run([self.moiety, "status", "--admin", self.admin]).rstrip())

        title("Summary")
        say(f"  {'':24}{'before':>12}{'after':>12}")
        for label, key, scale in (("workers", "workers_running", 1), ("routed experts", "experts_resident", 1),
                                  ("expert MiB resident", "bytes_resident", 2**20)):
            say(f"  {label:24}{before['fleet'][key] / scale:12.4g}{after['fleet'][key] / scale:12.4g}")
        for domain in DOMAINS:
            say(f"  {domain + ':':10} loss {100 * losses[domain]['loss_change']:+.1f} % against the full model, "
                f"masked mass {masses[domain]:.3f}")

    def end(self):
        if self.admin:
            say()
            say(run([self.moiety, "down", "--admin", self.admin]).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bin_dir", type=Path, help="folder with the moiety programs")
    parser.add_argument("--model", type=Path, default=ROOT / "models/moiety-tiny-emo")
    parser.add_argument("--work-dir", type=Path, help="keep text, profile, subsets and logs here")
    args = parser.parse_args()
    work = args.work_dir or Path(tempfile.mkdtemp(prefix="moiety-demo-"))
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    demo = Demo(args.bin_dir, work)
    try:
        demo.main(args.model)
    finally:
        demo.end()
        if not args.work_dir:
            shutil.rmtree(work, ignore_errors=True)
    say(f"\n{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
