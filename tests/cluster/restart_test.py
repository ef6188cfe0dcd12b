#!/usr/bin/env python3
"""Coordinators and routers that are killed come back, and requests do not notice. usage: restart_test.py BIN_DIR"""
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from moiety_cluster import Cluster, Stream, call, metric, wait_until, write_subset  # noqa: E402

BIN = Path(sys.argv[1]) if len(sys.argv) > 1 else None
NAME = "moiety-tiny-emo"
TOKENS = 600


def start_streams(apis, count, model=NAME, tokens=TOKENS):
    streams = [Stream(apis[i % len(apis)], {"model": model, "prompt": [0, 100 + i], "max_tokens": tokens, "temperature": 0,
                                            "ignore_eos": True}) for i in range(count)]
    for stream in streams:
        stream.start()
    wait_until(lambda: all(len(s.frames) > 2 or not s.is_alive() for s in streams), "all streams have begun")
    return streams


def runs(pid):
    """Whether a process is there and not a zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class RestartTest(unittest.TestCase):
    def whole(self, streams, tokens=TOKENS):
        for stream in streams:
            stream.join(timeout=120)
            self.assertFalse(stream.is_alive(), "a stream hangs")
            self.assertIsNone(stream.error)
            self.assertIsNone(stream.failure())
            self.assertTrue(stream.done)
            self.assertEqual(stream.frames[-1]["choices"][0]["finish_reason"], "length")

    def test_a_killed_coordinator_comes_back_and_nobody_notices(self):
        with Cluster(BIN, "--workers", "3", "--routers", "2", "--worker-threads", "1") as cluster:
            subset = cluster.run_dir / "python.json"
            write_subset(BIN, subset, 7)
            cluster.command("deploy", f"python={subset},on_missing=fail")
            subset.unlink()  # a restart needs no file of the user
            before = cluster.admin_status()
            workers = {w["id"]: (w["pid"], w["incarnation"]) for w in before["workers"]}
            self.assertEqual(len(cluster.apis), 2)
            expected = cluster.complete(NAME, "<|endoftext|>def f", 24)[1]["choices"][0]["text"]

            streams = start_streams(cluster.apis, 4)
            for _ in range(3):
                cluster.kill_coordinator()
                # New requests, too, on both routers.
                for api in cluster.apis:
                    self.assertEqual(cluster.complete(NAME, "x", 2, api=api)[0], 200)
            self.whole(streams)

            wait_until(lambda: cluster.admin_status()["ready"], "the cluster is ready")
            after = cluster.admin_status()
            self.assertTrue(after["restored"])
            self.assertEqual({w["id"]: (w["pid"], w["incarnation"]) for w in after["workers"]}, workers)
            self.assertGreaterEqual(after["epoch"], before["epoch"])
            deployments = {d["served_as"]: (d["on_missing"], d["bytes"]) for d in after["deployments"]}
            self.assertEqual(deployments, {d["served_as"]: (d["on_missing"], d["bytes"]) for d in before["deployments"]})
            self.assertEqual(deployments[f"{NAME}:python"][0], "fail")
            self.assertEqual(cluster.complete(NAME, "<|endoftext|>def f", 24)[1]["choices"][0]["text"], expected)
            page = call("GET", cluster.admin + "/metrics")[1]
            self.assertEqual(metric(page, "moiety_workers_adopted_total"), 3)
            self.assertEqual(metric(page, "moiety_worker_losses_total"), 0)

            # It rules as before: undeploy the full model, and the workers that nobody needs end.
            cluster.command("undeploy", NAME)
            left = [w for w in cluster.admin_status()["workers"] if w["state"] == "serving"]
            self.assertLess(len(left), 3)
            self.assertEqual(cluster.complete(f"{NAME}:python", "x", 2)[0], 200)

    def test_a_change_is_made_once_whatever_dies(self):
        with Cluster(BIN, "--workers", "2", "--worker-threads", "1") as cluster:
            results, enough = [], threading.Event()

            def change():
                for i in range(1000):
                    for words in (("deploy", f"d{i}", "--full"), ("undeploy", f"d{i}")):
                        done = cluster.command(*words, "--admin", cluster.admin, admin=False, check=False)
                        results.append((words[0], done.returncode, done.stderr))
                        if done.returncode != 0:
                            break
                    if enough.is_set():
                        return

            changing = threading.Thread(target=change)
            changing.start()
            try:
                for kill in range(4):
                    done = len(results)
                    wait_until(lambda: len(results) > done + kill % 3, "changes are made")
                    cluster.kill_coordinator()
            finally:
                enough.set()
                changing.join(timeout=120)
            self.assertFalse(changing.is_alive(), "a change hangs")
            for verb, status, said in results:
                self.assertEqual(status, 0, (verb, said))
            wait_until(lambda: cluster.admin_status()["operation"] is None, "no change is under way")
            ended = call("GET", cluster.admin + "/v1/operations")[1]["operations"]
            self.assertEqual(len({o["operation_id"] for o in ended}), len(ended))
            self.assertEqual(cluster.complete(NAME, "x", 2)[0], 200)

    def test_a_change_waits_for_a_coordinator_that_is_being_started(self):
        with Cluster(BIN, "--workers", "1", "--worker-threads", "1") as cluster:
            flags = ["--admin", cluster.admin]
            shown = subprocess.run([BIN / "moiety", "deploy", "twin", "--full", *flags], text=True, capture_output=True, check=True)
            self.assertEqual(shown.stderr, "")
            supervisor, coordinator = cluster.pids[0], cluster.coordinator_pid()
            os.kill(supervisor, signal.SIGSTOP)
            try:
                os.kill(coordinator, signal.SIGKILL)
                wait_until(lambda: not cluster.answers(), "the coordinator is gone")
                changing = subprocess.Popen([BIN / "moiety", "undeploy", "twin", *flags], text=True, stdout=subprocess.PIPE,
                                            stderr=subprocess.PIPE)
                self.assertIn(f"nobody answers at {cluster.admin}; waiting", changing.stderr.readline())
            finally:
                os.kill(supervisor, signal.SIGCONT)
            said, rest = changing.communicate(timeout=60)
            self.assertEqual((changing.returncode, rest), (0, ""))
            self.assertIn("twin is gone: 0 experts", said)
            wait_until(lambda: cluster.coordinator_pid() not in (None, coordinator), "another coordinator runs")
            cluster.pids.append(cluster.coordinator_pid())
            # The first deployment still keeps all experts.
            subprocess.run([BIN / "moiety", "deploy", "twin", "--full", *flags], check=True, stdout=subprocess.DEVNULL, timeout=60)
            said = subprocess.run([BIN / "moiety", "undeploy", "twin", *flags], text=True, capture_output=True, check=True, timeout=60)
            held = "1 worker with 378 experts (35.44 MiB)"
            self.assertIn(f"the fleet: {held} before, {held} now", said.stdout)

    def test_a_coordinator_that_is_gone_is_not_waited_for_long(self):
        with socket.socket() as closed:  # bound, and nobody listens
            closed.bind(("127.0.0.1", 0))
            began = time.monotonic()
            done = subprocess.run([BIN / "moiety", "drain", "0", "--admin", f"127.0.0.1:{closed.getsockname()[1]}"], text=True,
                                  capture_output=True, timeout=60)
            self.assertEqual(done.returncode, 1)
            self.assertIn("is a cluster running?", done.stderr)
            self.assertLess(time.monotonic() - began, 8)

    def test_a_worker_that_dies_while_nobody_watches_is_missed_afterwards(self):
        with Cluster(BIN, "--workers", "2", "--worker-threads", "1") as cluster:
            worker = cluster.admin_status()["workers"][1]
            supervisor, coordinator = cluster.pids[0], cluster.coordinator_pid()
            os.kill(supervisor, signal.SIGSTOP)  # it starts no other coordinator meanwhile
            try:
                os.kill(coordinator, signal.SIGKILL)
                os.kill(worker["pid"], signal.SIGKILL)
            finally:
                os.kill(supervisor, signal.SIGCONT)
            wait_until(lambda: cluster.coordinator_pid() != coordinator and cluster.answers(), "another coordinator runs")
            cluster.pids.append(cluster.coordinator_pid())

            def back():
                status = cluster.admin_status()
                now = next((w for w in status["workers"] if w["id"] == worker["id"]), None)
                return status["ready"] and now and now["incarnation"] > worker["incarnation"]

            wait_until(back, "the worker was started again")
            self.assertEqual(cluster.complete(NAME, "x", 2)[0], 200)

    def test_a_killed_router_resets_its_own_connections_only(self):
        with Cluster(BIN, "--workers", "2", "--routers", "2", "--worker-threads", "1") as cluster:
            theirs, others = start_streams(cluster.apis[:1], 2), start_streams(cluster.apis[1:], 2)
            victim = next(r for r in cluster.admin_status()["routers"] if r["id"] == 0)
            os.kill(victim["pid"], signal.SIGKILL)
            self.whole(others)
            for stream in theirs:
                stream.join(timeout=20)
                self.assertFalse(stream.is_alive(), "a stream of the dead router hangs")
                self.assertFalse(stream.done)

            def back():
                try:
                    return cluster.complete(NAME, "x", 2, api=cluster.apis[0])[0] == 200
                except OSError:
                    return False

            wait_until(back, "the router serves again at its address")
            again = next(r for r in cluster.admin_status()["routers"] if r["id"] == 0)
            self.assertNotEqual(again["pid"], victim["pid"])
            cluster.pids.append(again["pid"])

    def test_requests_of_a_deployment_that_is_removed_while_their_router_pauses_end(self):
        with Cluster(BIN, "--workers", "4", "--worker-threads", "1") as cluster:
            subset = cluster.run_dir / "red.json"
            write_subset(BIN, subset, seed=5)
            cluster.command("deploy", "red", "--subset", str(subset))
            whole = start_streams([cluster.api], 2, tokens=900)
            red = start_streams([cluster.api], 1, NAME + ":red")
            router = cluster.pids[2]
            os.kill(router, signal.SIGSTOP)
            try:
                cluster.command("undeploy", NAME)  # the router's lease runs out: nobody waits for its requests
            finally:
                os.kill(router, signal.SIGCONT)
            for stream in [*whole, *red]:
                stream.join(timeout=30)
                self.assertFalse(stream.is_alive(), f"a stream hangs after {len(stream.frames)} frames")
            self.assertEqual([stream.failure() for stream in whole], ["not_found"] * 2)
            # What it needs is still there.
            self.assertIsNone(red[0].failure())
            self.assertEqual(red[0].frames[-1]["choices"][0]["finish_reason"], "length")

    def test_an_mpi_world_outlives_a_worker_and_comes_back_when_its_router_dies(self):
        with Cluster(BIN, "--fabric", "mpi", "--workers", "3", "--worker-threads", "1") as cluster:
            status = cluster.admin_status()
            self.assertTrue(status["static_fleet"])
            pids = [w["pid"] for w in status["workers"]] + [r["pid"] for r in status["routers"]]
            expected = cluster.complete(NAME, "<|endoftext|>def f", 24)[1]["choices"][0]["text"]
            os.kill(status["workers"][1]["pid"], signal.SIGKILL)
            # The others stand in; the request waits for that.
            self.assertEqual(cluster.complete(NAME, "x", 2)[0], 200)
            wait_until(lambda: cluster.admin_status()["experts_missing"] == 0, "others stand in")
            cluster.kill_coordinator()
            self.assertEqual(cluster.complete(NAME, "x", 2)[0], 200)

            os.kill(status["routers"][0]["pid"], signal.SIGKILL)

            def back():
                try:
                    status, answer = cluster.complete(NAME, "<|endoftext|>def f", 24)
                except OSError:
                    return None
                return answer if status == 200 else None

            self.assertEqual(wait_until(back, "a new world serves")["choices"][0]["text"], expected)
            wait_until(lambda: len([w for w in cluster.admin_status()["workers"] if w["state"] == "serving"]) == 3, "all workers serve")
            status = cluster.admin_status()
            pids += [w["pid"] for w in status["workers"]] + [r["pid"] for r in status["routers"]]
            cluster.command("down")
            wait_until(lambda: not any(runs(pid) for pid in pids if pid > 1), "everything has ended")
            cluster.command = lambda *words, **flags: {"workers": []}  # there is nothing left to end

    def test_an_mpi_world_comes_back_when_its_workers_cannot_take_the_lost_experts(self):
        with Cluster(BIN, "--fabric", "mpi", "--workers", "1", "--worker-threads", "1") as cluster:
            before = cluster.admin_status()["workers"][0]["pid"]
            os.kill(before, signal.SIGKILL)
            wait_until(lambda: cluster.admin_status()["experts_missing"] > 0, "the loss is seen")
            wait_until(lambda: [w["pid"] for w in cluster.admin_status()["workers"] if w["state"] == "serving"] not in ([], [before]),
                       "a new world serves")

            def answers():
                try:
                    return cluster.complete(NAME, "x", 2)[0] == 200
                except OSError:  # the router comes after the worker
                    return False

            wait_until(answers, "the new world answers")
            events = (cluster.run_dir / "up.log").read_text()
            self.assertIn("cannot take all of their experts; starting it again", events)
            self.assertEqual(events.count("starting it again"), 1, events)

    def test_drain_and_undo(self):
        with Cluster(BIN, "--workers", "3", "--capacity", "63", "--placement", "round_robin", "--worker-threads", "1") as cluster:
            streams = start_streams(cluster.apis, 4, tokens=300)
            done = cluster.command("drain", "1")
            self.assertEqual((done["kind"], done["state"], done["worker"]), ("drain", "succeeded", 1))
            self.whole(streams, 300)
            status = cluster.admin_status()
            self.assertNotIn(1, [w["id"] for w in status["workers"] if w["state"] == "serving"])
            self.assertTrue(status["ready"])
            shown = cluster.command("status", "--admin", cluster.admin, admin=False, check=False).stdout
            self.assertIn("drained", shown)
            cluster.kill_coordinator()
            self.assertTrue(next(w for w in cluster.admin_status()["workers"] if w["id"] == 1)["drained"], "forgotten")
            self.assertEqual(cluster.command("drain", "1", "--undo")["state"], "succeeded")
            missing = cluster.command("drain", "9", "--admin", cluster.admin, admin=False, check=False)
            self.assertEqual(missing.returncode, 1)
            self.assertIn("9", missing.stderr)

    def test_status_can_be_watched(self):
        with Cluster(BIN, "--workers", "1") as cluster:
            watching = subprocess.Popen([BIN / "moiety", "status", "--watch", "--interval", "0.1", "--json", "--admin", cluster.admin],
                                        text=True, stdout=subprocess.PIPE)
            try:
                for _ in range(3):
                    self.assertIn('"epoch"', watching.stdout.readline())
                watching.send_signal(signal.SIGINT)
                watching.stdout.read()
                self.assertEqual(watching.wait(timeout=20), 0)
            finally:
                watching.kill()
                watching.wait()
                watching.stdout.close()


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=2)
