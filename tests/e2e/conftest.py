"""Real processes: servers, `sled serve` with the real small target, and commands run as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def run(module: str, *arguments: str, timeout_s: float = 200, stdin: str | None = None) -> Ran:
    """Run a command line of ours to its end."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, input=stdin, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


class ServerProcess:
    """A running `serve` command of ours on a free port; arguments are those after the port's."""

    def __init__(self, module: str, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", module, "serve", "--bind", "tcp://127.0.0.1:0", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        guard = threading.Timer(150, self.process.kill)
        guard.start()
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline()
        guard.cancel()
        if not self.ready_line:
            raise AssertionError(f"the server did not start: {self.end()}")

    def end(self) -> tuple[int, str]:
        """SIGTERM; returns exit status and stderr."""
        self.process.terminate()
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture(scope="session")
def keys(tmp_path_factory) -> Path:
    """Key directories made by the command line: server, device (allowed), stranger (not allowed)."""
    root = tmp_path_factory.mktemp("keys")
    for name in ("server", "device", "stranger"):
        assert run("edgebus.cli", "keygen", root / name).status == 0
    assert run("edgebus.cli", "allow", root / "server", root / "device" / "node.key").status == 0
    return root


@pytest.fixture(scope="session")
def server(keys):
    """One server for all tests of the session; it must outlive everything they do to it."""
    # Fixed windows: what a device drafts must not depend on how busy the machine is.
    process = ServerProcess(
        "sled.cli", "--model", "smollm2-135m", "--keys", keys / "server", "--windows", "fixed", "--json"
    )
    yield json.loads(process.ready_line)
    status, errors = process.end()
    assert status == 0, errors
    assert "Traceback" not in errors


@pytest.fixture
def generate(server, keys):
    """`sled generate` against the session's server; keyword arguments replace the usual options."""

    def call(prompt: str, *more: str, stdin: str | None = None, **options: str | Path | None) -> Ran:
        chosen = {
            "server": server["endpoint"],
            "server-key": keys / "server" / "node.key",
            "keys": keys / "device",
            "drafter": "none",
            "max-tokens": "12",
            "threads": "1",
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        flat = [part for name, value in chosen.items() if value is not None for part in (f"--{name}", str(value))]
        return run("sled.cli", "generate", prompt, *flat, *more, stdin=stdin)

    return call
