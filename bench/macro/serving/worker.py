"""Processes that are told one thing a line and answer each with one line, all of it JSON."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[3]
END_S = 10.0


class WorkerFailed(RuntimeError):
    """A process ended early, answered with an error, or not in time; the message has its last words."""


class Process:
    """A process of ours that ends with the block, whatever happens.

    Args:
        name: what to call it in errors.
        command: to start it with.
        threads: for its computations.
        root: the checkout it runs from.
    """

    def __init__(self, name: str, command: Sequence[str], threads: int = 1, root: Path = ROOT) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        path = os.pathsep.join([str(root), str(root / "kernels")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "0"}
        self.process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, cwd=root, env=environment
        )
        self._unread = b""

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def ask(self, within_s: float, **message: Any) -> dict[str, Any]:
        """Tell it something and wait for the answer.

        Raises:
            WorkerFailed: there is none.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(msgspec.json.encode(message) + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailed(f"{self.name} has ended: {self.last_words()}") from None
        return self.line(within_s)

    def line(self, within_s: float) -> dict[str, Any]:
        """The next line it says.

        Raises:
            WorkerFailed: none in time, or an error.
        """
        until, out = time.monotonic() + within_s, self.process.stdout
        assert out is not None
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise WorkerFailed(f"{self.name} gave no answer in {within_s:.0f} s: {self.last_words()}")
                if not (more := os.read(out.fileno(), 1 << 20)):
                    raise WorkerFailed(f"{self.name} has ended: {self.last_words()}")
                self._unread += more
        line, self._unread = self._unread.split(b"\n", 1)
        answer = msgspec.json.decode(line, type=dict[str, Any])
        if "error" in answer:
            raise WorkerFailed(f"{self.name}: {answer['error']}")
        return answer

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read()[-1500:].decode(errors="replace").strip() or "it said nothing"

    def end(self) -> None:
        """SIGTERM, and SIGKILL if it stays."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._errors.close()


def worker(module: str, threads: int = 1) -> Process:
    """A process of a module of this package."""
    return Process(module, [sys.executable, "-m", f"{__package__}.{module}"], threads)


def answer_lines(handle: Callable[[dict[str, Any]], Any]) -> None:
    """In a worker: answer every line of stdin until it ends."""
    out = os.dup(1)
    os.dup2(2, 1)  # a library's word on stdout is no answer
    for line in sys.stdin.buffer:
        try:
            result: Any = handle(msgspec.json.decode(line, type=dict[str, Any]))
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        data = msgspec.json.encode(result) + b"\n"
        while data:
            data = data[os.write(out, data) :]
