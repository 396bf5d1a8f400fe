"""Key directories, nodes that are closed, and a guard against leaked threads and file descriptors."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import zmq

import edgebus

CHILD = Path(__file__).with_name("child_server.py")
BLOB_CHILD = Path(__file__).with_name("child_blobs.py")


def _open_files():
    return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd))


def _is_open(fd):
    return os.path.lexists(f"/proc/self/fd/{fd}")


@pytest.fixture(scope="session", autouse=True)
def lent_memory():
    """pyzmq's own thread for lent memory, which lives from its first use to the end of the process, lives already."""
    context = zmq.Context()
    ends = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    ends[0].bind("inproc://lent")
    ends[1].connect("inproc://lent")
    ends[0].send(bytes(1 << 20), copy=False)
    ends[1].recv()
    context.destroy(linger=0)
    # What other tests have loaded before (torch, say) is not looked through again at each collection below.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_leaks():
    """Fail a test that leaves a thread, a socket or any other descriptor behind."""
    gc.collect()
    threads, files = set(threading.enumerate()), _open_files()
    yield
    gc.collect()
    for thread in threading.enumerate():
        if thread not in threads:
            thread.join(2.0)  # one that has just done its work may not be gone yet; one that leaks stays
    left = [thread for thread in threading.enumerate() if thread not in threads]
    assert left == [], f"threads left behind: {left}"
    assert len(_open_files()) <= len(files), f"descriptors before: {files}\nafter: {_open_files()}"


class KeyRing:
    """Key pairs by name under one directory; `server` allows `device`."""

    def __init__(self, directory):
        self.directory = directory
        for name in ("server", "device", "stranger"):
            edgebus.generate_keys(directory / name)
        edgebus.add_to_allow_list(directory / "server", directory / "device" / "node.key")

    def keys(self, name):
        return edgebus.load_keys(self.directory / name)

    def public(self, name):
        return self.keys(name).public

    @property
    def allow(self):
        return edgebus.AllowList.from_file(self.directory / "server" / "allowed_keys")

    def server(self, **options):
        options = {"keys": self.keys("server"), "allow": self.allow} | options
        return edgebus.Node("server", **options)

    def device(self, name="device", **options):
        return edgebus.Node(name, keys=self.keys(name), **options)


@pytest.fixture(scope="session")
def ring_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="session")
def ring(ring_dir):
    return KeyRing(ring_dir)


class Echo:
    """A thread that answers `echo` with what it got, until the inbox closes."""

    def __init__(self, node):
        self.inbox = node.serve("echo")
        self.seen = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while (request := self.inbox.get(None)) is not None:
            self.seen.append(request)
            request.reply(request.payload, request.arrays)

    def join(self):
        self._thread.join(5)
        assert not self._thread.is_alive()
        self.seen.clear()  # arrays in shared memory keep a descriptor as long as they live


@pytest.fixture
def pair(ring):
    """A server with an echo thread, a device linked to it, over tcp and CURVE."""
    with ring.server() as server, ring.device() as device:
        endpoint = server.bind("tcp://127.0.0.1:0")
        echo = Echo(server)
        link = device.connect(endpoint, ring.public("server"))
        yield server, device, link, echo
    echo.join()


@pytest.fixture
def child():
    """Starts child servers (plaintext) and kills what is left of them."""
    children = []

    def start(mode, endpoint="tcp://127.0.0.1:0"):
        process = subprocess.Popen([sys.executable, str(CHILD), mode, endpoint], stdout=subprocess.PIPE, text=True)
        children.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in children:
        process.kill()
        process.wait(5)
        process.stdout.close()


@pytest.fixture
def blob_children():
    """Starts processes of child_blobs.py and kills what is left of them."""
    started = []

    def start(*arguments):
        command = [sys.executable, str(BLOB_CHILD), *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(5)
        process.stdin.close()
        process.stdout.close()
