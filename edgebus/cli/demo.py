"""What demonstrations have in common: key directories, processes of ours, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from edgebus.keys import add_to_allow_list, generate_keys

READY_WITHIN_S = 120.0


class DemoFailed(RuntimeError):
    """Something the demo started did not do its part."""


def demo_console() -> Console:
    """The terminal as it is; 120 columns where the output goes elsewhere."""
    return Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Key directories of the server and of the devices (one pair each)."""

    root: Path

    def of(self, name: str) -> Path:
        """Key directory of a process."""
        return self.root / name

    @property
    def server_key(self) -> Path:
        """The file with the server's public key."""
        return self.root / "server" / "node.key"

    @classmethod
    def make(cls, root: Path, devices: Sequence[str]) -> KeyRing:
        """Make a pair for everyone; the server allows exactly these devices."""
        ring = cls(root)
        for name in ("server", *devices):
            generate_keys(ring.of(name))
        public = [ring.of(name) / "node.key" for name in devices]
        add_to_allow_list(ring.of("server") / "allowed_keys", *public)
        return ring


def end_process(process: subprocess.Popen[str]) -> None:
    """SIGTERM, and SIGKILL for who does not listen."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextmanager
def server_process(command: Sequence[str], within_s: float = READY_WITHIN_S) -> Iterator[dict[str, Any]]:
    """A process that prints one line of JSON when it is ready, which is yielded. Its stderr is ours.

    Raises:
        DemoFailed: it ended, or took too long.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(within_s, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        timer.cancel()
        if not line:
            raise DemoFailed(f"the server ended with status {process.wait()} before it was ready")
        yield json.loads(line)
    finally:
        timer.cancel()
        end_process(process)
        assert process.stdout is not None
        process.stdout.close()
