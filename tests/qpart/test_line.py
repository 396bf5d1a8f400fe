"""A line to servers that are busy, lost or both, without any sockets."""

from __future__ import annotations

import threading

import pytest

import edgebus
from edgebus.payloads import encode
from qpart import messages
from qpart.errors import Infeasible, ProtocolError, UnknownModel
from qpart.messages import Busy, InfeasibleInfo
from qpart.run.line import Line, ServerLost, decoded, error_of


class Pending:
    """What has its outcome at once: a reply, an error, or, for None, nothing until it is cancelled."""

    def __init__(self, outcome) -> None:
        self.outcome = outcome

    def wait(self, timeout_s):
        return self.outcome is not None

    def cancel(self):
        self.outcome = edgebus.RequestCancelled("cancelled")

    def result(self):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Link:
    """A server that answers as its script says, the last line for ever."""

    def __init__(self, name, *script, health="up") -> None:
        self.endpoint, self.health, self.script, self.asked = name, health, list(script), 0

    def send_request(self, service, payload, arrays, timeout_s):
        self.asked += 1
        return Pending(self.script.pop(0) if len(self.script) > 1 else self.script[0])


class Servers:
    """A pool: the first that is up and wanted."""

    def __init__(self, *links) -> None:
        self.links = links

    def link(self, timeout_s, *, but=lambda link: False):
        for each in self.links:
            if each.health != "down" and not but(each):
                return each
        raise edgebus.PeerUnreachable("nobody")


class Stop(threading.Event):
    """Never set; notes how long it was waited for, and does not."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        return False


def line(*links) -> Line:
    class Node:
        def connect(self, endpoint, **options):
            return links[0]

    made = Line(Node(), [("tcp://there", None)], 10.0)
    if len(links) > 1:
        made._pool = Servers(*links)
    return made


def busy(retry_after_s=0.2):
    return edgebus.Refused("busy", "later", encode(Busy(retry_after_s)))


REPLY = edgebus.Reply(b"yes", ())


def test_a_busy_server_is_asked_again_when_it_says():
    only, stop = Link("a", busy(), busy(0.4), REPLY), Stop()
    asked = line(only)
    sent = asked.send("s", b"")
    assert asked.finish(sent, stop=stop) is REPLY
    assert only.asked == 3
    assert len(stop.waits) == 2
    assert 0.15 <= stop.waits[0] <= 0.25
    assert 0.3 <= stop.waits[1] <= 0.5


def test_another_server_is_asked_at_once_and_two_busy_ones_are_not_hammered():
    first, second, stop = Link("a", busy(), busy(), REPLY), Link("b", busy()), Stop()
    asked = line(first, second)
    assert asked.finish(asked.send("s", b""), stop=stop) is REPLY
    assert (first.asked, second.asked) == (3, 1) or (first.asked, second.asked) == (3, 2)
    assert len(stop.waits) >= first.asked + second.asked - 1 - 2


def test_a_lost_server_is_left_even_by_a_request_sent_before_another_one_moved():
    first, second = Link("a", None), Link("b", REPLY)
    asked = line(first, second)
    one, two = asked.send("s", b"1"), asked.send("s", b"2")
    first.health = "down"
    assert asked.finish(one) is REPLY
    assert asked.finish(two) is REPLY
    assert asked.link is second
    assert (one.attempts, two.attempts) == (2, 2)


def test_giving_up_needs_a_link_that_is_down_and_nobody_else():
    only = Link("a", None)
    asked = line(only)
    sent = asked.send("s", b"")
    only.health = "down"
    with pytest.raises(ServerLost, match="a is gone"):
        asked.finish(sent, give_up=lambda: True)
    assert asked.is_down
    assert isinstance(sent.pending.outcome, edgebus.RequestCancelled)


def test_a_server_that_turns_us_away_for_good_is_left_for_another_and_named_where_there_is_none():
    no = edgebus.KeyNotAllowed("run `edgebus allow`")
    with pytest.raises(edgebus.KeyNotAllowed, match="edgebus allow"):
        line(Link("a", no)).request("s")
    assert line(Link("a", no), Link("b", REPLY)).request("s") is REPLY


def test_stopping_is_noticed_while_waiting():
    stop = threading.Event()
    stop.set()
    asked = line(Link("a", None))
    with pytest.raises(edgebus.RequestCancelled):
        asked.finish(asked.send("s", b""), stop=stop)


def test_a_closing_server_without_another_is_lost_and_says_so():
    asked = line(Link("a", edgebus.Refused("closing", "bye")))
    with pytest.raises(ServerLost):
        asked.finish(asked.send("s", b""))
    with pytest.raises(edgebus.Refused, match="bye"):
        asked.request("s")


def test_refusals_are_the_errors_that_they_stand_for():
    infeasible = edgebus.Refused("infeasible", "no", encode(InfeasibleInfo("memory", 0.5)))
    found = error_of(infeasible)
    assert isinstance(found, Infeasible)
    assert (found.constraint, found.nearest_accuracy) == ("memory", 0.5)
    assert error_of(edgebus.Refused("infeasible", "no", b"?")).code == "infeasible"
    assert isinstance(error_of(edgebus.Refused("unknown_model", "no")), UnknownModel)
    with pytest.raises(UnknownModel):
        line(Link("a", edgebus.Refused("unknown_model", "no"))).request("s")
    with pytest.raises(ProtocolError, match="same version"):
        decoded(messages.Answered, b"nonsense")
