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


def start_streams(cluster):
    streams = [Stream(cluster.api, {"model": NAME, "prompt": [0, 100 + i, 200 + i], "max_tokens": TOKENS, "temperature": 0,
                                    "ignore_eos": True}) for i in range(STREAMS)]
    for stream in streams:
        stream.start()
    wait_until(lambda: all(len(s.frames) > 5 for s in streams), "all streams have begun")
    return streams


class WorkerLoss(unittest.TestCase):
    def check_ended(self, streams):
        """Every stream ended with its tokens or a typed error, within its deadline."""
        lost = 0
        for stream in streams:
            stream.join(timeout=60)
            self.assertFalse(stream.is_alive(), "a stream hangs")
            self.assertIsNone(stream.error)
            self.assertTrue(stream.done, stream.frames[-1:])
            if stream.failure():
                self.assertEqual(stream.failure(), "worker_lost")
                lost += 1
            else:
                self.assertEqual(stream.frames[-1]["choices"][0]["finish_reason"], "length")
        return lost

    def serves(self, cluster):
        return cluster.complete(NAME, "<|endoftext|>def f", 8)[0] == 200

    def test_a_killed_worker_ends_its_requests_and_comes_back(self):
        with Cluster(BIN, "--workers", "4", "--worker-threads", "1") as cluster:
            expected = cluster.complete(NAME, "<|endoftext|>def f", 24)[1]["choices"][0]["text"]
            streams = start_streams(cluster)
            victim = cluster.status()["workers"][1]
            os.kill(victim["pid"], signal.SIGKILL)
            self.assertGreater(self.check_ended(streams), 0, "a worker of the full model was lost, nobody noticed")
            wait_until(lambda: not cluster.status()["lost"] and self.serves(cluster), "the worker is back")
            again = next(w for w in cluster.status()["workers"] if w["id"] == victim["id"])
            self.assertGreater(again["incarnation"], victim["incarnation"])
            self.assertEqual(cluster.complete(NAME, "<|endoftext|>def f", 24)[1]["choices"][0]["text"], expected)
            self.assertEqual(self.check_ended(start_streams(cluster)), 0)

    def test_without_restart_the_loss_is_told_and_the_next_deploy_serves_again(self):
        with Cluster(BIN, "--workers", "4", "--worker-threads", "1", "--no-restart-workers") as cluster:
            os.kill(cluster.status()["workers"][2]["pid"], signal.SIGKILL)
            lost = wait_until(lambda: cluster.status()["lost"], "the loss is seen")
            self.assertEqual((lost[0]["worker"], lost[0]["deployments"]), (2, [NAME]))
            status, answer = cluster.complete(NAME, "<|endoftext|>def f", 64)
            self.assertEqual((status, answer["error"]["code"]), (503, "worker_lost"), answer)
            self.assertIn("worker 2", answer["error"]["message"])
            shown = cluster.command("status", "--admin", cluster.admin, admin=False, check=False).stdout
            self.assertIn("LOST worker 2", shown)
            # Any change of deployments starts the worker again.
            cluster.command("deploy", "everything", "--full")
            wait_until(lambda: not cluster.status()["lost"] and self.serves(cluster), "the worker is back")

    def test_a_stopped_worker_delays_nobody_for_longer_than_the_time_limit(self):
        with Cluster(BIN, "--workers", "4", "--worker-threads", "1", "--reply-timeout-ms", "1000") as cluster:
            streams = start_streams(cluster)
            victim = cluster.status()["workers"][0]["pid"]
            began = time.monotonic()
            os.kill(victim, signal.SIGSTOP)
            try:
                self.assertGreater(self.check_ended(streams), 0)
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
