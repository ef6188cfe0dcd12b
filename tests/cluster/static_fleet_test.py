#!/usr/bin/env python3
"""Workers and routers that somebody else starts: by hand over ucx, and as one world by mpirun.

usage: static_fleet_test.py BIN_DIR [ucx|mpi]...
Two routers and three workers without ids of their own answer as embedded mode does, bit for bit; a worker and then a
router are killed, the coordinator is killed and later started again, and answers go on. A worker comes back under its id when its lease is
over; of two with one id the second is told so. A checkpoint file that goes away, or changes, before or during a load, fails that load,
and a full disk the changes of deployments; nothing else.
"""
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from moiety_cluster import LAYERS, MODEL, ROUTED, Server, call, wait_until, write_subset

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
                 workers=3, within=()):
        """`within`: words before the coordinator's own command line."""
        self.bin, self.folder, self.processes = Path(bin_dir), Path(folder), []
        self.environment = dict(os.environ, MOIETY_TOKEN=TOKEN, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        self.coordinator_words = [*within, self.bin / "moiety-coordinator", "--model", model, "--served-model-name", "moiety-tiny-emo",
                                  "--fleet", "static", "--fabric", fabric, "--workers", workers, "--admin-port", 0,
                                  "--run-dir", self.folder / "run", *coordinator]
        self.coordinator, self.starts = self.start("coordinator", *self.coordinator_words), 1
        control, self.admin = self.find("coordinator", r"control channel on (\S+), admin API on (\S+)")[0]
        self.common = common = ["--fabric", fabric, "--coordinator", control, "--model", model, "--threads", 1]
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

    def kill_coordinator(self):
        self.coordinator.kill()
        self.coordinator.wait(timeout=10)

    def start_coordinator_again(self):
        """With the command line of before: it goes on from its state file, on the same ports."""
        self.starts += 1
        name = f"coordinator{self.starts}"
        self.coordinator = self.start(name, *self.coordinator_words)
        self.find(name, re.escape(self.admin))

    def start_worker(self, name, *words):
        """One more worker, over ucx."""
        return self.start(name, self.bin / "moiety-worker", *self.common, *words)

    def ask(self, method, path, body=None):
        """The admin API's answer."""
        request = urllib.request.Request(self.admin + path, data=None if body is None else json.dumps(body).encode(), method=method,
                                         headers={"Authorization": "Bearer " + TOKEN, "Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())

    def status(self):
        return self.ask("GET", "/v1/status")

    def shown(self):
        """What `moiety status` prints."""
        return subprocess.run([self.bin / "moiety", "status", "--admin", self.admin], env=self.environment, text=True, capture_output=True,
                              check=True, timeout=30).stdout

    def workers(self):
        """Pids of those that serve, by id."""
        return {w["id"]: w["pid"] for w in self.status()["workers"] if w["state"] == "serving"}

    def deploy(self, name, **fields):
        """Serves the full model under one more name; what went wrong, or an empty text."""
        try:
            self.ask("POST", "/v1/deployments", dict({"name": name, "full": True}, **fields))
            return ""
        except urllib.error.HTTPError as error:
            return error.read().decode()

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

            before = fleet.status()
            pids = fleet.workers()
            fleet.kill_coordinator()
            assert [complete(first, prompt) for prompt in PROMPTS] == expected, "answers without a coordinator"
            fleet.start_coordinator_again()
            assert [complete(second, prompt) for prompt in PROMPTS] == expected, "answers while a coordinator starts"
            wait_until(lambda: fleet.workers() == pids, "the new coordinator knows the workers")
            after = fleet.status()
            assert after["epoch"] == before["epoch"] and after["counters"]["worker_losses"] == 0, after
            assert fleet.deploy("again") == "", "a deployment under the new coordinator"
            for url in (first, second):
                assert [complete(url, prompt, "moiety-tiny-emo:again") for prompt in PROMPTS] == expected, "the new deployment's answers"
            assert fleet.workers() == pids, "a worker ended over it"

            os.kill(pids[1], signal.SIGKILL)
            for url in (first, second):
                assert [complete(url, prompt) for prompt in PROMPTS] == expected, "answers after a worker was killed"

            victim = fleet.urls.index(first)  # either: pids and URLs are in no common order
            os.kill(fleet.router_pids[victim], signal.SIGKILL)
            wait_until(lambda: (complete(first, PROMPTS[0]) is None) != (complete(second, PROMPTS[0]) is None), "one router is left")
            left = first if complete(first, PROMPTS[0]) is not None else second
            assert [complete(left, prompt) for prompt in PROMPTS] == expected, "answers after a router was killed"

            # Once more, with losses to remember.
            wait_until(lambda: fleet.status()["experts_missing"] == 0, "the others hold what the killed worker held")
            before, pids = fleet.status(), fleet.workers()
            fleet.kill_coordinator()
            assert [complete(left, prompt) for prompt in PROMPTS] == expected, "answers without a coordinator"
            fleet.start_coordinator_again()
            wait_until(lambda: fleet.workers() == pids, "the new coordinator knows the workers that were left")
            after = fleet.status()
            assert after["epoch"] >= before["epoch"] and after["experts_missing"] == 0, after
            assert [complete(left, prompt) for prompt in PROMPTS] == expected, "answers under the third coordinator"
            print(f"{fabric}: fine")
        except BaseException:
            print(fleet.logs())
            raise
        finally:
            fleet.stop()


def check_ids(bin_dir, expected):
    """A worker with an id of its own whose end nobody saw, and two that were given the same one."""
    with tempfile.TemporaryDirectory(prefix="moiety-static-") as folder:
        fleet = Fleet(bin_dir, "ucx", folder, coordinator=("--lease-ttl-ms", 2000), routers=1, workers=1)
        stopped = fleet.processes[-1]  # as a host that vanished: its connection stays open
        try:
            url = fleet.urls[0]
            wait_until(lambda: fleet.workers().get(0) == stopped.pid and complete(url, PROMPTS[0]) == expected[0], "the worker serves")
            os.kill(stopped.pid, signal.SIGSTOP)
            again = fleet.start_worker("again", "--id", 0)
            fleet.find("again", r"worker 0 is already connected .* when that connection has ended or was silent for its lease of 2000 ms.*"
                                r"trying again")
            wait_until(lambda: fleet.workers().get(0) == again.pid, "the worker is let in when the lease of the former is over")
            assert [complete(url, prompt) for prompt in PROMPTS] == expected, "answers of the worker that came back"

            other = fleet.start_worker("other", "--id", 0)
            assert other.wait(timeout=30) == 1, "a second worker of the same id goes on"
            fleet.find("other", r"worker 0 is already connected, and its heartbeats come: two processes were given one id")
            # What was stopped finds that another one took its place, and hears the same.
            os.kill(stopped.pid, signal.SIGCONT)
            assert stopped.wait(timeout=30) == 1, "the former worker of the id goes on"
            assert fleet.workers() == {0: again.pid}
            assert [complete(url, prompt) for prompt in PROMPTS] == expected, "answers after the others ended"
            refused = fleet.start("refused", fleet.bin / "moiety-router", *fleet.common, "--port", 0, "--id", 4294967295)
            assert refused.wait(timeout=30) == 1
            fleet.find("refused", r"router id 4294967295 is above 2147483647: give this router a smaller --id, or none")

            assert fleet.status()["ready"] and "NOT READY" not in fleet.shown(), fleet.shown()
            os.kill(*fleet.router_pids.values(), signal.SIGKILL)
            wait_until(lambda: "NOT READY: no router is connected\n" in fleet.shown(), "the status says what is missing")
            assert not fleet.status()["ready"]
            print("ids: fine")
        except BaseException:
            print(fleet.logs())
            raise
        finally:
            if stopped.poll() is None:
                os.kill(stopped.pid, signal.SIGCONT)
            fleet.stop()


def copy_model(folder):
    """The bundled model where it may be damaged; its folder and its weights."""
    model = Path(folder) / "model"
    shutil.copytree(MODEL, model)
    model.chmod(0o755)
    weights = next(model.glob("*.safetensors"))
    weights.chmod(0o644)
    return model, weights


def check_load_errors(bin_dir):
    """A checkpoint whose file goes away while a deployment needs more of it."""
    with tempfile.TemporaryDirectory(prefix="moiety-static-") as folder:
        model, weights = copy_model(folder)
        subset = Path(folder) / "subset.json"
        write_subset(bin_dir, subset, seed=3)
        fleet = Fleet(bin_dir, "ucx", folder, model, ("--no-full", "--deploy", f"small={subset}"), routers=1, workers=2)
        try:
            url = fleet.urls[0]
            expected = wait_until(lambda: complete(url, PROMPTS[0], "moiety-tiny-emo:small"), "the subset is served")
            before = fleet.workers()
            weights.rename(model / "aside")
            refusal = fleet.deploy("everything")
            assert weights.name in refusal and "is gone" in refusal, refusal
            assert complete(url, PROMPTS[0], "moiety-tiny-emo:small") == expected, "answers after a load failed"
            (model / "aside").rename(weights)
            assert fleet.deploy("all") == ""
            assert complete(url, PROMPTS[0], "moiety-tiny-emo:all") is not None
            assert fleet.workers().items() >= before.items(), "no worker ended over it"
            print("load errors: fine")
        except BaseException:
            print(fleet.logs())
            raise
        finally:
            fleet.stop()


EXPERT_BYTES = 3 * 64 * 256 * 2


def bytes_read(pid):
    return int(re.search(r"rchar: (\d+)", Path(f"/proc/{pid}/io").read_text())[1])


def deploy_and_change(fleet, pid, name, change):
    """Deploys the full model and stops its worker in the midst of reading it, for change(). What went wrong, or an empty text; None when
    the worker had read all before it could be stopped."""
    outcome = []
    deploying = threading.Thread(target=lambda: outcome.append(fleet.deploy(name)))
    begin = bytes_read(pid)
    deploying.start()
    deadline = time.monotonic() + 20
    while bytes_read(pid) - begin < 2 * EXPERT_BYTES:  # heartbeats and such are far less
        assert time.monotonic() < deadline, f"worker {pid} reads nothing"
        time.sleep(0.001)  # its core is the worker's
    os.kill(pid, signal.SIGSTOP)
    try:
        # The kernel stops a thread when it leaves the kernel.
        wait_until(lambda: all("T (stopped)" in task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/status")), "it is stopped")
        in_the_midst = bytes_read(pid) - begin < 40 * LAYERS * EXPERT_BYTES
        if in_the_midst:
            change()
    finally:
        os.kill(pid, signal.SIGCONT)
    deploying.join(timeout=60)
    assert not deploying.is_alive(), "the deploy hangs"
    if in_the_midst:
        return outcome[0]
    assert outcome[0] == "", outcome[0]
    fleet.ask("DELETE", f"/v1/deployments/{name}")
    return None


def check_changes_during_a_load(bin_dir, expected):
    """A checkpoint file that goes away, is replaced, written to or cut while experts are read from it."""
    with tempfile.TemporaryDirectory(prefix="moiety-static-") as folder:
        model, weights = copy_model(folder)
        aside = model / "aside"
        stat, whole = weights.stat(), weights.read_bytes()
        subset = Path(folder) / "subset.json"
        write_subset(bin_dir, subset, seed=3)

        def replace():
            weights.rename(aside)
            weights.write_bytes(whole)

        def write():
            with weights.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(bytes([whole[-1] ^ 1]))

        def restore():  # as a backup tool does: content and times
            with weights.open("r+b") as file:
                file.write(whole)
            os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))

        cases = [("is gone", lambda: weights.rename(aside), lambda: aside.rename(weights)),
                 ("was replaced", replace, lambda: aside.rename(weights)),
                 ("was written to", write, restore),
                 ("", lambda: os.truncate(weights, len(whole) // 2), restore)]
        # The worker is stopped while files are written: within its lease on any disk.
        fleet = Fleet(bin_dir, "ucx", folder, model, ("--no-full", "--deploy", f"small={subset}", "--lease-ttl-ms", 20000), routers=1,
                      workers=1)
        try:
            url = fleet.urls[0]
            small = wait_until(lambda: complete(url, PROMPTS[0], "moiety-tiny-emo:small"), "the subset is served")
            before = fleet.workers()
            for number, (says, change, undo) in enumerate(cases):
                tries = (deploy_and_change(fleet, before[0], f"all{number}-{i}", change) for i in range(20))
                refusal = next((refusal for refusal in tries if refusal is not None), None)
                assert refusal is not None, "the worker was never caught in the midst of a load"
                assert weights.name in refusal and says in refusal, f"{says}: {refusal!r}"
                assert complete(url, PROMPTS[0], "moiety-tiny-emo:small") == small, f"{says}: answers after a load failed"
                undo()
            assert fleet.deploy("all") == ""
            assert [complete(url, prompt, "moiety-tiny-emo:all") for prompt in PROMPTS] == expected, "answers after loads that failed"
            assert fleet.workers() == before, "no worker ended over it"
            print("changes during a load: fine")
        except BaseException:
            print(fleet.logs())
            raise
        finally:
            fleet.stop()


def check_full_disk(bin_dir, expected):
    """A coordinator whose state file's disk is full: changes are refused, losses are handled."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    if subprocess.run(probe, capture_output=True, timeout=20).returncode != 0:
        print("skipped: a full disk (this user may not mount one)")
        return
    with tempfile.TemporaryDirectory(prefix="moiety-static-") as folder:
        run = Path(folder) / "run"
        run.mkdir()
        within = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=12m none "{run}" && exec "$0" "$@"')
        # Two workers hold everything, the third takes the place of either.
        fleet = Fleet(bin_dir, "ucx", folder, coordinator=("--capacity", ROUTED // 2 + 1), routers=1, within=within)
        try:
            url = fleet.urls[0]
            wait_until(lambda: len(fleet.workers()) == 2 and complete(url, PROMPTS[0]) == expected[0], "two workers serve")
            filler = Path(f"/proc/{fleet.coordinator.pid}/root{run}/filler")  # its own view of the disk
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 12))
                except OSError as error:
                    assert error.errno == errno.ENOSPC, error
            refusal = fleet.deploy("more")
            assert "state.sqlite" in refusal and "full" in refusal and "resource_exhausted" in refusal, refusal
            victim = next(iter(fleet.workers()))
            os.kill(fleet.workers()[victim], signal.SIGKILL)
            assert [complete(url, prompt) for prompt in PROMPTS] == expected, "answers after a worker was killed"
            wait_until(lambda: victim not in fleet.workers() and fleet.status()["experts_missing"] == 0, "the third worker takes over")
            filler.unlink()
            assert fleet.deploy("more") == ""
            assert [complete(url, prompt, "moiety-tiny-emo:more") for prompt in PROMPTS] == expected, "answers when there is room again"
            print("full disk: fine")
        except BaseException:
            print(fleet.logs())
            raise
        finally:
            fleet.stop()


def main():
    with Server(sys.argv[1], "--threads", "1") as embedded:
        expected = [complete(embedded.url, prompt) for prompt in PROMPTS]
    assert None not in expected and len(set(expected)) > 1, expected
    check_load_errors(sys.argv[1])
    check_changes_during_a_load(sys.argv[1], expected)
    check_ids(sys.argv[1], expected)
    check_full_disk(sys.argv[1], expected)
    for fabric in sys.argv[2:] or ["ucx", "mpi"]:
        check(sys.argv[1], fabric, expected)


if __name__ == "__main__":
    main()
