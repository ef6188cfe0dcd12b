#!/usr/bin/env python3
"""Workers and routers that somebody else starts: by hand over ucx, and as one world by mpirun.

usage: static_fleet_test.py BIN_DIR [ucx|mpi]...
Two routers and three workers without ids of their own answer as embedded mode does, bit for bit; a worker and then a
router are killed, the coordinator is killed for good, and answers go on. A checkpoint file that goes away fails a load, and nothing else.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from moiety_cluster import MODEL, ROUTED, Server, call, wait_until, write_subset

TOKEN = "a secret of this test"
PROMPTS = ["def add(a, b):", "The quick brown fox", "import os\n"]


def complete(url, prompt, model="moiety-tiny-emo"):
    """The text of a completion; None where nobody answers."""
    try:
        status, body = call("POST", url + "/v1/completions",
                            {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0}, timeout=30)
    except OSError:
        return None
    return body["choices"][0]["text"] if status == 200 else None


class Fleet:
    def __init__(self, bin_dir, fabric, folder, model=MODEL, coordinator=("--capacity", ROUTED // 3, "--move-headroom", 0.6), routers=2,
                 workers=3):
        self.bin, self.folder, self.processes = Path(bin_dir), Path(folder), []
        self.environment = dict(os.environ, MOIETY_TOKEN=TOKEN, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        self.coordinator = self.start("coordinator", self.bin / "moiety-coordinator", "--model", model, "--served-model-name",
                                      "moiety-tiny-emo", "--fleet", "static", "--fabric", fabric, "--workers", workers, "--admin-port", 0,
                                      *coordinator)
        control, self.admin = self.find("coordinator", r"control channel on (\S+), admin API on (\S+)")[0]
        common = ["--fabric", fabric, "--coordinator", control, "--model", model, "--threads", 1]
        router = [self.bin / "moiety-router", *common, "--port", 0, "--combine", "per_expert", "--served-model-name", "moiety-tiny-emo"]
        worker = [self.bin / "moiety-worker", *common]
        if fabric == "mpi":
            self.start("world", "mpirun", "--enable-recovery", "--oversubscribe", "--bind-to", "none", "-n", routers, *router, ":",
                       "-n", workers, *worker)
            logs = ["world"]
        else:
            for i in range(routers):
                self.start(f"router{i}", *router)
            for i in range(workers):
                self.start(f"worker{i}", *worker)
            logs = [f"router{i}" for i in range(routers)]
        self.urls = [url for log in logs for url in self.find(log, r"serving moiety-tiny-emo at (\S+)", routers // len(logs))]
        self.router_pids = {int(i): int(pid) for i, pid in self.find("coordinator", r"router (\d) connected \(pid (\d+)\)", routers)}

    def start(self, name, *words):
        with open(self.folder / f"{name}.log", "w") as log:
            process = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       env=self.environment)
        self.processes.append(process)
        return process

    def find(self, name, pattern, count=1):
        """What the log says `count` times, once it does."""
        log = self.folder / f"{name}.log"
        wait_until(lambda: len(re.findall(pattern, log.read_text())) >= count, f"{name}: {pattern}\n{self.logs()}")
        return re.findall(pattern, log.read_text())

    def ask(self, method, path, body=None):
        """The admin API's answer."""
        request = urllib.request.Request(self.admin + path, data=None if body is None else json.dumps(body).encode(), method=method,
                                         headers={"Authorization": "Bearer " + TOKEN, "Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())

    def workers(self):
        """Pids of those that serve, by id."""
        status = self.ask("GET", "/v1/status")
        return {w["id"]: w["pid"] for w in status["workers"] if w["state"] == "serving"}

    def logs(self):
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)


def check(bin_dir, fabric, expected):
    with tempfile.TemporaryDirectory(prefix="moiety-static-") as folder:
        fleet = Fleet(bin_dir, fabric, folder)
        try:
            wait_until(lambda: sorted(fleet.workers()) == [0, 1, 2], "three workers got ids and serve")
            first, second = fleet.urls
            wait_until(lambda: None not in (complete(first, PROMPTS[0]), complete(second, PROMPTS[0])), "both routers answer")
            for url in (first, second):
                assert [complete(url, prompt) for prompt in PROMPTS] == expected, f"{url}: not the answers of embedded mode"

            os.kill(fleet.workers()[1], signal.SIGKILL)
            for url in (first, second):
                assert [complete(url, prompt) for prompt in PROMPTS] == expected, "answers after a worker was killed"

            victim = fleet.urls.index(first)  # either: pids and URLs are in no common order
            os.kill(fleet.router_pids[victim], signal.SIGKILL)
            wait_until(lambda: (complete(first, PROMPTS[0]) is None) != (complete(second, PROMPTS[0]) is None), "one router is left")
            left = first if complete(first, PROMPTS[0]) is not None else second
            assert [complete(left, prompt) for prompt in PROMPTS] == expected, "answers after a router was killed"

            fleet.coordinator.kill()
            fleet.coordinator.wait(timeout=10)
            assert [complete(left, prompt) for prompt in PROMPTS] == expected, "answers without a coordinator"
            print(f"{fabric}: fine")
        except BaseException:
            print(fleet.logs())
            raise
        finally:
            fleet.stop()


def check_load_errors(bin_dir):
    """A checkpoint whose file goes away, or changes, while a deployment needs more of it."""
    with tempfile.TemporaryDirectory(prefix="moiety-static-") as folder:
        model = Path(folder) / "model"
        shutil.copytree(MODEL, model)
        weights = next(model.glob("*.safetensors"))
        subset = Path(folder) / "subset.json"
        write_subset(bin_dir, subset, seed=3)
        fleet = Fleet(bin_dir, "ucx", folder, model, ("--no-full", "--deploy", f"small={subset}"), routers=1, workers=2)

        def deploy(name):
            """Serves the full model; what went wrong, or an empty text."""
            try:
                fleet.ask("POST", "/v1/deployments", {"name": name, "full": True})
                return ""
            except urllib.error.HTTPError as error:
                return error.read().decode()

        try:
            url = fleet.urls[0]
            expected = wait_until(lambda: complete(url, PROMPTS[0], "moiety-tiny-emo:small"), "the subset is served")
            before = fleet.workers()
            weights.rename(model / "aside")
            refusal = deploy("everything")
            assert weights.name in refusal and "is gone" in refusal, refusal
            assert complete(url, PROMPTS[0], "moiety-tiny-emo:small") == expected, "answers after a load failed"
            (model / "aside").rename(weights)
            assert deploy("all") == ""
            assert complete(url, PROMPTS[0], "moiety-tiny-emo:all") is not None
            assert fleet.workers().items() >= before.items(), "no worker ended over it"
            print("load errors: fine")
        except BaseException:
            print(fleet.logs())
            raise
        finally:
            fleet.stop()


def main():
    check_load_errors(sys.argv[1])
    with Server(sys.argv[1], "--threads", "1") as embedded:
        expected = [complete(embedded.url, prompt) for prompt in PROMPTS]
    assert None not in expected and len(set(expected)) > 1, expected
    for fabric in sys.argv[2:] or ["ucx", "mpi"]:
        check(sys.argv[1], fabric, expected)


if __name__ == "__main__":
    main()
