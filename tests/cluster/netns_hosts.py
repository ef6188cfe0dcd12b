"""Hosts as network namespaces of this machine: a switch and some hosts behind it, whose cables can be pulled."""
import json
import os
import subprocess
import sys

# Runs inside a namespace: one HTTP request, its status and body as JSON.
CLIENT = """
import json, sys, urllib.error, urllib.request
method, url, body, timeout, token = json.loads(sys.argv[1])
data = None if body is None else json.dumps(body).encode()
request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
if token:
    request.add_header("Authorization", "Bearer " + token)
try:
    with urllib.request.urlopen(request, timeout=timeout) as response:
        print(json.dumps([response.status, response.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode()]))
except OSError as error:
    print(json.dumps([0, str(error)]))
"""


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)


class Hosts:
    """`count` hosts, 10.213.0.1 and up. Nothing outside their namespaces is touched."""

    SUBNET = "10.213.0.0/24"

    def __init__(self, count):
        self.names = [f"moiety-{os.getpid()}-h{i}" for i in range(count)]
        self.switch = f"moiety-{os.getpid()}-sw"
        self.processes = []
        self.made = []

    @staticmethod
    def why_not():
        """Why namespaces cannot be made here; None where they can."""
        probe = f"moiety-{os.getpid()}-probe"
        try:
            done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, timeout=20)
            if done.returncode != 0:
                return done.stderr.strip() or "ip netns add failed"
            # A container may allow the namespace but no interfaces in it.
            done = subprocess.run(["ip", "-n", probe, "link", "add", "probe0", "type", "veth", "peer", "name", "probe1"],
                                  capture_output=True, text=True, timeout=20)
            subprocess.run(["ip", "netns", "del", probe], capture_output=True, timeout=20)
            return None if done.returncode == 0 else done.stderr.strip()
        except FileNotFoundError:
            return "there is no `ip` (Debian: iproute2)"

    def address(self, host):
        return f"10.213.0.{host + 1}"

    def __enter__(self):
        try:
            self.make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def make(self):
        for name in [self.switch, *self.names]:
            ip("netns", "add", name)
            self.made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for host, name in enumerate(self.names):
            ip("-n", self.switch, "link", "add", f"port{host}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", self.switch, "link", "set", f"port{host}", "master", "br0", "up")
            ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")

    def cut(self, host):
        ip("-n", self.switch, "link", "set", f"port{host}", "down")

    def heal(self, host):
        ip("-n", self.switch, "link", "set", f"port{host}", "up")

    def start(self, host, words, log, **environment):
        """A process on a host; ended with the hosts."""
        with open(log, "a") as out:
            process = subprocess.Popen(["ip", "netns", "exec", self.names[host], *map(str, words)], stdin=subprocess.DEVNULL,
                                       stdout=out, stderr=out, env=dict(os.environ, **environment))
        self.processes.append(process)
        return process

    def call(self, host, method, url, body=None, timeout=60, token=""):
        """(status, JSON or text) of a request made on a host; status 0 where nobody answered."""
        done = subprocess.run(["ip", "netns", "exec", self.names[host], sys.executable, "-c", CLIENT,
                               json.dumps([method, url, body, timeout, token])],
                              capture_output=True, text=True, timeout=timeout + 20, check=True)
        status, text = json.loads(done.stdout)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def stop(self, grace=10):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=grace)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=grace)
        self.processes = []

    def __exit__(self, *exception):
        self.stop()
        for name in self.made:
            # What mpirun started on a host is not our child: it ends with the host.
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, timeout=20).stdout.split()
            for pid in pids:
                try:
                    os.kill(int(pid), 9)
                except ProcessLookupError:
                    pass
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20)
