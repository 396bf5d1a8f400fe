"""Starts the demonstration's `qpart` commands as processes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from edgebus.cli.demo import DemoFailed, KeyRing, end_process, server_process
from qpart.demo.roles import NUM_IMAGES, Role

DEVICE_WITHIN_S = 120.0
CALIBRATED_WITHIN_S = 300.0


def _qpart(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "qpart.cli", *map(str, arguments)]


def calibrate(
    net: Path,
    images: Path,
    out: Path,
    *,
    limit: int,
    patterns: int,
    labels: Path | None = None,
    within_s: float = CALIBRATED_WITHIN_S,
) -> None:
    """`qpart calibrate`; its progress bar goes to our stderr."""
    options: list[object] = ["--inputs", images, "--out", out, "--limit", limit, "--patterns", patterns, "--json"]
    options += [] if labels is None else ["--labels", labels]
    done = subprocess.run(_qpart("calibrate", net, *options), stdout=subprocess.PIPE, timeout=within_s, check=False)
    if done.returncode:
        raise DemoFailed(f"calibrating {net.stem} ended with status {done.returncode}")


def plot(artefact: Path, role: Role, out: Path) -> list[str]:
    """`qpart plot` of what a device asks for: cost against bandwidth, and bits by layer; names of the pictures."""
    drawn = []
    for what in ("cost", "bits"):
        command = _qpart("plot", artefact, *role.arguments(), "--what", what, "--out", out)
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEVICE_WITHIN_S, check=False)
        if done.returncode:
            raise DemoFailed(f"drawing {artefact.stem} ended with status {done.returncode}: {done.stderr.strip()}")
        drawn.append(done.stdout.strip())
    return drawn


@contextmanager
def server(keys: KeyRing, artefacts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """A `qpart serve` process; yields what it says when it is ready."""
    options = ("--bind", "tcp://127.0.0.1:0", "--keys", keys.of("server"), "--threads", 1, "--json")
    with server_process(_qpart("serve", *artefacts, *options)) as ready:
        yield ready


class Site:
    """Where devices are started: the server's endpoint, everybody's keys, images, and a directory for each device."""

    def __init__(self, endpoint: str, keys: KeyRing, nets: Path, root: Path) -> None:
        self._endpoint, self._keys, self._nets, self._root = endpoint, keys, nets, root

    def logits(self, role: Role) -> Path:
        """The file in which a device leaves its answers."""
        return self._root / role.name / "logits.npy"

    def run(self, roles: Sequence[Role]) -> dict[str, dict[str, Any]]:
        """Run devices at the same time; what each printed, by name.

        Raises:
            DemoFailed: one ended with an error.
        """
        started: dict[str, tuple[subprocess.Popen[str], IO[str]]] = {}
        try:
            for role in roles:
                errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed below; a pipe nobody reads would stall
                process = subprocess.Popen(self._command(role), stdout=subprocess.PIPE, stderr=errors, text=True)
                started[role.name] = process, errors
            return {name: _result(name, *pair) for name, pair in started.items()}
        finally:
            for process, file in started.values():
                end_process(process)
                assert process.stdout is not None
                process.stdout.close()
                file.close()

    def refusal(self, role: Role, accuracy: float) -> str:
        """The one line with which a request that nobody can serve ends.

        Raises:
            DemoFailed: it was served.
        """
        command = self._command(role, accuracy)
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEVICE_WITHIN_S, check=False)
        if done.returncode != 1 or done.stderr.count("\n") != 1:
            raise DemoFailed(f"a hopeless request ended with status {done.returncode}: {done.stderr or done.stdout}")
        return done.stderr.strip()

    def _command(self, role: Role, accuracy: float | None = None) -> list[str]:
        options: Mapping[str, object] = {
            "server": self._endpoint,
            "server-key": self._keys.server_key,
            "keys": self._keys.of(role.name),
            "inputs": self._nets / "test_images.npy",
            "labels": self._nets / "test_labels.npy",
            "limit": NUM_IMAGES,
            "cache": self._root / role.name / "cache",
            "out": self.logits(role),
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        return _qpart("infer", *flags, "--model", role.net, *role.arguments(accuracy), "--explain", "--json")


def _result(name: str, process: subprocess.Popen[str], errors: IO[str]) -> dict[str, Any]:
    try:
        out, _ = process.communicate(timeout=DEVICE_WITHIN_S)
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"device {name} took longer than {DEVICE_WITHIN_S:.0f} s") from None
    if process.returncode:
        errors.seek(0)
        raise DemoFailed(f"device {name}: {errors.read().strip() or process.returncode}")
    found: dict[str, Any] = json.loads(out)
    return found
