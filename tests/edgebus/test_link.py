"""The link machine against the tables of docs/spec/bus-wire.md, copied here and not imported."""

from __future__ import annotations

import pytest

import edgebus
from edgebus import messages as m
from edgebus.link import LinkMachine
from edgebus.link_states import Down, Failed, Gone, State, Surroundings, Up
from edgebus.outcomes import Settled, Withdrawn

LIMITS = edgebus.Limits()
WIRE = m.WireLimits(65536, 1000, 10)

DIALLER = """
| state | connected | welcome | traffic | answer | reset | silence | goodbye | disconnected | fail | close |
| dialling | greeting | | | dialling | | | | | closed | closed |
| greeting | greeting | up | | greeting | | | greeting | dialling | closed | closed |
| up | greeting | | up | up | greeting | greeting | greeting | dialling | closed | closed |
| closed | | | | | | | | | | |
"""
LISTENER = """
| state | hello | traffic | answer | silence | goodbye | disconnected | close | welcome | reset |
| quiet | up | up | up | | closed | | closed | | |
| up | up | up | up | quiet | closed | quiet | closed | | |
| closed | | | | | | | | | |
"""


def cells(table):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()]
    for state, *afters in rows[1:]:
        for what, after in zip(rows[0][1:], afters, strict=True):
            yield state, what, after


def hello(**changes):
    fields = {"version_min": 1, "version_max": 1, "name": "peer", "incarnation": b"p" * 16, "greeting": 1}
    return m.Message(m.Hello(**(fields | {"limits": WIRE} | changes)))


def welcome(greeting, **changes):
    fields = {"version": 1, "name": "peer", "incarnation": b"p" * 16, "greeting": greeting, "limits": WIRE}
    return m.Message(m.Welcome(**(fields | changes)))


def sent(link):
    return [type(message.header).__name__ for message in link.headers_to_send()]


def new(dialled):
    return LinkMachine(dialled=dialled, incarnation=b"i" * 16, around=Surroundings(name="me", limits=LIMITS), now=0.0)


def latest_greeting(link):
    return [message.header.greeting for message in link.headers_to_send() if isinstance(message.header, m.Hello)][-1]


def dialler_in(state):
    """A dialler brought to a state, and its latest greeting."""
    link, greeting = new(True), 0
    if state in ("greeting", "up"):
        link.connected(now=0.0)
        greeting = latest_greeting(link)
    if state == "up":
        link.receive(welcome(greeting), now=0.0)
    if state == "closed":
        link.close(now=0.0)
    link.headers_to_send()
    link.events()
    assert link.state == state
    return link, greeting


def listener_in(state):
    link = new(False)
    if state != "quiet":
        link.receive(hello(), now=0.0)
    if state == "closed":
        link.close(now=0.0)
    link.headers_to_send()
    link.events()
    assert link.state == state
    return link, 1


def do(link, what, greeting):
    match what:
        case "connected":
            link.connected(now=1.0)
        case "disconnected":
            link.disconnected(now=1.0)
        case "fail":
            link.fail("key_not_allowed", "no", now=1.0)
        case "close":
            link.close(now=1.0)
        case "silence":
            link.handle_timer(now=LIMITS.silence_s if link.state is State.UP else 0.5)
        case "hello":
            link.receive(hello(), now=1.0)
        case "welcome":
            link.receive(welcome(greeting), now=1.0)
        case "reset":
            link.receive(m.Message(m.Reset()), now=1.0)
        case "goodbye":
            link.receive(m.Message(m.Goodbye("closing", "")), now=1.0)
        case "answer":
            link.receive(m.Message(m.Reply(0), (b"",)), now=1.0)
        case "traffic":
            link.receive(m.Message(m.Ping()), now=1.0)


@pytest.mark.parametrize(("state", "what", "after"), list(cells(DIALLER)))
def test_dialler_follows_its_table(state, what, after):
    link, greeting = dialler_in(state)
    do(link, what, greeting)
    assert link.state == (after or state)


@pytest.mark.parametrize(("state", "what", "after"), list(cells(LISTENER)))
def test_listener_follows_its_table(state, what, after):
    link, greeting = listener_in(state)
    do(link, what, greeting)
    assert link.state == (after or state)


def test_greeting_worked_by_hand():
    link = new(True)
    pending = object()
    link.caller.start("x", (), (b"1",), deadline_at=9.0, ref=pending, now=0.0)
    assert sent(link) == []
    link.connected(now=1.0)
    [first] = link.headers_to_send()
    assert first.header == m.Hello(1, 2, "me", b"i" * 16, 1, m.WireLimits(65536, 16777216, 64, 33554432))
    assert link.next_timer() == 2.0
    link.handle_timer(now=2.0)
    assert latest_greeting(link) == 2
    link.receive(welcome(1), now=2.1)  # answers the first hello, the second is on its way
    assert link.state == "greeting"
    link.receive(welcome(2), now=2.2)
    assert link.events() == [Up(again=False)]
    [request] = link.headers_to_send()
    assert request == m.Message(m.Request(0, "x", 6800, 0), (b"1",))
    assert (link.peer_name, link.peer_limits) == ("peer", WIRE)


def test_liveness_worked_by_hand():
    """Heard at 0, ping at 2, down at 4: within two heartbeats; a pong in between would have moved everything."""
    link, _ = dialler_in("up")
    assert link.next_timer() == 2.0
    link.handle_timer(now=2.0)
    assert sent(link) == ["Ping"]
    assert link.next_timer() == 4.0
    link.handle_timer(now=4.0)
    assert sent(link) == ["Hello"]
    assert link.events() == [Down("silent for 4.0 s")]

    link, _ = dialler_in("up")
    link.handle_timer(now=2.0)
    link.receive(m.Message(m.Pong()), now=2.1)
    assert link.next_timer() == 4.1


def test_ping_is_answered():
    link, _ = listener_in("up")
    link.receive(m.Message(m.Ping()), now=1.0)
    assert sent(link) == ["Pong"]


def test_answer_that_comes_after_the_end_of_its_connection_counts():
    link, _ = dialler_in("up")
    link.caller.start("x", (), (b"",), deadline_at=9.0, ref="a", now=0.0)
    link.disconnected(now=0.1)
    link.events()
    link.receive(m.Message(m.Reply(0), (b"late",)), now=0.2)
    assert [event.outcome for event in link.events()] == ["answered"]
    assert link.state == "dialling"


def test_failure_ends_requests_as_refused_if_never_sent_else_unknown():
    link, greeting = dialler_in("greeting")
    link.caller.start("x", (), (b"",), deadline_at=9.0, ref="a", now=0.0)
    link.receive(welcome(greeting), now=0.1)
    link.disconnected(now=0.2)
    link.caller.start("x", (), (b"",), deadline_at=9.0, ref="b", now=0.3)
    link.events()
    link.fail("key_not_allowed", "why", now=0.4)
    events = link.events()
    assert Failed("key_not_allowed", "why") in events
    outcomes = {event.ref: (event.outcome, event.code) for event in events if isinstance(event, Settled)}
    assert outcomes == {"a": ("unknown", "key_not_allowed"), "b": ("refused", "key_not_allowed")}


def test_unknown_version_in_a_welcome_or_goodbye_is_final():
    for message in (lambda greeting: welcome(greeting, version=9), lambda _: m.Message(m.Goodbye("version", "9..9"))):
        link, greeting = dialler_in("greeting")
        link.receive(message(greeting), now=1.0)
        assert link.state == "closed"
        assert [event.code for event in link.events()] == ["version"]


def test_goodbye_does_not_make_the_dialler_greet_in_a_loop():
    link, _ = dialler_in("greeting")
    link.receive(m.Message(m.Goodbye("busy", "full")), now=1.0)
    assert sent(link) == []
    assert link.next_timer() == 2.0


def test_close_refuses_cancels_and_says_goodbye():
    link, _ = listener_in("up")
    link.receive(m.Message(m.Request(0, "x", 9000, 0), (b"",)), now=1.0)
    link.caller.start("y", (), (b"",), deadline_at=9.0, ref="mine", now=1.0)
    link.events()
    link.headers_to_send()
    link.close(now=1.1)
    assert sent(link) == ["Cancel", "Refusal", "Goodbye"]
    assert [event.outcome for event in link.events() if isinstance(event, Settled)] == ["cancelled"]


def test_new_incarnation_of_the_listener_starts_with_an_empty_memory():
    link, greeting = dialler_in("up")
    link.receive(m.Message(m.Request(0, "x", 9000, 0), (b"",)), now=1.0)
    old = link.answerer
    link.receive(m.Message(m.Reset()), now=1.1)
    greeting = latest_greeting(link)
    link.events()
    link.receive(welcome(greeting, incarnation=b"q" * 16), now=1.2)
    assert Withdrawn(0, "x", old) in link.events()
    link.receive(m.Message(m.Request(0, "x", 9000, 0), (b"",)), now=1.3)
    assert link.answerer.counts.executed == 2


def test_listener_forgets_after_forget_s_but_not_before_the_deadlines_it_accepted():
    link, _ = listener_in("up")
    link.receive(m.Message(m.Request(0, "x", 100_000, 0), (b"",)), now=1.0)
    link.disconnected(now=2.0)
    link.events()
    assert link.next_timer() == 101.0  # 1 + 100 s, later than 2 + 60 s
    link.handle_timer(now=101.0)
    assert link.events() == [Gone(), Withdrawn(0, "x", link.answerer)]
