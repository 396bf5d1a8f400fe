"""Starts the demo's server and devices as processes, and ends what it started."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import edgebus
from sled.demo.plan import MODEL, Role

READY_WITHIN_S = 120.0
DEVICE_WITHIN_S = 180.0


class DemoFailed(RuntimeError):
    """Something the demo started did not do its part."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Key directories of the server and of the devices (one pair each)."""

    root: Path

    def of(self, name: str) -> Path:
        """Key directory of a process."""
        return self.root / name

    @classmethod
    def make(cls, root: Path, devices: Sequence[str]) -> Keys:
        """Make a pair for everyone; the server allows exactly these devices."""
        keys = cls(root)
        for name in ("server", *devices):
            edgebus.generate_keys(keys.of(name))
        public = [keys.of(name) / "node.key" for name in devices]
        edgebus.add_to_allow_list(keys.of("server") / "allowed_keys", *public)
        return keys


def _sled(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sled.cli", *arguments]


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextmanager
def server(keys: Keys) -> Iterator[str]:
    """A `sled serve` process; yields its endpoint once it is ready. Its progress bar goes to our stderr."""
    command = _sled(
        "serve", "--model", MODEL, "--bind", "tcp://127.0.0.1:0", "--keys", str(keys.of("server")), "--json"
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(READY_WITHIN_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        timer.cancel()
        if not line:
            raise DemoFailed(f"the server ended with status {process.wait()} before it was ready")
        yield json.loads(line)["endpoint"]
    finally:
        timer.cancel()
        _end(process)
        assert process.stdout is not None
        process.stdout.close()


@dataclass(frozen=True, slots=True)
class Event:
    """One line a device printed, or its end (`kind` "exit")."""

    device: str
    kind: str
    values: dict[str, Any]


class Devices:
    """`sled generate --events` processes, whose lines arrive in one queue; use as a context manager."""

    def __init__(self, keys: Keys, endpoint: str, cache: Path) -> None:
        self._keys, self._endpoint, self._cache = keys, endpoint, cache
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []
        self._events: queue.Queue[Event] = queue.Queue()

    def __enter__(self) -> Devices:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            _end(process)
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
            str(self._keys.of("server") / "node.key"),
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
