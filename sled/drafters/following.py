"""How much of a text still stands since it was last seen, at a cost that its length does not set."""

from __future__ import annotations

from collections.abc import Sequence

LOOK_BACK = 1024  # tokens compared each time; what is speculative is far less


def agreed(seen: list[int], text: Sequence[int], *, whole: bool) -> int:
    """How many of the first tokens seen the text still has.

    Within an answer a text grows, or loses an end that was speculative: its last `LOOK_BACK` tokens are compared, and
    more where all of these differ. An end that was longer, got lost and grew again by more than that goes unseen: then
    drafts are worse, never the answer.

    Args:
        seen: the text as it was.
        text: as it is.
        whole: compare all of it: it may be another text.

    >>> agreed([5, 6, 7], [5, 6, 8, 9], whole=False)
    2
    """
    size = min(len(seen), len(text))
    low = 0 if whole else max(0, size - LOOK_BACK)
    same = agreeing(seen[low:size], list(text[low:size]))
    return low + same if same or not low else agreeing(seen[:low], list(text[:low]))


def agreeing(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many of the first tokens are the same; most texts only grow, so whole lists are compared first.

    >>> agreeing([1, 2, 3, 4], [1, 2, 9])
    2
    """
    size = min(len(ours), len(theirs))
    if ours[:size] == theirs[:size]:
        return size
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        if ours[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
