"""What a drafter is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from sled.proposal import Proposal, Reading
from sled.types import Sampling


class Drafter(Protocol):
    """Proposes tokens that continue a text; a wrong proposal costs time, never correctness.

    Whoever asks decides how many proposals are worth taking; a drafter only says how sure it is of each.

    One that reads the text with a model, a thousand tokens of a prompt before its first draft, may say so, so that this
    is not taken for drafting: by a `Reading` before each piece that it reads, with fewer tokens each time, so that
    others have their turn. Ours have a method `unread(text) -> int` besides, the tokens they would read before their
    first draft; of a drafter in a thread of its own that is never asked: what is new in the text counts.
    """

    name: str

    def start(self, sampling: Sampling, num_prompt: int) -> None:
        """A new answer begins.

        Args:
            sampling: how the target samples it.
            num_prompt: so many tokens of the text are the prompt; penalties count what comes behind them.
        """

    def draft(self, text: Sequence[int], limit: int) -> Iterable[int | Proposal | Reading]:
        """Target token ids that may follow `text`, one after the other; a plain id counts as certain.

        Args:
            text: what is committed, and perhaps speculative tokens behind it: from one call to the next it grows, or
                loses its end and grows differently.
            limit: tokens that are taken at most; it may stop at any time before.
        """


def unread_of(drafter: Drafter, text: Sequence[int]) -> int:
    """Tokens of the text that the drafter says it would read before its first draft; 0 if it says nothing."""
    unread = getattr(drafter, "unread", None)
    return int(unread(text)) if unread is not None else 0


class NoDrafter:
    """Drafts nothing: the server decodes token by token."""

    name = "none"

    def start(self, sampling: Sampling, num_prompt: int) -> None:
        """Nothing to prepare."""

    def draft(self, text: Sequence[int], limit: int) -> list[int]:
        """An empty draft."""
        return []
