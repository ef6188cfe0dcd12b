#!/usr/bin/env python3
"""A mixed fleet: every router holds some experts itself, workers the rest. usage: mixed_fleet_test.py BIN_DIR"""
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from moiety_cluster import LAYERS, ROUTED, Cluster, Server, Stream, call, metric, wait_until, write_subset  # noqa: E402

BIN = Path(sys.argv[1]) if len(sys.argv) > 1 else None
NAME = "moiety-tiny-emo"
EXPERT_BYTES = 3 * 64 * 256 * 2
BUDGET = 8 * 2**20
HERE = BUDGET // EXPERT_BYTES
PROMPTS = ["<|endoftext|>def main():\n    ", [0, 500, 600, 700]]


def ask(api, model, prompt, max_tokens=12):
    """Text and log-probabilities, as far as they say which bits were computed."""
    status, answer = call("POST", api + "/v1/completions", {
        "model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "logprobs": 3})
    assert status == 200, answer
    choice = answer["choices"][0]
    return choice["text"], choice["logprobs"], answer["moiety"]["masked_mass"]


def start_streams(api, model, count=3, tokens=250):
    streams = [Stream(api, {"model": model, "prompt": [0, 100 + i], "max_tokens": tokens, "temperature": 0, "ignore_eos": True})
               for i in range(count)]
    for stream in streams:
        stream.start()
    wait_until(lambda: all(len(s.frames) > 2 or not s.is_alive() for s in streams), "all streams have begun")
    return streams


class MixedFleetTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="moiety-test-")
        cls.subset = Path(cls.folder.name) / "a.json"
        cls.kept = [layer[:-1] for layer in write_subset(BIN, cls.subset, 1)]  # the last one is shared
        # What one process answers.
        with Server(BIN, "--deploy", f"a={cls.subset}") as server:
            cls.expected = {(model, i): ask(server.url, model, prompt)
                            for model in (NAME, NAME + ":a") for i, prompt in enumerate(PROMPTS)}
            cls.streamed = []
            for stream in start_streams(server.url, NAME):
                stream.join(timeout=60)
                cls.streamed.append(stream.text())
            assert server.metric("moiety_router_experts_resident") == LAYERS * ROUTED

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def same_bits(self, api, *models):
        for model in models:
            for i, prompt in enumerate(PROMPTS):
                self.assertEqual(ask(api, model, prompt), self.expected[model, i], (model, i))

    def same_streams(self, streams):
        for stream, text in zip(streams, self.streamed):
            stream.join(timeout=60)
            self.assertTrue(stream.done, (stream.error, stream.frames[-1:]))
            self.assertIsNone(stream.failure())
            self.assertEqual(stream.text(), text)

    def placed_once(self, cluster, needed):
        """Every needed expert is on the routers or on a worker, and none on both. Gives those on the routers, per layer."""
        placement = call("GET", cluster.admin + "/v1/placement")[1]
        here = placement["router_experts"]
        for layer in range(LAYERS):
            on_workers = {e for e, owners in enumerate(placement["layers"][layer]) if owners}
            self.assertFalse(on_workers & set(here[layer]), layer)
            self.assertEqual(on_workers | set(here[layer]), set(needed[layer]), layer)
        return here

    def held_as_placed(self, cluster, here, needed):
        """What status and metrics say of memory: of the routers, and of the workers, by their own word."""
        count, total = sum(map(len, here)), sum(map(len, needed))
        wait_until(lambda: all(r["experts_resident"] == count for r in cluster.admin_status()["routers"]),
                   "the routers have dropped the others")
        status = cluster.admin_status()
        self.assertEqual(status["router_experts"], count)
        self.assertEqual([r["bytes_resident"] for r in status["routers"]], [count * EXPERT_BYTES] * len(cluster.apis))
        self.assertEqual(sum(g["on_routers"] for g in status["groups"]), count)
        page = call("GET", cluster.api + "/metrics")[1]
        self.assertEqual(metric(page, "moiety_router_experts_resident"), count)
        self.assertEqual(metric(page, "moiety_router_expert_bytes_resident"), count * EXPERT_BYTES)
        page = call("GET", cluster.admin + "/metrics")[1]
        self.assertEqual(metric(page, "moiety_router_experts"), count)
        self.assertEqual(metric(page, "moiety_router_expert_bytes"), count * EXPERT_BYTES * len(cluster.apis))
        wait_until(lambda: cluster.worker_metric("moiety_expert_bytes_resident") == (total - count) * EXPERT_BYTES,
                   "workers hold the rest and no more")

    def test_one_process_answers_the_same_whatever_moves_or_dies(self):
        full = [range(ROUTED)] * LAYERS
        with Cluster(BIN, "--workers", "2", "--worker-threads", "1", "--combine", "per_expert", "--router-expert-bytes", str(BUDGET),
                     "--micro-batches", "2", "--least-reply-timeout-ms", "700", "--hedge-after-ms", "30") as cluster:
            here = self.placed_once(cluster, full)
            self.assertEqual(sum(map(len, here)), HERE)
            self.assertLessEqual(max(map(len, here)) - min(map(len, here)), 1, "layers have unequal shares")
            self.held_as_placed(cluster, here, full)
            self.same_bits(cluster.api, NAME)
            words = Path(f"/proc/{cluster.admin_status()['routers'][0]['pid']}/cmdline").read_text().split("\0")
            for flag, value in (("--micro-batches", "2"), ("--least-reply-timeout-ms", "700"), ("--hedge-after-ms", "30")):
                self.assertEqual(words[words.index(flag) + 1], value)

            # What two deployments keep goes to the router, what it held goes to workers: under load, and nobody notices.
            streams = start_streams(cluster.api, NAME)
            cluster.command("deploy", "a", "--subset", str(self.subset))
            moved = self.placed_once(cluster, full)
            for layer in range(LAYERS):
                self.assertLessEqual(set(moved[layer]), set(self.kept[layer]))
            self.assertNotEqual(moved, here)
            self.same_bits(cluster.api, NAME, NAME + ":a")
            self.same_streams(streams)
            self.held_as_placed(cluster, moved, full)

            streams = start_streams(cluster.api, NAME)
            cluster.command("undeploy", "a")
            self.same_streams(streams)
            self.assertEqual(self.placed_once(cluster, full), here)
            cluster.command("deploy", "a", "--subset", str(self.subset))

            # A router that is killed comes back with its experts.
            victim = cluster.admin_status()["routers"][0]["pid"]
            os.kill(victim, signal.SIGKILL)

            def back():
                try:
                    return call("GET", cluster.api + "/ready")[0] == 200
                except OSError:
                    return False

            wait_until(lambda: back() and cluster.admin_status()["routers"][0]["pid"] != victim, "the router is back")
            cluster.pids.append(cluster.admin_status()["routers"][0]["pid"])
            self.same_bits(cluster.api, NAME, NAME + ":a")
            self.held_as_placed(cluster, moved, full)

            # So do a worker, and a coordinator, which knows what routers hold.
            os.kill(cluster.admin_status()["workers"][0]["pid"], signal.SIGKILL)
            self.same_bits(cluster.api, NAME, NAME + ":a")
            cluster.kill_coordinator()
            self.assertEqual(self.placed_once(cluster, full), moved)
            self.same_bits(cluster.api, NAME)
            cluster.command("undeploy", NAME)
            self.held_as_placed(cluster, self.placed_once(cluster, self.kept), self.kept)
            self.same_bits(cluster.api, NAME + ":a")
            page = call("GET", cluster.api + "/metrics")[1]
            self.assertGreater(metric(page, "moiety_local_expert_pairs_total"), 100)
            self.assertGreater(metric(page, "moiety_dispatches_total"), 100)

    def test_over_mpi_too(self):
        full = [range(ROUTED)] * LAYERS
        with Cluster(BIN, "--fabric", "mpi", "--workers", "2", "--routers", "2", "--worker-threads", "1", "--combine", "per_expert",
                     "--router-expert-bytes", str(BUDGET)) as cluster:
            here = self.placed_once(cluster, full)
            self.assertEqual(sum(map(len, here)), HERE)
            for api in cluster.apis:
                self.same_bits(api, NAME)
            streams = start_streams(cluster.apis[1], NAME)
            cluster.command("deploy", "a", "--subset", str(self.subset))
            moved = self.placed_once(cluster, full)
            self.assertNotEqual(moved, here)
            self.same_streams(streams)
            self.held_as_placed(cluster, moved, full)
            for api in cluster.apis:
                self.same_bits(api, NAME, NAME + ":a")
                page = call("GET", api + "/metrics")[1]
                self.assertGreater(metric(page, "moiety_local_expert_pairs_total"), 100)
                self.assertGreater(metric(page, "moiety_dispatches_total"), 100)
            cluster.command("undeploy", NAME)
            self.held_as_placed(cluster, self.placed_once(cluster, self.kept), self.kept)
            self.same_bits(cluster.api, NAME + ":a")

    def test_routers_that_hold_everything_need_no_worker(self):
        with Server(BIN, "--expert-dtype", "int8") as server:
            expected = [ask(server.url, NAME, prompt) for prompt in PROMPTS]
        with Cluster(BIN, "--workers", "2", "--routers", "2", "--expert-dtype", "int8", "--router-expert-bytes", "1g",
                     "--micro-batches", "1") as cluster:
            for api in cluster.apis:
                self.assertEqual([ask(api, NAME, prompt) for prompt in PROMPTS], expected)
            wait_until(lambda: [r["experts_resident"] for r in cluster.admin_status()["routers"]] == [LAYERS * ROUTED] * 2, "all held")
            status = cluster.admin_status()
            self.assertEqual((status["fleet"]["workers_running"], status["experts_missing"], status["ready"]), (0, 0, True))
            # A byte for each value, and a scale for each of 64 + 64 + 256 output channels.
            scales = LAYERS * ROUTED * 4 * (64 + 64 + 256)
            for router in status["routers"]:
                self.assertEqual(router["bytes_resident"], LAYERS * ROUTED * EXPERT_BYTES // 2 + scales)
            streams = start_streams(cluster.apis[1], NAME)
            cluster.command("deploy", "a", "--subset", str(self.subset))
            cluster.command("undeploy", NAME)
            for stream in streams:
                stream.join(timeout=60)
                self.assertTrue(stream.done, stream.error)
            self.assertEqual(ask(cluster.api, NAME + ":a", PROMPTS[0])[0], ask(cluster.apis[1], NAME + ":a", PROMPTS[0])[0])
            wait_until(lambda: [r["experts_resident"] for r in cluster.admin_status()["routers"]] == [sum(map(len, self.kept))] * 2,
                       "what nobody needs is dropped")
            shown = subprocess.run([cluster.moiety, "status", "--admin", cluster.admin], text=True, capture_output=True, check=True,
                                   timeout=60).stdout
            self.assertIn(f"every router holds {sum(map(len, self.kept))} experts itself, within 1.00 GiB", shown)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=2)
