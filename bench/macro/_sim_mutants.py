"""Devices and servers that are wrong in one point each: simulated answers must find every one of them out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import msgspec
import numpy as np

from bench.macro import _sim_shells as shells
from bench.macro import _sim_world as world
from edgebus import Reply
from edgebus.payloads import decode
from sled.acceptance import Decision, RoundRows, decide
from sled.device import Generation
from sled.events import Retracted
from sled.messages import Verdict
from sled.run.answering import Stream
from sled.saved import Saved
from sled.server import Server
from sled.testing import ToyTarget
from sled.types import Chunk, Sampling
from sled.unverified import Released


@contextlib.contextmanager
def noise_by_round() -> Iterator[None]:
    """A server that draws its noise by the number of the round instead of the position."""
    right, rounds = Server.next_step, [0]

    def next_step(self: Any, **asked: Any) -> Any:
        rounds[0] += 1
        for session in self.sessions.values():
            session.sampling = Sampling(session.sampling.temperature, session.sampling.top_k, seed=rounds[0])
        return right(self, **asked)

    with mock.patch.object(Server, "next_step", next_step):
        yield


class _Sticky(ToyTarget):
    """A target whose pages keep what was written first: rejected drafts are not rolled back, and it believes them."""

    def verify(self, chunks: Sequence[Chunk], rounds: Sequence[RoundRows]) -> list[Decision]:
        """See Target."""
        rows = []
        for chunk in chunks:
            text = self._feed(chunk)
            rows += [self.row(text[: len(text) - i]) for i in reversed(range(chunk.num_logits))]
        return decide(np.array(rows, np.float32).reshape(-1, self.shape.vocab_size), rounds)

    def _feed(self, chunk: Chunk) -> list[int]:
        size, before = self.shape.page_tokens, list(self.slots)
        text = super()._feed(chunk)
        for pos in range(chunk.past, len(text)):
            slot = chunk.pages[pos // size] * size + pos % size
            if before[slot] >= 0:
                self.slots[slot] = text[pos] = before[slot]
        return text


@contextlib.contextmanager
def no_rollback() -> Iterator[None]:
    """A server that takes rejected drafts in its pages for the text."""
    with mock.patch.object(shells, "ToyTarget", _Sticky):
        yield


@contextlib.contextmanager
def stale_verdicts() -> Iterator[None]:
    """A device that appends what it is told without looking where it belongs; now and then an old verdict comes."""
    right, last, count = shells.SimPending.result, list[bytes](), [0]

    def result(self: Any) -> Any:
        reply = right(self)
        try:
            decode(Verdict, reply.payload)
        except ValueError:
            return reply
        last.append(bytes(reply.payload))
        count[0] += 1
        return Reply(last[-2], ()) if count[0] % 7 == 0 and len(last) > 1 else reply

    with (
        mock.patch.object(shells.SimPending, "result", result),
        mock.patch.object(Generation, "_check_base", return_value=None),
    ):
        yield


@contextlib.contextmanager
def drafts_are_kept() -> Iterator[None]:
    """A device that commits its own drafts instead of what the target said."""
    right = Generation._commit

    def commit(self: Any, message: Verdict, onward: Any, drafts: Any) -> Any:
        tokens = list(message.tokens)
        tokens[: len(drafts)] = [each.token for each in drafts[: len(tokens)]]
        return right(self, msgspec.structs.replace(message, tokens=tokens), onward, drafts)

    with mock.patch.object(Generation, "_commit", commit):
        yield


@contextlib.contextmanager
def never_retracts() -> Iterator[None]:
    """A device that leaves what it has shown as it is."""

    def commit(self: Any, token: int, pos: int) -> Retracted | None:
        if self.tokens:
            del self.tokens[0], self._texts[0]
        return None

    with mock.patch.object(Released, "commit", commit):
        yield


@contextlib.contextmanager
def saves_guesses() -> Iterator[None]:
    """A device that saves what is speculative as if it were committed."""
    right = Stream._state

    def state(self: Any) -> Saved:
        saved, chain = right(self), self._machine.chain.proposals
        return msgspec.structs.replace(saved, answer=[*saved.answer, *(each.token for each in chain[:1])])

    with mock.patch.object(Stream, "_state", state):
        yield


MUTANTS = {
    "noise by round": noise_by_round,
    "no rollback": no_rollback,
    "stale verdicts": stale_verdicts,
    "drafts are kept": drafts_are_kept,
    "never retracts": never_retracts,
    "saves guesses": saves_guesses,
}


def found(name: str, seeds: Sequence[int]) -> int | None:
    """The first seed that finds a mutant out, None if none does."""
    with MUTANTS[name]():
        for seed in seeds:
            try:
                world.run(seed)
            except shells.Wrong:
                return seed
    return None
