"""Starts what is measured, each system as its users start it, and a load beside it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench import others
from bench.macro.serving.cells import MAX_TOKENS, Turn
from bench.macro.serving.worker import Process, WorkerFailed, worker
from bench.peers import usage
from edgebus.cli.demo import KeyRing
from sled.swarm import account

START_S = 120.0
SLOT_TOKENS = 256  # room for the longest prompt and its answer
THREADS = 2
ALLOWED_CORES = 0.15  # other processes' time in a turn that counts


@dataclass(frozen=True, slots=True)
class Setting:
    """What all systems share: the model, its prompts in tokens, where peers lie, and whose `sled serve` to start."""

    model: str
    prompts: list[list[int]]
    peers: Path
    sled: Path
    threads: int = THREADS

    def __post_init__(self) -> None:
        longest = max(map(len, self.prompts))
        assert longest + MAX_TOKENS <= SLOT_TOKENS, f"a prompt has {longest} tokens; raise SLOT_TOKENS"


@dataclass(slots=True)
class Served:
    """A running server and its load."""

    server: Process
    load: Process
    about: dict[str, Any]

    def turn(self, turn: Turn, **options: Any) -> dict[str, Any]:
        """One measurement, with what it cost the machine."""
        processes = {self.server.pid, self.load.pid}
        before, began, busy = self._cpu_s(), time.perf_counter(), others.busy_s()
        answer = self.load.ask(
            turn.limit_s + 60.0,
            do="turn",
            sessions=turn.sessions,
            window_s=turn.window_s,
            limit_s=turn.limit_s,
            **options,
        )
        record = msgspec.convert(answer["record"], account.Record)
        wall, busy = time.perf_counter() - began, others.busy_s() - busy
        used = {pid: self._cpu_s()[pid] - before[pid] for pid in processes}
        alone = self.server is self.load
        return {
            **account.summarise(record),
            "server_cores": round(used[self.server.pid] / wall, 2),
            "load_cores": 0.0 if alone else round(used[self.load.pid] / wall, 2),
            "others_cores": round(others_cores := max(0.0, busy - sum(used.values())) / wall, 2),
            "disturbed": others_cores > ALLOWED_CORES,
            "server_memory": memory(self.server.pid),
        }

    def _cpu_s(self) -> dict[int, float]:
        return {process.pid: usage.of(process.pid)["cpu_s"] for process in (self.server, self.load)}


def memory(pid: int) -> dict[str, int]:
    """Megabytes of a process: the most it ever had, what it has, and how much of that are pages of files."""
    fields = {"VmHWM": "peak_mb", "VmRSS": "resident_mb", "RssFile": "of_files_mb"}
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in fields:
            found[fields[name]] = int(rest.split()[0]) >> 10
    return found


@contextlib.contextmanager
def sled(setting: Setting, sessions: int, engine: str = "auto") -> Iterator[Served]:
    """`sled serve` with CURVE on loopback, and a device with a key of its own for every session."""
    names = [f"device{number}" for number in range(sessions)]
    with tempfile.TemporaryDirectory(prefix="serving-") as directory:
        keys = KeyRing.make(Path(directory), names)
        command = [sys.executable, "-m", "sled.cli", "serve", "--model", setting.model, "--bind", "tcp://127.0.0.1:0"]
        command += ["--keys", str(keys.of("server")), "--threads", str(setting.threads), "--json"]
        command += ["--engine", engine] if engine != "auto" else []  # an older checkout has no such option
        with Process("sled serve", command, setting.threads, setting.sled) as server, worker("load_sled") as load:
            endpoint = server.line(START_S)["endpoint"]
            where = {"endpoint": endpoint, "server_key": str(keys.server_key), "prompts": setting.prompts}
            about = load.ask(START_S, do="connect", keys=[str(keys.of(name)) for name in names], **where)
            yield Served(server, load, {"commit": _commit(setting.sled), **about})


@contextlib.contextmanager
def llamacpp(setting: Setting, sessions: int, model: Path) -> Iterator[Served]:
    """llama.cpp's server with a slot for every session, continuous batching and its defaults otherwise."""
    binary = setting.peers / "bin" / "llama-server"
    if not binary.is_file():
        raise WorkerFailed(f"there is no {binary}; run sh scripts/serving_peers.sh")
    port, threads = _free_port(), str(setting.threads)
    options = ["--parallel", str(sessions), "--ctx-size", str(SLOT_TOKENS * sessions), "--cont-batching"]
    options += ["--threads", threads, "--threads-batch", threads, "--threads-http", str(sessions + 4)]
    options += ["--cache-ram", "0", "--no-webui", "--log-disable"]  # no cache of whole prompts: none comes twice
    command = [str(binary), "--model", str(model), "--host", "127.0.0.1", "--port", str(port), *options]
    with Process("llama-server", command, setting.threads) as server, worker("load_llamacpp") as load:
        _until_healthy(server, port)
        load.ask(START_S, do="connect", port=port, prompts=setting.prompts)
        version = (setting.peers / "bin" / "version").read_text().strip()
        yield Served(server, load, {"version": f"of llama-cpp-python {version}", "options": " ".join(options)})


@contextlib.contextmanager
def transformers(setting: Setting, sessions: int) -> Iterator[Served]:
    """transformers' continuous batching, its sessions in the same process."""
    with worker("hf", setting.threads) as peer:
        peer.ask(
            START_S,
            do="connect",
            model=setting.model,
            prompts=setting.prompts,
            threads=setting.threads,
            attention="sdpa",
        )
        yield Served(peer, peer, {"attention": "sdpa, paged", "dtype": "float32"})


def backends(q4: Path, f32: Callable[[], Path]) -> dict[str, Callable[[Setting, int], Any]]:
    """How to start what `cells.SYSTEMS` needs.

    Args:
        q4: the model's own file.
        f32: makes, or finds, the file with its weights in float32.
    """
    return {
        "sled": sled,
        "sled-torch": lambda setting, sessions: sled(setting, sessions, "torch"),
        "llamacpp": lambda setting, sessions: llamacpp(setting, sessions, q4),
        "llamacpp-f32": lambda setting, sessions: llamacpp(setting, sessions, f32()),
        "transformers": transformers,
    }


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _until_healthy(server: Process, port: int) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if server.process.poll() is not None:
            raise WorkerFailed(f"llama-server has ended: {server.last_words()}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/health")
            if json.load(connection.getresponse()).get("status") == "ok":
                return
        time.sleep(0.05)
    raise WorkerFailed(f"llama-server was not ready within {START_S:.0f} s: {server.last_words()}")
