"""Starts the demo's server and devices as processes, and ends what it started."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgebus.cli.demo import DemoFailed, KeyRing, end_process, server_process
from sled.demo.plan import MODEL, Role

DEVICE_WITHIN_S = 180.0


def _sled(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sled.cli", *arguments]


@contextmanager
def server(keys: KeyRing) -> Iterator[str]:
    """A `sled serve` process; yields its endpoint once it is ready. Its progress bar goes to our stderr."""
    command = _sled(
        "serve", "--model", MODEL, "--bind", "tcp://127.0.0.1:0", "--keys", str(keys.of("server")), "--json"
    )
    with server_process(command) as ready:
        yield ready["endpoint"]


@dataclass(frozen=True, slots=True)
class Event:
    """One line a device printed, or its end (`kind` "exit")."""

    device: str
    kind: str
    values: dict[str, Any]


class Devices:
    """`sled generate --events` processes, whose lines arrive in one queue; use as a context manager."""

    def __init__(self, keys: KeyRing, endpoint: str, cache: Path) -> None:
        self._keys, self._endpoint, self._cache = keys, endpoint, cache
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []
        self._events: queue.Queue[Event] = queue.Queue()

    def __enter__(self) -> Devices:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            end_process(process)
        for thread in self._threads:
            thread.join(10)

    def start(self, role: Role) -> None:
        """Start a device; its events come with the role's name."""
        command = _sled(
            "generate",
            *role.arguments(),
            "--server",
            self._endpoint,
            "--server-key",
            str(self._keys.server_key),
            "--keys",
            str(self._keys.of(role.name)),
            "--threads",
            "1",
            "--events",
        )
        # Devices do not share a disk: each has its own cache, so the first fetch of the vocabulary is real.
        environment = {**os.environ, "XDG_CACHE_HOME": str(self._cache / role.name)}
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - _read closes it; a pipe nobody reads would stall
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        thread = threading.Thread(target=self._read, args=(role.name, process, errors), daemon=True)
        self._processes.append(process)
        self._threads.append(thread)
        thread.start()

    def next_event(self) -> Event:
        """The next line of any device.

        Raises:
            DemoFailed: nothing came for a long time.
        """
        try:
            return self._events.get(timeout=DEVICE_WITHIN_S)
        except queue.Empty:
            raise DemoFailed(f"no device said anything for {DEVICE_WITHIN_S:.0f} s") from None

    def _read(self, name: str, process: subprocess.Popen[str], errors: IO[str]) -> None:
        assert process.stdout is not None
        with process.stdout, errors:
            for line in process.stdout:
                try:
                    values = json.loads(line)
                    self._events.put(Event(name, values.pop("event"), values))
                except (ValueError, KeyError, AttributeError):
                    continue  # a library's word on stdout is no event
            status = process.wait()
            errors.seek(0)
            text = errors.read().strip()
        self._events.put(Event(name, "exit", {"status": status, "stderr": text}))
