"""The state of an answer as a file: what it takes to go on with it after the device's process has ended.

docs/spec/sled-state.md is the specification. Pure: bytes in, bytes out.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from edgebus.payloads import Payload, decode, encode
from sled.device import Conversation, Generation
from sled.errors import StateUnusable
from sled.messages import MAX_MESSAGES, MAX_TOKENS, Described, PromptText, TokenId, Tokens
from sled.types import FinishReason, Logprob, Message, Sampling, Terms

MAGIC = b"SLEDSAVE"
VERSION = 1
MAX_BYTES = 1 << 26
_CHECKSUM_BYTES = 16
_HEAD_BYTES = len(MAGIC) + 2 + _CHECKSUM_BYTES


class Saved(Payload, frozen=True, array_like=True):
    """An answer as far as it has come.

    `prompt` (with `chat`) or `messages` is what was asked, `prompt_tokens` what the target reads there, empty before
    a server has opened the answer. `answer` is committed, and was told. `unverified` are tokens that were shown
    without a verdict, with the drafter's confidences: guesses, nothing more. `finish` is empty until the answer has
    ended.
    """

    target_name: str
    target_id: Annotated[bytes, msgspec.Meta(max_length=16)]
    prompt: PromptText | Tokens
    chat: bool
    messages: Annotated[list[Message], msgspec.Meta(max_length=MAX_MESSAGES)]
    sampling: Sampling
    terms: Terms
    prompt_tokens: Tokens
    answer: Tokens
    logprobs: list[Logprob]
    finish: FinishReason
    unverified: Annotated[list[tuple[TokenId, float]], msgspec.Meta(max_length=MAX_TOKENS)]


def state_of(
    machine: Generation, target: Described, told: int, logprobs: list[Logprob], guesses: list[tuple[int, float]]
) -> Saved:
    """An answer as it stands.

    Args:
        machine: the answer.
        target: whose it is.
        told: how many of its tokens were told; the rest is left out.
        logprobs: of those, if they were asked for.
        guesses: unverified tokens that are shown behind them, with confidences.
    """
    prompt, answer = machine.prompt, machine.answer[:told]
    conversation = prompt.messages if isinstance(prompt, Conversation) else []
    return Saved(
        target.name,
        target.target_id,
        "" if isinstance(prompt, Conversation) else prompt,
        machine.chat,
        conversation,
        machine.sampling,
        machine.terms,
        machine.prompt_tokens,
        answer,
        logprobs,
        machine.finish if len(answer) == len(machine.answer) else "",
        guesses,
    )


def pack(saved: Saved) -> bytes:
    """The content of the file."""
    body = encode(saved)
    return MAGIC + VERSION.to_bytes(2, "little") + _checksum(body) + body


def unpack(content: bytes, where: str) -> Saved:
    """What a file holds.

    Args:
        content: of the file.
        where: its name, for errors.

    Raises:
        StateUnusable: it is not a state, of another version, or damaged.
    """
    again = "generate the answer again"
    if content[: len(MAGIC)] != MAGIC:
        raise StateUnusable(f"{where} holds no saved answer; give a file that `save_to` (--save) has written")
    if len(content) < _HEAD_BYTES:
        raise StateUnusable(f"{where} is cut off after {len(content)} bytes; {again}")
    version = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 2], "little")
    if version != VERSION:
        raise StateUnusable(
            f"{where} is of version {version}, this program reads version {VERSION}; "
            f"use the one that wrote it, or {again}"
        )
    body = content[_HEAD_BYTES:]
    if _checksum(body) != content[_HEAD_BYTES - _CHECKSUM_BYTES : _HEAD_BYTES]:
        raise StateUnusable(f"{where} is damaged: its checksum does not match its {len(body)} bytes; {again}")
    try:
        saved = decode(Saved, body)
    except ValueError as error:
        raise StateUnusable(f"{where} is not what version {VERSION} holds ({error}); {again}") from None
    _check(saved, where)
    return saved


def check_target(saved: Saved, target_id: bytes, target_name: str, where: str) -> None:
    """Another target would go on with another text.

    Raises:
        StateUnusable: it is another one.
    """
    if saved.target_id != target_id:
        raise StateUnusable(
            f"the answer in {where} is of target {saved.target_name} ({saved.target_id.hex()}), the server runs "
            f"{target_name} ({target_id.hex()}); resume it at a server of that target, or generate it again"
        )


def _check(saved: Saved, where: str) -> None:
    most = saved.terms.max_tokens
    if not (saved.prompt or saved.messages or saved.prompt_tokens):
        raise StateUnusable(f"{where} has no prompt; generate the answer again")
    if (saved.answer or saved.unverified or saved.finish) and not saved.prompt_tokens:
        raise StateUnusable(f"{where} has an answer to no prompt; generate it again")
    if most < 1 or len(saved.answer) > most or (len(saved.answer) == most and not saved.finish):
        raise StateUnusable(f"{where} has {len(saved.answer)} tokens of at most {most}; generate the answer again")


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).digest()
