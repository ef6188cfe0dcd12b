#!/usr/bin/env python3
"""A worker is killed, stopped or slow while streams run. usage: worker_loss_test.py BIN_DIR"""
import contextlib
import os
import signal
import socket
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from moiety_cluster import Cluster, Stream, call, metric, wait_until  # noqa: E402

BIN = Path(sys.argv[1]) if len(sys.argv) > 1 else None
NAME = "moiety-tiny-emo"
STREAMS, TOKENS = 8, 400
# Seconds. A worker whose last heartbeat is a second old loses its lease of 3 s two seconds later.
LONGEST_STOP = 1.0
PROMPTS = ["<|endoftext|>def f", "<|endoftext|>Die Datei", [0, 500, 600]]


def start(cluster, i=0, model=NAME):
    stream = Stream(cluster.api, {"model": model, "prompt": [0, 100 + i, 200 + i], "max_tokens": TOKENS, "temperature": 0,
                                  "ignore_eos": True})
    stream.start()
    return stream


def start_streams(cluster, model=NAME):
    streams = [start(cluster, i, model) for i in range(STREAMS)]
    wait_until(lambda: all(len(s.frames) > 5 for s in streams), "all streams have begun")
    return streams


def text(stream):
    return "".join(frame["choices"][0]["text"] for frame in stream.frames if frame.get("choices"))


def slow_down(cluster, pid, streams):
    """While all streams run: stops a worker until others are asked for what it owes, lets it go on until a late answer comes, and again.
    How often others were asked."""

    def count(name):
        return metric(call("GET", cluster.api + "/metrics")[1], f"moiety_{name}_total")

    def run():
        return all(stream.is_alive() for stream in streams)

    asked = 0
    while run():
        hedges, stale = count("hedges"), count("stale_replies")
        deadline = time.monotonic() + LONGEST_STOP
        os.kill(pid, signal.SIGSTOP)
        try:
            while run() and count("hedges") == hedges and time.monotonic() < deadline:
                time.sleep(0.005)
        finally:
            os.kill(pid, signal.SIGCONT)
        if count("hedges") == hedges:
            break
        asked += 1
        wait_until(lambda: not run() or count("stale_replies") > stale, "a late answer comes")
    return asked


class WorkerLoss(unittest.TestCase):
    def check_ended(self, streams):
        """Every stream ended with all its tokens; their texts."""
        for stream in streams:
            stream.join(timeout=60)
            self.assertFalse(stream.is_alive(), "a stream hangs")
            self.assertIsNone(stream.error)
            self.assertTrue(stream.done, stream.frames[-1:])
            self.assertIsNone(stream.failure())
            self.assertEqual(stream.frames[-1]["choices"][0]["finish_reason"], "length")
        return [text(stream) for stream in streams]

    def serves(self, cluster):
        return cluster.complete(NAME, "<|endoftext|>def f", 8)[0] == 200

    def test_streams_outlive_a_killed_worker(self):
        with Cluster(BIN, "--workers", "4", "--worker-threads", "1") as cluster:
            expected = self.check_ended(start_streams(cluster))
            streams = start_streams(cluster)
            victim = cluster.status()["workers"][1]
            os.kill(victim["pid"], signal.SIGKILL)
            self.assertEqual(self.check_ended(streams), expected)
            wait_until(lambda: not cluster.status()["lost"] and self.serves(cluster), "the worker is back")
            again = next(w for w in cluster.status()["workers"] if w["id"] == victim["id"])
            self.assertGreater(again["incarnation"], victim["incarnation"])
            page = call("GET", cluster.api + "/metrics")[1]
            self.assertGreater(metric(page, "moiety_step_retries_total"), 0, "a worker was lost, nobody noticed")
            self.assertEqual(metric(page, "moiety_requests_parked"), 0)

    def test_idle_clients_cost_no_worker_its_life(self):
        # More of them than a router may have descriptors: it still connects to a worker that starts again.
        with Cluster(BIN, "--workers", "2", "--worker-threads", "1", descriptors=200) as cluster:
            address = ("127.0.0.1", int(cluster.api.rsplit(":", 1)[1]))
            with contextlib.ExitStack() as idle:
                for _ in range(260):
                    idle.enter_context(socket.create_connection(address, timeout=5))
                os.kill(cluster.admin_status()["workers"][0]["pid"], signal.SIGKILL)
                wait_until(lambda: cluster.admin_status()["lost"], "the loss is seen")
                back = wait_until(lambda: (status := cluster.admin_status())["ready"] and status, "the worker is back")
                # The router has confirmed that it reaches both.
                wait_until(lambda: cluster.admin_status()["routers"][0]["epoch"] >= back["epoch"], "the router uses it")
                self.assertEqual([w["losses"] for w in cluster.admin_status()["workers"]], [1, 0])
            wait_until(lambda: self.serves(cluster), "there is room for clients again")
            self.assertEqual([w["losses"] for w in cluster.admin_status()["workers"]], [1, 0])

    def test_without_restart_requests_do_what_their_deployment_says(self):
        with Cluster(BIN, "--workers", "4", "--worker-threads", "1", "--no-restart-workers") as cluster:
            cluster.command("deploy", "strict", "--full", "--on-missing", "fail")
            os.kill(cluster.status()["workers"][2]["pid"], signal.SIGKILL)
            lost = wait_until(lambda: cluster.status()["lost"], "the loss is seen")
            self.assertEqual(lost[0]["worker"], 2)
            self.assertIn(NAME, lost[0]["deployments"])
            status, answer = cluster.complete(NAME + ":strict", "<|endoftext|>def f", 64)
            self.assertEqual((status, answer["error"]["code"]), (503, "worker_lost"), answer)
            self.assertIn("worker 2", answer["error"]["message"])
            shown = cluster.command("status", "--admin", cluster.admin, admin=False, check=False).stdout
            self.assertIn("LOST worker 2", shown)
            waiting = start(cluster)
            wait_until(lambda: metric(call("GET", cluster.api + "/metrics")[1], "moiety_requests_parked") == 1, "a request waits")
            # Any change of deployments starts the worker again.
            cluster.command("deploy", "everything", "--full")
            self.check_ended([waiting])
            self.assertTrue(self.serves(cluster))

    def test_a_masked_deployment_goes_on_without_the_experts_of_a_killed_worker(self):
        # No headroom: the others take over what their last free slots hold, and no more.
        with Cluster(BIN, "--workers", "4", "--worker-threads", "1", "--combine", "per_expert", "--no-restart-workers",
                     "--move-headroom", "0") as cluster:
            cluster.command("deploy", "masked", "--full", "--on-missing", "mask")
            masked = NAME + ":masked"

            def answers():
                return [cluster.complete(masked, prompt, 24, ignore_eos=True, logprobs=0) for prompt in PROMPTS]

            whole = answers()
            for status, answer in whole:
                self.assertEqual(status, 200, answer)
                self.assertNotIn("masked_experts", answer["moiety"])
            streams = start_streams(cluster, masked)
            victim = cluster.status()["workers"][2]
            os.kill(victim["pid"], signal.SIGKILL)
            lost = wait_until(lambda: cluster.status()["lost"], "the loss is seen")
            self.check_ended(streams)
            status = wait_until(lambda: (now := cluster.status())["operation"] is None and now, "nothing is under way")
            missing = status["experts_missing"]
            self.assertGreater(missing, lost[0]["experts"] / 2)
            for stream in streams:  # all of them met the kill: an earlier end would prove nothing
                most = stream.frames[-1]["moiety"].get("masked_experts")
                self.assertIsNotNone(most, "a stream ended before the kill")
                self.assertTrue(missing <= most <= lost[0]["experts"], (missing, most, lost))
            without = answers()
            for (status, answer), (_, before) in zip(without, whole):
                self.assertEqual(status, 200, answer)
                self.assertEqual(answer["moiety"]["masked_experts"], missing)
                # A quarter of all experts is gone, and the masked mass says so.
                self.assertGreater(answer["moiety"]["masked_mass"], before["moiety"]["masked_mass"] + 0.01)
            self.assertNotEqual([a["choices"] for _, a in without], [a["choices"] for _, a in whole])
            page = call("GET", cluster.api + "/metrics")[1]
            self.assertGreater(metric(page, "moiety_masked_requests_total"), 0)
            self.assertEqual(metric(page, "moiety_requests_parked"), 0)
            # Any change of deployments starts the worker again: the bits of before, and no flag.
            cluster.command("deploy", "everything", "--full")
            wait_until(lambda: not cluster.status()["lost"], "the worker is back")
            back = answers()
            self.assertEqual([(a["choices"], a["moiety"]) for _, a in back], [(a["choices"], a["moiety"]) for _, a in whole])

    def test_a_stream_of_a_strict_deployment_ends_with_a_typed_error(self):
        with Cluster(BIN, "--workers", "4", "--worker-threads", "1", "--no-restart-workers") as cluster:
            cluster.command("deploy", "strict", "--full", "--on-missing", "fail")
            streams = start_streams(cluster, NAME + ":strict")
            patient = start(cluster)
            wait_until(lambda: len(patient.frames) > 2, "a stream of another deployment has begun")
            os.kill(cluster.status()["workers"][2]["pid"], signal.SIGKILL)
            for stream in streams:
                stream.join(timeout=60)
                self.assertFalse(stream.is_alive(), "a stream hangs")
                self.assertIsNone(stream.error)
                self.assertEqual(stream.failure(), "worker_lost", stream.frames[-1:])
                self.assertIn("worker 2", stream.frames[-1]["error"]["message"])
            self.assertTrue(patient.is_alive(), "a request that may wait was ended too")
            cluster.command("deploy", "everything", "--full")
            self.check_ended([patient])
            status, answer = cluster.complete(NAME + ":strict", "<|endoftext|>def f", 8)
            self.assertEqual(status, 200, answer)

    def test_a_slow_worker_is_hedged_and_gives_no_wrong_bits(self):
        # The floor of its deadline is far above its pauses: it is slow, not lost.
        with Cluster(BIN, "--workers", "4", "--worker-threads", "1", "--combine", "per_expert", "--replicas", "2", "--capacity", "32",
                     "--least-reply-timeout-ms", "5000", "--reply-timeout-ms", "20000") as cluster:
            expected = self.check_ended(start_streams(cluster))
            before = cluster.status()
            won = metric(call("GET", cluster.api + "/metrics")[1], "moiety_hedges_won_total")
            asked = []
            while sum(asked) < 5 and len(asked) < 5:
                streams = start_streams(cluster)
                asked.append(slow_down(cluster, before["workers"][1]["pid"], streams))
                self.assertEqual(self.check_ended(streams), expected)
            self.assertGreaterEqual(sum(asked), 5, f"others were asked in its place, by rounds: {asked}")
            self.assertGreater(metric(call("GET", cluster.api + "/metrics")[1], "moiety_hedges_won_total"), won)
            self.assertEqual([w["pid"] for w in cluster.status()["workers"]], [w["pid"] for w in before["workers"]], "one was replaced")
            self.assertEqual(cluster.status()["counters"]["worker_losses"], 0)
            self.assertEqual(self.check_ended(start_streams(cluster)), expected)

    def test_a_stopped_worker_delays_nobody_for_longer_than_the_time_limit(self):
        with Cluster(BIN, "--workers", "4", "--worker-threads", "1", "--reply-timeout-ms", "1000") as cluster:
            expected = self.check_ended(start_streams(cluster))
            streams = start_streams(cluster)
            victim = cluster.status()["workers"][0]["pid"]
            began = time.monotonic()
            os.kill(victim, signal.SIGSTOP)
            try:
                self.assertEqual(self.check_ended(streams), expected)
                self.assertLess(time.monotonic() - began, 20)
                wait_until(lambda: not cluster.status()["lost"] and self.serves(cluster), "the worker was replaced")
            finally:
                try:
                    os.kill(victim, signal.SIGCONT)  # gone already if it was fenced
                except ProcessLookupError:
                    pass
            self.assertTrue(self.serves(cluster))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=2)
