"""An exception of a signal handler at any line of the machines: who was not interrupted is not late for it.

What one thread was about to send is what others have asked for as well: contents in a window, requests in the outbox.
A message that is lost there comes by a resend, a second later, and so does everything behind it. The lines are those of
what is plain Python also where the machines are compiled: there, and nowhere else in them, a signal handler can run.
"""

from __future__ import annotations

import threading
import time

import pytest

import edgebus
from edgebus.calls import Pending
from tests.edgebus.duo import KIB, SMALL, Duo
from tests.edgebus.interrupting import Interrupt, Thing, interrupted
from tests.edgebus.test_sharing import eventually


def is_ours(name):
    return name in ("edgebus.streams", "random") or name.startswith("namedtuple_")


class Held(Duo):
    """A Duo that does after an exception what the engine does: it takes the message in once more, and looks again."""

    def _deliver(self, from_device, lane, frames):
        try:
            super()._deliver(from_device, lane, frames)
        except Interrupt:
            self._wires[from_device, lane].appendleft(frames)
            raise

    def look_again(self):
        for hub in (self.device, self.server):
            for attached in hub.links:
                hub.touch(attached, now=self.now)


def crowd():
    """Contents of other threads under way, more than the window takes, and small requests."""
    duo = Held(SMALL).prove()
    duo.ask(b"first", bytes(100 * KIB))
    duo.run()
    duo.answer(duo.arrived.pop())
    duo.run()
    duo.settled.clear()
    others = [duo.ask(b"large", bytes(size)) for size in (90 * KIB, 200 * KIB, 40 * KIB)]
    others += [duo.ask(b"small") for _ in range(2)]
    return duo, others


def each_line(act, check, most=3000):
    at, going = 0, True
    while going:
        at += 1
        assert at < most
        duo, others = crowd()
        going = interrupted(lambda duo=duo: act(duo), at, is_ours)
        duo.look_again()
        check(duo, others, at)
    return at


def all_are_there(duo, others, at):
    """Without any time passing, which is to say without a resend."""
    duo.run()
    ids = [arrived.id for arrived in duo.arrived]
    assert set(others) <= set(ids), f"at line {at}"
    assert len(ids) == len(set(ids)), f"executed twice, at line {at}"


def test_contents_and_requests_of_others_are_on_time_when_one_that_asks_is_interrupted():
    assert each_line(lambda duo: duo.ask(b"mine", bytes(90 * KIB)), all_are_there) > 3


def test_contents_and_requests_of_others_are_on_time_when_who_works_the_links_is_interrupted():
    assert each_line(lambda duo: duo.run(), all_are_there) > 30


def test_request_whose_cancel_is_interrupted_is_withdrawn_on_both_sides_or_on_neither():
    """Withdrawn there alone nothing would come for it: its room here would be taken until its resend."""
    at, going = 0, True
    while going:
        at += 1
        duo = Held(SMALL).prove()
        mine = duo.ask(b"mine")
        duo.run()
        going = interrupted(lambda duo=duo, mine=mine: duo.cancel(mine), at, is_ours)
        duo.look_again()
        duo.run()
        assert (mine in duo.withdrawn) <= (mine not in duo.link.caller.outstanding), f"at line {at}"
    assert at > 2
    assert duo.withdrawn == [mine]


def test_handler_that_has_the_links_do_something_and_comes_back_has_nothing_done_twice():
    at, going = 0, True
    while going:
        at += 1
        duo, others = crowd()
        going = interrupted(duo.run, at, is_ours, handle=duo.look_again)
        all_are_there(duo, others, at)
    assert at > 30


def test_handler_that_answers_in_the_middle_of_another_answer_and_comes_back():
    at, going = 0, True
    while going:
        at += 1
        duo = Held(SMALL).prove()
        for _ in range(3):
            duo.ask()
        duo.run()
        first, second, third = duo.arrived

        def answer_both(duo=duo, first=first, second=second):
            duo.answer(first, bytes(200 * KIB))
            duo.answer(second, bytes(40 * KIB))
            duo.run()

        def handle(duo=duo, third=third):
            duo.answer(third, bytes(90 * KIB))

        going = interrupted(answer_both, at, is_ours, handle=handle)
        if not going:
            handle()
        duo.run()
        assert sorted(len(outcome.frames[0]) for outcome in duo.settled) == [40 * KIB, 90 * KIB, 200 * KIB], at
    assert at > 30


@pytest.mark.net
def test_what_an_interrupted_turn_leaves_is_sent_by_whoever_sleeps_at_the_sockets(monkeypatch):
    limits = edgebus.Limits(resend_s=30.0, heartbeat_s=30.0, silence_s=60.0)  # nothing else wakes it
    with (
        edgebus.Node("server", insecure=True, limits=limits) as server,
        edgebus.Node("device", insecure=True, limits=limits) as device,
    ):
        server.handle("echo", lambda request: request.reply(request.payload))
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        engine, runner, hub = device._engine, device._engine.runner, device._engine.hub
        to_send, left, thing = hub.frames_to_send, [Interrupt()], Thing()

        def interrupted_once(**options):
            if left and hub.outbox:
                raise left.pop()
            return to_send(**options)

        driver = threading.Thread(target=runner.wait, args=(thing, time.monotonic() + 20))
        driver.start()
        eventually(lambda: runner._seat.driver == driver.ident, 5, "that it drives")
        monkeypatch.setattr(hub, "frames_to_send", interrupted_once)
        other = Pending("echo", 20.0, time.monotonic() + 20.0, lambda pending: None)
        with pytest.raises(Interrupt):
            runner.do(engine.request, link._dialled, "echo", (), (b"of another thread",), other)
        other.follow(1.0)
        thing.come()
        runner.nudge()
        driver.join(5)
        assert (other.outcome, driver.is_alive()) == ("answered", False)


@pytest.mark.net
@pytest.mark.parametrize("size", [10, 20_000, 200_000])
def test_who_asked_hears_of_it_when_a_reply_is_interrupted_at_any_line(size):
    """By the answer, or by a refusal once nobody has the request any more: not by its deadline."""
    limits = edgebus.Limits(share_bytes=0, resend_s=30.0)
    with (
        edgebus.Node("server", insecure=True, limits=limits) as server,
        edgebus.Node("device", insecure=True, limits=limits) as device,
    ):
        inbox, at, going = server.serve("work"), 0, True
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        while going:
            at += 1
            pending = link.send_request("work", timeout_s=10.0)
            request = inbox.get(5.0)
            going = interrupted(lambda request=request: request.reply(bytes(size)), at, is_ours)
            del request
            assert pending.wait(5.0), at
            assert pending.outcome == "answered" or (pending.outcome == "refused" and going), at
        assert at < 100
