"""Small values shared by device and server."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

FinishReason = Literal["", "stop", "length"]

MAX_SEED = 2**64 - 1
MAX_BIAS = 1024
MAX_CONSTRAINT_CHARS = 1 << 16
MAX_LAW_IDS = 256


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """A form the answer must have; tokens that would break it are forbidden.

    Args:
        kind: "json_schema" (a schema, "{}" for any JSON), "regex", or "grammar" (Lark).
        text: the schema, expression or grammar.
    """

    kind: Literal["json_schema", "regex", "grammar"]
    text: Annotated[str, msgspec.Meta(max_length=MAX_CONSTRAINT_CHARS)]


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How the answer is sampled from the target; with the prompt it determines the answer.

    Logits are changed in transformers' order: bias, repetition, frequency and presence penalty, temperature, top-k,
    top-p, min-p.

    Args:
        temperature: 0 is greedy; 0.001 to 100 divides the logits.
        top_k: keep this many of the likeliest tokens, 0 keeps all.
        top_p: keep the smallest set of likeliest tokens whose mass reaches this, in (0, 1].
        seed: the noise is a function of (seed, position, token id); 0 .. 2**64 - 1.
        min_p: keep tokens at least this share of the likeliest one's probability, 0 keeps all.
        repetition_penalty: divides (multiplies, if negative) logits of tokens in prompt or answer; 1 is off.
        presence_penalty: taken off once for tokens the answer has; -2 .. 2.
        frequency_penalty: taken off for each time the answer has a token; -2 .. 2.
        bias: (token id, value) pairs added to logits, values -100 .. 100.
        rule: "coupled" (the default) or "rejection": then drafts carry the law they were sampled from, and the answer
            follows the target's law without being a function of the seed alone.
        constraint: a form the answer must have.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    rule: Literal["coupled", "rejection"] = "coupled"
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        if not (self.temperature == 0.0 or 0.001 <= self.temperature <= 100.0):
            raise ValueError(f"temperature is {self.temperature}, give 0 (greedy), or 0.001 to 100")
        if not 0 <= self.top_k < 2**31:
            raise ValueError(f"top_k is {self.top_k}, give 0 (off) or a positive count")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}, give a mass above 0 and at most 1 (off)")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed is {self.seed}, give 0 to 2**64 - 1")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p is {self.min_p}, give a share from 0 (off) to 1")
        if not 0.01 <= self.repetition_penalty <= 100.0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}, give 0.01 to 100; 1 is off")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2.0 <= getattr(self, name) <= 2.0:
                raise ValueError(f"{name} is {getattr(self, name)}, give -2 to 2; 0 is off")
        if len(self.bias) > MAX_BIAS:
            raise ValueError(f"bias has {len(self.bias)} entries, give at most {MAX_BIAS}")
        for token, value in self.bias:
            if not (0 <= token < 2**31 and -100.0 <= value <= 100.0):
                raise ValueError(f"bias of token {token} is {value}, give ids 0 .. 2**31 - 1 and values -100 .. 100")

    @property
    def counts_tokens(self) -> bool:
        """Whether the text so far changes the logits (a penalty is on)."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message of a conversation, for the target's chat template.

    Args:
        role: "system", "user", "assistant", or what else the template knows.
        content: text.
    """

    role: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    content: Annotated[str, msgspec.Meta(max_length=1 << 20)]


class Terms(msgspec.Struct, frozen=True, array_like=True):
    """When the answer ends, what is told along with it, and how fast it should come.

    Args:
        max_tokens: tokens of the answer at most; 0 leaves it to the context length.
        stop: the answer ends with the first token that completes one of these texts; at most 16 of 1 .. 256 characters.
        logprobs: with every token its log-probability and those of so many likeliest ones, -1 .. 20; -1 is off.
        rate: tokens per second the user was promised, for the order of rounds; 0 takes the server's own.

    Raises:
        ValueError: a value is out of range.
    """

    max_tokens: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int = -1
    rate: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_tokens < 2**31:
            raise ValueError(f"max_tokens is {self.max_tokens}, give a positive count, or 0 for no limit of your own")
        if len(self.stop) > 16 or any(not 1 <= len(text) <= 256 for text in self.stop):
            raise ValueError("stop takes at most 16 texts of 1 to 256 characters")
        if not -1 <= self.logprobs <= 20:
            raise ValueError(f"logprobs is {self.logprobs}, give 0 to 20, or -1 (off)")
        if not 0.0 <= self.rate <= 1e6:
            raise ValueError(f"rate is {self.rate} tokens/s, give 0 (the server's own) to 1e6")


class SparseLaw(msgspec.Struct, frozen=True, array_like=True):
    """The laws that the drafts of a round were sampled from: ids of positive probability, draft after draft.

    Args:
        counts: how many ids each draft has.
        ids: int32 little-endian, rising for each draft.
        probabilities: float32 little-endian, each draft's summing to 1.
    """

    counts: Annotated[list[Annotated[int, msgspec.Meta(ge=1, le=MAX_LAW_IDS)]], msgspec.Meta(max_length=64)]
    ids: bytes
    probabilities: bytes

    def first(self, num_drafts: int) -> SparseLaw:
        """The laws of the first drafts."""
        size = 4 * sum(self.counts[:num_drafts])
        return SparseLaw(self.counts[:num_drafts], self.ids[:size], self.probabilities[:size])


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """A token's log-probability under the target's own logits (before everything in `Sampling`), and the likeliest."""

    value: float
    top: list[tuple[int, float]]


class Chunk(msgspec.Struct, frozen=True):
    """Tokens of one session that the target computes in one forward.

    `tokens` stand at positions `past` .. `past + len(tokens)` of the session; logits are wanted for the last
    `num_logits` of them (0 for a piece of prefill). Position t is kept in page `pages[t // page_tokens]`; keys and
    values of positions under `past` are there already.
    """

    session: bytes
    tokens: tuple[int, ...]
    past: int
    num_logits: int
    pages: tuple[int, ...] = ()


class Token(msgspec.Struct, frozen=True):
    """A committed token as the device's user sees it.

    `drafted` says that the device proposed it and the target agreed; otherwise it is the target's own. `text` leaves a
    stop text out, and what may begin one comes with a later token. `logprob` is there if it was asked for.
    """

    id: int
    pos: int
    drafted: bool
    text: str
    logprob: Logprob | None = None
