"""Lines from whoever types: with editing and a history where there is a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import ModuleType, TracebackType

from edgebus.files import cache_dir
from sled.chat.commands import HELP

MAX_HISTORY = 1000
_PROMPT = "\001\x1b[1;36m\002> \001\x1b[0m\002"


class Reader:
    """Reads questions, one a line; a line that ends with a backslash goes on in the next. Use as a context manager.

    Args:
        terminal: somebody types; otherwise lines come from a pipe.
        colour: of the prompt.
        history: file that keeps what was typed; by default beside the vocabularies.
    """

    def __init__(self, *, terminal: bool, colour: bool, history: Path | None = None) -> None:
        self._terminal = terminal
        self._prompt = _PROMPT if colour else "> "
        self._history = history or cache_dir() / "chat_history"
        self._readline: ModuleType | None = None

    def __enter__(self) -> Reader:
        if self._terminal:
            with contextlib.suppress(ImportError):
                import readline

                self._readline = readline
                readline.set_history_length(MAX_HISTORY)
                readline.set_completer(_complete)
                readline.set_completer_delims(" ")
                readline.parse_and_bind("tab: complete")
                with contextlib.suppress(OSError):
                    readline.read_history_file(self._history)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._readline is not None:
            with contextlib.suppress(OSError):  # no history is no reason to fail
                self._history.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self._history, os.O_CREAT | os.O_WRONLY, 0o600)
                os.close(handle)
                self._readline.write_history_file(self._history)

    def read(self) -> str | None:
        """The next question; None at the end of the input.

        Raises:
            KeyboardInterrupt: Ctrl-C was typed.
        """
        parts: list[str] = []
        while True:
            line = self._line("" if not parts else ". ")
            if line is None:
                return "\n".join(parts) if parts else None
            if not line.endswith("\\"):
                return "\n".join([*parts, line])
            parts.append(line[:-1])

    def _line(self, more: str) -> str | None:
        if not self._terminal:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        try:
            return input(more or self._prompt)
        except EOFError:
            return None


def _complete(text: str, state: int) -> str | None:
    found = [f"/{name}" for name in HELP if text.startswith("/") and f"/{name}".startswith(text)]
    return found[state] if state < len(found) else None
