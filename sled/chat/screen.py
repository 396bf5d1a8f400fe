"""Draws an answer while it comes: settled lines scroll away, what may still change stays below with the figures."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from sled.chat.paint import Painted, Painter, lines
from sled.chat.tally import Tally
from sled.chat.transcript import Kind, Transcript

MIN_WIDTH, MIN_HEIGHT = 8, 4


class Plain:
    """An answer as plain text: committed tokens as they come, nothing else; for pipes and files.

    Args:
        out: where to.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, transcript: Transcript, tally: Tally, now_s: float) -> None:
        """Write what has come to be settled."""
        pieces = transcript.pieces
        for piece in pieces:
            if not piece.kind.settled:
                break
            if piece.kind is not Kind.RETRACTED:
                self._out.write(piece.text)
            transcript.drop(len(piece.text))
        self._out.flush()

    def finish(
        self, transcript: Transcript, tally: Tally, now_s: float, note: str = "", *, failed: bool = False
    ) -> None:
        """The end of the answer."""
        self.show(transcript, tally, now_s)
        rest = "".join(piece.text for piece in transcript.pieces if piece.kind is Kind.UNVERIFIED)
        self._out.write(f" [unverified: {rest}]\n" if rest else "\n")
        self._out.flush()

    def close(self) -> None:
        """Nothing to put right."""


class Screen:
    """An answer on a terminal.

    Args:
        console: the terminal.
        painter: of its text.
    """

    def __init__(self, console: Console, painter: Painter) -> None:
        self._console, self._painter = console, painter
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._started = False

    def show(self, transcript: Transcript, tally: Tally, now_s: float) -> None:
        """Draw what has changed."""
        if not self._started:
            self._live.start()
            self._started = True
        painted = self._painter.paint(transcript.pieces)
        rest, done = [], 0
        for line, upto, final in lines(painted, self._width):
            if final:
                self._print(line)
                done = upto
            else:
                rest.append(line)
        transcript.drop(done)
        self._live.update(self._below(rest, tally, now_s), refresh=True)

    def finish(
        self, transcript: Transcript, tally: Tally, now_s: float, note: str = "", *, failed: bool = False
    ) -> None:
        """Draw the answer's end; what is speculative now is nothing any more."""
        self.close()
        left = [piece for piece in transcript.pieces if piece.kind is not Kind.SPECULATIVE]
        for line in self._all(self._painter.paint(left)):
            self._print(line)
        if note:
            self._print(Text(note, "bold red" if failed else "bright_black"))
        self._print(Text(self._ascii(tally.line(now_s, self._width)), "bright_black"))
        self._print(Text(""))

    def close(self) -> None:
        """Take away what stands below."""
        if self._started:
            self._live.update("", refresh=True)
            self._live.stop()
            self._started = False

    @property
    def _width(self) -> int:
        return max(MIN_WIDTH, self._console.width - 1)  # the last column makes some terminals wrap

    def _all(self, painted: Painted) -> list[Text]:
        found = [line for line, _, _ in lines(painted, self._width)]
        return found if found != [Text("")] else []

    def _below(self, rest: list[Text], tally: Tally, now_s: float) -> RenderableType:
        room = max(MIN_HEIGHT, self._console.height) - 3
        shown = rest[-room:] if len(rest) <= room else [Text("...", "bright_black"), *rest[1 - room :]]
        style = "bold red" if tally.state == "lost" else "bright_black"
        status = Text(self._ascii(tally.line(now_s, self._width)), style, no_wrap=True)
        each = [_one_line(line) for line in shown]
        return Group(*each, Text(""), status)

    def _print(self, line: Text) -> None:
        self._console.print(_one_line(line), highlight=False, markup=False, emoji=False)

    def _ascii(self, text: str) -> str:
        encoding = self._console.encoding
        return text.encode(encoding, "replace").decode(encoding).replace(" ? ", " | ")


def _one_line(line: Text) -> Text:
    line.no_wrap, line.overflow, line.end = True, "ignore", "\n"
    return line


def open_screen(console: Console) -> Screen | Plain:
    """What suits an output: colours, marks, or nothing but the text."""
    if not console.is_terminal or console.is_dumb_terminal:
        return Plain(console.file)  # type: ignore[arg-type]
    return Screen(console, painter_for(console))


def painter_for(console: Console) -> Painter:
    """Colours if there are any, and marks that it can show."""
    try:
        "…·".encode(console.encoding)
    except (LookupError, UnicodeEncodeError):
        return Painter(colour=has_colour(console), unicode=False)
    return Painter(colour=has_colour(console))


def has_colour(console: Console) -> bool:
    """Whether styles can be told apart by colour."""
    return console.color_system is not None and not console.no_color


def legend(console: Console) -> Text:
    """What looks how."""
    return painter_for(console).legend()
