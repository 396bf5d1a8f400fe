"""A conversation with its settings, and its file. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from sled.errors import ParameterError
from sled.messages import MAX_MESSAGES
from sled.types import Message, Sampling

MAX_FILE_BYTES = 1 << 24


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are asked for.

    Attributes:
        system: what the model is told first; empty leaves it to its template.
        max_tokens: of an answer.
        sampling: temperature, seed and so on.
    """

    system: Annotated[str, msgspec.Meta(max_length=1 << 20)] = ""
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 17)] = 512
    sampling: Sampling = Sampling()


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["sled chat"] = "sled chat"
    version: Literal[1] = 1
    target: str
    settings: Settings
    messages: Annotated[list[Message], msgspec.Meta(max_length=MAX_MESSAGES)]


class Conversation:
    """What was said so far.

    Args:
        settings: of the answers to come.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.turns: list[Message] = []

    def asking(self, text: str) -> list[Message]:
        """What goes to the template for this question."""
        system = [Message("system", self.settings.system)] if self.settings.system else []
        return [*system, *self.turns, Message("user", text)]

    def answered(self, text: str, answer: str) -> None:
        """A question has its answer."""
        self.turns += [Message("user", text), Message("assistant", answer)]

    def reset(self) -> None:
        """Forget what was said; settings stay."""
        self.turns.clear()

    def to_json(self, target: str) -> bytes:
        """The file of this conversation with a target of this name."""
        file = _File(target=target, settings=self.settings, messages=self.turns)
        return msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> tuple[Conversation, str]:
        """A conversation from its file, and the name of the target it was held with.

        Raises:
            ParameterError: it is none.
        """
        if len(content) > MAX_FILE_BYTES:
            raise ParameterError(f"the file has {len(content)} bytes, a conversation at most {MAX_FILE_BYTES}")
        try:
            file = msgspec.json.decode(content, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise ParameterError(f"this is no conversation ({error}); give a file that /save has written") from None
        conversation = cls(file.settings)
        conversation.turns = list(file.messages)
        return conversation, file.target
