#!/usr/bin/env python3
"""Four hosts: a coordinator and a router on one, a worker on each of the others. One is cut off, and comes back.
And `containers`: routers that all have the same pid and the same address, each in a container of a host of its own.

usage: netns_test.py BIN_DIR [ucx|mpi|containers]...
Exits 77 where network namespaces are not permitted; with MOIETY_REQUIRE_NETNS=1 that is a failure.
"""
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from moiety_cluster import LAYERS, MODEL, ROUTED, wait_until
from netns_hosts import Hosts

ROUTER_HOST, WORKER_HOSTS, VICTIM = 0, (1, 2, 3), 2
TOKEN = "a secret of this test"
PROMPTS = ["def add(a, b):", "The quick brown fox", "import os\n", "Once upon a time"]


class Fleet:
    """The processes of one cluster on the hosts."""

    def __init__(self, hosts, bin_dir, fabric, folder):
        self.hosts, self.bin, self.fabric, self.folder = hosts, Path(bin_dir), fabric, Path(folder)
        self.here = hosts.address(ROUTER_HOST)
        self.api, self.admin, control = f"http://{self.here}:8000", f"http://{self.here}:8001", f"{self.here}:7700"
        # Three workers hold everything; two can stand in for the third within the headroom.
        self.start(ROUTER_HOST, "coordinator", "--model", MODEL, "--fleet", "static", "--fabric", fabric, "--workers", 3,
                   "--capacity", ROUTED // 3, "--move-headroom", 0.6, "--listen", control, "--admin-host", self.here, "--admin-port", 8001,
                   "--lease-ttl-ms", 1500)
        router = ["--fabric", fabric, "--coordinator", control, "--model", MODEL, "--host", self.here, "--port", 8000,
                  "--combine", "per_expert", "--reply-timeout-ms", 3000]
        worker = ["--fabric", fabric, "--coordinator", control, "--model", MODEL, "--threads", 1]
        if fabric == "mpi":
            self.start_world(router, worker)
        else:
            self.start(ROUTER_HOST, "router", *router)
            for host in WORKER_HOSTS:
                self.start(host, "worker", *worker, "--id", host - 1, "--bind", hosts.address(host))

    def start(self, host, kind, *words):
        self.hosts.start(host, [self.bin / f"moiety-{kind}", *words], self.folder / f"{self.fabric}-{kind}{host}.log",
                         MOIETY_TOKEN=TOKEN)

    def start_world(self, router, worker):
        """One mpirun on the router's host, which enters the other namespaces as it would log in elsewhere."""
        agent = self.folder / "agent.sh"
        names = " ".join(f"{self.hosts.address(i)}) ns={name};;" for i, name in enumerate(self.hosts.names))
        agent.write_text(f"#!/bin/sh\nhost=$1; shift\ncase $host in {names} *) exit 1;; esac\n"
                         'exec ip netns exec "$ns" sh -c "$*"\n')
        agent.chmod(0o755)
        words = ["mpirun", "--enable-recovery", "--oversubscribe", "--bind-to", "none", "-x", "MOIETY_TOKEN"]
        for name, value in {"plm_rsh_agent": agent, "plm_rsh_no_tree_spawn": 1, "pml": "ob1", "btl": "self,tcp",
                            "btl_tcp_if_include": Hosts.SUBNET, "oob_tcp_if_include": Hosts.SUBNET}.items():
            words += ["--mca", name, value]
        for host in (ROUTER_HOST, *WORKER_HOSTS):
            program = [self.bin / "moiety-router", *router] if host == ROUTER_HOST else [
                self.bin / "moiety-worker", *worker, "--id", host - 1, "--bind", self.hosts.address(host)]
            words += ([] if host == ROUTER_HOST else [":"]) + ["-n", 1, "--host", self.hosts.address(host), *program]
        self.hosts.start(ROUTER_HOST, words, self.folder / "mpi-mpirun.log", MOIETY_TOKEN=TOKEN, OMPI_ALLOW_RUN_AS_ROOT="1",
                         OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

    def status(self):
        status, body = self.hosts.call(ROUTER_HOST, "GET", self.admin + "/v1/status", timeout=10, token=TOKEN)
        return body if status == 200 else {"workers": []}

    def serving(self):
        return sorted(w["id"] for w in self.status()["workers"] if w["state"] == "serving")

    def answer(self, prompt):
        """The text of a completion; None where there is none yet."""
        status, body = self.hosts.call(ROUTER_HOST, "POST", self.api + "/v1/completions",
                                       {"model": "moiety-tiny-emo", "prompt": prompt, "max_tokens": 16, "temperature": 0})
        return body["choices"][0]["text"] if status == 200 else None

    def logs(self):
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))


def check(hosts, bin_dir, fabric, folder):
    fleet = Fleet(hosts, bin_dir, fabric, folder)
    try:
        wait_until(lambda: fleet.serving() == [0, 1, 2] and fleet.answer(PROMPTS[0]) is not None, "three workers serve", 60)
        expected = [fleet.answer(prompt) for prompt in PROMPTS]
        assert None not in expected and len(set(expected)) > 1, expected

        hosts.cut(VICTIM)
        cut_at = time.monotonic()
        first = fleet.answer(PROMPTS[1])
        paused = time.monotonic() - cut_at
        assert first == expected[1], f"while a host is cut off: {first!r}, not {expected[1]!r}"
        assert [fleet.answer(prompt) for prompt in PROMPTS] == expected, "answers of the two that are left"
        wait_until(lambda: VICTIM - 1 not in fleet.serving(), "the coordinator knows that a host is cut off")

        hosts.heal(VICTIM)
        healed_at = time.monotonic()
        wait_until(lambda: fleet.serving() == [0, 1, 2], "the host is back", 60)
        print(f"{fabric}: answered {paused:.2f} s after a host was cut off; it served again "
              f"{time.monotonic() - healed_at:.1f} s after it was healed")
        assert [fleet.answer(prompt) for prompt in PROMPTS] == expected, "answers after the host came back"

        # A rank of another host that dies is noticed by the coordinator alone, and ends no other rank.
        os.kill(next(w["pid"] for w in fleet.status()["workers"] if w["id"] == VICTIM), signal.SIGKILL)
        assert [fleet.answer(prompt) for prompt in PROMPTS] == expected, "answers after a process on a host was killed"
        wait_until(lambda: fleet.serving() == [0, 1], "the coordinator knows that a worker was killed")
    except BaseException:
        print(fleet.logs())
        raise
    finally:
        hosts.stop()


def check_containers(hosts, bin_dir, folder):
    """Two routers without an id get one each; a third with the id of one of them ends."""
    def log(host):
        return Path(folder) / f"container{host}.log"

    def start(host, kind, *words, within=()):
        return hosts.start(host, [*within, Path(bin_dir) / f"moiety-{kind}", "--model", MODEL, *words], log(host), MOIETY_TOKEN=TOKEN)

    def start_router(host, *words):
        return start(host, "router", "--coordinator", f"{here}:7700", "--host", "0.0.0.0", "--port", 8000, "--threads", 1, *words,
                     within=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"))

    def connected():
        status, body = hosts.call(0, "GET", f"http://{here}:8001/v1/status", timeout=10, token=TOKEN)
        routers = body["routers"] if status == 200 else []
        return sorted((r["id"], r["pid"], r["http_address"]) for r in routers if r["connected"])

    here = hosts.address(0)
    try:
        start(0, "coordinator", "--fleet", "static", "--workers", 1, "--listen", f"{here}:7700", "--admin-host", here, "--admin-port", 8001,
              "--lease-ttl-ms", 1500)
        # One after the other, so that it is known who is 0. Each is shown where it connects from.
        both = []
        for host in (1, 2):
            start_router(host)
            both.append((host - 1, 1, f"{hosts.address(host)}:8000"))
            wait_until(lambda: connected() == both, f"{both} are connected")
        assert start_router(3, "--id", 0).wait(timeout=30) == 1, "a second router of the same id goes on"
        assert "router 0 is already connected, and its heartbeats come: two processes were given one id" in log(3).read_text()
        assert connected() == both, connected()
        print("containers: fine")
    except BaseException:
        print("\n".join(f"--- {log(host).name}\n{log(host).read_text()[-3000:]}" for host in range(4) if log(host).exists()))
        raise
    finally:
        hosts.stop()


def main():
    why_not = Hosts.why_not()
    if why_not:
        print(f"skipped: network namespaces are not permitted here ({why_not})")
        return 1 if os.environ.get("MOIETY_REQUIRE_NETNS") == "1" else 77
    with tempfile.TemporaryDirectory(prefix="moiety-netns-") as folder:
        for what in sys.argv[2:] or ["ucx", "mpi", "containers"]:
            with Hosts(1 + len(WORKER_HOSTS)) as hosts:
                if what == "containers":
                    check_containers(hosts, sys.argv[1], folder)
                else:
                    check(hosts, sys.argv[1], what, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
