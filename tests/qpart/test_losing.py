"""Devices whose server is lost for good, hangs, or is away for a while."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np
import pytest

import edgebus
from qpart import DriftLimits
from tests.processes import freeze
from tests.qpart import small
from tests.qpart.serving import FAST, PRIVATE, close_to, in_haste, wait_until

pytestmark = pytest.mark.net

ROOMY = msgspec.structs.replace(PRIVATE, device=msgspec.structs.replace(FAST, memory_bytes=1 << 20))


class Hungup:
    """A proxy whose server is away: it accepts and hangs up."""

    def __init__(self, endpoint) -> None:
        self.listener = socket.create_server(("127.0.0.1", int(endpoint.rpartition(":")[2])))
        self.listener.settimeout(0.05)
        self.hung_up, self.closed = 0, threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.closed.is_set():
            with contextlib.suppress(TimeoutError):
                self.listener.accept()[0].close()
                self.hung_up += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closed.set()
        self.thread.join(10)
        self.listener.close()


def waiting(device, inputs):
    """A thread that infers, and what came of it."""
    outcome = []

    def infer():
        try:
            outcome.append(device.infer(inputs))
        except edgebus.EdgebusError as error:
            outcome.append(error)

    thread = threading.Thread(target=infer)
    thread.start()
    return thread, outcome


@contextlib.contextmanager
def turned_away(served, what, inputs, num_servers=1, timeout_s=None, **options):
    """A device with a plan, whose server has come back as one that will never answer it."""
    edgebus.generate_keys(served.directory / "second")
    with served.serving() as endpoint:
        device = served.device([endpoint] * num_servers, **options)
        device.prepare(ROOMY)
        device.infer(inputs)
    if timeout_s is not None:
        in_haste(device, timeout_s)
    if what == "not allowed":
        served.allow_file.write_text(f"{edgebus.read_public_key(served.directory / 'second' / 'node.key')} other\n")
    with device, contextlib.ExitStack() as there:
        if what == "plaintext":
            there.enter_context(edgebus.Node("plain", insecure=True)).bind(endpoint)
        else:
            there.enter_context(served.serving(endpoint, name="second" if what == "another key" else "server"))
        yield device, edgebus.KeyNotAllowed if what == "not allowed" else edgebus.WrongServerKey


TURNED_AWAY = pytest.mark.parametrize("what", ["another key", "not allowed", "plaintext"])


@TURNED_AWAY
@pytest.mark.parametrize("num_servers", [1, 2])
def test_a_device_does_not_wait_for_a_server_that_turns_it_away_for_good(served, inputs, what, num_servers):
    with turned_away(served, what, inputs, num_servers, on_loss="wait", timeout_s=0.5) as (device, error):
        thread, outcome = waiting(device, inputs)
        thread.join(15)
        assert not thread.is_alive(), "it would wait for ever"
        assert isinstance(outcome[0], error)
        assert re.search("node.key|give both sides keys", str(outcome[0]))


@TURNED_AWAY
@pytest.mark.parametrize("num_servers", [1, 2])
def test_a_device_that_fails_names_why_it_is_turned_away(served, inputs, what, num_servers):
    with turned_away(served, what, inputs, num_servers, on_loss="fail", timeout_s=30.0) as (device, error):
        for ask in (
            lambda: device.infer(inputs),
            lambda: list(device.infer_stream([inputs])),
            lambda: device.prepare(ROOMY),
        ):
            with pytest.raises(error, match=r"node\.key|give both sides keys"):
                ask()


def test_a_timeout_too_short_to_find_out_why_is_kept_and_the_cause_named_later(served, inputs):
    """What is found out goes on between the requests, and the next one that fails says it."""
    with turned_away(served, "another key", inputs, on_loss="fail", timeout_s=0.2) as (device, error):
        with pytest.raises(edgebus.EdgebusError):
            device.infer(inputs)
        wait_until(lambda: device.turned_away is not None)
        with pytest.raises(error, match=r"node\.key"):
            device.infer(inputs)


@TURNED_AWAY
def test_a_device_that_finishes_alone_goes_on_and_says_why(served, inputs, what, caplog):
    with turned_away(served, what, inputs, on_loss="local") as (device, error):
        expected = device._prepared.whole.answer(inputs)
        assert close_to(device.infer(inputs), expected)
        wait_until(lambda: device.turned_away is not None)
        assert isinstance(device.turned_away, error)
        for _ in range(2):
            assert close_to(device.infer(inputs), expected)
        said = [record.getMessage() for record in caplog.records if record.name == "qpart.run.stream"]
        assert len(said) == 1
        assert error.__name__ in said[0]


def test_a_device_goes_back_to_a_server_that_has_its_own_key_again(served, inputs, caplog):
    """Once the server that it knows is there it answers, and what was found counts no more; the next time is news."""
    edgebus.generate_keys(served.directory / "second")
    with served.serving() as endpoint:
        device = served.device(endpoint, on_loss="local")
        device.prepare(ROOMY)
        device.infer(inputs)
    with device:
        for _ in range(2):
            with served.serving(endpoint, name="second"):
                wait_until(lambda: len(device.infer(inputs)) and device.turned_away is not None)
                device.infer(inputs)
            with served.serving(endpoint):
                before = device.server_answers
                wait_until(lambda: len(device.infer(inputs)) and device.server_answers > before)  # noqa: B023
                assert device.turned_away is None
    said = [record.getMessage() for record in caplog.records if record.name == "qpart.run.stream"]
    assert len(said) == 2


def test_one_of_two_that_turns_a_device_away_is_no_reason_not_to_wait_for_the_other(served, inputs):
    edgebus.generate_keys(served.directory / "second")
    edgebus.generate_keys(served.directory / "third")
    keys = [served.directory / name / "node.key" for name in ("server", "second")]
    with served.serving() as first, served.serving(name="second") as second:
        device = served.device([first, second], server_key=keys, on_loss="wait", timeout_s=0.5)
        device.prepare(PRIVATE)
        before = device.infer(inputs)
    with device, served.serving(first, name="third"):
        thread, outcome = waiting(device, inputs)
        wait_until(lambda: device._line._found.at > 0 and device.traffic.asked_again >= 3)
        assert device.turned_away is None
        assert thread.is_alive(), outcome
        with served.serving(second, name="second"):
            thread.join(20)
            assert device.server == second
    assert close_to(outcome[0], before)


def test_devices_closed_in_the_middle_of_a_look_leave_no_thread(served, inputs, monkeypatch):
    looking, let = threading.Semaphore(0), threading.Event()

    def held_up(endpoint, timeout_s):
        looking.release()
        let.wait(20)
        return True

    monkeypatch.setattr("qpart.run.line.speaks_zmtp", held_up)
    with served.serving() as endpoint:
        devices = [served.device(endpoint, on_loss="local") for _ in range(6)]
        for device in devices:
            device.prepare(ROOMY)
            device.infer(inputs)
    for device in devices:
        device.infer(inputs)
    for _ in devices:
        assert looking.acquire(timeout=10)
    threading.Timer(0.3, let.set).start()
    for device in devices:
        device.close()
    assert [one.name for one in threading.enumerate() if one.name == "qpart-look"] == []
    assert device.turned_away is None
    assert [one.name for one in threading.enumerate() if one.name == "qpart-look"] == []


def test_a_device_waits_behind_a_proxy_that_hangs_up_while_its_server_is_away(served, inputs):
    with served.serving() as endpoint:
        device = served.device(endpoint, on_loss="wait")
        device.prepare(PRIVATE)
        before = device.infer(inputs)
        in_haste(device, 0.5)
    with device:
        with Hungup(endpoint) as proxy:
            thread, outcome = waiting(device, inputs)
            wait_until(lambda: device.traffic.asked_again >= 3)
            assert proxy.hung_up > 3
            assert thread.is_alive(), outcome
        with served.serving(endpoint):
            thread.join(20)
    assert close_to(outcome[0], before)


@contextlib.contextmanager
def stopped_server(served, name="server"):
    """The endpoint of a server in a process of its own, and what stops that process where it is."""
    served.allow_file.touch()
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.qpart.serving", str(served.directory), name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield child.stdout.readline().strip(), lambda: freeze(child)
    finally:
        child.kill()
        child.wait(10)
        child.stdin.close()
        child.stdout.close()


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("on_loss", ["fail", "local"])
def test_a_stopped_server_costs_the_timeout_and_no_more(served, inputs, on_loss, large):
    """A process that is stopped keeps its connections, and is known to be gone after 4 s only."""
    many = np.repeat(inputs, 1000 if large else 1, axis=0)
    with stopped_server(served) as (endpoint, stop):
        with served.device(endpoint, on_loss=on_loss, timeout_s=1.0) as device:
            device.prepare(ROOMY)
            device.infer(inputs)
            expected = None if device._prepared.whole is None else device._prepared.whole.answer(many)
            stop()
            for _ in range(2):
                began = time.monotonic()
                if on_loss == "fail":
                    with pytest.raises((edgebus.DeadlineExceeded, edgebus.LinkLost), match=r"server runs|ask again"):
                        device.infer(many)
                else:
                    assert close_to(device.infer(many), expected)
                assert time.monotonic() - began < 1.0 + 2.0, "the timeout, the head and the whole network here, not 4 s"
            began = time.monotonic()
            with pytest.raises(edgebus.RemoteError, match=r"server runs|went down"):
                device.prepare(ROOMY)
            assert time.monotonic() - began < 1.0 + 2.0
        assert time.monotonic() - began < 2.0 + 4.0, "closing is bounded, too"


def test_a_stopped_server_costs_one_request_at_most_where_another_one_lives(served, inputs):
    edgebus.generate_keys(served.directory / "second")
    keys = [served.directory / name / "node.key" for name in ("second", "server")]
    with (
        stopped_server(served, "second") as (endpoint, stop),
        served.serving() as kept,
        served.device([endpoint, kept], server_key=keys, timeout_s=30.0) as device,
    ):
        wait_until(lambda: all(each.health == "up" for each in device._line._pool.stats().members.values()))
        device.prepare(PRIVATE)
        if device.server == kept:
            assert device._line.elsewhere()
        before = device.infer(inputs)
        assert device.server == endpoint
        stop()
        in_haste(device, 1.0)
        began, lost = time.monotonic(), None
        try:
            assert close_to(device.infer(inputs), before)  # known to be gone at once: it was late before it stopped
            assert device.server == kept
        except edgebus.DeadlineExceeded as error:
            lost = str(error)
        assert lost is None or endpoint in lost
        assert time.monotonic() - began < 1.0 + 2.0
        in_haste(device, 30.0)
        assert close_to(device.infer(inputs), before)
        assert device.server == kept


def test_a_plan_made_in_the_background_is_waited_for_no_longer_than_the_timeout(served, inputs):
    reached, let = threading.Event(), threading.Event()
    slow = msgspec.structs.replace(FAST, macs_per_s=1e4)
    said = msgspec.structs.replace(PRIVATE, device=slow, inferences=1000)
    eager = DriftLimits(margin=0.001, hold_s=0.0, gain=0.0, pause_s=0.0, requests=1)
    with served.serving() as endpoint, served.device(endpoint, adapt=True, drift=eager, timeout_s=0.5) as device:
        device.prepare(said)
        real = device._adapter._preparer.ask

        def ask(*arguments):
            reached.set()
            assert let.wait(20)
            return real(*arguments)

        device._adapter._preparer.ask = ask
        wait_until(lambda: device.infer(inputs[:1]).size and reached.is_set())
        before, began = device.planned, time.monotonic()
        for _ in range(2):
            with pytest.raises(edgebus.DeadlineExceeded, match=r"in the background.*timeout_s"):
                device.prepare(said)
        assert time.monotonic() - began < 2 * 0.5 + 2.0, "not the 20 s of the one in the background"
        assert device.planned is before
        assert device.infer(inputs).shape == (12, small.CLASSES)
        let.set()
        assert device.prepare(said).plan.accuracy == said.accuracy


@pytest.mark.parametrize("num_servers", [1, 2])
def test_a_device_that_was_given_both_keys_of_a_server_works_with_either(served, inputs, num_servers):
    """As docs/guide/daemon.md has it while a server changes its key: cat server.key server.key.new > servers.key."""
    edgebus.generate_keys(served.directory / "second")
    both = served.directory / "servers.key"
    both.write_text("".join((served.directory / name / "node.key").read_text() for name in ("second", "server")))
    with (
        served.serving() as endpoint,
        served.device([endpoint] * num_servers, server_key=[both] * num_servers) as device,
    ):
        device.prepare(PRIVATE)
        assert len(device.infer(inputs)) == len(inputs)
