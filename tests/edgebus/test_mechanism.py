"""A plaintext device at a listener that cuts its handshakes: that one is asked for its greeting, and seldom."""

from __future__ import annotations

import errno
import socket
import threading
import time
from contextlib import contextmanager

import pytest

import edgebus
from edgebus.handshake import GREETING_EVERY, HandshakeWatch
from edgebus.zmtp import SIGNATURE

CUT = [("CONNECT_DELAYED", 115), ("CONNECTED", 9), ("HANDSHAKE_FAILED_NO_DETAIL", errno.EPIPE), ("DISCONNECTED", 9)]


def greeting(mechanism, *, version=(3, 1), signature=b"\xff" + bytes(8) + b"\x7f"):
    return signature + bytes(version) + mechanism.ljust(20, b"\0") + bytes(32)


CURVE, NULL = greeting(b"CURVE"), greeting(b"NULL")
UNCLEAR = {
    "nothing": b"",
    "plaintext, so something else cuts": NULL,
    "cut in the signature": CURVE[:7],
    "cut after the version": CURVE[:12],
    "cut in the mechanism": CURVE[:16],
    "a mechanism that only begins like it": greeting(b"CURVE2"),
    "a mechanism with more behind its end": greeting(b"CURVE\0x"),
    "no signature": greeting(b"CURVE", signature=b"\xfe" + bytes(8) + b"\x7f"),
    "an old version": greeting(b"CURVE", version=(2, 0)),
    "a browser's": b"HTTP/1.0 400 Bad Request\r\n\r\nCURVE",
    "much": b"\xff" * 100_000,
}


# -- what it means: no sockets ---------------------------------------------------------------------------


def after(num_cuts, *, secure=False):
    watch = HandshakeWatch("tcp://h:1", secure=secure)
    for _ in range(num_cuts - 1):
        for event in CUT:
            watch.handle(*event)
    return watch, [verdict.what for event in CUT if (verdict := watch.handle(*event)) is not None]


def test_plaintext_side_is_unclear_after_two_cuts_and_then_ever_more_seldom():
    unclear_after = [num for num in range(1, 500) if after(num)[1] == ["unclear"]]
    assert unclear_after == [2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384, 448]
    assert GREETING_EVERY == 64
    assert after(2, secure=True)[1] == []


def test_success_starts_the_count_again():
    watch, _ = after(3)
    watch.handle("HANDSHAKE_SUCCEEDED", 0)
    verdicts = [watch.handle("HANDSHAKE_FAILED_NO_DETAIL", errno.EPIPE) for _ in range(2)]
    assert [verdict and verdict.what for verdict in verdicts] == [None, "unclear"]


def test_curve_greeting_is_another_mechanism():
    verdict = after(2)[0].greeted(CURVE)
    assert (verdict.what, verdict.code) == ("failed", "wrong_server_key")
    assert "looks like CURVE" in verdict.detail


def test_curve_greeting_is_no_news_to_a_side_that_speaks_it():
    assert after(2, secure=True)[0].greeted(CURVE) is None


@pytest.mark.parametrize("content", UNCLEAR.values(), ids=UNCLEAR)
def test_anything_else_says_nothing(content):
    assert after(2)[0].greeted(content) is None


# -- over sockets ------------------------------------------------------------------------------------------


class Listener:
    """Cuts every handshake of libzmq before a greeting, and answers one that shows no more than a signature.

    Args:
        server: a listening socket; closed with this.
        answer: the bytes for that, None to stay silent and hold the connection.
        pieces: True to send them one by one.
    """

    def __init__(self, server, answer, *, pieces=False):
        self._server, self._answer, self._pieces = server, answer, pieces
        self.num_cut, self.num_asked = 0, 0
        self._held = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while True:
            try:
                sock = self._server.accept()[0]
            except OSError:
                return
            self._serve(sock)

    def _serve(self, sock):
        sock.settimeout(5)
        content = sock.recv(len(SIGNATURE))  # libzmq sends ten bytes and waits for ours
        if content != SIGNATURE:
            self.num_cut += 1
            sock.close()
            return
        self.num_asked += 1
        if self._answer is None:
            self._held.append(sock)
            return
        try:
            for at in range(len(self._answer)) if self._pieces else ():
                sock.sendall(self._answer[at : at + 1])
            if not self._pieces:
                sock.sendall(self._answer)
        except OSError:
            pass  # whoever asked has seen enough
        sock.close()

    def close(self):
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._server.close()
        for sock in self._held:
            sock.close()


@contextmanager
def listening(answer, *, path=None, **options):
    if path is None:
        server = socket.create_server(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    else:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(str(path))
        server.listen()
        endpoint = f"ipc://{path}"
    listener = Listener(server, answer, **options)
    try:
        yield endpoint, listener
    finally:
        listener.close()


@pytest.mark.net
@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_listener_that_always_cuts_too_early_is_asked_and_named(tmp_path, transport, pieces):
    path = tmp_path / "at" if transport == "ipc" else None
    plain, listener = edgebus.Node("plain", insecure=True), listening(CURVE, path=path, pieces=pieces)
    with plain, listener as (endpoint, heard):
        began = time.monotonic()
        with pytest.raises(edgebus.WrongServerKey, match="looks like CURVE"):
            plain.connect(endpoint, timeout_s=10)
        assert time.monotonic() - began < 2
        assert heard.num_cut >= 2
        assert heard.num_asked >= 1


@pytest.mark.net
@pytest.mark.parametrize("content", [b"", NULL, UNCLEAR["much"], None], ids=["nothing", "plaintext", "much", "silence"])
def test_listener_that_is_not_curve_is_tried_on_and_asked_seldom(content):
    with edgebus.Node("plain", insecure=True) as plain, listening(content) as (endpoint, listener):
        with pytest.raises(edgebus.PeerUnreachable, match="accepted and closed"):
            plain.connect(endpoint, timeout_s=1)
        assert 1 <= listener.num_asked <= 1 + listener.num_cut.bit_length()


@pytest.mark.net
def test_plain_server_that_comes_back_in_the_middle_is_found():
    """Whatever died there has cut handshakes, and holds a question that it never answers."""
    with edgebus.Node("plain", insecure=True) as plain, edgebus.Node("server", insecure=True) as server:
        with listening(None) as (endpoint, listener):
            links = []
            thread = threading.Thread(target=lambda: links.append(plain.connect(endpoint, timeout_s=20)))
            thread.start()
            until = time.monotonic() + 10
            while not listener.num_asked and time.monotonic() < until:
                time.sleep(0.01)
        server.bind(endpoint)
        thread.join(20)
        assert links[0].request("edgebus.ping", b"x").payload == b"x"
        assert links[0].stats().malformed == 0


@pytest.mark.net
def test_bus_goes_on_while_a_listener_keeps_silent():
    """The question is no call that waits: another link of the node is as quick as ever."""
    with edgebus.Node("plain", insecure=True) as plain, edgebus.Node("server", insecure=True) as server:
        link = plain.connect(server.bind("tcp://127.0.0.1:0"))
        with listening(None) as (endpoint, listener):

            def connect():
                with pytest.raises(edgebus.PeerUnreachable):
                    plain.connect(endpoint, timeout_s=2)

            thread = threading.Thread(target=connect)
            thread.start()
            slowest_s = 0.0
            while thread.is_alive():
                began = time.monotonic()
                link.request("edgebus.ping", b"x")
                slowest_s = max(slowest_s, time.monotonic() - began)
            assert listener.num_asked >= 2
            assert slowest_s < 1
