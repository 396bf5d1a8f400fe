"""Brokers that some libraries need: our own instance on a loopback port, with a configuration of its own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.peers.contract import free_port

START_S = 10.0
MAX_MESSAGE_BYTES = 64 << 20


def mosquitto() -> str | None:
    """Path of the MQTT broker, if it is installed."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def nats_server() -> str | None:
    """Path of the NATS server, if it is installed; a package puts it beside python."""
    return shutil.which("nats-server") or shutil.which("nats-server", path=str(Path(sys.executable).parent))


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[int]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_S
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {process.returncode} at its start")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            if time.monotonic() > until:
                raise RuntimeError(f"{command[0]} does not listen on port {port} after {START_S:.0f} s")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def mqtt_broker(directory: str) -> Iterator[tuple[str, int]]:
    """A mosquitto that keeps nothing and has no limit that a tensor would meet."""
    port, path = free_port(), Path(directory) / "mosquitto.conf"
    path.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n"
        f"max_queued_messages 0\nmax_packet_size {MAX_MESSAGE_BYTES}\n"
    )
    with _running([str(mosquitto()), "-c", str(path)], port) as pid:
        yield f"127.0.0.1:{port}", pid


@contextlib.contextmanager
def nats_broker(directory: str) -> Iterator[tuple[str, int]]:
    """A nats-server that takes messages of the size of a tensor."""
    port, path = free_port(), Path(directory) / "nats.conf"
    path.write_text(
        f"host: 127.0.0.1\nport: {port}\nmax_payload: {MAX_MESSAGE_BYTES}\nmax_pending: {8 * MAX_MESSAGE_BYTES}\n"
    )
    with _running([str(nats_server()), "-c", str(path)], port) as pid:
        yield f"nats://127.0.0.1:{port}", pid


BROKERS: dict[str, Callable[[str], contextlib.AbstractContextManager[tuple[str, int]]]] = {
    "mqtt_paho": mqtt_broker,
    "nats_py": nats_broker,
}
