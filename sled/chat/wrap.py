"""Lines of a text that still grows. Pure."""

from __future__ import annotations

from rich.cells import cell_len

Span = tuple[int, int]


def wrap(text: str, width: int) -> list[Span]:
    r"""Where the lines of a text begin and end, `width` cells wide at most; spaces may hang over the edge.

    All lines but the last are final: whatever is appended to the text, they stay as they are.

    Args:
        text: lines end at a newline, at a space, after a character that is two cells wide, or where there is no room.
        width: cells, at least 2.

    >>> [text[a:b] for text in ["to be, or\nnot"] for a, b in wrap(text, 6)]
    ['to be, ', 'or', 'not']
    """
    assert width >= 2
    spans: list[Span] = []
    start, used, opening = 0, 0, 0  # of this line; `opening`: where the next one may begin
    for at, char in enumerate(text):
        if char == "\n":
            spans.append((start, at))
            start = opening = at + 1
            used = 0
            continue
        cells = cell_len(char)
        if cells == 2:
            opening = at
        if used + cells > width and char != " ":
            end = opening if opening > start else at
            spans.append((start, end))
            used = cell_len(text[end:at])
            start = opening = end
        used += cells
        if char == " ":
            opening = at + 1
    spans.append((start, len(text)))
    return spans
