"""How the kinds of text look: in colours, or with marks where there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style
from rich.text import Text

from sled.chat.transcript import Kind, Piece
from sled.chat.wrap import wrap

STYLES = {
    Kind.ACCEPTED: Style.parse("green"),
    Kind.CORRECTED: Style.parse("yellow"),
    Kind.OWN: Style.null(),
    Kind.SPECULATIVE: Style.parse("italic bright_black"),
    Kind.UNVERIFIED: Style.parse("underline magenta"),
    Kind.RETRACTED: Style.parse("strike red"),
}
MARKS = {
    Kind.ACCEPTED: ("", ""),
    Kind.CORRECTED: ("[", "]"),
    Kind.OWN: ("", ""),
    Kind.SPECULATIVE: ("…", "…"),
    Kind.UNVERIFIED: ("?", "?"),
    Kind.RETRACTED: ("~", "~"),
}
ASCII_MARKS = {**MARKS, Kind.SPECULATIVE: ("(", ")")}
NAMES = {
    Kind.ACCEPTED: "drafted here and accepted",
    Kind.CORRECTED: "corrected by the target",
    Kind.OWN: "the target's own",
    Kind.SPECULATIVE: "no verdict yet",
    Kind.UNVERIFIED: "unverified",
    Kind.RETRACTED: "taken back",
}


@dataclass(frozen=True, slots=True)
class Painted:
    """A text for a terminal.

    Args:
        text: with its styles and marks.
        origin: for each of its characters how many characters of the pieces come before it.
        settled: characters of it that stay as they are.
    """

    text: Text
    origin: list[int]
    settled: int


class Painter:
    """Styles, marks, or both; unverified and retracted text is marked in colours, too.

    Args:
        colour: the terminal has colours.
        unicode: it shows more than ASCII.
    """

    def __init__(self, *, colour: bool, unicode: bool = True) -> None:
        marks = MARKS if unicode else ASCII_MARKS
        loud = (Kind.UNVERIFIED, Kind.RETRACTED)
        self._marks = {kind: marks[kind] if not colour or kind in loud else ("", "") for kind in Kind}

    def paint(self, pieces: Sequence[Piece]) -> Painted:
        """The pieces in a row."""
        text, origin = Text(end=""), list[int]()
        settled, before = 0, 0
        for number, piece in enumerate(pieces):
            opening, closing = self._marks[piece.kind]
            lead = len(piece.text) - len(piece.text.lstrip())  # marks stand at words, not at the space before them
            shown = piece.text[:lead] + opening + piece.text[lead:]
            text.append(shown, STYLES[piece.kind])
            origin += [before + min(at, max(lead, at - len(opening))) for at in range(len(shown))]
            if piece.kind.settled and settled == len(text) - len(shown):
                settled = len(text) if number < len(pieces) - 1 or not closing else len(text) - len(shown)
            before += len(piece.text)
            if closing:
                is_settled = settled == len(text)
                text.append(closing, STYLES[piece.kind])
                origin.append(before)
                settled = len(text) if is_settled else settled
        return Painted(text, origin, settled)

    def legend(self) -> Text:
        """What looks how, on one line."""
        parts = [self.paint([Piece(kind, NAMES[kind])]).text for kind in Kind]
        return Text("  ").join(parts)


def lines(painted: Painted, width: int) -> list[tuple[Text, int, bool]]:
    """The lines of a text, each with how many characters of the pieces end with it, and whether it is final."""
    plain = painted.text.plain
    spans = wrap(plain, width)
    num_final = len(wrap(plain[: painted.settled], width)) - 1
    found = []
    for number, (start, end) in enumerate(spans):
        following = spans[number + 1][0] if number + 1 < len(spans) else len(plain)
        total = painted.origin[-1] + 1 if painted.origin else 0
        upto = painted.origin[following] if following < len(plain) else total
        line = painted.text[start:end]
        line.rstrip()
        found.append((line, upto, number < num_final))
    return found
