"""A small, exact language model without torch, for tests of your own drafters, servers and links.

>>> target = ToyTarget()
>>> target.plain_answer([1, 2, 3], Sampling(), 4) == target.plain_answer([1, 2, 3], Sampling(), 4)
True
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import edgekernels
import numpy as np
from numpy.typing import NDArray

from edgebus import Node
from sled.acceptance import Decision, RoundRows, decide
from sled.messages import SERVICES, Described, Vocabulary
from sled.run.server import ServedTarget, TargetServer
from sled.server import ServerLimits, TargetShape
from sled.types import Chunk, Message, Sampling
from sled.vocabulary import vocabulary_hash


class ToyCodec:
    """One token per character: the id is the character's code modulo the vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def encode(self, text: str, *, chat: bool) -> list[int]:
        """Ids of the characters; chat puts token 1 in front."""
        return [1] * chat + self._ids(text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """As a chat: every message after token 1."""
        return [token for message in messages for token in [1, *self._ids(message.content)]]

    def _ids(self, text: str) -> list[int]:
        return [2 + ord(char) % (self._vocab_size - 2) for char in text]


class ToyTarget:
    """A target whose next-token logits are a fixed function of the last two tokens; token 0 ends an answer.

    It keeps tokens in pages as a real target keeps keys and values, and fails if what a session reads there is not its
    own text, or if a page is written that another session reads: a server that shares, rolls back or reuses pages
    wrongly is found out.

    Args:
        vocab_size: number of tokens, at least 3.
        max_positions: context length.
        max_window: drafts per round.
        seed: another seed is another model.
        page_tokens: positions in a page.
        num_pages: pages there are.
    """

    engine = "toy"

    def __init__(
        self,
        vocab_size: int = 50,
        *,
        max_positions: int = 4096,
        max_window: int = 16,
        seed: int = 0,
        page_tokens: int = 16,
        num_pages: int = 1024,
    ) -> None:
        self._seed, self._rows = seed, {}  # type: tuple[int, dict[tuple[int, int], NDArray[np.float32]]]
        self.codec = ToyCodec(vocab_size)
        self.vocabulary = Vocabulary([b"", *(f"<{i}>".encode() for i in range(1, vocab_size))], [0])
        digest = vocabulary_hash(self.vocabulary)
        target_id = b"toy %d" % seed
        self.described = Described("toy", "float32", vocab_size, digest, max_positions, max_window, [0], target_id)
        self.shape = TargetShape(
            vocab_size,
            max_positions,
            max_window,
            frozenset([0]),
            target_id,
            self.vocabulary.pieces,
            page_tokens,
            num_pages,
            4 * page_tokens,
        )
        self.slots: list[int] = [-1] * (num_pages * page_tokens)
        self.steps: list[list[Chunk]] = []

    def row(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits (vocab,) of the token that follows `tokens`."""
        context = (tokens[-2] if len(tokens) > 1 else -1, tokens[-1])
        if context not in self._rows:
            rng = np.random.default_rng([self._seed, context[0] + 1, context[1]])
            self._rows[context] = (rng.normal(size=self.shape.vocab_size) * 2.0).astype(np.float32)
        return self._rows[context]

    def verify(self, chunks: Sequence[Chunk], rounds: Sequence[RoundRows]) -> list[Decision]:
        """See `sled.targets.Target.verify`."""
        self.steps.append(list(chunks))
        assert len({chunk.session for chunk in chunks}) == len(chunks), "a session twice in one forward"
        writers = [page for chunk in chunks for page in self._written(chunk)]
        assert len(set(writers)) == len(writers), "two sessions write one page"
        waiting, rows = iter(rounds), []
        for chunk in chunks:
            read = chunk.pages[: chunk.past // self.shape.page_tokens]
            assert not set(read) & set(writers), "a page is read and written in one forward"
            text = self._feed(chunk)
            if chunk.num_logits:
                committed = list(next(waiting).text)
                assert text[: len(committed)] == committed, "a session reads what is not its text"
                assert len(text) - len(committed) == chunk.num_logits - 1
            rows += [self.row(text[: len(text) - i]) for i in reversed(range(chunk.num_logits))]
        return decide(np.array(rows, np.float32).reshape(-1, self.shape.vocab_size), rounds)

    def _written(self, chunk: Chunk) -> tuple[int, ...]:
        first, end = chunk.past // self.shape.page_tokens, chunk.past + len(chunk.tokens)
        assert chunk.tokens
        assert end <= len(chunk.pages) * self.shape.page_tokens, "a chunk without pages for its tokens"
        return chunk.pages[first : -(-end // self.shape.page_tokens)]

    def _feed(self, chunk: Chunk) -> list[int]:
        """Keep a chunk's tokens in its pages; returns the text they hold now."""
        size = self.shape.page_tokens
        for pos, token in enumerate(chunk.tokens, chunk.past):
            self.slots[chunk.pages[pos // size] * size + pos % size] = token
        held = [token for page in chunk.pages for token in self.slots[page * size : (page + 1) * size]]
        text = held[: chunk.past + len(chunk.tokens)]
        assert -1 not in text, "a session reads what nobody has computed"
        return text

    def plain_answer(self, prompt: Sequence[int], sampling: Sampling, num_tokens: int) -> list[int]:
        """The answer by decoding one token after the other, without sessions, drafts or batches."""
        text = list(prompt)
        while len(text) < len(prompt) + num_tokens and not (len(text) > len(prompt) and text[-1] == 0):
            rows = RoundRows((), sampling, len(text), text, len(prompt))
            text.append(decide(self.row(text)[None], [rows])[0].next_token)
        return text[len(prompt) :]


@contextmanager
def serving(
    node: Node, target: ServedTarget, limits: ServerLimits | None = None, **more: Any
) -> Iterator[TargetServer]:
    """Serve a target on a bound node from a thread of its own, until the block ends; `more` as TargetServer takes."""
    server = TargetServer(node.serve(*SERVICES), target, limits, **more)
    thread = threading.Thread(target=server.run, name="sled-server")
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


class ToyDrafter:
    """Drafts what the toy target would say, and something else with probability `error`.

    Args:
        target: whom to imitate.
        error: share of drafts that are random, 0 .. 1.
        seed: of the errors.
    """

    name = "toy"

    def __init__(self, target: ToyTarget, *, error: float = 0.3, seed: int = 0) -> None:
        self._target, self._error = target, error
        self._rng = np.random.default_rng(seed)
        self._sampling = Sampling()

    def start(self, sampling: Sampling, num_prompt: int) -> None:
        """Remember how the target samples."""
        self._sampling = sampling

    def draft(self, text: Sequence[int], limit: int) -> Iterator[int]:
        """`limit` tokens, some of them wrong."""
        text = list(text)
        for _ in range(limit):
            token = _sample(self._target.row(text), self._sampling, len(text))
            wrong = self._rng.random() < self._error
            text.append(int(self._rng.integers(self._target.shape.vocab_size)) if wrong else token)
            yield text[-1]


def _sample(row: NDArray[np.float32], sampling: Sampling, position: int) -> int:
    token = edgekernels.sample(
        row[None],
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        position=position,
    )
    return int(token[0])
