#!/usr/bin/env python3
"""Workers and routers that somebody else starts: by hand over ucx, and as one world by mpirun.

usage: static_fleet_test.py BIN_DIR [ucx|mpi]...
Two routers and three workers without ids of their own answer as embedded mode does, bit for bit; a worker and then a
router are killed, the coordinator is killed for good, and answers go on.
"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from moiety_cluster import MODEL, ROUTED, Server, call, wait_until

TOKEN = "a secret of this test"
PROMPTS = ["def add(a, b):", "The quick brown fox", "import os\n"]


def complete(url, prompt):
    """The text of a completion; None where nobody answers."""
    try:
        status, body = call("POST", url + "/v1/completions",
                            {"model": "moiety-tiny-emo", "prompt": prompt, "max_tokens": 16, "temperature": 0}, timeout=30)
    except OSError:
        return None
    return body["choices"][0]["text"] if status == 200 else None


class Fleet:
    def __init__(self, bin_dir, fabric, folder):
        self.bin, self.folder, self.processes = Path(bin_dir), Path(folder), []
        self.environment = dict(os.environ, MOIETY_TOKEN=TOKEN, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        self.coordinator = self.start("coordinator", self.bin / "moiety-coordinator", "--model", MODEL, "--fleet", "static", "--fabric",
                                      fabric, "--workers", 3, "--capacity", ROUTED // 3, "--move-headroom", 0.6, "--admin-port", 0)
        control, self.admin = self.find("coordinator", r"control channel on (\S+), admin API on (\S+)")[0]
        common = ["--fabric", fabric, "--coordinator", control, "--model", MODEL, "--threads", 1]
        router = [self.bin / "moiety-router", *common, "--port", 0, "--combine", "per_expert"]
        worker = [self.bin / "moiety-worker", *common]
        if fabric == "mpi":
            self.start("world", "mpirun", "--enable-recovery", "--oversubscribe", "--bind-to", "none", "-n", 2, *router, ":", "-n", 3, *worker)
            logs = ["world"]
        else:
            for i in range(2):
                self.start(f"router{i}", *router)
            for i in range(3):
                self.start(f"worker{i}", *worker)
            logs = ["router0", "router1"]
        self.urls = [url for log in logs for url in self.find(log, r"serving moiety-tiny-emo at (\S+)", 2 // len(logs))]
        self.router_pids = {int(i): int(pid) for i, pid in self.find("coordinator", r"router (\d) connected \(pid (\d+)\)", 2)}

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

    def workers(self):
        """Pids of those that serve, by id."""
        request = urllib.request.Request(self.admin + "/v1/status", headers={"Authorization": "Bearer " + TOKEN})
        with urllib.request.urlopen(request, timeout=10) as response:
            status = json.loads(response.read())
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


def main():
    with Server(sys.argv[1], "--threads", "1") as embedded:
        expected = [complete(embedded.url, prompt) for prompt in PROMPTS]
    assert None not in expected and len(set(expected)) > 1, expected
    for fabric in sys.argv[2:] or ["ucx", "mpi"]:
        check(sys.argv[1], fabric, expected)


if __name__ == "__main__":
    main()
