#!/usr/bin/env python3
"""Kills, stops and changes a cluster under load, and checks that no request is lost and no token is wrong.

Every answer is compared, log-probability by log-probability, with that of embedded mode (--combine per_expert). Prints the
counts of each part and ends with status 1 if a request was lost, a token was wrong or a stream got stuck.

With --fabric mpi routers and workers are one world, which does not grow: ranks that are not needed idle, lost experts load on those that
are left, and a world that has lost enough of its ranks is followed by a new one.
"""
import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from chaos_load import Load, expected_answers, request_body  # noqa: E402
from moiety_cluster import MODEL, ROOT, ROUTED, Server, call, metric, wait_until, write_subset  # noqa: E402
from static_fleet_test import Fleet  # noqa: E402

NAME = MODEL.name
SUBSETS = ("red", "green", "blue")


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Up:
    """`moiety up` in the foreground: it restarts what of its own dies."""

    def __init__(self, bin_dir, work, *flags, model=MODEL, combine="per_expert"):
        self.moiety = Path(bin_dir) / "moiety"
        self.run_dir = Path(tempfile.mkdtemp(prefix="run-", dir=work))
        self.log = open(self.run_dir.with_suffix(".log"), "w")
        self.process = subprocess.Popen([self.moiety, "up", "-m", model, "--port", "0", "--admin-port", "0", "--json",
                                         "--run-dir", self.run_dir, "--combine", combine, "--worker-threads", "1", *flags],
                                        text=True, stdout=subprocess.PIPE, stderr=self.log)
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"moiety up ended with status {self.process.wait(timeout=60)}:\n{self.logs()}")
        started = json.loads(line)
        self.admin = started["admin"]
        urls = started.get("apis") or [started["api"]]
        self.addresses = [(url.split("//")[1].rsplit(":", 1)[0], int(url.rsplit(":", 1)[1])) for url in urls]

    def logs(self):
        self.log.flush()
        logs = [self.run_dir.with_suffix(".log"), *sorted(self.run_dir.glob("*.log"))]
        return "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in logs)

    def status(self):
        code, answer = call("GET", self.admin + "/v1/status", timeout=20)
        if code != 200:
            raise AssertionError(f"status: {code} {answer}")
        return answer

    def serving(self):
        return [w for w in self.status()["workers"] if w["state"] == "serving"]

    def whole(self):
        status = self.status()
        return not status["lost"] and any(w["state"] == "serving" for w in status["workers"])

    def command(self, *words):
        done = subprocess.run([self.moiety, *words, "--admin", self.admin, "--json"], text=True, capture_output=True, timeout=200)
        if done.returncode != 0:
            raise AssertionError(f"moiety {' '.join(words)}: status {done.returncode}: {done.stderr}\n{self.logs()}")
        return json.loads(done.stdout)

    def router_metric(self, name):
        return sum(metric(call("GET", f"http://{h}:{p}/metrics")[1], name) for h, p in self.addresses)

    def coordinator_pid(self):
        return json.loads((self.run_dir / "coordinator.json").read_text())["pid"]

    def __enter__(self):
        return self

    def __exit__(self, kind, *exception):
        if kind is not None:
            print(self.logs(), file=sys.stderr)
        try:
            self.process.terminate()
            self.process.wait(timeout=40)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.log.close()


class Chaos:
    def __init__(self, args, work):
        self.args, self.work = args, work
        self.mpi = args.fabric == "mpi"
        self.rng = random.Random(args.seed)
        self.failures = []
        self.rows = []
        self.subsets = {}
        for i, name in enumerate(SUBSETS):
            self.subsets[name] = work / f"{name}.json"
            write_subset(args.bin_dir, self.subsets[name], seed=100 + i)
        self.deploys = [x for name, file in self.subsets.items() for x in ("--deploy", f"{name}={file}")]

    def prepare(self, least_tokens=60, most_tokens=200):
        models = [NAME] + [f"{NAME}:{name}" for name in SUBSETS]
        rng = random.Random(self.args.seed + 1)
        count = 24 if self.args.short else 48
        self.bodies = [request_body(models[i % len(models)], rng, rng.randrange(least_tokens, most_tokens)) for i in range(count)]
        with Server(self.args.bin_dir, *self.deploys) as server:
            self.expected = expected_answers(("127.0.0.1", server.port), self.bodies)

    def load(self, addresses, only=None, streams=None):
        numbers = [i for i, b in enumerate(self.bodies) if only is None or b["model"] in only]
        return Load(addresses, [self.bodies[i] for i in numbers], [self.expected[i] for i in numbers], streams or self.args.streams,
                    self.args.seed)

    def up(self, *flags):
        return Up(self.args.bin_dir, self.work, "--fabric", self.args.fabric, *flags)

    def replaced(self, up, victim):
        """Whether another process serves as this worker, and nothing is lost."""
        status = up.status()
        return not status["lost"] and any(w["id"] == victim["id"] and w["pid"] != victim["pid"] and w["state"] == "serving"
                                          for w in status["workers"])

    def note_pause(self, load, up, pauses, what):
        """Adds the pause that the loss of `what` made; says more of a long one."""
        pauses.append(load.take_pause())
        if pauses[-1] > 1:
            print(f"    a pause of {1e3 * pauses[-1]:.0f} ms after {what}", flush=True)
            self.tell(up)

    def tell(self, up):
        """What the coordinator did lately."""
        for line in call("GET", up.admin + "/v1/decisions")[1]["decisions"][-25:]:
            print(f"      {line['time']} {line['text']}", flush=True)

    def settle(self, load):
        wait_until(lambda: load.finished + load.tokens > 0, "the first answer")

    def margin(self, usual):
        """What a pause may be where nothing should be noticed: the longest of an undisturbed cluster, and what other processes that
        start on the same cores take."""
        return 0.2 + 3 * max(usual)

    def report(self, what, events, load, pauses, goal=None, limit=None, extra=""):
        """`load` may be several, of one cluster after the other. `goal` is only printed; a p99 beyond `limit` is a failure."""
        loads = load if isinstance(load, list) else [load]
        stuck = sum(each.stop() for each in loads)
        finished = sum(each.finished for each in loads)
        failed, wrong = [x for each in loads for x in each.failed], [x for each in loads for x in each.wrong]
        p50, p99 = percentile(pauses, 0.5), percentile(pauses, 0.99)
        row = {"part": what, "events": events, "requests": finished, "lost": len(failed), "wrong": len(wrong),
               "stuck": stuck, "pause_p50_ms": round(1e3 * p50), "pause_p99_ms": round(1e3 * p99)}
        self.rows.append(row)
        print(f"{what:34} {events:4} events {finished:6} requests  lost {len(failed):3}  wrong {len(wrong):3}  "
              f"stuck {stuck:3}  pause p50 {1e3 * p50:6.0f} ms  p99 {1e3 * p99:6.0f} ms"
              + (f" (goal {1e3 * goal:.0f})" if goal else "") + (f"  {extra}" if extra else ""), flush=True)
        for model, error in failed[:5]:
            print(f"    lost: {model}: {error}")
        for number, difference in wrong[:5]:
            print(f"    wrong: request {number}: {difference}")
        if failed or wrong or stuck:
            self.failures.append(what)
        if limit is not None and p99 > limit:
            self.failures.append(f"{what}: streams paused for {1e3 * p99:.0f} ms, {1e3 * limit:.0f} ms are allowed")

    def pick(self, up):
        """A worker that serves, chosen at random."""
        return self.rng.choice(wait_until(up.serving, "a worker serves"))

    def undisturbed(self, load, events):
        """The longest silences of any stream in windows of half a second in which nothing happens: what the pauses are to be
        compared with."""
        pauses = []
        for _ in range(min(20, events)):
            load.take_pause()
            time.sleep(0.5)
            pauses.append(load.take_pause())
        return pauses

    def spell(self, pauses):
        return f"p50 {1e3 * percentile(pauses, 0.5):.0f} ms p99 {1e3 * percentile(pauses, 0.99):.0f} ms"

    def fleet_flags(self, replicas):
        """Four workers; with two replicas, each half of them holds everything."""
        return ["--workers", "4", "--replicas", str(replicas), *(["--capacity", "32"] if replicas > 1 else []), *self.deploys]

    def kills(self, replicas):
        count = self.args.kills
        what = f"SIGKILL of workers, {replicas} replicas" if replicas > 1 else "SIGKILL of workers"
        with self.up(*self.fleet_flags(replicas)) as up:
            load = self.load(up.addresses)
            self.settle(load)
            usual = self.undisturbed(load, count)
            pauses, several, alone = [], [], True  # several: of kills while the last one was not healed
            for _ in range(count):
                time.sleep(self.rng.uniform(0.05, 0.4))
                load.take_pause()
                victim = self.pick(up)
                os.kill(victim["pid"], signal.SIGKILL)
                if self.rng.random() < 0.15:
                    alone = False
                    continue
                wait_until(lambda: self.replaced(up, victim), "the lost worker is replaced", timeout=60)
                wait_until(up.whole, "all lost workers are replaced", timeout=60)
                self.note_pause(load, up, pauses if alone else several, f"worker {victim['id']} (pid {victim['pid']})")
                alone = True
            wait_until(up.whole, "the last lost worker is replaced", timeout=60)
            retries, redispatches = (up.router_metric(f"moiety_{name}_total") for name in ("step_retries", "redispatches"))
            extra = f"undisturbed {self.spell(usual)}, retries {retries:.0f}, asked others {redispatches:.0f}"
            if retries + redispatches == 0 and count >= 20:
                self.failures.append(f"{what}: no kill met a step, so nothing was tested")
            if several:
                extra += f", {len(several)} times several at once: {self.spell(several)}"
            self.report(what, count, load, pauses, goal=0.1 if replicas > 1 else 1.0, extra=extra)

    def kills_in_worlds(self, replicas):
        """Kills three of a world's five workers, one after the other, then begins with a new world. At first some idle; the two that are
        left have just enough room."""
        count, per_world = self.args.kills, 3
        what = f"SIGKILL of ranks, {replicas} replicas" if replicas > 1 else "SIGKILL of ranks"
        loads, pauses, several, usual, stuck = [], [], [], [], 0
        retries = redispatches = 0
        while count > 0:
            with self.up("--workers", "5", "--capacity", str(21 * replicas), "--move-headroom", "0.6", "--replicas", str(replicas),
                         *self.deploys) as up:
                if not any(w["state"] == "idle" for w in up.status()["workers"]):
                    raise AssertionError(f"no rank idles: {up.status()['workers']}")
                load = self.load(up.addresses)
                loads.append(load)
                self.settle(load)
                usual += self.undisturbed(load, 1)
                alone, victims = True, []
                for _ in range(min(count, per_world)):
                    count -= 1
                    time.sleep(self.rng.uniform(0.05, 0.4))
                    load.take_pause()
                    victims.append(self.pick(up)["pid"])
                    os.kill(victims[-1], signal.SIGKILL)
                    if count % per_world and self.rng.random() < 0.15:
                        alone = False
                        continue

                    def healed():
                        status = up.status()
                        serving = [w["pid"] for w in status["workers"] if w["state"] == "serving"]
                        return status["experts_missing"] == 0 and not set(serving) & set(victims)

                    wait_until(healed, "the others hold what the killed rank held", timeout=60)
                    self.note_pause(load, up, pauses if alone else several, f"the end of pid {victims[-1]}")
                    alone = True
                retries += up.router_metric("moiety_step_retries_total")
                redispatches += up.router_metric("moiety_redispatches_total")
                stuck += load.stop()  # before its world ends
        extra = f"undisturbed {self.spell(usual)}, retries {retries:.0f}, asked others {redispatches:.0f}"
        if retries + redispatches == 0:
            self.failures.append(f"{what}: no kill met a step, so nothing was tested")
        if several:
            extra += f", {len(several)} times several at once: {self.spell(several)}"
        if stuck:
            self.failures.append(f"{what}: {stuck} streams got stuck")
        self.report(what, self.args.kills, loads, pauses, goal=0.1 if replicas > 1 else 1.0, extra=extra)

    def stop_and_continue(self, pid, seconds):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass  # it was fenced

    def stops(self, replicas=1):
        what = "SIGSTOP and SIGCONT of workers" + (f", {replicas} replicas" if replicas > 1 else "")
        with self.up(*self.fleet_flags(replicas)) as up:
            load = self.load(up.addresses)
            self.settle(load)
            pauses = []
            for i in range(self.args.stops):
                time.sleep(self.rng.uniform(0.05, 0.4))
                load.take_pause()
                self.stop_and_continue(self.pick(up)["pid"], (0.02, 0.2, 1.0, 3.0)[i % 4])
                wait_until(up.whole, "the stopped worker is back or replaced", timeout=60)
                time.sleep(0.1)
                pauses.append(load.take_pause())
            stale = up.router_metric("moiety_stale_replies_total")
            extra = f"stale replies dropped {stale:.0f}"
            if replicas > 1:
                extra += f", hedges {up.router_metric('moiety_hedges_total'):.0f}"
                # Others were asked meanwhile, and the worker that goes on answers all the same.
                if stale == 0:
                    self.failures.append(f"{what}: no stale reply came, so none was tested")
            self.report(what, self.args.stops, load, pauses, extra=extra)

    def static_stops(self, replicas=2):
        """Nobody fences a worker of a static fleet: one that goes on sends what it owed, to routers that no longer wait for it."""
        what = f"SIGSTOP and SIGCONT, static fleet{', 2 replicas' if replicas > 1 else ''}"
        folder = self.work / f"static{replicas}"
        folder.mkdir()
        capacity = ("--capacity", 42) if replicas > 1 else ("--capacity", ROUTED // 3, "--move-headroom", 0.6)
        fleet = Fleet(self.args.bin_dir, self.args.fabric, folder, MODEL, (*capacity, "--replicas", replicas, *self.deploys), routers=1)
        try:
            wait_until(lambda: len(fleet.workers()) == 3, "three workers serve")
            wait_until(lambda: call("GET", fleet.urls[0] + "/ready")[0] == 200, "the router is ready")
            address = fleet.urls[0].split("//")[1].split(":")
            load = self.load([(address[0], int(address[1]))])
            self.settle(load)
            pauses = []

            def count(name):
                return metric(call("GET", fleet.urls[0] + "/metrics")[1], f"moiety_{name}_total")

            for i in range(2 if self.mpi and self.args.short else max(3, self.args.stops // 2)):
                time.sleep(self.rng.uniform(0.05, 0.4))
                load.take_pause()
                self.stop_and_continue(self.rng.choice(list(fleet.workers().values())), (0.2, 1.6, 5.0)[i % 3])
                wait_until(lambda: len(fleet.workers()) == 3, "the stopped worker is back", timeout=60)
                pauses.append(load.take_pause())
            stale = count("stale_replies")
            extra = f"stale replies dropped {stale:.0f}, hedges {count('hedges'):.0f}, workers lost {count('workers_lost'):.0f}"
            if replicas > 1 and stale == 0:
                self.failures.append(f"{what}: no stale reply came, so none was tested")
            self.report(what, len(pauses), load, pauses, extra=extra)
        except BaseException:
            print(fleet.logs(), file=sys.stderr)
            raise
        finally:
            fleet.stop()

    def isolation(self):
        """A stopped worker of one deployment: the other deployment's streams wait at most until it is detected."""
        flags = ["--workers", "8", "--capacity", "15", "--no-full", *self.deploys[:4]]
        with self.up(*flags) as up:
            workers = {d["name"].split(":")[-1]: set(d["workers"]) for d in up.status()["deployments"]}
            alone = sorted(workers["red"] - workers["green"])
            if not alone:
                raise AssertionError(f"both deployments use the same workers: {workers}")
            red, green = (self.load(up.addresses, only=(f"{NAME}:{name}",), streams=max(2, self.args.streams // 2))
                          for name in ("red", "green"))
            self.settle(red)
            self.settle(green)
            usual = self.undisturbed(green, self.args.stops)
            margin = self.margin(usual)
            pauses, stopped, detections = [], [], []
            for _ in range(max(1, self.args.stops // 4)):
                red.take_pause()
                green.take_pause()
                detected = up.router_metric("moiety_worker_loss_detection_seconds_total")
                victim = next(w for w in up.status()["workers"] if w["id"] == alone[0])
                os.kill(victim["pid"], signal.SIGSTOP)  # for ever: it is fenced
                wait_until(lambda: self.replaced(up, victim), "the stopped worker is replaced", timeout=60)
                time.sleep(0.1)
                detections.append(up.router_metric("moiety_worker_loss_detection_seconds_total") - detected)
                stopped.append(red.take_pause())
                pauses.append(green.take_pause())
                if pauses[-1] > detections[-1] + margin:
                    self.failures.append(f"isolation: the other deployment's streams paused for {1e3 * pauses[-1]:.0f} ms, detection took "
                                         f"{1e3 * detections[-1]:.0f} ms")
            self.report("SIGSTOP, its deployment's streams", len(stopped), red, stopped)
            self.report("SIGSTOP, another deployment's", len(pauses), green, pauses,
                        extra=f"detection {self.spell(detections)}, undisturbed {self.spell(usual)}")

    def coordinator_kills(self):
        with self.up("--workers", "4", *self.deploys) as up:
            load = self.load(up.addresses)
            self.settle(load)
            usual = self.undisturbed(load, self.args.coordinator_kills)
            before = up.status()
            pids = sorted(w["pid"] for w in before["workers"] if w["state"] == "serving")
            names = sorted(d["name"] for d in before["deployments"])
            pauses, changed = [], 0
            for _ in range(self.args.coordinator_kills):
                time.sleep(self.rng.uniform(0.05, 0.3))
                load.take_pause()
                old = up.coordinator_pid()
                os.kill(old, signal.SIGKILL)

                def back():
                    try:
                        known = all(w["pid"] > 0 for w in up.serving())  # those of a static fleet say so themselves
                        return up.coordinator_pid() != old and known and up.whole() and up.status()
                    except (OSError, ValueError, KeyError, AssertionError):
                        return None

                status = wait_until(back, "the coordinator is back and knows its fleet", timeout=60)
                if sorted(d["name"] for d in status["deployments"]) != names:
                    raise AssertionError(f"deployments after a restart: {status['deployments']}")
                if status["epoch"] < before["epoch"]:
                    raise AssertionError(f"epoch {status['epoch']} after {before['epoch']}")
                before = status
                pauses.append(load.take_pause())
                if sorted(w["pid"] for w in status["workers"] if w["state"] == "serving") != pids:
                    changed += 1
                    pids = sorted(w["pid"] for w in status["workers"] if w["state"] == "serving")
            if changed:
                self.failures.append(f"{changed} restarts of the coordinator replaced workers")
            self.report("SIGKILL of the coordinator", self.args.coordinator_kills, load, pauses, limit=self.margin(usual),
                        extra=f"fleets replaced {changed}, undisturbed {self.spell(usual)}")

    def changes(self):
        """Deploys and undeploys under load: nobody notices, and memory returns to where it was."""

        def memory(up):
            """Workers; bytes of their experts; resident set of the workers, of coordinator and router, kB."""
            status = up.status()

            def rss(pids):
                return sum(int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) for pid in pids)

            workers = [w["pid"] for w in up.serving()]
            return (len(workers), status["fleet"]["bytes_resident"], rss(workers),
                    rss([up.coordinator_pid(), *(r["pid"] for r in status["routers"])]))

        red, green = f"{NAME}:red", f"{NAME}:green"
        with self.up("--workers", "6", "--capacity", "16", "--no-full", *self.deploys[:2]) as up:
            load = self.load(up.addresses, only=(red,))
            self.settle(load)
            usual = self.undisturbed(load, self.args.deploys)
            begin = memory(up)
            pauses, warm = [], None
            for cycle in range(self.args.deploys):
                load.take_pause()
                up.command("deploy", "green", "--subset", str(self.subsets["green"]))
                if cycle % 20 == 0:  # it serves
                    code, answer = call("POST", f"http://127.0.0.1:{up.addresses[0][1]}/v1/completions",
                                        {"model": green, "prompt": [0, 5], "max_tokens": 4})
                    if code != 200:
                        raise AssertionError(f"{green}: {code} {answer}")
                up.command("undeploy", "green")
                pauses.append(load.take_pause())
                if cycle == min(9, self.args.deploys - 1):
                    warm = memory(up)  # heaps have grown as far as one change needs
            last = memory(up)
            # Fleet: exactly as at the beginning. Heaps: no more than warm.
            grown = [1.1 * then + 8192 < now for then, now in zip(warm[2:], last[2:])]
            if last[:2] != begin[:2] or any(grown):
                self.failures.append(f"memory after {self.args.deploys} cycles: workers, bytes, RSS of workers and others in kB: {last}; "
                                     f"after 10 {warm}; at the beginning {begin}")
            self.report("deploy and undeploy", 2 * self.args.deploys, load, pauses, limit=self.margin(usual),
                        extra=f"undisturbed {self.spell(usual)}; {last[1] / 2**20:.1f} MiB in {last[0]} workers (before: "
                              f"{begin[1] / 2**20:.1f} in {begin[0]}); RSS of workers, of coordinator and router: "
                              f"{last[2] / 1024:.0f}, {last[3] / 1024:.0f} MiB (after 10 cycles: {warm[2] / 1024:.0f}, {warm[3] / 1024:.0f}, "
                              f"before: {begin[2] / 1024:.0f}, {begin[3] / 1024:.0f})")

    def two_routers(self):
        """One router is killed: the other's requests notice nothing, and it comes back."""
        with self.up("--workers", "4", "--routers", "2", *self.deploys) as up:
            keeps, dies = up.addresses[0], up.addresses[1]
            load = self.load([keeps])
            self.settle(load)
            usual = self.undisturbed(load, self.args.stops)
            pauses = []
            for _ in range(max(1, self.args.stops // 4)):
                victims = [r["pid"] for r in up.status()["routers"] if r["http_address"].endswith(f":{dies[1]}")]
                load.take_pause()
                os.kill(victims[0], signal.SIGKILL)

                def back():
                    try:
                        code, _ = call("POST", f"http://{dies[0]}:{dies[1]}/v1/completions",
                                       {"model": NAME, "prompt": [0, 5], "max_tokens": 2}, timeout=10)
                        return code == 200
                    except OSError:
                        return False

                wait_until(back, "the killed router is back", timeout=60)
                pauses.append(load.take_pause())
            self.report("SIGKILL of the other router", len(pauses), load, pauses, limit=self.margin(usual),
                        extra=f"undisturbed {self.spell(usual)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bin_dir", type=Path, nargs="?", default=ROOT / "build/bin", help="folder with the moiety programs")
    parser.add_argument("--fabric", choices=("ucx", "mpi"), default="ucx", help="what carries tokens between router and workers")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the same seed picks the same victims")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--kills", type=int, default=100, help="of workers; once without and once with replicas")
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--coordinator-kills", type=int, default=50)
    parser.add_argument("--deploys", type=int, default=100, help="cycles of a deploy and an undeploy")
    parser.add_argument("--short", action="store_true", help="a few of each: what the tests run")
    parser.add_argument("--only", help="parts, with commas: kills, replicas, stops, stops-replicas, stops-static, isolation, coordinator, deploys, "
                             "routers; over mpi without stops-static, isolation and routers")
    parser.add_argument("--json", type=Path, help="write the counts to this file too")
    args = parser.parse_args()
    if args.short:
        short = (3, 3, 2, 2, 8) if args.fabric == "mpi" else (4, 4, 7, 5, 8)
        args.kills, args.stops, args.coordinator_kills, args.deploys, args.streams = short
    print(f"seed {args.seed}, {args.streams} streams", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="moiety-chaos-") as folder:
        chaos = Chaos(args, Path(folder))
        parts = {"kills": lambda: chaos.kills(1), "replicas": lambda: chaos.kills(2), "stops": chaos.stops,
                 "stops-replicas": lambda: chaos.stops(2), "stops-static": chaos.static_stops,
                 "isolation": chaos.isolation, "coordinator": chaos.coordinator_kills, "deploys": chaos.changes,
                 "routers": chaos.two_routers}
        if chaos.mpi:
            parts = {"kills": lambda: chaos.kills_in_worlds(1), "replicas": lambda: chaos.kills_in_worlds(2),
                     "stops": lambda: chaos.static_stops(1), "stops-replicas": lambda: chaos.static_stops(2),
                     "coordinator": chaos.coordinator_kills, "deploys": chaos.changes}
        wanted = args.only.split(",") if args.only else list(parts)
        unknown = [name for name in wanted if name not in parts]
        if unknown:
            parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(parts)}")
        chaos.prepare()
        for name in wanted:
            try:
                parts[name]()
            except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
                chaos.failures.append(f"{name}: {error}")
                print(f"{name}: FAILED: {error}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"seed": args.seed, "parts": chaos.rows, "failures": chaos.failures}, indent=1) + "\n")
    print(f"{'FAILED: ' + '; '.join(chaos.failures) if chaos.failures else 'no request lost, no token wrong, no stream stuck'} "
          f"({time.monotonic() - began:.0f} s)")
    return 1 if chaos.failures else 0


if __name__ == "__main__":
    sys.exit(main())
