"""The shell: prompts and constraints are made ready without holding up rounds."""

from __future__ import annotations

import threading

from edgebus.payloads import decode
from sled.messages import Open, Opened
from sled.run.preparing import MAX_WAITING_EACH, Preparer
from sled.run.server import TargetServer
from sled.testing import ToyTarget
from sled.types import Constraint, Sampling
from tests.sled.shell_fakes import FakeInbox, asking, opening, shell, steps


def test_text_far_over_the_context_is_refused_before_it_is_tokenised():
    class Untouchable:
        def encode(self, text, *, chat):
            raise AssertionError("tokenised")

    target = ToyTarget()
    target.codec = Untouchable()
    request = opening(prompt="x" * (8 * 4096 + 1))
    shell(target, request)
    assert request.refusals == ["prompt_too_long"]


def test_rounds_are_computed_while_a_prompt_is_tokenised():
    """The tokenizer hangs until the round of another session has its verdict."""
    may_go_on, opened = threading.Event(), threading.Event()

    class Slow:
        def encode(self, text, *, chat):
            assert may_go_on.wait(30)
            return [9, 9]

    target = ToyTarget()
    target.codec = Slow()
    slow, round_ = opening(1, "slow"), asking()
    server = shell(target, opening())
    server._preparer.start()
    server._preparer._ring = opened.set
    server.handle(slow)
    server.handle(round_)
    steps(server)
    assert round_.replies
    assert not slow.replies
    may_go_on.set()
    assert opened.wait(30)
    server.step()
    assert decode(Opened, slow.replies[0]).prompt_tokens == [9, 9]
    assert server._preparer.close() == []


def test_requests_are_taken_for_a_bounded_time_between_steps():
    """A queue of slow requests must not hold up a round for its whole length."""
    now = [0.0]

    class SlowCodec:
        def encode(self, text, *, chat):
            now[0] += 1.0
            return [1]

    target = ToyTarget()
    target.codec = SlowCodec()
    round_ = asking()
    inbox = FakeInbox(opening(), round_, *(opening(n, "slow") for n in range(3, 10)))
    server = TargetServer(inbox, target, clock=lambda: now[0])
    while not round_.replies:
        server._take_requests(0.0)
        server.step()
    assert len(inbox.requests) >= 6


def test_sessions_that_take_long_to_open_do_not_hold_up_rounds_all_at_once():
    now, woken = [0.0], []
    server = shell(clock=lambda: now[0])
    server._inbox.wake = lambda: woken.append(None)
    opens = server._machine.open

    def slow(*args, **more):
        now[0] += 0.015
        return opens(*args, **more)

    server._machine.open = slow
    requests = [opening(number, "text") for number in range(5)]
    for request in requests:
        assert server._preparer.submit(request, "me", decode(Open, request.payload))
    answered = []
    for _ in range(3):
        server._desk.handle_prepared()
        answered.append(sum(len(request.replies) for request in requests))
    assert (answered, len(woken)) == ([2, 4, 5], 2)


def test_owner_of_many_prompts_does_not_fill_the_queue_for_others():
    preparer = Preparer(lambda message: [1], None, lambda: None)
    message = Open(bytes(8), Sampling(), "text")
    job = lambda owner: preparer.submit(opening(prompt="text"), owner, message)  # noqa: E731
    assert all(job("ann") for _ in range(MAX_WAITING_EACH))
    assert not job("ann")
    assert job("bob")
    assert len(preparer) == MAX_WAITING_EACH + 1
    assert len(list(iter(preparer.take, None))) == MAX_WAITING_EACH + 1
    assert job("ann")


def test_prompt_that_nobody_waits_for_any_more_is_not_tokenised():
    class Untouchable:
        def encode(self, text, *, chat):
            raise AssertionError("tokenised")

    target = ToyTarget()
    target.codec = Untouchable()
    server = shell(target, opening(prompt="text", gone=True))
    assert server.report().gauges["sessions"] == 0


def test_prompt_left_in_the_queue_when_the_server_ends_is_refused():
    request = opening(prompt="text")
    server = shell(None)
    server._preparer._thread = threading.Thread(target=lambda: None)  # one that never gets to it
    server._preparer._thread.start()
    server.handle(request)
    server._end()
    assert request.refusals == ["closing"]


def test_prompt_tokenised_when_the_server_ends_or_being_so_is_refused_too():
    target, enters, goes_on = ToyTarget(), threading.Event(), threading.Event()

    class Slow:
        def encode(self, text, *, chat):
            if text == "slow":
                enters.set()
                assert goes_on.wait(10)
            return [5]

    target.codec = Slow()
    server, done, working = shell(target), opening(0, "quick"), opening(1, "slow")
    server._preparer.start()
    close = server._preparer.close
    server._preparer.close = lambda: close(within_s=0.0)
    try:
        for request in (done, working):
            assert server._preparer.submit(request, "me", decode(Open, request.payload))
        assert enters.wait(10)
        server._end()
        assert (done.refusals, working.refusals) == (["closing"], ["closing"])
    finally:
        goes_on.set()
        server._preparer._thread.join(10)
    assert (done.replies, working.replies) == ([], [])


def test_constraints_are_refused_where_there_are_none_and_compiled_once_where_there_are():
    constraint = Sampling(constraint=Constraint("regex", "a+"))
    request = opening(sampling=constraint)
    shell(None, request)
    assert request.refusals == ["invalid"]

    class Form:
        finished = False

        def allowed(self, draft):
            raise NotImplementedError

        def commit(self, tokens):
            pass

    compiled = []

    def form_of(constraint):
        if constraint.text == "(":
            raise ValueError("unbalanced\nparenthesis")
        compiled.append(constraint.text)
        return Form()

    good, bad = opening(sampling=constraint), opening(1, sampling=Sampling(constraint=Constraint("regex", "(")))
    shell(None, good, bad, form_of=form_of)
    assert (len(good.replies), bad.refusals, compiled) == (1, ["invalid"], ["a+"])
