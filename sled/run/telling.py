"""What the user of an answer is told: tokens with their text, and what is drafted behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sled.device import Committed, Generation, State
from sled.events import Speculative
from sled.stop_text import AnswerText
from sled.types import Logprob, Token


class Telling:
    """Turns committed tokens into text.

    Args:
        machine: the answer.
        piece: the bytes of a token.
        clock: seconds.

    Attributes:
        shown: the committed text's end, as far as it is decoded.
        told: how many tokens of the answer were told; what is committed may be further.
        first_token_s: when the first token came, from the beginning.
        wall_s: what the answer took in all.
    """

    def __init__(self, machine: Generation, piece: Callable[[int], bytes], clock: Callable[[], float]) -> None:
        self._machine, self._piece, self._clock = machine, piece, clock
        self.shown = AnswerText(machine.terms.stop)
        self.text = ""
        self.told = 0
        self.logprobs: list[Logprob] = []
        self.started_at = clock()
        self.first_token_s = self.wall_s = 0.0
        self._told_tail: tuple[int, ...] = ()

    def now(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self.started_at

    def restore(self, answer: Sequence[int], logprobs: Sequence[Logprob]) -> None:
        """The tokens that came before this process."""
        self.logprobs = list(logprobs)
        self.told = len(answer)
        for token in answer:
            self.text += self.shown.add(self._piece(token))

    def token(self, committed: Committed) -> Token:
        """A committed token, as it is told."""
        if not self.first_token_s:
            self.first_token_s = self.now()
        last = self._machine.state is State.DONE and committed.pos == len(self._machine.history) - 1
        text = self.shown.add(self._piece(committed.token), last=last)
        self.text += text
        self.told += 1
        if committed.logprob is not None:
            self.logprobs.append(committed.logprob)
        return Token(committed.token, committed.pos, committed.drafted, text, committed.logprob)

    def end(self) -> None:
        """The answer is over; its end may have come without a token."""
        self.text += self.shown.add(b"", last=True)

    def tail(self) -> Iterator[Speculative]:
        """The speculative tokens, if they are others than were told last."""
        tokens = tuple(proposal.token for proposal in self._machine.chain.proposals)
        if tokens != self._told_tail:
            self._told_tail = tokens
            text = b"".join(map(self._piece, tokens)).decode("utf-8", "replace")
            yield Speculative(len(self._machine.history), tokens, text)
