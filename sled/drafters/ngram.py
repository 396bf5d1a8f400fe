"""Drafts by looking up where the last few tokens stood before and what followed them.

Source: prompt lookup decoding (A. Saxena, 2023); no model, a dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence

from sled.types import Sampling
from sled.window import Window


class NgramDrafter:
    """Prompt lookup: the longest n-gram that ends the text and stood earlier in it says what comes next.

    Args:
        longest: longest n-gram tried first.
        shortest: shortest n-gram trusted.

    >>> drafter = NgramDrafter()
    >>> drafter.start(Sampling())
    >>> drafter.draft([1, 2, 3, 4, 9, 1, 2], 3, Window(8))
    [3, 4, 9]
    """

    name = "ngram"

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        assert 1 <= shortest <= longest
        self._sizes = range(longest, shortest - 1, -1)
        self._follows: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def start(self, sampling: Sampling) -> None:
        """Forget the last text."""
        self._follows.clear()
        self._indexed = 0

    def draft(self, prefix: Sequence[int], limit: int, window: Window) -> list[int]:
        """What followed the latest earlier place with the same ending; empty if there is none.

        A copied token's confidence counts as 1, so only the window's size ends a draft.
        """
        self._index(prefix)
        for size in self._sizes:
            start = self._follows.get(tuple(prefix[-size:])) if len(prefix) > size else None
            if start is not None and window.wants(1.0):
                return self._copy(prefix, start, limit)
        return []

    @staticmethod
    def _copy(prefix: Sequence[int], start: int, limit: int) -> list[int]:
        """`limit` tokens from `start` on; past the end of the text the copy goes on with itself."""
        draft: list[int] = []
        for at in range(start, start + limit):
            draft.append(prefix[at] if at < len(prefix) else draft[at - len(prefix)])
        return draft

    def _index(self, prefix: Sequence[int]) -> None:
        """Remember what follows every n-gram; a later place replaces an earlier one."""
        for end in range(max(self._indexed, 1), len(prefix)):
            for size in self._sizes:
                if end >= size:
                    self._follows[tuple(prefix[end - size : end])] = end
        self._indexed = max(self._indexed, len(prefix))
