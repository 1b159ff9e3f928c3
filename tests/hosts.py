# SPDX-License-Identifier: Apache-2.0
"""Hosts of a job on one machine: namespaces of their own for network, processes, memory and name.

They are joined by a cable that can be cut. Shared memory, process ids, host names and, where a test
wants it, folders are private, as between real machines.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from jobs import Job

NETWORK = "10.77.0"
INIT = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
open(sys.argv[1], "w").close()
while True:
    signal.pause()
"""
SETUP = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /dev/shm
hostname "$1"
if [ -n "$3" ]; then mount --bind "$3" /etc/hosts; fi
exec "$4" -c "$5" "$2"
"""


def ip(*arguments):
    subprocess.run(["ip", *map(str, arguments)], check=True, capture_output=True)


class Host:
    """One host; ``address`` is its place on the cable."""

    def __init__(self, number, namespace, folder, names=None):
        self.number, self.namespace = number, namespace
        self.name = f"host{'ab'[number]}"
        self.address = f"{NETWORK}.{number + 1}"
        self.cable = f"cable{number}"
        ready = folder / f"{self.name}.ready"
        hosts = ""
        if names is not None:
            hosts = folder / f"{self.name}.hosts"
            hosts.write_text("127.0.0.1 localhost\n" + names[number])
        private = ["unshare", "--mount", "--ipc", "--uts", "--pid", "--fork", "--mount-proc"]
        setup = ["sh", "-c", SETUP, "sh", self.name, str(ready), str(hosts)]
        words = ["ip", "netns", "exec", namespace, *private, *setup, sys.executable, INIT]
        self._outer = subprocess.Popen(words, start_new_session=True)
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert time.monotonic() < deadline and self._outer.poll() is None
            time.sleep(0.02)
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text()
        self.pid = int(children.split()[0])

    def run(self, *words):
        """Run a command on this host."""
        words = ["nsenter", "--target", str(self.pid), "--all", *map(str, words)]
        subprocess.run(words, check=True, capture_output=True)

    def start(self, words, folder, **variables):
        """A job's launcher on this host."""
        folder.mkdir(exist_ok=True)
        prefix = ["nsenter", "--target", str(self.pid), "--all", f"--wd={folder}"]
        return HostJob(words, folder, prefix, **variables)

    def plug(self, is_in):
        """Pull this host's end of the cable, or plug it in."""
        ip("-n", self.namespace, "link", "set", self.cable, "up" if is_in else "down")

    def hide(self, folder):
        """Give this host another folder of the same name."""
        folder.mkdir(exist_ok=True)
        self.run("mount", "-t", "tmpfs", "tmpfs", folder)

    def add_dead_card(self, address):
        """A second network card whose cable leads nowhere."""
        ip("-n", self.namespace, "link", "add", "card", "type", "veth", "peer", "name", "nowhere")
        ip("-n", self.namespace, "addr", "add", f"{address}/24", "dev", "card")
        ip("-n", self.namespace, "link", "set", "card", "up")

    def end(self):
        """End everything on this host."""
        try:
            os.kill(self.pid, signal.SIGKILL)  # the kernel ends the others with it
        except ProcessLookupError:
            pass
        self._outer.wait()


class HostJob(Job):
    """A job whose launcher runs on a host; its own process only waits for that one."""

    def find(self, role):
        """As ``Job.find``, with the launcher that is inside."""
        if role != "launcher":
            return super().find(role)
        found = []
        for pid, variables in self.processes().items():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            is_launcher = any("msrun" in word or "torchrun.run" in word for word in words)
            if is_launcher and "nsenter" not in words[0] and "MS_ROLE" not in variables:
                found.append(pid)
        return found


def why_not():
    """Why there can be no namespaces here; None if there can."""
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)} (iproute2, util-linux)"
    name = f"probe{uuid.uuid4().hex[:6]}"
    words = ["ip", "netns", "add", name]
    probe = subprocess.run(words, capture_output=True, text=True)
    if probe.returncode:
        return f"cannot create network namespaces: {probe.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    words = ["unshare", "--mount", "--ipc", "--uts", "--pid", "--fork", "--mount-proc", "true"]
    probe = subprocess.run(words, capture_output=True, text=True)
    if probe.returncode:
        return f"cannot create process namespaces: {probe.stderr.strip()}"
    return None


@pytest.fixture
def two_hosts(tmp_path, request):
    """Two hosts on a cable; ``two_hosts`` may be parametrized with /etc/hosts lines of both."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    tag = uuid.uuid4().hex[:6]
    namespaces = [f"h{tag}a", f"h{tag}b"]
    hosts = []
    try:
        for name in namespaces:
            ip("netns", "add", name)
        cable = ["type", "veth", "peer", "name", "cable1", "netns", namespaces[1]]
        ip("link", "add", "cable0", "netns", namespaces[0], *cable)
        for number, name in enumerate(namespaces):
            ip("-n", name, "addr", "add", f"{NETWORK}.{number + 1}/24", "dev", f"cable{number}")
            ip("-n", name, "link", "set", f"cable{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
            hosts.append(Host(number, name, tmp_path, getattr(request, "param", None)))
        yield hosts
    finally:
        for host in hosts:
            host.end()
        for name in namespaces:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
