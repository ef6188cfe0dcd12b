"""Servers and clusters of real processes for tests: started, asked, and ended by pid."""
import json
import os
import random
import select
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "models/moiety-tiny-emo"
LAYERS, ROUTED = 6, 63


def call(method, url, body=None, timeout=60):
    """(status, parsed JSON or text) of one request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            raw, status = response.read(), response.status
    except urllib.error.HTTPError as error:
        raw, status = error.read(), error.code
    try:
        return status, json.loads(raw)
    except ValueError:
        return status, raw.decode()


def wait_until(condition, what, timeout=30):
    """Polls until condition() is true; fails with `what` at the deadline."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"still not after {timeout} s: {what}")


def wait_for_end(pid, timeout):
    """Of a process that need not be our child."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([process], [], [], timeout)
    finally:
        os.close(process)


def metric(page, name):
    """Sum of a metric's series on a /metrics page."""
    total = 0.0
    for line in page.splitlines():
        if line.startswith((name + " ", name + "{")):
            total += float(line.rsplit(" ", 1)[1])
    return total


def fingerprint(bin_dir, model=MODEL):
    done = subprocess.run([Path(bin_dir) / "moiety", "inspect", model, "--json"], text=True, capture_output=True, check=True,
                          timeout=60)
    return json.loads(done.stdout)["fingerprint"]


def write_subset(bin_dir, path, seed, keep=16, **changes):
    """A random subset file of the bundled model: keep - 1 routed experts per layer and the shared one."""
    pick = random.Random(seed)
    layers = [sorted(pick.sample(range(ROUTED), keep - 1)) + [ROUTED] for _ in range(LAYERS)]
    path.write_text(json.dumps({"format": "moiety.subset/1", "checkpoint": fingerprint(bin_dir), "domains": ["test"],
                                "method": "random", "experts_kept_per_layer": layers, **changes}))
    return layers


class Stream(threading.Thread):
    """One streamed completion; `frames` are the parsed data lines, `done` whether [DONE] came, `status` the HTTP status."""

    def __init__(self, url, body):
        super().__init__(daemon=True)
        self.url, self.body = url, dict(body, stream=True)
        self.frames, self.done, self.status, self.error = [], False, None, None

    def run(self):
        request = urllib.request.Request(self.url + "/v1/completions", data=json.dumps(self.body).encode(),
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                self.status = response.status
                for line in response:
                    line = line.decode().strip()
                    if line == "data: [DONE]":
                        self.done = True
                    elif line.startswith("data: "):
                        self.frames.append(json.loads(line[6:]))
        except urllib.error.HTTPError as error:
            self.status = error.code
            self.frames.append(json.loads(error.read()))
        except Exception as error:  # a broken stream is a finding of the test
            self.error = error

    def text(self):
        return "".join(f["choices"][0]["text"] for f in self.frames if f.get("choices"))

    def failure(self):
        """The error code in the stream, or None."""
        return next((f["error"]["code"] for f in self.frames if "error" in f), None)


class Server:
    """`moiety serve` (embedded mode) on a free port."""

    def __init__(self, bin_dir, *flags, model=MODEL):
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen([Path(bin_dir) / "moiety", "serve", "--json", "-m", model, "--port", "0", *flags],
                                        text=True, stdout=subprocess.PIPE, stderr=self.log)
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(timeout=20)
            self.log.seek(0)
            raise AssertionError(f"moiety serve ended with status {self.process.returncode}: {self.log.read()}")
        self.url = json.loads(line)["url"]
        self.port = int(self.url.rsplit(":", 1)[1])

    def metric(self, name):
        return metric(call("GET", self.url + "/metrics")[1], name)

    def stop(self):
        """Asks it to end; its exit status."""
        self.process.terminate()
        return self.process.wait(timeout=20)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        try:
            self.stop()
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.log.close()


class Cluster:
    def __init__(self, bin_dir, *flags, descriptors=None):
        """`descriptors`: how many each process may have open, as a hard limit."""
        self.moiety = Path(bin_dir) / "moiety"
        self.dir = tempfile.TemporaryDirectory(prefix="moiety-test-")
        self.run_dir = Path(self.dir.name) / "run"
        self.pids = []
        started = self.command("up", "-m", str(MODEL), "--port", "0", "--admin-port", "0", "--run-dir", str(self.run_dir), "-d", "--json",
                               *flags, admin=False, descriptors=descriptors)
        self.api, self.admin = started["api"], started["admin"]
        self.apis = started["apis"]
        # The supervisor first: it would start again what ends before it.
        self.pids = [started["supervisor_pid"], started["coordinator_pid"], *started["router_pids"]]

    def command(self, *words, admin=True, check=True, descriptors=None):
        """Runs `moiety ...`; its parsed JSON (with check) or the finished process."""
        line = [str(self.moiety), *words] + (["--admin", self.admin, "--json"] if admin else [])
        if descriptors is not None:
            line = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh", *line]
        done = subprocess.run(line, text=True, capture_output=True, timeout=200)
        if not check:
            return done
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(line)}: status {done.returncode}: {done.stderr}\n{self.logs()}")
        return json.loads(done.stdout)

    def logs(self):
        return "\n".join(f"--- {log.name}\n{log.read_text()[-1500:]}" for log in sorted(self.run_dir.glob("*.log")))

    def status(self):
        return self.command("status")

    def coordinator_pid(self):
        """Of the coordinator that runs now; None while there is none."""
        try:
            return json.loads((self.run_dir / "coordinator.json").read_text())["pid"]
        except (FileNotFoundError, ValueError):
            return None

    def kill_coordinator(self):
        """SIGKILL; waits until another one answers. Gives its pid."""
        before = self.coordinator_pid()
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: self.coordinator_pid() not in (None, before), "a coordinator is started again")
        self.pids.append(self.coordinator_pid())
        wait_until(self.answers, "the new coordinator answers")
        return self.pids[-1]

    def answers(self):
        try:
            return call("GET", self.admin + "/health", timeout=5)[0] == 200
        except OSError:
            return False

    def admin_status(self):
        return call("GET", self.admin + "/v1/status")[1]

    def complete(self, model, prompt, max_tokens=16, api=None, **fields):
        return call("POST", (api or self.api) + "/v1/completions",
                    dict({"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}, **fields))

    def worker_metric(self, name):
        """Sum over the workers that serve, from their own /metrics."""
        return sum(metric(call("GET", f"http://{w['http_address']}/metrics")[1], name) for w in self.status()["workers"]
                   if w["state"] == "serving")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        workers = []
        try:
            workers = [w["pid"] for w in self.status()["workers"] if w["pid"] > 0]
            self.command("down")
            wait_for_end(self.pids[0], timeout=20)  # it tidies up
        finally:
            for pid in self.pids + workers:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.dir.cleanup()
