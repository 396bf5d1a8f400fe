"""Round trip of 200 bytes over loopback tcp: edgebus beside raw pyzmq with a codec, and beside raw TCP.

The server is another process in every case: this file, run with the name of one.
Run: pytest bench/micro/test_bus.py --benchmark-columns=min,median,max
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import msgspec
import pytest
import zmq

import edgebus

PAYLOAD = bytes(200)
ROUNDS = {"rounds": 1500, "warmup_rounds": 200, "iterations": 1}


class Draft(msgspec.Struct, array_like=True):
    """What a peer without a bus would send: an id, a service and the payload."""

    id: int
    service: str
    payload: bytes


@contextmanager
def served(kind, *arguments):
    command = [sys.executable, __file__, kind, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate("end\n", timeout=10)


@contextmanager
def raw_tcp(_):
    with served("tcp") as port, socket.create_connection(("127.0.0.1", int(port))) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask():
            peer.sendall(PAYLOAD)
            return peer.recv(len(PAYLOAD), socket.MSG_WAITALL)

        yield ask


@contextmanager
def pyzmq(_, keys=None):
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Draft).decode
    context = zmq.Context()
    with served("zmq", *keys or ()) as endpoint, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        if keys is not None:
            peer.curve_publickey, peer.curve_secretkey = zmq.curve_keypair()
            peer.curve_serverkey = keys[0].encode()
        peer.connect(endpoint)

        def ask():
            peer.send(encode(Draft(1, "bench", PAYLOAD)))
            return decode(peer.recv()).payload

        yield ask
    context.term()


@contextmanager
def pyzmq_curve(directory):
    public, secret = zmq.curve_keypair()
    with pyzmq(directory, (public.decode(), secret.decode())) as ask:
        yield ask


@contextmanager
def edgebus_plain(_):
    with served("edgebus") as endpoint, edgebus.Node("bench", insecure=True) as node:
        link = node.connect(endpoint)
        yield lambda: link.request("bench", PAYLOAD).payload


@contextmanager
def edgebus_curve(directory):
    keys = edgebus.generate_keys(directory)
    with served("edgebus", directory) as endpoint, edgebus.Node("bench", keys=keys) as node:
        link = node.connect(endpoint, keys.public)
        yield lambda: link.request("bench", PAYLOAD).payload


@pytest.mark.benchmark(group="round trip of 200 B")
@pytest.mark.parametrize("peer", [raw_tcp, pyzmq, pyzmq_curve, edgebus_plain, edgebus_curve], ids=lambda f: f.__name__)
def test_round_trip(benchmark, peer, tmp_path):
    with peer(tmp_path) as ask:
        assert ask() == PAYLOAD
        benchmark.pedantic(ask, **ROUNDS)


def serve_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        peer, _ = listener.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := peer.recv(200, socket.MSG_WAITALL):
                peer.sendall(data)


def serve_zmq(public: str = "", secret: str = "") -> None:
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Draft).decode
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    if public:
        router.curve_server, router.curve_secretkey = True, secret.encode()
    port = router.bind_to_random_port("tcp://127.0.0.1")
    print(f"tcp://127.0.0.1:{port}", flush=True)
    while True:
        route, raw = router.recv_multipart()
        router.send_multipart([route, encode(decode(raw))])


def serve_edgebus(directory: str = "") -> None:
    keys = edgebus.load_keys(directory) if directory else None
    allow = edgebus.AllowList.any() if directory else None
    with edgebus.Node("server", keys=keys, allow=allow, insecure=not directory) as node:
        inbox = node.serve("bench")
        print(node.bind("tcp://127.0.0.1:0"), flush=True)
        while (request := inbox.get(None)) is not None:
            request.reply(request.payload)


if __name__ == "__main__":
    run = {"tcp": serve_tcp, "zmq": serve_zmq, "edgebus": serve_edgebus}[sys.argv[1]]
    threading.Thread(target=run, args=sys.argv[2:], daemon=True).start()
    sys.stdin.readline()
