"""The device's side of the verification protocol as a state machine.

Pure: drafts and answers go in, requests and committed tokens come out; sockets, drafters and clocks live elsewhere.

    opening --opened--> drafting --submit, verdict--> drafting | done
    drafting --decode_request--> streaming --streamed, stream_ended--> streaming | drafting | done
    any but done --session_lost, move--> opening (with what is committed; speculative tokens are kept)

While drafting up to `MAX_FLIGHTS` rounds are in flight (`sled.chain`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeAlias

import msgspec

from sled.chain import Chain
from sled.errors import ProtocolError
from sled.history import History
from sled.messages import MAX_WINDOW, Decode, Open, Opened, Verdict, Verify
from sled.proposal import Proposal, law_of_round
from sled.types import FinishReason, Logprob, Message, Sampling, Terms
from sled.window import Window

_TERMS = Terms()
MAX_FLIGHTS = 2
"""Rounds of an answer in flight at most; the server holds one beside the one it decides."""


class Conversation(NamedTuple):
    """What a chat has come to, for the target's template."""

    messages: list[Message]


Prompt: TypeAlias = str | list[int] | Conversation


class State(Enum):
    """Where a generation stands."""

    OPENING = "opening"
    DRAFTING = "drafting"
    STREAMING = "streaming"
    DONE = "done"


@dataclass(slots=True)
class Counts:
    """What happened so far: rounds decided, tokens drafted, drafts accepted, tokens committed, sum of batch sizes.

    `told_again` of the rounds were answered with what had been decided before: no batch stands behind them.
    `hoped_rounds` were sent before what they hang on had come true, and `dead_rounds` of them in vain.
    """

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    batches: int = 0
    told_again: int = 0
    hoped_rounds: int = 0
    dead_rounds: int = 0
    accepted_by_round: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Committed:
    """One token that is final: `drafted` if the device proposed it, else the target's own."""

    token: int
    pos: int
    drafted: bool
    logprob: Logprob | None = None


class Generation:
    """One answer, from prompt to finish.

    Args:
        session: 8 random bytes.
        prompt: text, token ids, or a conversation.
        chat: the text goes through the target's chat template.
        sampling: how the answer is sampled.
        max_tokens: tokens wanted, at least 1.
        window: how many tokens to draft per round.
        max_reopens: how often a session that the server lost is opened again, without a token in between, before giving
            up.
        target_id: the target the answer must come from; empty for any.
        terms: when the answer ends and what is told along with it; its `max_tokens` is ours.
    """

    def __init__(
        self,
        session: bytes,
        prompt: Prompt,
        *,
        chat: bool,
        sampling: Sampling,
        max_tokens: int,
        window: Window,
        max_reopens: int = 3,
        target_id: bytes = b"",
        terms: Terms = _TERMS,
    ) -> None:
        self.session = session
        self.sampling, self.max_tokens, self.window = sampling, max_tokens, window
        self.state = State.OPENING
        self.finish: FinishReason = ""
        self.counts = Counts()
        self.history = History()
        self.num_prompt = 0
        self._prompt: Prompt = prompt
        self._chat = chat
        self.chain = Chain()
        self._server_limit = 0
        self._reopens_left = self._max_reopens = max_reopens
        self._target_id = target_id
        self.terms = msgspec.structs.replace(terms, max_tokens=max_tokens)

    def restore(
        self, prompt_tokens: Sequence[int], answer: Sequence[int], guesses: Sequence[Proposal], finish: FinishReason
    ) -> None:
        """Stand where a saved answer stood, to be opened again, or done.

        Args:
            prompt_tokens: as the target reads the prompt.
            answer: tokens already committed.
            guesses: speculative tokens behind them; they count as certain under the rejection rule, which is right
                whatever they were sampled from.
            finish: why the answer has ended; empty if it has not.
        """
        assert self.state is State.OPENING
        assert not self.num_prompt
        self.history = History([*prompt_tokens, *answer])
        self.num_prompt = len(prompt_tokens)
        self.chain.length = len(self.history)
        self.chain.proposals += guesses
        if finish:
            self.finish, self.state = finish, State.DONE

    @property
    def prompt(self) -> Prompt:
        """What was asked."""
        return self._prompt

    @property
    def chat(self) -> bool:
        """Whether a text goes through the target's chat template."""
        return self._chat

    @property
    def answer(self) -> list[int]:
        """Committed tokens after the prompt."""
        return self.history.tokens[self.num_prompt :]

    @property
    def prompt_tokens(self) -> list[int]:
        """The prompt as the target reads it."""
        return self.history.tokens[: self.num_prompt]

    def open_request(self) -> Open:
        """What to send while opening."""
        assert self.state is State.OPENING
        rest = (self.answer, self._target_id, self.terms)
        if self.num_prompt:
            return Open(self.session, self.sampling, self.prompt_tokens, False, *rest)
        if isinstance(self._prompt, Conversation):
            return Open(self.session, self.sampling, "", True, *rest, self._prompt.messages)
        return Open(self.session, self.sampling, self._prompt, self._chat, *rest)

    def opened(self, message: Opened) -> None:
        """The server holds the session.

        Raises:
            ProtocolError: the server's idea of the committed text contradicts ours.
        """
        assert self.state is State.OPENING
        if not self.num_prompt:
            self.history = History(message.prompt_tokens)
            self.num_prompt = len(message.prompt_tokens)
            self.chain.length = len(self.history)
        if message.committed != len(self.history) or message.prompt_tokens != self.prompt_tokens:
            raise ProtocolError(
                f"the server opened a text of {message.committed} tokens, ours has {len(self.history)}; "
                "check that both run the same version"
            )
        self._server_limit = message.window_limit
        self.state = State.DRAFTING

    def draft_limit(self) -> int:
        """How many tokens the next round may hold."""
        remaining = self.max_tokens - (self.chain.next_base - self.num_prompt)
        return self.window.limit(server_limit=self._server_limit, remaining=remaining)

    @property
    def window_limit(self) -> int:
        """Drafts that the server takes per round, as it said last."""
        return self._server_limit

    @property
    def remaining(self) -> int:
        """Tokens still wanted."""
        return self.max_tokens - len(self.history) + self.num_prompt

    @property
    def stream_wanted(self) -> bool:
        """Whether the server takes no drafts, as it said last."""
        return self._server_limit == 0

    @property
    def server_decodes(self) -> bool:
        """Whether the server wants no drafts now: it is asked for a stream of its own tokens."""
        return self.may_stream and self.stream_wanted

    @property
    def may_stream(self) -> bool:
        """Whether nothing is in flight, so that the server may be asked to decode the rest by itself."""
        return self.state is State.DRAFTING and not self.chain.flights

    def decode_request(self) -> Decode:
        """The stream to ask for while the server decodes; what is drafted stays until the text has passed it."""
        assert self.may_stream
        self.state = State.STREAMING
        base = len(self.history)
        return Decode(self.session, base, self.history.digest(base), self.max_tokens - len(self.answer))

    def streamed(self, message: Verdict) -> list[Committed]:
        """Commit a part of the stream; an empty one whose limit is above 0 leads back to drafting.

        Raises:
            ProtocolError: a part for another length, or with more than any part holds.
        """
        assert self.state is State.STREAMING
        if not message.tokens and not message.finish:
            self._check_base(message)
            self._server_limit = message.window_limit
            self.state = State.DRAFTING if message.window_limit > 0 else State.STREAMING
            return []
        return self._commit(message, State.STREAMING, ())

    def stream_ended(self) -> None:
        """The stream is over or given up without an end of the answer: drafts follow, or another one."""
        if self.state is State.STREAMING:
            self.state = State.DRAFTING

    def submit(self, size: int) -> Verify:
        """The next round, of the first `size` tokens of the chain that are in no other one; what is over is left out.

        Under the rejection rule the law that each was sampled from goes along.
        """
        assert self.state is State.DRAFTING
        assert len(self.chain.flights) < MAX_FLIGHTS
        hope = self.chain.proposals[: self.chain.start]
        flight = self.chain.send(max(0, min(size, self.draft_limit())))
        self.counts.hoped_rounds += bool(hope)
        digest = self.history.digest_with([proposal.token for proposal in hope])
        law = law_of_round(flight.drafts) if self.sampling.rule == "rejection" else None
        return Verify(self.session, flight.base, digest, [proposal.token for proposal in flight.drafts], law)

    def verdict(self, message: Verdict) -> list[Committed]:
        """Commit what the target decided on the oldest round in flight; returns the new tokens.

        What counts as accepted is what agrees with our own draft: the server may answer a repeated round with the
        verdict of an earlier draft, and it is just as good. Rounds that hung on what did not come true are in flight no
        more: nothing is expected of them.

        Raises:
            ProtocolError: a verdict for another length, without tokens or an end, or with more than any round yields.
        """
        assert self.state is State.DRAFTING
        assert self.chain.flights
        return self._commit(message, State.DRAFTING, self.chain.flights[0].drafts)

    def _check_base(self, message: Verdict) -> None:
        if message.base != len(self.history) or len(message.tokens) > MAX_WINDOW + 1:
            raise ProtocolError(
                f"{len(message.tokens)} tokens for length {message.base}, we stand at {len(self.history)}; "
                "open a new session"
            )

    def _commit(self, message: Verdict, onward: State, drafts: Sequence[Proposal]) -> list[Committed]:
        base = len(self.history)
        self._check_base(message)
        if not message.tokens and not message.finish:
            raise ProtocolError(f"no token and no end for length {base}, where we stand at {base}; open a new session")
        tokens = message.tokens[: self.max_tokens - len(self.answer)]
        num_flights = len(self.chain.flights)
        agreed = min(self.chain.commit(tokens), len(drafts))
        self.counts.dead_rounds += max(0, num_flights - 1 - len(self.chain.flights))
        self.history.extend(tokens)
        self._count(len(drafts), agreed, len(tokens), message.batch)
        self._server_limit = message.window_limit
        self._reopens_left = self._max_reopens
        self.finish = message.finish
        if not self.finish and len(self.answer) >= self.max_tokens:
            self.finish = "length"
        self.state = State.DONE if self.finish else onward
        told: list[Logprob | None] = [*message.logprobs[: len(tokens)], *[None] * len(tokens)]
        return [Committed(token, base + i, i < agreed, told[i]) for i, token in enumerate(tokens)]

    def abandon(self) -> None:
        """The rounds in flight will have no verdict: whoever was to give it is gone, or they were given up."""
        self.counts.dead_rounds += max(0, len(self.chain.flights) - 1)
        self.chain.abandon()

    def session_lost(self) -> bool:
        """The server does not know the session; returns whether to open it again with the committed text."""
        if self._reopens_left <= 0:
            return False
        self._reopens_left -= 1
        self.abandon()
        self.state = State.OPENING
        return True

    def move(self, session: bytes) -> None:
        """Open the answer again under another session id, at another server or at one that may have gone on without us.

        Args:
            session: 8 random bytes; the old id may stand for a text that is longer than ours by now.
        """
        assert self.state is not State.DONE
        self.session = session
        self.abandon()
        self.state = State.OPENING

    def _count(self, drafted: int, accepted: int, num_tokens: int, batch: int) -> None:
        self.counts.rounds += 1
        self.counts.drafted += drafted
        self.counts.accepted += accepted
        self.counts.tokens += num_tokens
        self.counts.batches += batch
        self.counts.told_again += batch == 0
        self.counts.accepted_by_round.append(accepted)
