#!/usr/bin/env python3
"""`moiety up`: what it refuses, and that nothing of it stays behind. usage: up_test.py BIN_DIR"""
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from moiety_cluster import MODEL, Cluster, Stream, call, wait_until  # noqa: E402

BIN = Path(sys.argv[1]) if len(sys.argv) > 1 else None
NAME = "moiety-tiny-emo"
UP = ["up", "-m", str(MODEL), "--workers", "2", "--worker-threads", "1", "--json"]
FREE_PORTS = ["--port", "0", "--admin-port", "0"]


def runs(pid):
    """Whether a process is there and not a zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def start_streams(api, count=8):
    streams = [Stream(api, {"model": NAME, "prompt": [0, 100 + i], "max_tokens": 1000, "temperature": 0, "ignore_eos": True})
               for i in range(count)]
    for stream in streams:
        stream.start()
    wait_until(lambda: all(len(s.frames) > 2 for s in streams), "all streams have begun")
    return streams


class Foreground:
    """`moiety up` without --detach, and the pids of everything that it started."""

    def __init__(self, run_dir, *flags):
        self.start([*FREE_PORTS, "--run-dir", run_dir, *flags], dict(os.environ))

    def start(self, flags, environment):
        self.errors = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen([BIN / "moiety", *UP, *flags], text=True, env=environment,
                                        stdout=subprocess.PIPE, stderr=self.errors)
        started = json.loads(self.process.stdout.readline())
        self.api, self.admin = started["api"], started["admin"]
        workers = call("GET", started["admin"] + "/v1/status")[1]["workers"]
        self.children = [started["coordinator_pid"], started["router_pid"]] + [w["pid"] for w in workers]
        assert all(pid > 1 for pid in self.children), self.children  # they are killed: 0 is our own group

    def said(self):
        """All of its standard error so far."""
        self.errors.seek(0)
        return self.errors.read()

    def down(self):
        """Ends it in order."""
        subprocess.run([BIN / "moiety", "down", "--admin", self.admin], check=True, timeout=60, stdout=subprocess.DEVNULL)
        assert self.process.wait(timeout=20) == 0, self.said()

    def deployments(self):
        return sorted(d["served_as"] for d in call("GET", self.admin + "/v1/deployments")[1]["deployments"])

    def kill_all(self):
        """As when the machine goes down, except that the order is ours."""
        self.process.kill()
        for pid in self.children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # it ended because `up` did
                pass
        self.process.wait(timeout=20)
        wait_until(lambda: not self.alive(), "everything has ended")

    def alive(self):
        return [pid for pid in self.children if runs(pid)]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait(timeout=20)
        self.process.stdout.close()
        self.errors.close()


class WithoutRunDir(Foreground):
    """The same, whose folder is the one that it finds below the temporary folder by its admin port."""

    def __init__(self, temporary, admin_port):
        self.start(["--port", "0", "--admin-port", admin_port], dict(os.environ, TMPDIR=str(temporary)))


def deploy_a(admin):
    """The full model once more, as NAME:a."""
    subprocess.run([BIN / "moiety", "deploy", "a", "--full", "--admin", admin], check=True, timeout=60, stdout=subprocess.DEVNULL)


class UpTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="moiety-test-")
        self.addCleanup(folder.cleanup)
        self.dir = Path(folder.name)

    def free_port(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            return str(free.getsockname()[1])

    def fails(self, *words, **environment):
        """The one line that a failing `moiety up` writes."""
        done = subprocess.run([BIN / "moiety", *UP, *words], text=True, capture_output=True, timeout=120,
                              env=dict(os.environ, **environment))
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        return done.stderr

    def test_a_second_up_leaves_the_first_alone(self):
        with Cluster(BIN, "--workers", "1") as cluster:
            files = {name: (cluster.run_dir / name).read_text()
                     for name in ("coordinator.json", "coordinator.log", "router.log", "worker-0.log")}
            said = self.fails(*FREE_PORTS, "--run-dir", str(cluster.run_dir))
            self.assertIn(f"pid {cluster.coordinator_pid()}", said)
            self.assertIn(f"moiety down --admin {cluster.admin}", said)
            self.assertIn("--run-dir", said)
            for name, content in files.items():
                self.assertTrue((cluster.run_dir / name).read_text().startswith(content), name)
            self.assertEqual(cluster.complete(NAME, "x", 2)[0], 200)

    def test_a_killed_cluster_goes_on_where_it_was(self):
        with Foreground(self.dir) as first:
            deploy_a(first.admin)
            deployed = first.deployments()
            self.assertEqual(deployed, [NAME, f"{NAME}:a"])
            first.kill_all()
        log = (self.dir / "coordinator.log").read_text()
        with Foreground(self.dir) as again:
            self.assertEqual(again.deployments(), deployed)
            self.assertEqual(call("POST", again.api + "/v1/completions", {"model": f"{NAME}:a", "prompt": "x", "max_tokens": 2})[0], 200)
            self.assertTrue((self.dir / "coordinator.log").read_text().startswith(log))
            again.kill_all()

    def test_a_cluster_that_ended_in_order_goes_on_in_a_named_folder(self):
        with Foreground(self.dir) as first:
            deploy_a(first.admin)
            first.down()
        with Foreground(self.dir, "--no-full") as again:  # what to begin with is not looked at, and it says so
            self.assertEqual(again.deployments(), [NAME, f"{NAME}:a"])
            again.down()
            self.assertIn("goes on with", again.said())
            self.assertIn("--fresh", again.said())
        with Foreground(self.dir, "--fresh") as fresh:
            self.assertEqual(fresh.deployments(), [NAME])
            fresh.down()
            self.assertEqual(fresh.said(), "")

    def test_without_a_named_folder_only_a_killed_cluster_goes_on(self):
        port = self.free_port()
        with WithoutRunDir(self.dir, port) as first:
            deploy_a(first.admin)
            first.kill_all()
        with WithoutRunDir(self.dir, port) as again:
            self.assertEqual(again.deployments(), [NAME, f"{NAME}:a"])
            again.down()
        with WithoutRunDir(self.dir, port) as anew:
            self.assertEqual(anew.deployments(), [NAME])
            anew.down()

    def up_detached(self, *flags):
        """What `moiety up -d` says; all of it is ended with the test."""
        done = subprocess.run([BIN / "moiety", *UP, "-d", "--run-dir", str(self.dir), *flags], text=True,
                              capture_output=True, timeout=120)
        if done.returncode == 0:
            started = json.loads(done.stdout)
            self.addCleanup(self.end, [started["supervisor_pid"], started["coordinator_pid"], *started["router_pids"]] +
                            [w["pid"] for w in call("GET", started["admin"] + "/v1/status")[1]["workers"]])
        return done

    def end(self, pids):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def test_a_killed_detached_cluster_goes_on_at_its_ports(self):
        ports = ["--port", self.free_port(), "--admin-port", self.free_port()]
        first = json.loads(self.up_detached(*ports).stdout)
        deploy_a(first["admin"])
        for pid in (first["supervisor_pid"], first["coordinator_pid"]):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not runs(first["coordinator_pid"]), "the coordinator has ended")
        self.assertTrue(runs(first["router_pid"]))  # and has the port
        again = self.up_detached(*ports)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertIn(f"ended the router (pid {first['router_pid']})", again.stderr)
        self.assertFalse(runs(first["router_pid"]))
        again = json.loads(again.stdout)
        self.assertEqual(again["api"], first["api"])
        self.assertEqual(call("POST", again["api"] + "/v1/completions", {"model": f"{NAME}:a", "prompt": "x", "max_tokens": 2})[0], 200)
        subprocess.run([BIN / "moiety", "down", "--admin", again["admin"]], check=True, timeout=60, stdout=subprocess.DEVNULL)
        wait_until(lambda: not runs(again["supervisor_pid"]) and not runs(again["router_pid"]), "everything has ended")

    def test_fresh_ends_what_a_killed_cluster_left(self):
        first = json.loads(self.up_detached(*FREE_PORTS).stdout)
        workers = [w["pid"] for w in call("GET", first["admin"] + "/v1/status")[1]["workers"]]
        for pid in (first["supervisor_pid"], first["coordinator_pid"]):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not runs(first["coordinator_pid"]), "the coordinator has ended")
        left = [first["router_pid"], *workers]
        self.assertEqual([pid for pid in left if runs(pid)], left)
        fresh = self.up_detached(*FREE_PORTS, "--fresh")
        self.assertEqual(fresh.returncode, 0, fresh.stderr)
        self.assertEqual([pid for pid in left if runs(pid)], [])
        for name, pid in zip(("the router", "worker 0", "worker 1"), left):
            self.assertIn(f"ended {name} (pid {pid})", fresh.stderr)

    def test_segments_of_killed_mpi_worlds_are_removed(self):
        def started():
            up = json.loads(self.up_detached(*FREE_PORTS, "--fabric", "mpi").stdout)
            left = json.loads((self.dir / "processes.json").read_text())
            return up, left["processes"][0]["pid"], Path(left["segments"])

        first, mpirun, folder = started()
        segments = set(folder.iterdir())
        self.assertEqual(len(segments), 3)  # a router and two workers
        os.kill(mpirun, signal.SIGKILL)
        wait_until(lambda: len(set(folder.iterdir()) - segments) == 3, "another world runs")
        self.assertEqual(set(folder.iterdir()) & segments, set())
        mpirun = json.loads((self.dir / "processes.json").read_text())["processes"][0]["pid"]
        self.end([first["supervisor_pid"], first["coordinator_pid"], mpirun])
        wait_until(lambda: not runs(first["coordinator_pid"]), "the coordinator has ended")

        again, _, other = started()
        self.assertFalse(folder.exists())
        self.assertTrue(other.exists())
        subprocess.run([BIN / "moiety", "down", "--admin", again["admin"]], check=True, timeout=60, stdout=subprocess.DEVNULL)
        wait_until(lambda: not runs(again["supervisor_pid"]), "everything has ended")
        self.assertFalse(other.exists())

    def test_an_mpi_world_that_is_told_to_end_is_not_started_again(self):
        up = json.loads(self.up_detached(*FREE_PORTS, "--fabric", "mpi").stdout)
        worker = call("GET", up["admin"] + "/v1/status")[1]["workers"][0]["pid"]
        os.kill(worker, signal.SIGSTOP)  # so that the coordinator is there for longer than the router
        call("POST", up["admin"] + "/v1/shutdown")
        wait_until(lambda: not runs(up["router_pid"]), "the router has ended")
        wait_until(lambda: not runs(up["coordinator_pid"]), "the coordinator has ended")
        os.kill(worker, signal.SIGCONT)
        wait_until(lambda: not runs(up["supervisor_pid"]), "everything has ended")
        self.assertNotIn("again", (self.dir / "up.log").read_text())

    def test_of_two_at_once_one_goes_away_and_leaves_the_other_its_state(self):
        flags = [*UP, *FREE_PORTS, "-d", "--fresh", "--run-dir", str(self.dir)]
        both = [subprocess.Popen([BIN / "moiety", *flags], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
        said = [each.communicate(timeout=120) for each in both]
        started = [json.loads(out) for out, _ in said if out]
        for each in started:
            self.addCleanup(self.end, [each["supervisor_pid"], each["coordinator_pid"], *each["router_pids"]] +
                            [w["pid"] for w in call("GET", each["admin"] + "/v1/status")[1]["workers"]])
        self.assertEqual(sorted(each.returncode for each in both), [0, 1], said)
        self.assertIn("a cluster runs here", "".join(error for _, error in said))
        files = subprocess.run(["ls", "-l", f"/proc/{started[0]['coordinator_pid']}/fd"], text=True, capture_output=True).stdout
        self.assertIn("state.sqlite", files)
        self.assertNotIn("(deleted)", files)
        subprocess.run([BIN / "moiety", "down", "--admin", started[0]["admin"]], check=True, timeout=60, stdout=subprocess.DEVNULL)

    def test_a_state_that_a_coordinator_uses_is_not_deleted(self):
        # As while a coordinator starts: it has its state and has not said yet where it is.
        for run, flags in ((self.dir / "named", ["--fresh", "--run-dir", str(self.dir / "named")]),
                           (self.dir / f"moiety-{os.getuid()}-18002", ["--admin-port", "18002"])):
            run.mkdir(mode=0o700)
            (run / "state.sqlite").touch()
            with open(run / "state.sqlite.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self.assertIn("a coordinator uses", self.fails("--port", "0", *flags, TMPDIR=str(self.dir)))
                self.assertTrue((run / "state.sqlite").exists())

    def test_a_start_that_fails_keeps_the_state_of_a_killed_cluster(self):
        port = self.free_port()
        with WithoutRunDir(self.dir, port) as first:
            deploy_a(first.admin)
            first.kill_all()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            for _ in range(2):
                done = subprocess.run([BIN / "moiety", *UP, "--admin-port", port, "--port", str(taken.getsockname()[1])], text=True,
                                      capture_output=True, timeout=120, env=dict(os.environ, TMPDIR=str(self.dir)))
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertIn("cannot listen on", done.stderr)
        with WithoutRunDir(self.dir, port) as again:
            self.assertEqual(again.deployments(), [NAME, f"{NAME}:a"])
            again.down()

    def test_an_ipv6_address(self):
        if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
            self.skipTest("this machine has no IPv6")
        with Foreground(self.dir, "--host", "::1") as up:
            self.assertRegex(up.api, r"^http://\[::1\]:\d+$")
            self.assertEqual(call("POST", up.api + "/v1/completions", {"model": NAME, "prompt": "x", "max_tokens": 2})[0], 200)
            up.down()

    def test_a_change_that_nobody_confirms_is_named(self):
        asked = []

        def hears_and_dies(listener):
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed: the test is over
                    return
                with connection:
                    asked.append(connection.recv(65536).decode())
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset

        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = threading.Thread(target=hears_and_dies, args=(listener,), daemon=True)
            server.start()
            done = subprocess.run([BIN / "moiety", "deploy", "a", "--full", "--admin",
                                   f"http://127.0.0.1:{listener.getsockname()[1]}"], text=True, capture_output=True, timeout=60)
            listener.shutdown(socket.SHUT_RDWR)
            server.join(timeout=10)
        self.assertEqual(done.returncode, 1)
        ids = {re.search(r"operation_id=([^ &]+)", each).group(1) for each in asked}
        self.assertEqual(len(ids), 1, "asked again under another name")
        self.assertIn(f"operation {ids.pop()}", done.stderr)
        self.assertIn("moiety status", done.stderr)

    def test_what_dies_again_and_again_ends_the_cluster(self):
        with Foreground(self.dir) as up:
            # Started again, the coordinator finds a state file that it cannot use.
            state = self.dir / "state.sqlite"
            os.kill(up.children[0], signal.SIGSTOP)  # so that it does not write
            state.with_name(state.name + "-wal").unlink()
            state.write_bytes(b"x" * 8192)
            os.kill(up.children[0], signal.SIGKILL)
            self.assertEqual(up.process.wait(timeout=60), 1)
            self.assertEqual(up.alive(), [], "the router or a worker goes on")
            self.assertIn("damaged", (self.dir / "coordinator.log").read_text())

    def test_an_empty_token_is_no_token(self):
        os.environ["MOIETY_TOKEN"] = ""
        self.addCleanup(os.environ.pop, "MOIETY_TOKEN")
        with Cluster(BIN, "--workers", "1") as cluster:
            self.assertEqual(cluster.complete(NAME, "x", 2)[0], 200)

    def test_nothing_outlives_a_foreground_up(self):
        for signals, status in (([signal.SIGHUP], 0), ([signal.SIGKILL], -signal.SIGKILL), ([signal.SIGTERM], 0)):
            with self.subTest(signals), Foreground(self.dir / str(signals[0])) as up:
                self.assertEqual(len(up.alive()), 4)
                for each in signals:
                    up.process.send_signal(each)
                self.assertEqual(up.process.wait(timeout=20), status)
                wait_until(lambda: not up.alive(), "everything has ended", timeout=20)
                log = (self.dir / str(signals[0]) / "coordinator.log").read_text()
                self.assertEqual(log.count("control channel on"), 1, "a coordinator was started again")

    def test_nothing_outlives_a_second_ctrl_c(self):
        with Foreground(self.dir) as up:
            streams = start_streams(up.api)  # they keep the router from ending at once
            up.process.send_signal(signal.SIGINT)
            log = self.dir / "coordinator.log"
            wait_until(lambda: "shutting down" in log.read_text(), "the first Ctrl-C has arrived")
            up.process.send_signal(signal.SIGINT)
            self.assertIn(up.process.wait(timeout=20), (0, 130))  # 0: all had ended before the second
            wait_until(lambda: not up.alive(), "everything has ended", timeout=20)
            for stream in streams:
                stream.join(timeout=20)
                self.assertFalse(stream.is_alive(), "a stream hangs")

    def test_ctrl_c_leaves_an_undeploy_to_the_coordinator(self):
        with Cluster(BIN, "--workers", "2", "--worker-threads", "1") as cluster:
            streams = start_streams(cluster.api)
            terminal, theirs = pty.openpty()
            self.addCleanup(os.close, terminal)
            undeploy = subprocess.Popen([BIN / "moiety", "undeploy", NAME, "--admin", cluster.admin],
                                        stdout=subprocess.DEVNULL, stderr=theirs)
            os.close(theirs)
            shown = b""

            def read_terminal():
                nonlocal shown
                if select.select([terminal], [], [], 0)[0]:
                    try:
                        shown += os.read(terminal, 4096)
                    except OSError:  # closed at the other end
                        pass
                return shown.decode()

            try:
                wait_until(lambda: f"running requests of {NAME}" in read_terminal(), "the progress shows what it waits for")
                undeploy.send_signal(signal.SIGINT)
                began = time.monotonic()
                self.assertEqual(undeploy.wait(timeout=20), 130)
                self.assertLess(time.monotonic() - began, 5)
            finally:
                undeploy.kill()
                undeploy.wait(timeout=20)
            wait_until(lambda: "moiety: interrupted; the change goes on" in read_terminal(), "it says so")
            for stream in streams:
                stream.join(timeout=60)
                self.assertIsNone(stream.failure())
            wait_until(lambda: not cluster.status()["deployments"], "the undeploy went on")

    def test_a_failed_change_is_an_error(self):
        with Cluster(BIN, "--workers", "1") as cluster:
            self.assertEqual(cluster.command("deploy", "a", "--full")["state"], "succeeded")
            done = cluster.command("deploy", "a", "--full", "--admin", cluster.admin, admin=False, check=False)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn(f"{NAME}:a is deployed already", done.stderr)
            self.assertEqual(cluster.command("undeploy", "a")["kind"], "undeploy")

    def test_taken_ports_are_named(self):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = str(other.getsockname()[1])
            for run, flags in (("api", ["--port", port, "--admin-port", "0"]), ("admin", ["--port", "0", "--admin-port", port])):
                # Also into the logs of an earlier run: only the new line is shown.
                for _ in range(2):
                    said = self.fails(*flags, "--run-dir", str(self.dir / run))
                    self.assertIn(f"127.0.0.1:{port}", said)
                    self.assertIn(flags[0] if run == "api" else flags[2], said)
                    self.assertFalse((self.dir / run / "coordinator.json").exists(), "the coordinator goes on")
                    self.assertFalse((self.dir / run / "state.sqlite").exists(), "what never served would be gone on with")

    def test_a_folder_that_others_can_write_to_is_refused(self):
        for kind in ("link", "open"):
            temporary = self.dir / kind
            temporary.mkdir()
            target = temporary / f"moiety-{os.getuid()}-18001"
            if kind == "link":
                target.symlink_to(self.dir)
            else:
                target.mkdir()
                target.chmod(0o777)
            said = self.fails("--port", "0", "--admin-port", "18001", TMPDIR=str(temporary))
            self.assertIn(str(target), said)
            self.assertIn("--run-dir", said)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=2)
