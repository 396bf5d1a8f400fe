"""What decides, token by token, how many drafts of a round are worth sending.

Pure: no sockets, clock or randomness; times are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sled.auto_pace import AutoPace
from sled.learned import Learned
from sled.window import Window

__all__ = ["AutoPace", "FixedPace", "Learned", "Pace", "pace_for"]


class Pace(Protocol):
    """Asked while a round is drafted, and told what came of it.

    A round may hang on hope: that every speculative token before it, those of rounds in flight and the tokens hoped for
    as the target's own, comes true. `hoped` are their confidences; a round that follows committed text has none.
    """

    def begin(self) -> None:
        """The answer begins, and with it another text; one that was made before may still have been under way."""

    def opened(self, forward_s: Sequence[float]) -> None:
        """A server holds the session: what it tells of its forwards (`sled.messages.Opened`), if it does."""

    def another(
        self,
        round_: Sequence[float],
        hoped: Sequence[float],
        waited_s: float | None,
        *,
        hop: bool = False,
        unread: int = 0,
    ) -> bool:
        """Whether to draft one more token for this round, whatever it will be, or to read for that.

        Args:
            round_: confidences of its tokens.
            hoped: of the speculative tokens before it.
            waited_s: since the oldest round in flight was sent; None if nothing is in flight, so that drafting keeps
                the round back.
            hop: it is the one that is hoped for as the target's own, before the first token of `round_`.
            unread: tokens of the text that the drafter would read before it drafts; they are read in pieces.
        """

    def more(self, round_: Sequence[float], confidence: float, hoped: Sequence[float]) -> bool:
        """Whether a drafted token of this confidence is worth adding to a round of tokens of confidences `round_`."""

    def send(self, round_: Sequence[float], hoped: Sequence[float]) -> bool:
        """Whether a round that hangs on hope is worth sending before the hope has come true."""

    def drafted(self, count: int, took_s: float, read: int = 0) -> None:
        """So many tokens were drafted in so much time, and so many of the text were read before, all in one go."""

    def read(self, count: int, took_s: float) -> None:
        """So many tokens of the text were read in so much time."""

    def told(
        self,
        round_: Sequence[float],
        accepted: int,
        took_s: float,
        hoped: Sequence[float],
        *,
        now: float,
        hop: tuple[float, bool] | None = None,
        batch: int = 1,
    ) -> None:
        """A round's verdict came `took_s` after it was sent.

        Args:
            round_: confidences of its tokens.
            accepted: how many of the first were right.
            took_s: time away.
            hoped: as it was when the round was sent.
            now: a clock's seconds.
            hop: confidence of the token that was hoped for as the target's own behind an accepted round, and whether it
                was right; None if there was none.
            batch: rounds that were verified in the same forward.
        """

    def lost(self) -> None:
        """What was in flight has no verdict: the server is gone, or a hope has failed."""

    def streams(self, remaining: int, ping_s: float, unread: int = 0) -> bool:
        """Whether the server should decode from here on by itself; asked while nothing is in flight.

        Args:
            remaining: tokens still wanted.
            ping_s: what the link alone is thought to take there and back; not a number if that is not known.
            unread: tokens that the drafter would read before it drafts.
        """

    def stream_begun(self, now: float) -> None:
        """The server is asked to decode by itself, whoever wanted that."""

    def streamed(self, tokens: int, now: float, batch: int = 1, *, waited: bool = True) -> None:
        """A part of the stream has come.

        Args:
            tokens: in it.
            now: a clock's seconds.
            batch: rounds and streams in the forward that decided it.
            waited: nothing else was done when it came; otherwise it may have come earlier.
        """

    def stays(self, remaining: int, unread: int = 0) -> bool:
        """Whether the server should go on decoding by itself; asked after each part of the stream."""

    def shadows(self, unread: int = 0) -> bool:
        """Whether to draft a round that is not sent, or read for it, while the server decodes: what would it bring?"""

    def shadowing(self, drafts: Sequence[float], accepted: int) -> None:
        """Of such a round of tokens of these confidences the first `accepted` were right so far; more may be."""

    def shadowed(self, drafts: Sequence[float], accepted: int, size: int) -> None:
        """Such a round was compared.

        Args:
            drafts: confidences of its tokens, and of some behind it.
            accepted: how many of the first were right.
            size: of the round.
        """


class FixedPace:
    """As a `Window` says: so many tokens, and none behind the first of too little confidence."""

    def __init__(self, window: Window) -> None:
        self._window = window

    def begin(self) -> None:
        """Nothing to learn."""

    def opened(self, forward_s: Sequence[float]) -> None:
        """Nothing to learn."""

    def another(
        self,
        round_: Sequence[float],
        hoped: Sequence[float],
        waited_s: float | None,
        *,
        hop: bool = False,
        unread: int = 0,
    ) -> bool:
        """See Pace."""
        return self._window.size > 0

    def more(self, round_: Sequence[float], confidence: float, hoped: Sequence[float]) -> bool:
        """See Pace."""
        return len(round_) < self._window.size and self._window.wants(confidence)

    def send(self, round_: Sequence[float], hoped: Sequence[float]) -> bool:
        """See Pace."""
        return False

    def drafted(self, count: int, took_s: float, read: int = 0) -> None:
        """Nothing to learn."""

    def read(self, count: int, took_s: float) -> None:
        """Nothing to learn."""

    def told(
        self,
        round_: Sequence[float],
        accepted: int,
        took_s: float,
        hoped: Sequence[float],
        *,
        now: float,
        hop: tuple[float, bool] | None = None,
        batch: int = 1,
    ) -> None:
        """Nothing to learn."""

    def lost(self) -> None:
        """Nothing to learn."""

    def streams(self, remaining: int, ping_s: float, unread: int = 0) -> bool:
        """A window of no drafts is a stream."""
        return self._window.size == 0

    def stream_begun(self, now: float) -> None:
        """Nothing to learn."""

    def streamed(self, tokens: int, now: float, batch: int = 1, *, waited: bool = True) -> None:
        """Nothing to learn."""

    def stays(self, remaining: int, unread: int = 0) -> bool:
        """To its end."""
        return True

    def shadows(self, unread: int = 0) -> bool:
        """Nothing to compare."""
        return False

    def shadowing(self, drafts: Sequence[float], accepted: int) -> None:
        """Nothing to learn."""

    def shadowed(self, drafts: Sequence[float], accepted: int, size: int) -> None:
        """Nothing to learn."""


def pace_for(window: Window, learned: Learned | None = None) -> Pace:
    """The pace that keeps to a window.

    Args:
        window: what the user asked for.
        learned: what the device knows of its drafter and its server, for `Window.auto()`.
    """
    return AutoPace(learned or Learned()) if window.is_auto else FixedPace(window)
