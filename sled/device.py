"""The device's side of the verification protocol as a state machine.

Pure: drafts and answers go in, requests and committed tokens come out; sockets, drafters and clocks live elsewhere.

    opening --opened--> drafting --submit--> waiting --verdict--> drafting | done
    drafting --decode_request (the server's limit is 0)--> streaming --streamed--> streaming | drafting | done
    any but done --session_lost--> opening (with what is committed);  waiting --stale_base--> failed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from sled.errors import ProtocolError
from sled.history import History
from sled.messages import MAX_WINDOW, Decode, Open, Opened, Verdict, Verify
from sled.types import FinishReason, Logprob, Sampling, SparseLaw, Terms
from sled.window import Window

_TERMS = Terms()


class State(Enum):
    """Where a generation stands."""

    OPENING = "opening"
    DRAFTING = "drafting"
    WAITING = "waiting"
    STREAMING = "streaming"
    DONE = "done"


@dataclass(slots=True)
class Counts:
    """What happened so far: rounds asked, tokens drafted, drafts accepted, tokens committed, sum of batch sizes."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    batches: int = 0
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
        prompt: text, or token ids.
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
        prompt: str | Sequence[int],
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
        self._prompt: str | list[int] = prompt if isinstance(prompt, str) else list(prompt)
        self._chat = chat
        self._server_limit = 0
        self._draft: list[int] = []
        self._reopens_left = self._max_reopens = max_reopens
        self._target_id = target_id
        self.terms = msgspec.structs.replace(terms, max_tokens=max_tokens)

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
        prompt = self.prompt_tokens if self.num_prompt else self._prompt
        chat = self._chat and not self.num_prompt
        return Open(self.session, self.sampling, prompt, chat, self.answer, self._target_id, self.terms)

    def opened(self, message: Opened) -> None:
        """The server holds the session.

        Raises:
            ProtocolError: the server's idea of the committed text contradicts ours.
        """
        assert self.state is State.OPENING
        if not self.num_prompt:
            self.history = History(message.prompt_tokens)
            self.num_prompt = len(message.prompt_tokens)
        if message.committed != len(self.history) or message.prompt_tokens != self.prompt_tokens:
            raise ProtocolError(
                f"the server opened a text of {message.committed} tokens, ours has {len(self.history)}; "
                "check that both run the same version"
            )
        self._server_limit = message.window_limit
        self.state = State.DRAFTING

    def draft_limit(self) -> int:
        """How many tokens the drafter may propose now."""
        remaining = self.max_tokens - len(self.answer)
        return self.window.limit(server_limit=self._server_limit, remaining=remaining)

    @property
    def server_decodes(self) -> bool:
        """Whether the server wants no drafts now: it is asked for a stream of its own tokens."""
        return self.state is State.DRAFTING and self._server_limit == 0

    def decode_request(self) -> Decode:
        """The stream to ask for while the server decodes."""
        assert self.server_decodes
        self._draft = []
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
        return self._commit(message, State.STREAMING)

    def stream_ended(self) -> None:
        """The stream is over without an end of the answer; who goes on drafts, or asks for another one."""
        if self.state is State.STREAMING:
            self.state = State.DRAFTING

    def submit(self, draft: Sequence[int], law: SparseLaw | None = None) -> Verify:
        """The round to send for this draft; what is over the limit is left out.

        Args:
            draft: token ids.
            law: what each of them was sampled from; goes along only under the rejection rule.
        """
        assert self.state is State.DRAFTING
        self._draft = [int(token) for token in draft[: self.draft_limit()]]
        self.state = State.WAITING
        base = len(self.history)
        wanted = law is not None and self._draft and self.sampling.rule == "rejection"
        told = law.first(len(self._draft)) if law is not None and wanted else None
        return Verify(self.session, base, self.history.digest(base), self._draft, told)

    def verdict(self, message: Verdict) -> list[Committed]:
        """Commit what the target decided; returns the new tokens.

        What counts as accepted is what agrees with our own draft: the server may answer a repeated round with the
        verdict of an earlier draft, and it is just as good.

        Raises:
            ProtocolError: a verdict for another length, without tokens or an end, or with more than any round yields.
        """
        assert self.state is State.WAITING
        return self._commit(message, State.DRAFTING)

    def _check_base(self, message: Verdict) -> None:
        if message.base != len(self.history) or len(message.tokens) > MAX_WINDOW + 1:
            raise ProtocolError(
                f"{len(message.tokens)} tokens for length {message.base}, we stand at {len(self.history)}; "
                "open a new session"
            )

    def _commit(self, message: Verdict, onward: State) -> list[Committed]:
        base = len(self.history)
        self._check_base(message)
        if not message.tokens and not message.finish:
            raise ProtocolError(f"no token and no end for length {base}, where we stand at {base}; open a new session")
        tokens = message.tokens[: self.max_tokens - len(self.answer)]
        agreed = 0
        while agreed < min(len(tokens), len(self._draft)) and tokens[agreed] == self._draft[agreed]:
            agreed += 1
        self.history.extend(tokens)
        self._count(agreed, len(tokens), message.batch)
        self._server_limit = message.window_limit
        self._reopens_left = self._max_reopens
        self.finish = message.finish
        if not self.finish and len(self.answer) >= self.max_tokens:
            self.finish = "length"
        self.state = State.DONE if self.finish else onward
        told: list[Logprob | None] = [*message.logprobs[: len(tokens)], *[None] * len(tokens)]
        return [Committed(token, base + i, i < agreed, told[i]) for i, token in enumerate(tokens)]

    def session_lost(self) -> bool:
        """The server does not know the session; returns whether to open it again with the committed text."""
        if self._reopens_left <= 0:
            return False
        self._reopens_left -= 1
        self.state = State.OPENING
        return True

    def move(self, session: bytes) -> None:
        """Open the answer again under another session id, at another server or at one that may have gone on without us.

        Args:
            session: 8 random bytes; the old id may stand for a text that is longer than ours by now.
        """
        assert self.state is not State.DONE
        self.session = session
        self.state = State.OPENING

    def _count(self, accepted: int, num_tokens: int, batch: int) -> None:
        self.counts.rounds += 1
        self.counts.drafted += len(self._draft)
        self.counts.accepted += accepted
        self.counts.tokens += num_tokens
        self.counts.batches += batch
        self.counts.accepted_by_round.append(accepted)
