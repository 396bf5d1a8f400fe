"""Who may open an ipc endpoint, and what may stand unread there."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
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
