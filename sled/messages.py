"""What travels between device and server: msgpack arrays, typed and bounded, decoded before anything is believed.

`docs/spec/sled-protocol.md` is the specification; token ids are integers in the target's vocabulary.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from edgebus.payloads import Payload
from sled.types import FinishReason, Logprob, Message, Sampling, SparseLaw, Terms

DESCRIBE, VOCABULARY, OPEN, VERIFY, DECODE, CLOSE, STATS, TRACE = (
    "sled.describe",
    "sled.vocabulary",
    "sled.open",
    "sled.verify",
    "sled.decode",
    "sled.close",
    "sled.stats",
    "sled.trace",
)
SERVICES = (DESCRIBE, VOCABULARY, OPEN, VERIFY, DECODE, CLOSE, STATS, TRACE)

MAX_WINDOW = 64
FORWARD_SIZES = (1, 2, 3, 5, 9, 17)
"""Tokens of the forwards of which a server tells what they take."""
MAX_PROMPT_CHARS = 1 << 20
MAX_TOKENS = 1 << 17
MAX_MESSAGES = 1024

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
SessionId = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
Digest = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
Length = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
Tokens = Annotated[list[TokenId], msgspec.Meta(max_length=MAX_TOKENS)]
Draft = Annotated[list[TokenId], msgspec.Meta(max_length=MAX_WINDOW)]
PromptText = Annotated[str, msgspec.Meta(max_length=MAX_PROMPT_CHARS)]


class Described(Payload, frozen=True, array_like=True):
    """Answer to `sled.describe`: what the target is; `target_id` differs where weights or arithmetic differ."""

    name: str
    dtype: str
    vocab_size: int
    vocab_hash: bytes
    max_positions: int
    max_window: int
    stop_ids: list[int]
    target_id: bytes = b""


class Vocabulary(Payload, frozen=True, array_like=True):
    """Answer to `sled.vocabulary`: the bytes each token stands for, and which ids are control tokens."""

    pieces: list[bytes]
    special_ids: list[int]


class Open(Payload, frozen=True, array_like=True):
    """Open a session, or take one up again where its committed text ends.

    `prompt` is text (through the target's chat template if `chat`), or token ids, or empty with `messages`, a
    conversation for the template. `answer` holds tokens already committed, after a server lost the session or when
    another server takes over; a server whose target is not `target_id` refuses, since it would go on with another
    model's text. Empty means any target.
    """

    session: SessionId
    sampling: Sampling
    prompt: PromptText | Tokens
    chat: bool = False
    answer: Tokens = msgspec.field(default_factory=list)
    target_id: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    terms: Terms = Terms()
    messages: Annotated[list[Message], msgspec.Meta(max_length=MAX_MESSAGES)] = msgspec.field(default_factory=list)


class Opened(Payload, frozen=True, array_like=True):
    """The session stands: the prompt as token ids, and how much is committed (prompt included).

    `forward_s` is what forwards of `FORWARD_SIZES` tokens of this session would take now, in seconds; empty where the
    server does not know. It only helps the device to begin well.
    """

    prompt_tokens: list[TokenId]
    committed: Length
    window_limit: int
    forward_s: Annotated[list[float], msgspec.Meta(max_length=16)] = msgspec.field(default_factory=list)


class Verify(Payload, frozen=True, array_like=True):
    """One round: these drafts continue the text of length `base` whose digest is `digest`.

    `law` goes along with drafts of a session that samples by rejection; without it such drafts count as certain.
    """

    session: SessionId
    base: Length
    digest: Digest
    draft: Draft
    law: SparseLaw | None = None


class Decode(Payload, frozen=True, array_like=True):
    """From length `base` on the server decodes without drafts: a stream whose parts are verdicts.

    It ends with a verdict that has a finish, after `max_tokens`, when the device cancels it, or with an empty verdict
    whose `window_limit` is above 0: drafting pays again.
    """

    session: SessionId
    base: Length
    digest: Digest
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]


class Verdict(Payload, frozen=True, array_like=True):
    """The tokens that follow `base`, decided by the target.

    `accepted` of them are the draft's, at most one more is the target's own; `batch` is the number of rounds
    that were verified in the same forward, 0 if the tokens are told again.
    """

    base: Length
    tokens: list[TokenId]
    accepted: int
    finish: FinishReason
    window_limit: int
    batch: int
    logprobs: list[Logprob] = msgspec.field(default_factory=list)


class Close(Payload, frozen=True, array_like=True):
    """Forget the session; answered with an empty payload."""

    session: SessionId


class Later(Payload, frozen=True, array_like=True):
    """What goes along with busy, draining, closing and out_of_memory: when to ask again, and who else may be asked.

    `servers` are (endpoint, public key) of servers of the same target; the key is empty in plaintext.
    """

    after_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)]
    servers: Annotated[
        list[tuple[Annotated[str, msgspec.Meta(max_length=256)], Annotated[str, msgspec.Meta(max_length=40)]]],
        msgspec.Meta(max_length=16),
    ] = msgspec.field(default_factory=list)


class Trace(Payload, frozen=True, array_like=True):
    """Ask what happened to a session's last rounds, `last` of them at most; only whoever opened it is told."""

    session: SessionId
    last: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64


class TracedRound(Payload, frozen=True, array_like=True):
    """One round, or token of a decode stream.

    `arrived_s` counts from the opening of the session; the round waited `queue_s` for its forward, which took `step_s`
    and decided `batch` rounds. `tokens` were committed, `accepted` of the `drafted` among them.
    """

    base: Length
    arrived_s: float
    queue_s: float
    step_s: float
    drafted: int
    accepted: int
    tokens: int
    window_limit: int
    batch: int


class Traced(Payload, frozen=True, array_like=True):
    """Answer to `sled.trace`: the rounds, oldest first, and how many there were before them."""

    rounds: Annotated[list[TracedRound], msgspec.Meta(max_length=1024)]
    earlier: int
