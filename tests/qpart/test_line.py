"""A line to servers that are busy, lost or both, without any sockets."""

from __future__ import annotations

import threading

import pytest

import edgebus
from edgebus.payloads import encode
from edgebus.stats import LinkStats
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
        self.num_reconnects = 0

    def stats(self):
        return LinkStats(reconnects=self.num_reconnects)

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


WHY = edgebus.WrongServerKey("the key over there is another one")


def found_turned_away(*links):
    """A line whose servers are all down, once its look has found that they all turn it away."""

    class Node:
        def connect(self, endpoint, **options):
            raise WHY

    asked = line(*links)
    asked._node = Node()
    for each in links:
        each.health = "down"
    asked.turned_away()
    asked.join(10)
    assert asked.turned_away() is WHY
    return asked


@pytest.fixture
def greeted(monkeypatch):
    """Whatever is dialled greets; and a clock that only goes where it is told to."""
    now = [1000.0]
    monkeypatch.setattr("qpart.run.line.speaks_zmtp", lambda endpoint, timeout_s: True)
    monkeypatch.setattr("qpart.run.line._now", lambda: now[0])
    return now


@pytest.mark.usefixtures("greeted")
def test_another_server_that_lives_by_now_is_asked_whatever_was_found():
    first, second = Link("a", edgebus.LinkLost("gone")), Link("b", REPLY)
    asked = found_turned_away(first, second)
    sent = asked.send("s", b"")
    second.health = "up"
    assert asked.finish(sent) is REPLY
    assert asked.link is second
    assert asked.turned_away() is None


@pytest.mark.usefixtures("greeted")
def test_waiting_goes_on_where_another_server_lives_by_now():
    first, second = Link("a", None), Link("b", REPLY)
    asked = found_turned_away(first, second)
    second.health = "up"
    asked.check()
    assert asked.turned_away() is None
    assert asked.link is first, "who only asks moves nothing"
    assert asked.send("s", b"").link is second


@pytest.mark.usefixtures("greeted")
def test_what_was_found_before_the_server_was_back_is_not_held_against_it():
    """Nothing is asked while it is up, and then it is away for a moment."""
    only = Link("a", None)
    asked = found_turned_away(only)
    only.num_reconnects += 1
    assert asked.turned_away() is None
    asked.check()


def test_nobody_is_refused_for_what_was_found_long_ago(greeted):
    """A server that was another one, and is away by now, is waited for; until it is found to be another one again."""
    asked = found_turned_away(Link("a", None))
    with pytest.raises(edgebus.WrongServerKey):
        asked.check()
    greeted[0] += 3600
    let = threading.Event()
    real, asked._node.connect = asked._node.connect, lambda *a, **b: let.wait(10) and real(*a, **b)
    asked.check()
    assert asked.turned_away() is WHY, "it is what is known"
    let.set()
    asked.join(10)
    with pytest.raises(edgebus.WrongServerKey):
        asked.check()


@pytest.mark.usefixtures("greeted")
def test_a_closed_line_looks_no_more():
    asked = line(Link("a", None, health="down"), Link("b", None, health="down"))
    asked._pool.close = lambda: None
    asked.close()
    assert asked.turned_away() is None
    assert asked._looks is None


@pytest.mark.usefixtures("greeted")
def test_whoever_asks_while_another_thread_closes_gets_no_error():
    asked = line(Link("a", None, health="down"), Link("b", None, health="down"))
    asked._pool.close = lambda: None

    def closed_now(*_, **__):
        asked.close()
        raise edgebus.NodeClosed("the pool is closed")

    asked._pool.link = closed_now
    assert asked.turned_away() is None
    assert asked._looks is None


@pytest.mark.usefixtures("greeted")
def test_closing_in_the_middle_of_a_look_ends_it_after_the_server_that_it_is_at():
    reached, let, dialled = threading.Event(), threading.Event(), []

    class Node:
        def connect(self, endpoint, **options):
            dialled.append(endpoint)
            reached.set()
            let.wait(10)
            raise WHY

    asked = line(Link("a", None, health="down"))
    asked._node, asked._servers, asked.link.close = Node(), [("tcp://a", None), ("tcp://b", None)], lambda: None
    assert asked.turned_away() is None
    assert reached.wait(10)
    asked.close()
    let.set()
    asked.join(10)
    assert not asked._looks.is_alive()
    assert dialled == ["tcp://a"]
    assert asked.turned_away() is None


@pytest.mark.usefixtures("greeted")
def test_whoever_asks_at_once_has_one_look_made(monkeypatch):
    """All find that nobody looks, before the first one has started a thread that does."""
    asked, begins, let, looks = line(Link("a", None, health="down")), threading.Barrier(8), threading.Event(), []
    asked._look = lambda *_: looks.append(let.wait(10))
    real = threading.Thread.start

    def start(thread):
        if thread.name == "qpart-look":
            threading.Event().wait(0.05)  # long enough for all to have found that nobody looks
        real(thread)

    def ask():
        begins.wait(10)
        asked.turned_away()

    monkeypatch.setattr(threading.Thread, "start", start)
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(10)
    let.set()
    asked.join(10)
    assert looks == [True]
