"""An answer on the terminal: committed, unverified and retracted text told apart, whatever the output is."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

import msgspec

from sled.events import Event, Retracted, ServerLost, Unverified
from sled.run.answering import Stream
from sled.stats import Answer
from sled.types import Token

_GREEN, _YELLOW, _RED, _PLAIN = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"


class Screen:
    """Writes text as it comes; what was written is never written over.

    On a terminal accepted drafts are green, unverified text is yellow, and what was wrong of it is told in red before
    the right text follows. Elsewhere only committed text is written.

    Args:
        out: where to.
        colour: whether it is a terminal.

    >>> import io
    >>> screen = Screen(io.StringIO(), colour=True)
    >>> for event in (Unverified(1, 5, "a"), Unverified(2, 6, "b"), Token(1, 5, True, "a"), Retracted(6)):
    ...     screen.tell(event)
    >>> screen.tell(Token(9, 6, False, "c"))
    >>> screen.out.getvalue().replace(chr(27), "^")
    '^[33ma^[0m^[33mb^[0m^[31m[not so: b]^[0mc'
    """

    def __init__(self, out: TextIO, *, colour: bool) -> None:
        self.out, self._colour = out, colour
        self._unverified: list[str] = []

    def tell(self, event: Event) -> None:
        """Show what happened."""
        match event:
            case Token() if self._unverified:
                self._unverified.pop(0)
            case Token():
                self._write(event.text, _GREEN if event.drafted else "")
            case Unverified() if self._colour:
                self._unverified.append(event.text)
                self._write(event.text, _YELLOW)
            case Retracted() if self._colour:
                self._write(f"[not so: {''.join(self._unverified)}]", _RED)
                self._unverified.clear()

    def _write(self, text: str, colour: str) -> None:
        if self._colour:  # nothing in it may drive the terminal
            text = "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
        print(
            f"{colour}{text}{_PLAIN}" if self._colour and colour and text else text, end="", file=self.out, flush=True
        )


def show(stream: Stream, *, as_json: bool, events: bool) -> Answer:
    """Show an answer to its end."""
    screen = Screen(sys.stdout, colour=sys.stdout.isatty())
    for event in stream.events():
        if events:
            _tell_as_json(event)
        elif not as_json:
            screen.tell(event)
    answer = stream.answer()
    if events:
        print_event("answer", msgspec.to_builtins(answer))
    elif as_json:
        print(json.dumps(msgspec.to_builtins(answer)), flush=True)
    else:
        _print_figures(answer)
    return answer


def print_event(kind: str, values: dict[str, Any]) -> None:
    """One line of JSON."""
    print(json.dumps({"event": kind, **values}), flush=True)


def _tell_as_json(event: Event) -> None:
    match event:
        case Token():
            values = {"token": event.id, "drafted": event.drafted, "text": event.text}
            logprob = {"logprob": msgspec.to_builtins(event.logprob)} if event.logprob is not None else {}
            print_event("token", values | logprob)
        case Unverified():
            print_event("unverified", {"token": event.id, "pos": event.pos, "text": event.text})
        case Retracted():
            print_event("retracted", {"from_pos": event.from_pos})
        case ServerLost():
            print_event("server_lost", {"server": event.server, "reason": event.reason})


def _print_figures(answer: Answer) -> None:
    s = answer.stats
    ended = answer.finish_reason or f"no server: {len(answer.unverified)} more tokens are unverified"
    print(flush=True)
    print(
        f"{len(answer.tokens)} tokens ({ended}), {s.tokens_per_s:.1f} tokens/s, "
        f"{s.accepted} of {s.drafted} drafts accepted, {s.mean_accepted_length:.2f} tokens a round, "
        f"{s.bytes_per_token:.0f} bytes a token",
        file=sys.stderr,
    )
