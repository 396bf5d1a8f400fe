"""A small terminal: what a program that runs in a pty has drawn, cell by cell, with what has scrolled away."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from fcntl import ioctl

from rich.cells import cell_len

_SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b[=>]")


class Terminal:
    """Cells of (character, style); knows what rich and readline use, and fails on anything else."""

    def __init__(self, width: int = 80, height: int = 24) -> None:
        self.width, self.height = width, height
        self.scrolled: list[list[tuple[str, str]]] = []
        self.rows: list[list[tuple[str, str]]] = [[]]
        self.x = self.y = 0
        self.style = ""
        self._rest = ""

    def feed(self, text: str) -> None:
        text, at = self._rest + text, 0
        while at < len(text):
            if text[at] == "\x1b":
                found = _SEQUENCE.match(text, at)
                if found is None:
                    assert len(text) - at < 64, f"unknown sequence {text[at : at + 20]!r}"
                    break  # its end is still to come
                if found[2]:
                    self._control(found[1], found[2])
                at = found.end()
                continue
            self._put(text[at])
            at += 1
        self._rest = text[at:]

    def text(self) -> str:
        """All lines, those that have scrolled away first."""
        return "\n".join("".join(char for char, _ in row) for row in [*self.scrolled, *self.rows])

    def styles_of(self, word: str) -> set[str]:
        """The styles of the cells of a word, wherever it stands."""
        found = set()
        for row in [*self.scrolled, *self.rows]:
            line = "".join(char for char, _ in row)
            at = line.find(word)
            if at >= 0:
                found |= {style for _, style in row[at : at + len(word)]}
        return found

    def _put(self, char: str) -> None:
        if char == "\n":
            self._down()
        elif char == "\r":
            self.x = 0
        elif char == "\b":
            self.x = max(0, self.x - 1)
        elif char == "\t":
            self.x = min(self.width - 1, (self.x // 8 + 1) * 8)
        elif char != "\x07":
            assert char.isprintable(), f"a control character {char!r} reached the terminal"
            if self.x + cell_len(char) > self.width:
                self.x = 0
                self._down()
            row = self.rows[self.y]
            row += [(" ", "")] * (self.x - len(row))
            cells = [(char, self.style), *[("", self.style)] * (cell_len(char) - 1)]
            row[self.x : self.x + len(cells)] = cells
            self.x += len(cells)

    def _down(self) -> None:
        self.y += 1
        if self.y == len(self.rows):
            self.rows.append([])
        if len(self.rows) > self.height:
            self.scrolled.append(self.rows.pop(0))
            self.y -= 1

    def _control(self, parameters: str, letter: str) -> None:
        number = int(parameters) if parameters.isdigit() else 1
        match letter:
            case "m":
                self.style = "" if parameters in ("", "0") else f"{self.style};{parameters}".strip(";")
            case "A":
                self.y = max(0, self.y - number)
            case "B":
                self.y = min(len(self.rows) - 1, self.y + number)
            case "C":
                self.x = min(self.width - 1, self.x + number)
            case "D":
                self.x = max(0, self.x - number)
            case "K":
                row = self.rows[self.y]
                del row[0 if parameters == "2" else self.x :]
            case "J":
                del self.rows[self.y][self.x :]
                del self.rows[self.y + 1 :]
            case "h" | "l" | "n":
                pass
            case "P":
                del self.rows[self.y][self.x : self.x + number]
            case "@":
                self.rows[self.y][self.x : self.x] = [(" ", "")] * number
            case "G":
                self.x = number - 1
            case _:
                raise AssertionError(f"unknown control {parameters}{letter}")


class Session:
    """A program in a pty, and what it has drawn; use as a context manager."""

    def __init__(self, command: list[str], *, width: int = 80, height: int = 24, **environment: str) -> None:
        self.screen = Terminal(width, height)
        self.raw = ""
        self._master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**kept, "TERM": "xterm-256color", "LANG": "C.UTF-8", **environment},
        )
        os.close(slave)
        self._bytes = b""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def expect(self, what: str, within_s: float = 30.0, *, times: int = 1) -> None:
        """Read until a text stands on the screen, or has stood there."""
        self._read_until(lambda: self.raw_text().count(what) >= times, f"{what!r} x {times}", within_s)

    def seen(self, what: str, within_s: float = 30.0) -> None:
        """Read until a text was written at any time, also if it is not there any more."""
        self._read_until(lambda: what in _SEQUENCE.sub("", self.raw), f"{what!r}", within_s)

    def end(self, within_s: float = 30.0) -> int:
        """Read to the program's end; returns its status."""
        self._read_until(lambda: False, "", within_s)
        return self.process.wait(10)

    def raw_text(self) -> str:
        return self.screen.text()

    def _read_until(self, ready, what: str, within_s: float) -> None:
        until = time.monotonic() + within_s
        while not ready():
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._master], [], [], left)[0]:
                raise AssertionError(f"no {what} within {within_s:.0f} s:\n{self.screen.text()}")
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:  # nobody holds the other end any more
                data = b""
            if not data:
                if what:
                    raise AssertionError(f"the program ended before {what}:\n{self.screen.text()}")
                return
            self._bytes += data
            text = self._bytes.decode("utf-8", "ignore") if _whole(self._bytes) else ""
            if text:
                self._bytes = b""
                self.raw += text
                self.screen.feed(text)


def _whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
