#!/usr/bin/env python3
"""A worker is killed or stopped while streams run. usage: worker_loss_test.py BIN_DIR"""
import os
import signal
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from moiety_cluster import Cluster, Stream, call, metric, wait_until  # noqa: E402

BIN = Path(sys.argv[1]) if len(sys.argv) > 1 else None
NAME = "moiety-tiny-emo"
STREAMS, TOKENS = 8, 400


def start(cluster, i=0):
    stream = Stream(cluster.api, {"model": NAME, "prompt": [0, 100 + i, 200 + i], "max_tokens": TOKENS, "temperature": 0,
                                  "ignore_eos": True})
    stream.start()
    return stream


def start_streams(cluster):
    streams = [start(cluster, i) for i in range(STREAMS)]
    wait_until(lambda: all(len(s.frames) > 5 for s in streams), "all streams have begun")
    return streams


def text(stream):
    return "".join(frame["choices"][0]["text"] for frame in stream.frames if frame.get("choices"))


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
