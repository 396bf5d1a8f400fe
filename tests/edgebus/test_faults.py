"""A message that fails in here by a fault of ours: given up once, counted, logged, and whoever waits is told.

The faults are set into what is plain Python also where the machines are compiled.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

import edgebus
from edgebus import link_sending as link_module
from edgebus import wire
from edgebus.interrupts import is_of_signal
from edgebus.messages import ONE_WAY, Message, Terms
from edgebus.outcomes import Outcome
from edgebus.stats import link_stats
from tests.edgebus.duo import KIB, SMALL, Duo
from tests.edgebus.interrupting import Thing
from tests.edgebus.test_sharing import eventually

LARGE, LITTLE = bytes(100 * KIB), b"little"
POISON = Terms(ONE_WAY, b"poison")


class Poisoned:
    """In place of a function: fails for some of its calls.

    Args:
        function: called for all others.
        fails: told of the arguments.
        error: what to raise, or what to call.
        times: so often.
    """

    def __init__(self, function, fails, error=None, times=1_000_000):
        self.calls, self._function, self._fails, self._left = 0, function, fails, times
        self._raise = error or self._fault

    def __call__(self, *args, **options):
        if self._left and self._fails(*args):
            self.calls += 1
            self._left -= 1
            self._raise()
        return self._function(*args, **options)

    @staticmethod
    def _fault():
        raise ZeroDivisionError("a fault of ours")


def poison_keys(hub, **options):
    """Requests with the key of POISON fail as they are let in."""
    keyed = hub._around.keyed
    keyed.ask = Poisoned(keyed.ask, lambda owner, key, *_: key == POISON.key, **options)
    return keyed.ask


@contextmanager
def alarm():
    """SIGALRM raises TimeoutError, as many a handler does."""

    def handler(number, frame):
        raise TimeoutError("of a signal handler")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield lambda: signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)


def reconcile(stats):
    assert stats.received == stats.executed + stats.duplicates + stats.turned_away + stats.repeated
    assert stats.executed == stats.served + stats.withdrawn + stats.pending


@pytest.mark.parametrize("content", [LARGE, LITTLE], ids=["in pieces", "small"])
def test_request_that_fails_in_here_is_refused_once_and_the_link_goes_on(content, caplog):
    duo = Duo(SMALL).prove()
    poison = poison_keys(duo.server)
    poisoned = duo.ask(b"", content, terms=POISON)
    other = duo.ask(b"", content)
    duo.run()
    [settled] = duo.settled
    assert (settled.outcome, settled.code) == (Outcome.REFUSED, "internal")
    assert [arrived.id for arrived in duo.arrived] == [other]
    assert poison.calls <= 2
    [record] = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert "ZeroDivisionError" in caplog.text
    duo.answer(duo.arrived.pop())
    duo.advance(5.0)
    assert len(duo.settled) == 2
    assert poison.calls <= 2
    assert record is [each for each in caplog.records if each.levelno >= logging.ERROR][-1]
    stats = link_stats(duo.server.links[0])
    assert (stats.failed, stats.turned_away, stats.pending) == (1, 1, 0)
    reconcile(stats)
    assert poisoned not in [arrived.id for arrived in duo.arrived]


def test_key_of_a_request_that_failed_can_be_asked_again():
    """Also another request with its key that has come meanwhile has its answer: it was not executed."""
    duo = Duo(SMALL).prove()
    answerer = duo.far.answerer
    newest = answerer._newest

    class Newest(type(newest)):
        pop = Poisoned(newest.pop, lambda *_: True, times=2)

    answerer._newest = Newest()
    duo.ask(b"", b"x", terms=Terms(ONE_WAY, b"key", 3, 4))
    duo.run()
    assert [(each.outcome, each.code) for each in duo.settled] == [(Outcome.REFUSED, "internal")]
    answerer._newest = newest
    duo.ask(b"", b"x", terms=Terms(ONE_WAY, b"key"))
    duo.run()
    assert len(duo.arrived) == 1


@pytest.mark.parametrize("content", [LARGE, LITTLE], ids=["in pieces", "small"])
def test_answer_that_fails_at_who_asked_ends_the_request(content, monkeypatch, caplog):
    duo = Duo(SMALL).prove()
    duo.ask()
    duo.ask()
    duo.run()
    first, second = duo.arrived
    caller = duo.link.caller
    settled = Poisoned(None, lambda *_: True)
    outstanding = caller.outstanding[first.id]

    class Headed:
        """Its stream cannot be ended."""

        complete = property(lambda self: settled())
        next_pos = 0

    outstanding.stream = Headed()
    duo.answer(first, b"", content)
    duo.answer(second, b"", content)
    duo.run()
    assert [(each.outcome, each.code) for each in duo.settled] == [
        (Outcome.REFUSED, "internal"),
        (Outcome.ANSWERED, ""),
    ]
    assert settled.calls <= 2
    assert link_stats(duo.attached).failed == 1


def test_answer_that_cannot_be_sent_is_replaced_by_a_refusal(monkeypatch, caplog):
    duo = Duo(SMALL).prove()
    duo.ask()
    duo.ask()
    duo.run()
    first, second = duo.arrived
    monkeypatch.setattr(
        link_module,
        "content_bytes",
        count := Poisoned(link_module.content_bytes, lambda frames: bytes(frames[0]) == b"poison"),
    )
    duo.answer(first, b"poison", LARGE)
    duo.answer(second, b"", LARGE)
    duo.run()
    assert sorted((each.outcome, each.code) for each in duo.settled) == [
        (Outcome.ANSWERED, ""),
        (Outcome.REFUSED, "internal"),
    ]
    assert count.calls <= 2
    assert link_stats(duo.server.links[0]).failed == 1


def test_request_that_cannot_be_sent_ends_at_once(monkeypatch, caplog):
    duo = Duo(SMALL).prove()
    monkeypatch.setattr(
        link_module,
        "content_bytes",
        count := Poisoned(link_module.content_bytes, lambda frames: bytes(frames[0]) == b"poison"),
    )
    duo.ask(b"poison", LARGE)
    other = duo.ask(b"", LARGE)
    duo.run()
    assert [(each.outcome, each.code) for each in duo.settled] == [(Outcome.REFUSED, "internal")]
    assert [arrived.id for arrived in duo.arrived] == [other]
    assert count.calls <= 2


@pytest.mark.parametrize("content", [LARGE, LITTLE], ids=["in pieces", "small"])
def test_alarm_that_raises_an_ordinary_exception_is_no_fault(content):
    """It comes out, and the message goes on afterwards."""
    duo = Duo(SMALL).prove()
    received = []
    with alarm() as fire:
        poison_keys(duo.server, error=fire, times=1)
        deliver = duo.server.receive
        duo.server.receive = lambda *args, **options: (received.append((args, options)), deliver(*args, **options))
        mine = duo.ask(b"", content, terms=POISON)
        with pytest.raises(TimeoutError):
            duo.run()
    args, options = received[-1]
    deliver(*args, **options)  # what whoever read it does, see Express._take_again
    duo.run()
    assert [arrived.id for arrived in duo.arrived] == [mine]
    assert duo.settled == []
    assert link_stats(duo.server.links[0]).failed == 0
    reconcile(link_stats(duo.server.links[0]))


def test_exceptions_of_signal_handlers_are_told_from_faults():
    class Bound:
        def handler(self, number, frame):
            self.inner()

        def inner(self):
            raise TimeoutError

    def changes_itself(*args):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        raise TimeoutError

    def lets_go(number, frame):
        del number, frame
        raise TimeoutError

    class Lets:
        def go(self, number, frame):
            del frame
            raise TimeoutError

        __call__ = go

    def at_work():
        signal.raise_signal(signal.SIGALRM)

    before = signal.getsignal(signal.SIGALRM)
    try:
        letting_go = (lets_go, Lets(), Lets().go, partial(partial(lets_go)))
        for handler in (Bound().handler, changes_itself, lambda number, frame: Bound().inner(), *letting_go):
            signal.signal(signal.SIGALRM, handler)
            with pytest.raises(TimeoutError) as caught:
                at_work()
            assert is_of_signal(caught.value)
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(TimeoutError) as caught:
        Bound().inner()
    assert not is_of_signal(caught.value)
    assert is_of_signal(KeyboardInterrupt())


def test_tap_in_which_a_signal_handler_raises_is_not_removed():
    duo = Duo(SMALL).prove()
    with alarm() as fire:

        def tap(event):
            fire()

        duo.device.taps.append(tap)
        duo.ask()
        with pytest.raises(TimeoutError):
            duo.run()
    assert duo.device.taps == [tap]


def test_message_in_which_a_signal_handler_raises_is_not_malformed(monkeypatch):
    def handler(number, frame):
        raise ValueError("of a signal handler")

    def decode_header(frame):
        signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(wire, "decode_header", decode_header)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(ValueError, match="of a signal handler"):
            wire.decode([b"x"], SMALL)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_message_whose_link_fails_as_well_does_not_stay_in_the_outbox():
    duo = Duo(SMALL).prove()
    hub = duo.device

    class Unknown:
        """No header."""

    hub.outbox.append((hub.links[0].route, hub.links[0], Message(Unknown(), ())))
    hub.touch = Poisoned(hub.touch, lambda *_: True, times=1)
    with pytest.raises(ZeroDivisionError):
        hub.frames_to_send(now=duo.now)
    assert hub.outbox == []
    duo.ask()
    duo.run()
    assert len(duo.arrived) == 1


@pytest.mark.net
def test_peer_hears_at_once_of_its_request_that_failed_in_here(caplog):
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        server.handle("echo", lambda request: request.reply(request.payload, request.arrays))
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        poison_keys(server._engine.hub)
        for arrays in ((), (np.zeros(400_000, np.uint8),)):
            with pytest.raises(edgebus.Refused) as refused:
                link.request("echo", b"x", arrays, key=POISON.key, timeout_s=10)
            assert refused.value.code == "internal"
            assert link.request("echo", b"y", timeout_s=10).payload == b"y"
        stats = link.stats()
        assert stats.retries == 0
        assert server.stats().total.failed == 2
        reconcile(server.stats().total)


@pytest.mark.net
@pytest.mark.parametrize("arrays", [(), (np.zeros(400_000, np.uint8),)], ids=["small", "large"])
def test_peer_hears_at_once_of_its_request_that_could_not_be_handed_out(arrays, caplog):
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        inbox = server.serve("work")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))

        class Filled(type(inbox._filled)):
            notify = Poisoned(None, lambda *_: True)

        whole, inbox._filled, inbox._followers = inbox._filled, Filled(), 1
        with pytest.raises(edgebus.Refused) as refused:
            link.request("work", b"x", arrays, timeout_s=10)
        assert refused.value.code == "internal"
        assert link.stats().retries == 0
        inbox._filled, inbox._followers = whole, 0
        pending = link.send_request("work", b"y", arrays, timeout_s=10)
        inbox.get(10).reply(b"z")
        assert pending.result().payload == b"z"
    caplog.clear()  # its error knows where it was raised, and so keeps the request and its memory


@pytest.mark.net
def test_alarm_in_the_middle_of_a_message_comes_out_and_the_message_is_answered():
    """Of the thread that serves: its alarm is its own, and whoever asked does not notice."""
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        inbox = server.serve("work")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        with alarm() as fire:
            poison_keys(server._engine.hub, error=fire, times=1)
            thing = Thing()
            runner = server._engine.runner
            with pytest.raises(TimeoutError):
                runner.wait(Asked(runner, link, thing, key=POISON.key), time.monotonic() + 5)
            inbox.get(10).reply(b"y")
            assert thing.pending.result().payload == b"y"
        assert link.stats().retries == 0


@pytest.mark.net
@pytest.mark.parametrize("arrays", [(), (np.zeros(400_000, np.uint8),)], ids=["small", "large"])
@pytest.mark.parametrize("what", ["inbox", "handler"])
def test_request_is_handed_out_though_a_signal_handler_raises_in_the_middle_of_that(what, arrays):
    """It is known by then: coming again it would be taken for a resend."""
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        engine, link = server._engine, device.connect(server.bind("tcp://127.0.0.1:0"))
        link.request("edgebus.ping", b"")
        thing = Thing()
        with alarm() as fire:
            if what == "inbox":
                inbox = server.serve("work")

                class Filled(type(inbox._filled)):
                    notify = Poisoned(lambda *_: None, lambda *_: True, error=fire, times=1)

                inbox._filled, inbox._followers = Filled(), 1
            else:
                server.handle("work", lambda request: request.reply(b"y"))
                engine._handlers = Served(engine._handlers, fire)
                engine.express.inboxes = engine._inboxes
            with pytest.raises(TimeoutError):
                engine.runner.wait(Asked(engine.runner, link, thing, arrays), time.monotonic() + 5)
        if what == "inbox":
            inbox.get(5).reply(b"y")
        assert thing.pending.result().payload == b"y"
        assert link.stats().retries == 0


class Served(dict):
    """The first look into it is interrupted."""

    def __init__(self, handlers, fire):
        super().__init__(handlers)
        self._fire = [fire]

    def get(self, service, default=None):
        if self._fire:
            self._fire.pop()()
        return super().get(service, default)


class Asked:
    """Never there: has a request sent once this thread is at the sockets of a node, and alone."""

    def __init__(self, runner, link, thing, arrays=(), **options):
        self._runner, self._link, self._thing, self._arrays, self._options = runner, link, thing, arrays, options
        self._thing.pending = None

    @property
    def ready(self):
        if self._thing.pending is None and self._runner._seat.driver == threading.get_ident():
            eventually(lambda: not self._runner._own_polls)
            self._thing.pending = self._link.send_request("work", b"x", self._arrays, timeout_s=5, **self._options)
        return False
