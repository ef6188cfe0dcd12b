#!/usr/bin/env python3
"""Busy processes do not starve each other where there are more of them than cores.

usage: busy_test.py BIN_DIR [ucx|mpi]...

Seven workers, two routers and the clients of twelve streams share two cores. What must hold while all streams run:
  - the slower router gives at least half as many tokens as the faster one, and each stream half of the mean of its router's;
  - every worker computes within every second;
  - nobody takes a busy process for a lost one: no worker is suspected or lost, nothing is asked for twice, the epoch stays;
  - no step takes longer than LONGEST_STEP, and no stream is silent for longer than LONGEST_SILENCE.
A machine that stops everything for a while (a hypervisor may) spoils that without anybody's fault: a thread that only sleeps notices, and
what was missed meanwhile is measured again.
"""
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from chaos import NAME, Up  # noqa: E402
from chaos_load import request_body, stream  # noqa: E402
from moiety_cluster import call, metric, wait_until  # noqa: E402

CORES, WORKERS, ROUTERS, STREAMS = 2, 7, 2, 12
SECONDS = 6
LEAST_SHARE = 0.5
LONGEST_STEP = 0.5  # a bucket of moiety_step_seconds
LONGEST_SILENCE = 1.0
MEASUREMENTS = 3  # at most; another one only where the machine paused for longer than LONGEST_PAUSE
LONGEST_PAUSE = 0.2
NEVER = ("moiety_workers_lost_total", "moiety_step_retries_total", "moiety_redispatches_total")


class Client(threading.Thread):
    """Streams one completion after the other. `tokens` and `longest` (silence, seconds) are since reset()."""

    def __init__(self, address, seed):
        super().__init__(daemon=True)
        self.address, self.rng = address, random.Random(seed)
        self.stopping, self.error = False, None
        self.last = None
        self.reset()

    def reset(self):
        self.tokens, self.longest = 0, 0.0

    def heard(self, now):
        self.tokens += 1
        if self.last is not None:
            self.longest = max(self.longest, now - self.last)
        self.last = now

    def run(self):
        while not self.stopping and self.error is None:
            self.last = time.monotonic()
            self.error = stream(*self.address, request_body(NAME, self.rng, 150), on_frame=self.heard).error


class Pauses(threading.Thread):
    """How late, at most, a thread that only sleeps runs again on this machine: `longest`, seconds, complete after end()."""

    SLEEP = 0.005

    def __init__(self):
        super().__init__(daemon=True)
        self.longest, self.ending = 0.0, False

    def run(self):
        while not self.ending:
            began = time.monotonic()
            time.sleep(self.SLEEP)
            self.longest = max(self.longest, time.monotonic() - began - self.SLEEP)

    def end(self):
        self.ending = True
        self.join()


def page_of(url):
    try:
        return call("GET", url + "/metrics")[1]
    except OSError as error:
        raise AssertionError(f"{url} ended while it was measured: {error}") from error


def pages(urls):
    return [page_of(url) for url in urls]


def slow_steps(page):
    """Steps that took longer than LONGEST_STEP."""
    within = next(float(line.rsplit(" ", 1)[1]) for line in page.splitlines()
                  if line.startswith(f'moiety_step_seconds_bucket{{le="{LONGEST_STEP}"}}'))
    return metric(page, "moiety_step_seconds_count") - within


def counts(routers):
    """What must not rise while all is well, by name; `routers` are their /metrics pages."""
    return {name: sum(metric(page, name) for page in routers) for name in NEVER} | {"slow steps": sum(map(slow_steps, routers))}


def decisions(up, after=0):
    return call("GET", f"{up.admin}/v1/decisions?after={after}")[1]["decisions"]


def whole(up):
    """The status once all workers serve; until then None."""
    status = up.status()
    serving = [worker for worker in status["workers"] if worker["state"] == "serving"]
    return status if len(serving) == WORKERS and not status["lost"] else None


def measure(up, fabric, clients):
    """What was not as it must be, in words. A stream or a process that ends fails at once: no pause of the machine excuses that."""
    routers = [f"http://{host}:{port}" for host, port in up.addresses]
    assert len(routers) == ROUTERS
    status = wait_until(lambda: whole(up), "all workers serve")
    workers = ["http://" + worker["http_address"] for worker in status["workers"]]
    before, decided = counts(pages(routers)), max(line["number"] for line in decisions(up))
    for client in clients:
        client.reset()
    computed = [metric(page, "moiety_dispatches_total") for page in pages(workers)]
    idle = []
    for second in range(1, SECONDS + 1):
        time.sleep(1)  # after the last page came: at least a second of each worker
        now = [metric(page, "moiety_dispatches_total") for page in pages(workers)]
        idle += [f"worker {i} in second {second}" for i in range(WORKERS) if now[i] == computed[i]]
        computed = now
    tokens = [client.tokens for client in clients]
    silence = max(max(client.longest, time.monotonic() - client.last) for client in clients)
    errors = [client.error for client in clients if client.error]
    assert not errors, errors
    after, end = counts(pages(routers)), up.status()
    said = [line["text"] for line in decisions(up, decided) if line["level"] != "info"]

    by_router = [tokens[i::ROUTERS] for i in range(ROUTERS)]
    sums = [sum(each) for each in by_router]
    least = min(min(each) * len(each) / max(1, sum(each)) for each in by_router)
    risen = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    print(f"{fabric}: tokens of the routers {sums}, the slowest stream got {least:.2f} of its router's mean, longest silence "
          f"{1e3 * silence:.0f} ms, {risen.get('slow steps', 0):.0f} steps above {LONGEST_STEP} s", flush=True)
    checks = [(min(sums) >= LEAST_SHARE * max(sums), f"a router starves: {sums}"),
              (least >= LEAST_SHARE, f"a stream starves: {by_router}"),
              (not idle, f"computed nothing: {idle}"),
              (not risen, f"rose: {risen} (a slow step takes longer than {LONGEST_STEP} s)"),
              (silence <= LONGEST_SILENCE, f"a stream was silent for {silence:.2f} s"),
              (end["epoch"] == status["epoch"] and not end["lost"], f"epoch {end['epoch']} after {status['epoch']}, lost: {end['lost']}"),
              (not said, f"the coordinator said: {said}")]
    return [words for holds, words in checks if not holds]


def measure_until_the_machine_runs(up, fabric, clients):
    for left in reversed(range(MEASUREMENTS)):
        pauses = Pauses()
        pauses.start()
        try:
            missed = measure(up, fabric, clients)
        finally:
            pauses.end()
        if not missed:
            return
        paused = f"the machine kept a thread that only sleeps waiting for up to {1e3 * pauses.longest:.0f} ms"
        if pauses.longest <= LONGEST_PAUSE or left == 0:
            raise AssertionError(f"{fabric}: {'; '.join(missed)} ({paused})")
        print(f"{fabric}: measured again, {paused}: {'; '.join(missed)}", flush=True)


def main():
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # of all that is started from here
    for fabric in sys.argv[2:] or ["ucx", "mpi"]:
        with tempfile.TemporaryDirectory(prefix="moiety-busy-") as work, \
                Up(Path(sys.argv[1]), Path(work), "--fabric", fabric, "--workers", str(WORKERS), "--routers", str(ROUTERS)) as up:
            clients = [Client(up.addresses[i % ROUTERS], i) for i in range(STREAMS)]
            for client in clients:
                client.start()
            try:
                wait_until(lambda: all(client.tokens > 0 for client in clients), "all streams have begun")
                measure_until_the_machine_runs(up, fabric, clients)
            finally:
                for client in clients:
                    client.stopping = True
                for client in clients:
                    client.join(timeout=60)
            assert not any(client.is_alive() for client in clients), "a stream hangs"


if __name__ == "__main__":
    main()
