"""Who may open an ipc endpoint, and what may stand unread there."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import zmq

import edgebus
from edgebus import ipc
from edgebus.ipc import bind_kept_from_others
from edgebus.queues import most_unread
from tests.edgebus import interrupting
from tests.edgebus.child_flooded import LIMITS, MIB
from tests.edgebus.test_floods import rss_bytes, watched
from tests.edgebus.test_unread import ANSWER, chosen_server, stuck_device

pytestmark = pytest.mark.net


@contextmanager
def umask(value):
    before = os.umask(value)
    try:
        yield
        assert os.umask(value) == value, "it was left changed"
    finally:
        os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("value", "expected"), [(0o000, 0o770), (0o007, 0o770), (0o022, 0o755), (0o077, 0o700)])
def test_plaintext_path_is_never_for_others_to_connect_to(value, expected, tmp_path):
    with umask(value), edgebus.Node("server", insecure=True) as server:
        server.bind(f"ipc://{tmp_path}/s")
        assert mode(tmp_path / "s") == expected
        assert not mode(tmp_path / "s") & stat.S_IWOTH


def test_path_of_a_node_with_keys_is_as_the_umask_says_since_the_keys_decide(ring, tmp_path):
    with umask(0o000), ring.server() as server:
        server.bind(f"ipc://{tmp_path}/s")
        assert mode(tmp_path / "s") == 0o777


@pytest.mark.parametrize("told", [True, False], ids=["the kernel says it", "it does not"])
def test_umask_is_found_and_left_as_it_was_also_if_nobody_can_bind(told, monkeypatch):
    if not told:
        monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    with umask(0o000):
        assert ipc._umask() == 0
        with pytest.raises(interrupting.Interrupt):
            bind_kept_from_others(interrupting.raising)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_device_that_does_not_read_lets_so_many_messages_come_as_a_listener(tmp_path):
    """There the kernel counts no bytes."""
    count = most_unread(edgebus.Limits(**LIMITS))
    with (
        chosen_server(f"ipc://{tmp_path}/s") as (sock, endpoint, greet),
        stuck_device(endpoint, greet) as (child, route),
    ):
        before, peaks, sent = rss_bytes(child.pid), [0], 0
        with watched(child.pid, peaks), suppress(zmq.Again):
            while sent < 3 * count:
                sock.send_multipart([route, ANSWER, bytes(MIB)], copy=False)
                sent += 1
        assert max(peaks) - before < (count + 16) * MIB
        assert sent < count + 16


# -- what lies at the path already: libzmq would remove it ---------------------------------------------


@pytest.fixture
def server():
    with edgebus.Node("server", insecure=True) as node:
        yield node


def test_file_at_the_path_is_kept_and_the_bind_refused(server, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(edgebus.BindError, match=r"notes\.txt: a file, not a socket is there.*choose another path"):
        server.bind(f"ipc://{path}")
    assert path.read_text() == "mine"


def test_directory_and_links_at_the_path_are_kept(server, tmp_path):
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name, what in (("dir", "a directory"), ("link", "a link"), ("dangling", "a link")):
        with pytest.raises(edgebus.BindError, match=f"/{name}: {what} is there already"):
            server.bind(f"ipc://{tmp_path}/{name}")
    assert {each.name for each in tmp_path.iterdir()} == {"dir", "file", "link", "dangling"}
    assert (tmp_path / "link").is_symlink()


def test_file_at_a_path_too_long_for_a_socket_is_kept(server, tmp_path):
    path = tmp_path / ("n" * 120)
    path.write_text("mine")
    with pytest.raises(edgebus.BindError):
        server.bind(f"ipc://{path}")
    assert path.read_text() == "mine"


def test_second_node_does_not_take_the_path_of_one_that_runs(server, tmp_path):
    endpoint = server.bind(f"ipc://{tmp_path}/s")
    with edgebus.Node("second", insecure=True) as second, edgebus.Node("device", insecure=True) as device:
        for again in (second, server):
            with pytest.raises(edgebus.BindError, match=r"/s: Address already in use; .*stop who has it"):
                again.bind(endpoint)
        assert device.connect(endpoint).peer_name == "server"


def test_path_of_a_node_with_keys_is_not_taken_either(ring, tmp_path):
    (tmp_path / "file").write_text("mine")
    with ring.server() as first, ring.server() as second, ring.device() as device:
        endpoint = first.bind(f"ipc://{tmp_path}/s")
        for path in ("s", "file"):
            with pytest.raises(edgebus.BindError):
                second.bind(f"ipc://{tmp_path}/{path}")
        assert device.connect(endpoint, ring.public("server")).peer_name == "server"
    assert (tmp_path / "file").read_text() == "mine"


def test_listener_that_accepts_nobody_has_its_path_all_the_same(server, tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stuck, ExitStack() as queue:
        stuck.bind(path)
        stuck.listen(0)
        results = []
        while errno.EAGAIN not in results and len(results) < 10:
            waiting = queue.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            waiting.setblocking(False)
            results.append(waiting.connect_ex(path))
        assert results[-1] == errno.EAGAIN, "its backlog is not full"
        with pytest.raises(edgebus.BindError, match="Address already in use"):
            server.bind(f"ipc://{path}")
    assert stat.S_ISSOCK(os.lstat(path).st_mode)


def test_socket_of_another_kind_is_kept(server, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "s"))
        with pytest.raises(edgebus.BindError, match="cannot be looked at"):
            server.bind(f"ipc://{tmp_path}/s")
    assert (tmp_path / "s").exists()


def test_socket_that_a_dead_node_left_is_replaced(server, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "s"))
        dead.listen()
    assert (tmp_path / "s").exists()
    endpoint = server.bind(f"ipc://{tmp_path}/s")
    with edgebus.Node("device", insecure=True) as device:
        assert device.connect(endpoint).peer_name == "server"


def test_path_is_free_once_its_node_is_closed(tmp_path):
    for name in ("first", "second"):
        with edgebus.Node(name, insecure=True) as node:
            node.bind(f"ipc://{tmp_path}/s")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="abstract sockets are of Linux")
def test_abstract_name_is_the_kernels_to_give(server):
    endpoint = f"ipc://@edgebus-test-{os.getpid()}"
    server.bind(endpoint)
    with edgebus.Node("second", insecure=True) as second, pytest.raises(edgebus.BindError, match="already in use"):
        second.bind(endpoint)
