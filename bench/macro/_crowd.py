"""A crowd of devices around the real server machine, in one process: they join, leave, vanish, come back, draft well
and badly, and ask for plain decoding, all by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sled.history import History
from sled.messages import Decode, Open, Verify
from sled.server import Answer, Refusal, Server, ServerLimits
from sled.targets import Target
from sled.types import Sampling, Terms

JOIN, ACT, LEAVE, VANISH, AGAIN, STREAM, STEP = 0.5, 0.6, 0.05, 0.03, 0.1, 0.15, 0.5  # chances, each turn
MAX_DRAFT = 8
TURN_S = 0.05
MAX_TURNS = 100_000
_NO_BUDGET = {"rejected_per_s": 1e9, "rejected_burst": 10**9}  # junk is what this is about


@dataclass(eq=False)
class Guest:
    """A device with one answer to get.

    Args:
        number: of the guest.
        prompt: token ids.
        sampling: of its answer.
        num_tokens: the answer's length at most.
        right: tokens its good drafts are taken from; empty if nobody knows.
    """

    number: int
    prompt: list[int]
    sampling: Sampling
    num_tokens: int
    right: Sequence[int] = ()
    answer: list[int] = field(default_factory=list)
    done: bool = False
    session: bytes = b""
    ticket: object | None = None
    last: Verify | None = None

    @property
    def owner(self) -> str:
        return f"device {self.number % 7}"

    @property
    def text(self) -> History:
        return History([*self.prompt, *self.answer])


class Crowd:
    """Runs guests through a server machine and a target until all have their answers.

    Args:
        target: the model, with its shape.
        size: guests at a time.
        seed: of everything that is left to chance.
        batch_tokens: tokens in one forward.
    """

    def __init__(self, target: Any, *, size: int, seed: int, batch_tokens: int = 256) -> None:
        self._target: Target = target
        limits = ServerLimits(
            max_sessions=10_000, max_sessions_per_owner=10_000, batch_tokens=batch_tokens, **_NO_BUDGET
        )
        self.server: Server[object] = Server(target.shape, limits)
        self._size, self._rng = size, np.random.default_rng(seed)
        self._vocab = target.shape.vocab_size
        self._now, self._gone = 0.0, set[object]()
        self.happened = dict.fromkeys(
            ("joins", "leaves", "vanished", "asked_again", "streams", "rounds", "drafted", "accepted", "most_rounds"), 0
        )

    def run(self, guests: Sequence[Guest]) -> None:
        """Give every guest its answer."""
        outside, inside = list(guests), list[Guest]()
        for _ in range(MAX_TURNS):
            while outside and len(inside) < self._size and (not inside or self._chance(JOIN)):
                inside.append(outside.pop(0))
                self._join(inside[-1])
            for guest in inside:
                self._turn(guest)
            if self._chance(STEP):
                self._step(inside)
            inside = [guest for guest in inside if not guest.done]
            if not (inside or outside):
                return
        raise RuntimeError(f"no end after {MAX_TURNS} turns")

    def totals(self) -> dict[str, Any]:
        """What happened."""
        totals = self.server.totals
        return {
            **self.happened,
            "steps": totals.steps,
            "evictions": totals.evictions,
            "found_tokens": totals.found_tokens,
            "prefill_tokens": totals.prefill_tokens,
            "failed_rounds": totals.failed_rounds,
        }

    def _chance(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def _join(self, guest: Guest) -> None:
        """Open a session where the answer stands, under a new name."""
        guest.session, guest.ticket, guest.last = self._rng.bytes(8), None, None
        terms = Terms(max_tokens=guest.num_tokens)
        opened = Open(guest.session, guest.sampling, guest.prompt, False, list(guest.answer), b"", terms)
        self.server.open(guest.owner, opened, guest.prompt, now=self._now)
        self.happened["joins"] += 1

    def _turn(self, guest: Guest) -> None:
        if guest.ticket is not None:
            if self._chance(VANISH):
                self._gone.add(guest.ticket)
                self.server.withdraw(self._gone.__contains__)
                self.happened["vanished"] += 1
                self._join(guest)
            elif guest.last is not None and self._chance(AGAIN):  # the same request once more: nothing may change
                self.server.verify(guest.owner, guest.last, guest.ticket, now=self._now)
                self.happened["asked_again"] += 1
        elif self._chance(ACT):
            if self._chance(LEAVE):
                if self._chance(0.5):  # else it is simply never heard of again
                    self.server.close(guest.owner, guest.session)
                self.happened["leaves"] += 1
                self._join(guest)
            else:
                self._ask(guest)

    def _ask(self, guest: Guest) -> None:
        text = guest.text
        length, digest = len(text), text.digest(len(text))
        guest.ticket, guest.last = object(), None
        if self._chance(STREAM):
            wanted = int(self._rng.integers(1, 6))
            self.server.decode(guest.owner, Decode(guest.session, length, digest, wanted), guest.ticket, now=self._now)
            self.happened["streams"] += 1
            return
        guest.last = Verify(guest.session, length, digest, self._draft(guest))
        verdict = self.server.verify(guest.owner, guest.last, guest.ticket, now=self._now)
        self.happened["rounds"] += 1
        assert verdict is None, "a round was answered before it was computed"

    def _draft(self, guest: Guest) -> list[int]:
        """Some right tokens, then junk."""
        length, good = int(self._rng.integers(0, MAX_DRAFT + 1)), int(self._rng.integers(0, MAX_DRAFT + 1))
        right = list(guest.right[len(guest.answer) :][: min(good, length)])
        junk = self._rng.integers(self._vocab, size=length - len(right)).tolist()
        self.happened["drafted"] += length
        return [*right, *junk]

    def _step(self, inside: Sequence[Guest]) -> None:
        self._now += TURN_S
        answers = self.server.take_answers()
        step = self.server.next_step(now=self._now)
        if step is not None:
            self.happened["most_rounds"] = max(self.happened["most_rounds"], len(step.rounds))
            decisions = self._target.verify(step.chunks, step.rounds)
            answers += self.server.complete(step, decisions, now=self._now, took_s=TURN_S)
        waiting = {id(guest.ticket): guest for guest in inside if guest.ticket is not None}
        for answer in answers:
            for ticket in {id(ticket): ticket for ticket in answer.tickets}.values():
                if id(ticket) in waiting:
                    self._tell(waiting[id(ticket)], answer)

    def _tell(self, guest: Guest, answer: Answer[object]) -> None:
        if answer.refusal is not None:
            raise AssertionError(f"refused: {answer.refusal}")
        verdict = answer.verdict
        known = len(guest.prompt) + len(guest.answer) - verdict.base
        assert known >= 0, "a part of the answer is missing"
        guest.answer += verdict.tokens[known:]
        self.happened["accepted"] += verdict.accepted
        guest.done = bool(verdict.finish)
        if answer.last:
            guest.ticket, guest.last = None, None
        if guest.done:
            try:
                self.server.close(guest.owner, guest.session)
            except Refusal as refusal:
                raise AssertionError(f"a session was lost: {refusal}") from None


def alone(target: Any, guest: Guest) -> list[int]:
    """The answer of a guest that has the whole server for itself and drafts nothing."""
    server: Server[object] = Server(target.shape)
    server.open("device", Open(bytes(8), guest.sampling, guest.prompt), guest.prompt, now=0.0)
    text, ticket, answer = History(guest.prompt), object(), list[int]()
    asked = Decode(bytes(8), len(text), text.digest(len(text)), guest.num_tokens)
    server.decode("device", asked, ticket, now=0.0)
    for _ in range(guest.num_tokens + len(guest.prompt) + 1):
        step = server.next_step(now=0.0)
        if step is None:
            break
        for told in server.complete(step, target.verify(step.chunks, step.rounds), now=0.0):
            answer += told.verdict.tokens
    return answer
