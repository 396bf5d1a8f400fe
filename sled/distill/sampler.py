"""The target writes: many texts at once, each a conversation at a temperature of its own, none of them idle.

A text begins with a prompt, or with a user's turn that the target writes too. Where an answer ends, the next turn is
forced into the same row. On CUDA a step is one captured graph for each length that attention reads.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sled.distill.conversation import Conversation
from sled.distill.prompts import Prompts
from sled.distill.teacher import Teacher

Tensor = Any  # torch.Tensor
TEMPERATURES = (0.0, 0.0, 0.5, 0.7, 0.7, 0.7, 1.0, 1.0, 1.0, 1.0)
HELD_OUT_TEMPERATURES = (0.0, 0.7, 1.0)  # those that are reported
_LENGTHS = 8  # graphs, each reading another share of the text
_SHARE_OF_FREE = 0.6
_MOST_ROWS = {"cpu": 32}
_ROWS = 2048
_PREPARED = 256  # turns tokenised while the device computes


@dataclass(frozen=True, slots=True)
class Texts:
    """What was written in one round.

    Args:
        tokens: int64 (rows, length).
        written: bool (rows, length), where the target wrote an answer; the rest was given, or is a user's turn.
        temperatures: float32 (rows,), of the answers.
    """

    tokens: NDArray[np.int64]
    written: NDArray[np.bool_]
    temperatures: NDArray[np.float32]


def likeliest(logits: Tensor, noise: Tensor, inverse: Tensor, sampled: Tensor) -> Tensor:
    """A sample of each row: the largest of logits / temperature plus Gumbel noise, without noise where not sampled.

    Args:
        logits: (rows, vocab).
        noise: (rows, vocab), exponential.
        inverse: (rows, 1), of the temperature, 1 where greedy.
        sampled: (rows, 1), 1 or 0.
    """
    return (logits.float() * inverse - noise.clamp_min(1e-20).log() * sampled).argmax(dim=-1)


class Sampler:
    """Writes rounds of texts.

    Args:
        teacher: the target.
        conversation: what stands around turns.
        prompts: what users ask.
        rows: texts at once.
        length: tokens of each.
        open_turns: share of user turns that the target writes.
        compiled: compile the choice of tokens.
    """

    def __init__(
        self,
        teacher: Teacher,
        conversation: Conversation,
        prompts: Prompts,
        *,
        rows: int,
        length: int,
        open_turns: float,
        compiled: bool = False,
    ) -> None:
        self.rows, self.length = rows, length
        self._conversation, self._prompts, self._open_turns = conversation, prompts, open_turns
        self._pass = _Pass(teacher, rows, length, compiled)

    @property
    def captured(self) -> bool:
        """Whether steps are replayed graphs, as on CUDA they should be."""
        return self._pass.captured

    def close(self) -> None:
        """Give the memory of keys and values back."""
        self._pass.close()

    def write(self, seed: int, *, held_out: bool, stopped: Callable[[], bool]) -> Texts | None:
        """One round, or None where it was stopped in the middle.

        Args:
            seed: the same gives the same prompts, and on one device the same texts.
            held_out: with prompts that are held out, at the temperatures that are reported.
            stopped: asked at every token.
        """
        torch.manual_seed(seed)
        state = _Round(self, random.Random(seed), held_out)  # noqa: S311
        self._pass.temper(state.current)
        for at in range(self.length - 1):
            if stopped():
                return None
            self._pass.start(state.tokens[:, at], at)
            state.prepare()
            if state.take(self._pass.chosen(), at + 1):
                self._pass.temper(state.current)
        return Texts(state.tokens, state.written, state.temperatures)

    def turn(self, chance: random.Random, held_out: bool) -> tuple[list[int], bool]:
        """Ids of the next turn behind an answer, and whether the target goes on as the user."""
        if not held_out and self._conversation.to_answer and chance.random() < self._open_turns:
            return self._conversation.to_user, True
        return self._conversation.following(self._prompts.draw(chance, held_out=held_out)), False

    def opening(self, chance: random.Random, held_out: bool) -> tuple[list[int], bool]:
        """Likewise of a text's beginning."""
        if not held_out and self._conversation.to_answer and chance.random() < self._open_turns:
            return self._conversation.opening, True
        return self._conversation.first(self._prompts.draw(chance, held_out=held_out)), False

    @property
    def answering(self) -> list[int]:
        """Ids between a turn that the target wrote as the user, and its answer."""
        return self._conversation.answering()

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a turn."""
        return self._conversation.stop_ids


class _Round:
    """The texts of one round while they grow, on the host."""

    def __init__(self, sampler: Sampler, chance: random.Random, held_out: bool) -> None:
        self._sampler, self._chance, self._held_out = sampler, chance, held_out
        rows, length = sampler.rows, sampler.length
        self._turns: deque[tuple[list[int], bool]] = deque()
        self._stops = np.array(sorted(sampler.stop_ids), np.int64)
        self._forced = np.full((rows, length), -1, np.int64)
        self._as_user = np.zeros(rows, np.bool_)
        self.written = np.zeros((rows, length), np.bool_)
        of = HELD_OUT_TEMPERATURES if held_out else TEMPERATURES
        drawn = [of[row % len(of)] if held_out else chance.choice(of) for row in range(rows)]
        self.temperatures = np.array(drawn, np.float32)
        for row in range(rows):
            ids, self._as_user[row] = sampler.opening(chance, held_out)
            self._force(row, 0, ids or [0])
        self.current = np.where(self._as_user, np.float32(1), self.temperatures)
        self.tokens = np.zeros((rows, length), np.int64)
        self.tokens[:, 0] = self._forced[:, 0]

    def _force(self, row: int, at: int, ids: list[int]) -> None:
        ids = ids[: max(0, self._sampler.length - at)]
        self._forced[row, at : at + len(ids)] = ids

    def prepare(self) -> None:
        """Tokenise turns to come; called while the device computes."""
        while len(self._turns) < _PREPARED:
            self._turns.append(self._sampler.turn(self._chance, self._held_out))

    def take(self, chosen: NDArray[np.int64], at: int) -> bool:
        """Put what was chosen, or what is forced, at this position; whether a row's temperature changed."""
        forced = self._forced[:, at]
        free = forced < 0
        self.tokens[:, at] = np.where(free, chosen, forced)
        self.written[:, at] = free & ~self._as_user
        ended = np.nonzero(free & np.isin(chosen, self._stops))[0].tolist()
        for row in ended:
            if self._as_user[row]:
                self._as_user[row] = False
                self._force(row, at + 1, self._sampler.answering)
            else:
                ids, self._as_user[row] = (
                    self._turns.popleft() if self._turns else self._sampler.turn(self._chance, self._held_out)
                )
                self._force(row, at + 1, ids)
            self.current[row] = 1.0 if self._as_user[row] else self.temperatures[row]
        return len(ended) > 0


class _Pass:
    """One step of all rows, on the device."""

    def __init__(self, teacher: Teacher, rows: int, length: int, compiled: bool) -> None:
        self._teacher, device = teacher, teacher.device
        teacher.open_rows(rows, length)
        self._ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._inverse = torch.ones(rows, 1, device=device)
        self._sampled = torch.ones(rows, 1, device=device)
        self._next = torch.zeros(rows, dtype=torch.long, device=device)
        self._choose = torch.compile(likeliest, dynamic=False) if compiled else likeliest
        self._noise: Tensor = None
        self._lengths = sorted({-(-length * part // _LENGTHS) for part in range(1, _LENGTHS + 1)})
        self._graphs: dict[int, Any] = {}
        if device.type == "cuda":
            self._warm_up()
            try:
                self._capture()
            except RuntimeError:  # something in this model waits for the device: launched kernel by kernel, then
                self._graphs.clear()
                torch.cuda.synchronize()

    @property
    def captured(self) -> bool:
        """Whether steps are replayed graphs."""
        return bool(self._graphs)

    def close(self) -> None:
        self._graphs.clear()
        self._teacher.close_rows()

    def temper(self, temperatures: NDArray[np.float32]) -> None:
        """Sample each row at its temperature from now on."""
        inverse = np.where(temperatures > 0, 1 / np.maximum(temperatures, 1e-3), 1).astype(np.float32)
        self._inverse.copy_(torch.from_numpy(inverse)[:, None])
        self._sampled.copy_(torch.from_numpy((temperatures > 0).astype(np.float32))[:, None])

    def start(self, tokens: NDArray[np.int64], at: int) -> None:
        """Begin to compute what follows these tokens at position `at`."""
        self._ids.copy_(torch.from_numpy(np.ascontiguousarray(tokens))[:, None])
        self._position.fill_(at)
        seen = next(length for length in self._lengths if length > at)
        if seen in self._graphs:
            self._graphs[seen].replay()
        else:
            self._compute(seen)

    def chosen(self) -> NDArray[np.int64]:
        """Wait for it."""
        found: NDArray[np.int64] = self._next.cpu().numpy()
        return found

    @torch.no_grad()
    def _compute(self, seen: int) -> None:
        logits = self._teacher.step(self._ids, self._teacher.step_at(self._position, seen))
        if self._noise is None:
            self._noise = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        self._noise.exponential_()
        self._next.copy_(self._choose(logits, self._noise, self._inverse, self._sampled))

    def _warm_up(self) -> None:
        """Compile, and let libraries set themselves up, beside the stream that will be captured."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for seen in self._lengths:
                self._compute(seen)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()

    def _capture(self) -> None:
        """Capture a step for each length; they share one pool of memory, for only one runs at a time."""
        pool = None
        for seen in self._lengths:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._compute(seen)
            pool = graph.pool()
            self._graphs[seen] = graph


def rows_that_fit(teacher: Teacher, length: int) -> int:
    """Texts that the device has room for, as many as pay."""
    most = _MOST_ROWS.get(teacher.device.type, _ROWS)
    if teacher.device.type != "cuda":
        return most
    free, _ = torch.cuda.mem_get_info(teacher.device)
    fit = int(free * _SHARE_OF_FREE) // teacher.row_bytes(length)
    return max(8, min(most, fit // 8 * 8))
