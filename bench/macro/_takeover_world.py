"""Two real servers that get killed or frozen, and what is asked of them: our devices, and plain HTTP clients beside."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import edgebus
from bench import others
from bench.peers import usage
from sled import Device, Sampling, Window
from sled.run.device import Stream

MODEL = "smollm2-135m"
READY = '"endpoint"'  # in the line that `sled serve --json` prints when it serves
READY_S = 240.0
ANSWER_S = 240.0
FOREVER_S = 1e6


class Server:
    """A process that serves on a port that stays its own, however often it is killed.

    Args:
        command: with `{port}` where the port goes.
        log: where its words go.
        threads: for its arithmetic.
        ready: the word it says when it serves; empty if only its port tells.
    """

    def __init__(self, command: Sequence[str], log: Path, threads: int, ready: str = "") -> None:
        self._command, self._log, self._threads, self._ready = list(command), log, threads, ready
        self.port = _free_port()
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it; `wait_ready` says when it serves."""
        log: IO[str]
        with self._log.open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads)}
            command = [word.format(port=self.port) for word in self._command]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment)

    def wait_ready(self) -> None:
        """Wait until it serves.

        Raises:
            RuntimeError: it ended, or took too long.
        """
        until = time.monotonic() + READY_S
        assert self.process is not None
        while time.monotonic() < until and self.process.poll() is None:
            if self._ready in self._log.read_text():
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
                    return
            time.sleep(0.05)
        raise RuntimeError(f"a server was not ready within {READY_S:.0f} s: {self._log.read_text()[-500:]}")

    def signal(self, number: int) -> float:
        """Send it a signal; returns when."""
        assert self.process is not None
        self.process.send_signal(number)
        return time.monotonic()

    def kill(self) -> float:
        """Take its life without a word; returns when."""
        at = self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(10)
        return at

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self.process is not None
        return self.process.pid

    def end(self) -> None:
        """For good."""
        if self.process is not None and self.process.poll() is None:
            self.kill()


@dataclass
class Seen:
    """What one device, or client, saw of one answer.

    Attributes:
        tokens: (when, token id) as they came, up to the takeover and from then on.
        before: how many of them came before somebody else went on.
        events: when the server was given up and when another one held the answer, seconds on the same clock.
    """

    number: int
    prompt: int
    drafter: str
    tokens: list[tuple[float, int]] = field(default_factory=list)
    before: int = -1
    lost_at: float = 0.0
    opened_at: float = 0.0
    error: str = ""
    done: bool = False

    @property
    def ids(self) -> list[int]:
        """The answer."""
        return [token for _, token in self.tokens]

    @property
    def disturbed(self) -> bool:
        """Whether another server had to go on."""
        return 0 < self.before < len(self.tokens)

    @property
    def resume_s(self) -> float:
        """From the last token before to the first one after."""
        return self.tokens[self.before][0] - self.tokens[self.before - 1][0]


class Others:
    """What processes that are not ours take from the machine, from now on.

    Args:
        pids: those that are ours, beside this one.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids, self._began = list(pids), time.monotonic()
        self._busy, self._ours = others.busy_s(), self._used()

    def cores(self) -> float:
        """Processors that they kept busy."""
        wall = time.monotonic() - self._began
        return max(0.0, others.busy_s() - self._busy - (self._used() - self._ours)) / wall

    def _used(self) -> float:
        return usage.own()["cpu_s"] + sum(usage.of(pid)["cpu_s"] for pid in self._pids)


class Fleet:
    """Devices with keys of their own in this process, each with a thread while it answers."""

    def __init__(self, root: Path, servers: Sequence[Server], drafters: Sequence[str]) -> None:
        self._servers = servers
        endpoints = [f"tcp://127.0.0.1:{server.port}" for server in servers]
        keys = [root / f"server{number}" / "node.key" for number in range(len(servers))]
        self.devices = [
            Device(
                endpoints,
                server_key=keys,
                keys=root / "device",
                drafter=drafter,
                threads=1,
                timeout_s=60.0,
                cache_dir=root / "cache",
            )
            for drafter in drafters
        ]
        self.drafters = list(drafters)

    def close(self) -> None:
        """All of them."""
        for device in self.devices:
            device.close()

    def meet(self, first: Server) -> None:
        """Wait until all see both servers, and have answers begin at the first one."""
        for device in self.devices:
            assert device._servers is not None
            assert device._servers._pool is not None
            device._servers._pool.wait_ready(30.0, servers=2)
            others = [server for server in self._servers if server is not first]
            device._servers._avoided = {
                f"tcp://127.0.0.1:{server.port}": time.monotonic() + FOREVER_S for server in others
            }

    def let_go(self) -> None:
        """From now on answers may go on anywhere."""
        for device in self.devices:
            assert device._servers is not None
            device._servers._avoided = {}

    def answer(
        self, prompts: Sequence[tuple[int, str]], sampling: Sampling, num_tokens: int, window: Window
    ) -> tuple[list[Seen], list[threading.Thread]]:
        """One answer from each device, all at once."""
        seen = [Seen(n, number, self.drafters[n]) for n, (number, _) in enumerate(prompts)]
        options = {"max_tokens": num_tokens, "sampling": sampling, "window": window}
        threads = [
            threading.Thread(target=_take, args=(each, device.generate(text, **options)), daemon=True)  # type: ignore[arg-type]
            for each, device, (_, text) in zip(seen, self.devices, prompts, strict=False)
        ]
        for thread in threads:
            thread.start()
        return seen, threads


def _take(seen: Seen, stream: Stream) -> None:
    try:
        for token in stream:
            if stream.moves and seen.before < 0:
                seen.before = len(seen.tokens)
            seen.tokens.append((time.monotonic(), token.id))
    except edgebus.EdgebusError as error:
        seen.error = f"{type(error).__name__}: {error}"
    seen.done = True


def until_begun(seen: Sequence[Seen], least: Sequence[int]) -> None:
    """Wait until each answer has so many tokens.

    Raises:
        RuntimeError: they do not come.
    """
    until = time.monotonic() + ANSWER_S
    while any(len(each.tokens) < count and not each.done for each, count in zip(seen, least, strict=True)):
        if time.monotonic() > until:
            raise RuntimeError(f"answers did not begin: {[(len(each.tokens), each.error) for each in seen]}")
        time.sleep(0.002)


def until_done(threads: Sequence[threading.Thread]) -> None:
    """Wait for the ends of all answers.

    Raises:
        RuntimeError: one never ended.
    """
    until = time.monotonic() + ANSWER_S
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            raise RuntimeError(f"an answer did not end within {ANSWER_S:.0f} s")


@contextlib.contextmanager
def two_sled(mode: str, threads: int) -> Iterator[tuple[Path, list[Server]]]:
    """Two `sled serve` with CURVE; in mode "streams" they decode by themselves, in mode "rounds" devices draft."""
    limit = "0" if mode == "streams" else "8"
    with tempfile.TemporaryDirectory(prefix="takeover-") as directory, contextlib.ExitStack() as stack:
        root = Path(directory)
        servers = []
        for name in ("server0", "server1", "device"):
            edgebus.generate_keys(root / name)
        for number in range(2):
            command = [sys.executable, "-m", "sled.cli", "serve", "--model", MODEL, "--bind", "tcp://127.0.0.1:{port}"]
            command += ["--keys", str(root / f"server{number}"), "--allow", "any", "--threads", str(threads)]
            command += ["--windows", "fixed", "--max-window", limit, "--json", "--log-json"]
            server = Server(command, root / f"server{number}.log", threads, READY)
            stack.callback(server.end)
            server.start()
            servers.append(server)
        for server in servers:
            server.wait_ready()
        yield root, servers


# -- the peer: llama.cpp's server and a plain client of it ------------------------------------------------------


@contextlib.contextmanager
def two_llamacpp(binary: Path, model: Path, threads: int, slots: int) -> Iterator[list[Server]]:
    """Two of llama.cpp's servers with their defaults, a slot for each client."""
    with tempfile.TemporaryDirectory(prefix="takeover-") as directory, contextlib.ExitStack() as stack:
        servers = []
        for number in range(2):
            command = [str(binary), "--model", str(model), "--host", "127.0.0.1", "--port", "{port}"]
            command += ["--parallel", str(slots), "--ctx-size", str(512 * slots), "--threads", str(threads)]
            command += ["--threads-batch", str(threads), "--no-webui"]
            server = Server(command, Path(directory) / f"{number}.log", threads)
            stack.callback(server.end)
            server.start()
            servers.append(server)
        for server in servers:
            server.wait_ready()
            until_healthy(server)
        yield servers


def until_healthy(server: Server) -> None:
    """Wait until a model is loaded.

    Raises:
        RuntimeError: it is not within a minute and a half.
    """
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError), contextlib.closing(connection):
            connection.request("GET", "/health")
            if json.load(connection.getresponse()).get("status") == "ok":
                return
        time.sleep(0.05)
    raise RuntimeError("llama.cpp's server was not ready")


def http_answers(
    servers: Sequence[Server], prompts: Sequence[tuple[int, list[int]]], num_tokens: int, *, keep: bool
) -> tuple[list[Seen], list[threading.Thread]]:
    """One answer for each plain client: when its server goes away it asks the other one.

    Args:
        servers: the first one is asked first.
        prompts: numbers and token ids.
        num_tokens: of an answer.
        keep: the client sends what it has along as a longer prompt; else it asks for the whole answer anew, and the
            time to resume ends with the first token that it did not have.
    """
    seen = [Seen(n, number, "none") for n, (number, _) in enumerate(prompts)]
    threads = [
        threading.Thread(target=_take_http, args=(each, servers, ids, num_tokens, keep), daemon=True)
        for each, (_, ids) in zip(seen, prompts, strict=True)
    ]
    for thread in threads:
        thread.start()
    return seen, threads


def _take_http(seen: Seen, servers: Sequence[Server], prompt: list[int], num_tokens: int, keep: bool) -> None:
    try:
        try:
            _completion(seen, servers[0].port, prompt, num_tokens, 0)
        except (OSError, http.client.HTTPException):
            seen.before = have = len(seen.tokens)
            if keep:
                _completion(seen, servers[1].port, [*prompt, *seen.ids], num_tokens - have, 0)
            else:
                _completion(seen, servers[1].port, prompt, num_tokens, have)
    except (OSError, http.client.HTTPException, ValueError) as error:
        seen.error = f"{type(error).__name__}: {error}"
    seen.done = True


def _completion(seen: Seen, port: int, prompt: list[int], num_tokens: int, skip: int) -> None:
    """Stream a greedy answer, leaving its first `skip` tokens out."""
    body: dict[str, Any] = {"prompt": prompt, "n_predict": num_tokens, "temperature": 0, "samplers": ["temperature"]}
    body |= {"stream": True, "return_tokens": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    with contextlib.closing(connection):
        connection.request("POST", "/completion", json.dumps(body))
        response, came = connection.getresponse(), 0
        while line := response.readline():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("stop"):
                return
            for token in event["tokens"]:
                came += 1
                if came > skip:
                    seen.tokens.append((time.monotonic(), int(token)))
        raise http.client.HTTPException("the connection ended before the answer")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
