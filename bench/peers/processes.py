"""Starts server and device processes, asks them, and ends them whatever happens."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bench.peers import usage
from bench.peers.brokers import BROKERS
from bench.peers.contract import Config

ROOT = Path(__file__).parents[2]
START_S = 40.0
END_S = 5.0


class ChildFailed(RuntimeError):
    """A server or device process failed, ended early or did not answer in time."""


class Child:
    """One process of bench.peers.child; use as a context manager.

    Args:
        role: server or device.
        config: what it is told.

    Raises:
        ChildFailed: it did not start.
    """

    def __init__(self, role: str, config: Config) -> None:
        self._what = f"{role} of {config.lib} {config.flavour}".strip()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.peers.child", role, msgspec.json.encode(config).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
        )
        self._unread = b""

    def place(self) -> str:
        """Where it is; waits until it has started."""
        return str(self._read(START_S))

    def ask(self, do: str, within_s: float = 30.0, **arguments: Any) -> Any:
        """Have it do something and wait for what comes of it."""
        self.tell(do, **arguments)
        return self.told(within_s)

    def tell(self, do: str, **arguments: Any) -> None:
        """Have it do something; told() waits for the result."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode({"do": do, **arguments}) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildFailed(f"{self._what} has ended: {self.last_words()}") from None

    def told(self, within_s: float = 30.0) -> Any:
        """The result of what it was told to do first."""
        return self._read(within_s)

    def end(self) -> None:
        """Close its input, which ends it; kill it if it stays."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def poll_end(self, within_s: float = END_S) -> int:
        """Its exit code; waits for its end."""
        return self._process.wait(within_s)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _read(self, within_s: float) -> Any:
        until = time.monotonic() + within_s
        out = self._process.stdout
        assert out is not None
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise ChildFailed(f"{self._what} gave no answer in {within_s:.0f} s: {self.last_words()}")
                if not (more := os.read(out.fileno(), 1 << 20)):
                    raise ChildFailed(f"{self._what} has ended: {self.last_words()}")
                self._unread += more
        line, self._unread = self._unread.split(b"\n", 1)
        answer = msgspec.json.decode(line, type=dict[str, Any])
        if "error" in answer:
            raise ChildFailed(f"{self._what}: {answer['error']}")
        return answer["result"]

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read()[-2000:].decode(errors="replace").strip() or "it said nothing"


@dataclass
class Pair:
    """A server, its devices and what stands between them, if anything."""

    server: Child
    devices: list[Child] = field(default_factory=list)
    broker_pid: int | None = None

    @property
    def device(self) -> Child:
        """The first device."""
        return self.devices[0]

    def cpu_s(self) -> float:
        """CPU seconds that all processes of it have used."""
        used = sum(child.ask("usage")["cpu_s"] for child in (self.server, *self.devices))
        return float(used) + (usage.of(self.broker_pid)["cpu_s"] if self.broker_pid is not None else 0.0)


@contextlib.contextmanager
def paired(config: Config, num_devices: int = 1, device_core: int | None = None) -> Iterator[Pair]:
    """A server process and its device processes, all ended at the end.

    Args:
        config: of both; a directory is made for it.
        num_devices: processes that connect.
        device_core: the core of the devices, where config.core is that of the server.

    Raises:
        ChildFailed: one did not start.
    """
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-"))
        config = msgspec.structs.replace(config, directory=directory)
        broker_pid = None
        if config.lib in BROKERS:
            endpoint, broker_pid = stack.enter_context(BROKERS[config.lib](directory))
            config = msgspec.structs.replace(config, endpoint=endpoint)
        server = stack.enter_context(Child("server", config))
        pair = Pair(server, broker_pid=broker_pid)
        config = msgspec.structs.replace(config, endpoint=server.place(), core=device_core)
        for _ in range(num_devices):
            pair.devices.append(stack.enter_context(Child("device", config)))
        for device in pair.devices:
            device.place()
        yield pair
