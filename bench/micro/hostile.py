"""What one allowed peer that never reads, or never ends, costs a node, and others: `python -m bench.micro.hostile`.

Peak resident memory of a server of default limits above what it had before, MiB, and how long another device's small
calls took during each flood and right after. Server, flood and device share the machine's cores, so what a device waits
for is theirs as well: two rows are the same calls with nobody beside, and beside two processes that only compute. Nodes
that do not read are a server, and a device whose server floods it, in which something keeps Python's lock for STALL_S.
Writes bench/results/hostile.json.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import zmq

import edgebus
from bench import record
from bench.micro import zmtp
from edgebus import messages as m
from edgebus.messages import encode_header

MIB = 1 << 20
CLAIMED = m.WireLimits(65536, 16 * MIB, 64, 1 << 40)
STALL_S = 4
SERVER = f"""
import ctypes, sys, edgebus
if directory := sys.argv[1]:
    allow = edgebus.AllowList.from_file(directory + "/allowed_keys")
    options = dict(keys=edgebus.load_keys(directory), allow=allow)
else:
    options = dict(insecure=True)
def stall(request):
    print("stalled", flush=True)
    ctypes.PyDLL(None).usleep({STALL_S} * 1000000)
with edgebus.Node("server", **options) as node:
    node.handle("work", lambda request: request.reply(b"echo:" + request.payload))
    node.handle("stall", stall)
    print(node.bind("tcp://127.0.0.1:0"), flush=True)
    sys.stdin.read()
"""
DEVICE = f"""
import ctypes, sys, edgebus
with edgebus.Node("device", insecure=True) as node:
    node.connect(sys.argv[1])
    print("stalled", flush=True)
    ctypes.PyDLL(None).usleep({STALL_S} * 1000000)
    sys.stdin.read()
"""
Flood = Callable[[zmq.Socket[bytes]], None]
MOST_UNENDED = 4096 * MIB


class Keys:
    """Those of a server and of a device that it allows, in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.server = str(directory / "server")
        for name in ("server", "device"):
            edgebus.generate_keys(directory / name)
        edgebus.add_to_allow_list(directory / "server", directory / "device" / "node.key")
        self.device = edgebus.load_keys(directory / "device")
        self.server_key = edgebus.load_keys(directory / "server").public


def _large(sock: zmq.Socket[bytes]) -> None:
    content = bytes(2 * MIB)
    for number in range(1500):
        sock.send_multipart([encode_header(m.Request(number, "work", 60_000, 0)), content])


def _malformed(sock: zmq.Socket[bytes]) -> None:
    content = bytes(2 * MIB)
    for _ in range(1500):
        sock.send_multipart([b"\xc1", content])


def _small(sock: zmq.Socket[bytes]) -> None:
    for number in range(100_000):
        sock.send_multipart([encode_header(m.Request(number, "work", 60_000, 0)), bytes(200)])


def _hellos(sock: zmq.Socket[bytes]) -> None:
    for number in range(20_000):
        sock.send(encode_header(m.Hello(1, 2, "peer", number.to_bytes(16, "big"), 1, CLAIMED)))


def _streams(sock: zmq.Socket[bytes]) -> None:
    terms = m.Terms(m.STREAM, b"", -1, 0, 0, 1 << 40)
    for number in range(2000):
        sock.send(encode_header(m.Request(number, "work", 60_000, 0, (), bytes(4000), terms)))


def _transfers(sock: zmq.Socket[bytes]) -> None:
    piece, specs, sizes = bytes(MIB), (m.ArraySpec("u1", (15 * MIB,)),) * 4, (0, *(15 * MIB,) * 4)
    for number in range(300):
        sock.send(encode_header(m.Request(number, "work", 60_000, 0, specs, None, None, m.Transfer(number, sizes))))
        for offset in (0, MIB):
            sock.send_multipart([encode_header(m.Chunk(number, offset)), piece])


def _nothing(_: zmq.Socket[bytes]) -> None:
    time.sleep(2.0)


def _computing(_: zmq.Socket[bytes]) -> None:
    with contextlib.ExitStack() as stack:
        for _child in range(2):
            child = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(child.kill)
        time.sleep(2.0)


FLOODS: dict[str, tuple[int, Flood]] = {
    "large unread answers, version 1": (1, _large),
    "large unread answers": (2, _large),
    "large malformed": (2, _malformed),
    "small requests": (2, _small),
    "hellos": (2, _hellos),
    "streams": (2, _streams),
    "transfers": (2, _transfers),
}


COMPARED: dict[str, tuple[int, Flood]] = {"no flood": (2, _nothing), "two processes that compute": (2, _computing)}


def _without_end(endpoint: str, keys: Keys | None) -> None:
    """Parts of one message, again by a new connection when one has been ended, until 4 GiB or 10 s are over."""
    piece, sent, until = bytes(MIB), 0, time.monotonic() + 10.0
    while sent < MOST_UNENDED and time.monotonic() < until:
        if keys is None:
            peer = zmtp.Plain(endpoint)
        else:
            peer = zmtp.Curve(endpoint, keys.server_key, keys.device.public, keys.device.secret)
        with contextlib.closing(peer), contextlib.suppress(OSError):
            peer.send(encode_header(m.Hello(1, 2, "peer", bytes(16), 1, CLAIMED)), more=False)
            while sent < MOST_UNENDED and time.monotonic() < until:
                peer.send(piece, more=True)
                sent += MIB


UNENDED = ("parts without an end", "parts without an end, with keys")
UNREAD = {
    "large messages to a server that does not read": 1,
    "many frames to a server that does not read": 7,
    "large messages to a device that does not read": 1,
    "many frames to a device that does not read": 7,
}


def _send_while_stalled(send: Callable[[list[bytes]], object], num_frames: int) -> None:
    """Messages of so many frames of 2 MiB, as long as nobody reads, and a little."""
    message, until = [bytes(2 * MIB)] * num_frames, time.monotonic() + STALL_S + 0.5
    while time.monotonic() < until:
        with contextlib.suppress(zmq.Again):
            send(message)


def _cost_of_server(num_frames: int) -> float:
    command = [sys.executable, "-c", SERVER, ""]
    with _running(command) as (server, lines), _greeted(next(lines).strip(), 2) as sock:
        sock.setsockopt(zmq.SNDTIMEO, 100)
        sock.send(encode_header(m.Request(0, "stall", 60_000, 0, (), b"")))
        next(lines)
        header = encode_header(m.Request(1, "work", 60_000, 0))
        with _peaks(server.pid) as peaks:
            _send_while_stalled(lambda message: sock.send_multipart([header, *message], copy=False), num_frames)
    return max(peaks) - peaks[0]


def _cost_of_device(num_frames: int) -> float:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        for option, value in ((zmq.LINGER, 0), (zmq.SNDTIMEO, 100), (zmq.RCVTIMEO, 5000), (zmq.ROUTER_MANDATORY, 1)):
            sock.setsockopt(option, value)
        endpoint = f"tcp://127.0.0.1:{sock.bind_to_random_port('tcp://127.0.0.1')}"
        with _running([sys.executable, "-c", DEVICE, endpoint]) as (device, lines):
            route, hello = sock.recv_multipart()[:2]
            greeting = m.decode_header(hello).greeting
            sock.send_multipart([route, encode_header(m.Welcome(2, "server", bytes(16), greeting, CLAIMED))])
            next(lines)
            header = encode_header(m.Reply(1))
            with _peaks(device.pid) as peaks:
                _send_while_stalled(
                    lambda message: sock.send_multipart([route, header, *message], copy=False), num_frames
                )
    return max(peaks) - peaks[0]


def _rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


class _Other:
    """Another device, which makes a small call every 5 ms on a thread of its own."""

    def __init__(self, endpoint: str, keys: Keys | None) -> None:
        self._endpoint, self._keys, self._done = endpoint, keys, threading.Event()
        self._up = threading.Event()
        self.took_ms: list[float] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with _device(self._endpoint, self._keys) as link:
            link.request("work", bytes(200), timeout_s=30)
            self._up.set()
            while not self._done.wait(0.005):
                begun = time.perf_counter()
                link.request("work", bytes(200), timeout_s=30)
                self.took_ms.append((time.perf_counter() - begun) * 1e3)

    def __enter__(self) -> _Other:
        self._thread.start()
        self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def row(self) -> dict[str, float]:
        """Percentiles of its calls."""
        took = sorted(self.took_ms) or [0.0]
        at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        last = len(took) - 1
        return {f"beside_{name}_ms": round(took[min(last, int(share * len(took)))], 1) for name, share in at.items()}


@contextlib.contextmanager
def _device(endpoint: str, keys: Keys | None) -> Iterator[edgebus.Link]:
    own = {"insecure": True} if keys is None else {"keys": keys.device}
    with edgebus.Node("other", **own) as node:
        yield node.connect(endpoint, None if keys is None else keys.server_key)


@contextlib.contextmanager
def _greeted(endpoint: str, version: int) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        for option, value in ((zmq.LINGER, 0), (zmq.SNDTIMEO, 5000), (zmq.RCVTIMEO, 5000)):
            sock.setsockopt(option, value)
        sock.setsockopt(zmq.RCVHWM, 1)
        sock.setsockopt(zmq.RCVBUF, 65536)
        sock.connect(endpoint)
        sock.send(encode_header(m.Hello(1, version, "peer", bytes(16), 1, CLAIMED)))
        sock.recv_multipart()
        yield sock


def _flood(version: int, flood: Flood) -> Callable[[str], None]:
    def run(endpoint: str) -> None:
        with _greeted(endpoint, version) as sock, contextlib.suppress(zmq.Again):  # held back for 5 s: a result, too
            flood(sock)

    return run


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """A process, which ends with its input, and the lines that it says."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process, iter(process.stdout)
        process.stdin.close()


@contextlib.contextmanager
def _peaks(pid: int) -> Iterator[list[float]]:
    """The memory of a process all the time."""
    peaks, done = [_rss_mib(pid)], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peaks.append(_rss_mib(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()


def _measure(flood: Callable[[str], None], keys: Keys | None) -> dict[str, float]:
    with _running([sys.executable, "-c", SERVER, "" if keys is None else keys.server]) as (server, lines):
        endpoint = next(lines).strip()
        with _peaks(server.pid) as peaks:
            beside = _Other(endpoint, keys)
            with beside:
                flood(endpoint)
            with _device(endpoint, keys) as link:
                begun = time.perf_counter()
                link.request("work", b"hi", timeout_s=30)
                call_ms = (time.perf_counter() - begun) * 1e3
            time.sleep(0.5)
    return {"peak_mib": round(max(peaks) - peaks[0], 1), "other_call_ms": round(call_ms, 1), **beside.row()}


def main() -> None:
    """See the module."""
    rows = {}
    with tempfile.TemporaryDirectory() as directory:
        keys = Keys(Path(directory))
        cases: dict[str, tuple[Callable[[str], None], Keys | None]] = {
            name: (_flood(*case), None) for name, case in (FLOODS | COMPARED).items()
        }
        cases |= {name: (partial(_without_end, keys=own), own) for name, own in zip(UNENDED, (None, keys), strict=True)}
        for name, (flood, own) in cases.items():
            rows[name] = _measure(flood, own)
            print(name, rows[name], flush=True)
    for name, num_frames in UNREAD.items():
        cost = _cost_of_server if "server" in name else _cost_of_device
        rows[name] = {"peak_mib": round(cost(num_frames), 1)}
        print(name, rows[name], flush=True)
    floods = (*FLOODS, *UNENDED, *UNREAD)
    worst = max(floods, key=lambda name: rows[name]["peak_mib"])
    figure = record.figure(
        rows[worst]["peak_mib"],
        "MiB of resident memory that one allowed peer that never reads, or never ends a message, costs a server of "
        "default limits at its peak, or a server a device; also where Python's lock is kept from who reads",
        f"worst of {len(floods)} floods: {worst}; a call of another device took at most "
        f"{max(rows[name]['beside_max_ms'] for name in (*FLOODS, *UNENDED))} ms beside one, "
        f"{max(rows[name]['beside_max_ms'] for name in COMPARED)} ms beside none",
        "python -m bench.micro.hostile",
    )
    record.write("hostile", rows, {"bus.hostile_peak_rss_mib": figure})


if __name__ == "__main__":
    main()
