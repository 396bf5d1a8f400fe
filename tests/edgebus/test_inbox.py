"""The inbox without sockets: who may fill it, what leaves it, and to whom a late answer goes."""

from __future__ import annotations

import threading
import time

import pytest

import edgebus
from edgebus import messages as m
from edgebus.answerer import Answerer
from edgebus.attached import Attached, Traffic
from edgebus.inbox import Inbox, Request
from edgebus.link import LinkMachine
from edgebus.link_states import Surroundings, wire_limits
from edgebus.outcomes import Arrived, Withdrawn
from tests.edgebus.interrupting import Interrupt

LIMITS = edgebus.Limits()


class Peer:
    """A link on which requests arrive; puts them into an inbox and records the answers."""

    def __init__(self, inbox, key=None, peer_id="p"):
        self.inbox = inbox
        link = LinkMachine(dialled=True, incarnation=b"i" * 16, around=Surroundings(name="me", limits=LIMITS), now=0.0)
        self.attached = Attached(link, (1, b""), key, peer_id, None, Traffic())
        self.greeted(b"1" * 16, 1)

    def greeted(self, incarnation, greeting):
        link = self.attached.link
        link.disconnected(now=0.0)
        link.connected(now=0.0)
        link.receive(m.Message(m.Welcome(1, "peer", incarnation, greeting, wire_limits(LIMITS))), now=0.0)
        return self.handle()

    def ask(self, request_id):
        header = m.Request(request_id, "x", 60_000, 0)
        self.attached.link.receive(m.Message(header, (b"question",)), now=time.monotonic())
        return self.handle()

    def cancel(self, request_id):
        self.attached.link.receive(m.Message(m.Cancel(request_id)), now=time.monotonic())
        return self.handle()

    def handle(self):
        taken = []
        for event in self.attached.link.events():
            if isinstance(event, Arrived):
                taken.append(self.inbox.put(Request(self.attached, event, self)))
            elif isinstance(event, Withdrawn):
                self.inbox.withdraw(event.answerer, event.id)
        return taken

    now = staticmethod(time.monotonic)

    @staticmethod
    def answer(_, answerer, request_id, message):
        answerer.answer(request_id, message)

    answer_later = answer

    @staticmethod
    def answer_small(*_):
        return False

    @staticmethod
    def share(*_):
        return None

    def answers(self):
        return [message for message in self.attached.link.headers_to_send() if message.frames]


@pytest.fixture
def inbox():
    return Inbox(["x"], 5, lambda _: None)


@pytest.mark.parametrize("keys", [("A", "B"), (None, None)])
def test_one_peer_cannot_fill_the_inbox_of_another(inbox, keys):
    greedy, other = Peer(inbox, keys[0], "a"), Peer(inbox, keys[1], "b")
    assert [greedy.ask(number) for number in range(5)] == [[True]] * 3 + [[False]] * 2
    assert [other.ask(number) for number in range(3)] == [[True]] * 2 + [[False]]
    assert len(inbox.drain()) == 5
    assert greedy.ask(9) == [True], "its places are free again"


def test_second_link_of_a_key_shares_its_half(inbox):
    one, two = Peer(inbox, "A", "a1"), Peer(inbox, "A", "a2")
    assert [one.ask(0), two.ask(0), one.ask(1), two.ask(1)] == [[True]] * 3 + [[False]]


def test_cancelled_request_leaves_the_inbox_and_frees_its_place(inbox):
    peer = Peer(inbox)
    for number in range(100):
        assert peer.ask(number) == [True]
        peer.cancel(number)
    assert (len(inbox._waiting), inbox._turns.num_owners()) == (0, 0)
    assert peer.answers() == []
    assert inbox.get(0) is None


def test_oldest_comes_first_and_expired_ones_are_refused(inbox):
    peer = Peer(inbox)
    peer.attached.link.receive(m.Message(m.Request(0, "x", 1, 0), (b"",)), now=time.monotonic() - 1)
    peer.handle()
    for number in (1, 2):
        peer.ask(number)
    assert [request._id for request in inbox.drain()] == [1, 2]
    assert (0, "expired") in [(each.header.id, getattr(each.header, "code", "")) for each in peer.answers()]


def test_drain_gives_many_in_order():
    inbox = Inbox(["x"], 2000, lambda _: None)
    peer = Peer(inbox)
    for number in range(1000):
        peer.ask(number)
    assert [request._id for request in inbox.drain()] == list(range(1000))


def test_late_answer_never_goes_to_another_incarnations_request(inbox):
    peer = Peer(inbox)
    peer.ask(0)
    old = inbox.get(0)
    waiting = peer.ask(1)
    assert waiting == [True]
    peer.greeted(b"2" * 16, 2)
    assert inbox.get(0) is None, "what the old one asked has left the inbox"
    peer.ask(0)
    new = inbox.get(0)
    assert old.remaining_s() == 0
    assert new.remaining_s() > 50
    old.reply(b"old answer")
    assert peer.answers() == []
    new.reply(b"new answer")
    assert [message.frames for message in peer.answers()] == [(b"new answer",)]


def test_waiting_bytes_are_bounded_and_given_back():
    answerer = Answerer(edgebus.Limits(max_frame_bytes=100, max_pending_bytes=250))

    def receive(request_id, size):
        message = m.Message(m.Request(request_id, "x", 9000, 0), (bytes(size),))
        answerer.receive(message, now=0.0)
        return [message.header.code for message in answerer.headers_to_send()]

    assert receive(0, 251) == ["too_large"]
    assert [receive(number, 100) for number in (1, 2, 3)] == [[], [], ["busy"]]
    assert receive(4, 50) == []
    assert answerer.pending_bytes == 250
    answerer.answer(1, m.Message(m.Reply(1), (b"",)))
    answerer.receive(m.Message(m.Cancel(2)), now=0.0)
    assert answerer.pending_bytes == 50
    answerer.headers_to_send()
    assert [receive(number, 100) for number in (5, 6)] == [[], []]
    assert answerer.counts.received == answerer.counts.executed + answerer.counts.busy
    with pytest.raises(edgebus.ConfigError, match="not enough for one frame"):
        edgebus.Limits(max_pending_bytes=1000)


def test_request_that_was_overtaken_is_executed_and_a_forgotten_one_is_not():
    answerer = Answerer(edgebus.Limits(cache_count=1))
    for number in (1, 2):
        answerer.receive(m.Message(m.Request(number, "x", 9000, 0), (b"",)), now=0.0)
        answerer.answer(number, m.Message(m.Reply(number), (b"",)))
    answerer.headers_to_send()
    answerer.events()
    answerer.receive(m.Message(m.Request(1, "x", 9000, 0), (b"",)), now=0.0)
    [refused] = answerer.headers_to_send()
    assert (refused.header.id, refused.header.code) == (1, "forgotten")
    answerer.receive(m.Message(m.Request(0, "x", 9000, 0), (b"",)), now=0.0)
    assert [event.id for event in answerer.events()] == [0]


def test_a_second_answer_lets_others_answer_while_its_error_is_made(inbox, monkeypatch):
    """Making the error may run the garbage collector, and with it an application's answer to another request."""
    peer = Peer(inbox)
    peer.ask(0)
    peer.ask(1)
    first, second = inbox.get(0), inbox.get(0)
    first.refuse("no", "")

    class Error(edgebus.AlreadyAnswered):
        def __init__(self, *args):
            second.refuse("no", "")
            super().__init__(*args)

    monkeypatch.setattr("edgebus.inbox.AlreadyAnswered", Error)
    with pytest.raises(edgebus.AlreadyAnswered):
        first.refuse("no", "")
    assert second.answered


def test_whoever_waits_comes_back_when_woken(inbox):
    inbox.wake()
    before = time.monotonic()
    assert inbox.get(timeout_s=30.0) is None
    assert time.monotonic() - before < 5.0
    assert inbox.get(timeout_s=0.0) is None
    woken = []
    waiting = threading.Thread(target=lambda: woken.append(inbox.get(timeout_s=30.0)))
    waiting.start()
    inbox.wake()
    waiting.join(5.0)
    assert woken == [None]


def test_request_comes_before_the_wish_to_look_elsewhere(inbox):
    Peer(inbox, "A").ask(1)
    inbox.wake()
    assert inbox.get(timeout_s=0.0).payload == b"question"


@pytest.mark.net
def test_waking_ends_a_wait_at_the_sockets_of_a_node():
    with edgebus.Node("a", insecure=True) as node:
        inbox = node.serve("x")
        node.bind("tcp://127.0.0.1:0")
        woken = []
        waiting = threading.Thread(target=lambda: woken.append(inbox.get(timeout_s=30.0)))
        waiting.start()
        inbox.wake()
        waiting.join(5.0)
        assert woken == [None]


@pytest.mark.parametrize("wrong", [None, 1, b"request"])
def test_what_is_no_request_is_an_error(inbox, wrong):
    with pytest.raises((TypeError, AttributeError)):
        inbox.put(wrong)


class Unmade(Request):
    """A request whose maker forgot that it is one."""

    def __init__(self):
        pass


@pytest.mark.parametrize(
    "use",
    [
        lambda request: request.remaining_s(),
        lambda request: request.peer,
        lambda request: request.reply(b"x"),
        lambda request: request.refuse("no", "not today"),
        lambda request: request.close(),
    ],
)
def test_request_that_was_never_made_is_an_error(use):
    with pytest.raises(AttributeError):
        use(Unmade())


def seconds_of(function, count):
    began = time.thread_time()
    for _ in range(count):
        function()
    return time.thread_time() - began


def test_taking_one_by_one_costs_the_same_however_many_were_taken_before():
    inbox = Inbox(["x"], 80_000, lambda _: None)
    for link in range(40):
        peer = Peer(inbox, f"key{link}", f"link{link}")
        for number in range(1000):
            assert peer.ask(number) == [True]
    kept = []
    times = [seconds_of(lambda: kept.append(inbox.get(0)), 2000) for _ in range(20)]
    assert [request.payload for request in kept] == [b"question"] * 40_000
    assert min(times[-5:]) < 3 * min(times[:2])
    for request in kept:
        request.forget()


def test_an_answer_costs_the_same_when_the_cache_is_full():
    """Each one more drops the oldest: it does not look at all that are kept."""
    answerer = Answerer(edgebus.Limits(max_pending=20_000, cache_count=4000))
    for number in range(16_000):
        answerer.receive(m.Message(m.Request(number, "x", 9000, 0), (b"",)), now=0.0)
    numbers = iter(range(16_000))

    def answer():
        number = next(numbers)
        answerer.answer(number, m.Message(m.Reply(number), (b"",)))

    times = [seconds_of(answer, 2000) for _ in range(8)]
    assert len(answerer._answered) == 4000
    assert min(times[-2:]) < 5 * max(times[:2])


def test_request_that_its_own_header_calls_settled_is_refused_by_every_way():
    header = m.Request(5, "x", 9000, 10)
    answerer = Answerer(LIMITS)
    assert answerer.receive_small(header, b"", 0.0) is None
    assert answerer.receive_plain(header, (b"",), 0.0) is None
    answerer.receive(m.Message(header, (b"",)), now=0.0)
    [refused] = answerer.headers_to_send()
    assert (refused.header.code, answerer.counts.executed, answerer.num_pending) == ("forgotten", 0, 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_dropped_request_is_refused_though_a_signal_handler_raises_in_that(inbox):
    peer = Peer(inbox)
    peer.ask(1)
    raised = []

    def interrupted_once(attached, *answer):
        if not raised:
            raised.append(True)
            raise Interrupt
        peer.answer(attached, *answer)

    peer.answer_later = interrupted_once
    request = inbox.get(0.0)
    del request
    assert raised
    assert [message.header.code for message in peer.answers()] == ["dropped"]
