"""A node of protocol version 1 from pyzmq and msgpack alone: what its messages were is written here, not imported."""

from __future__ import annotations

import os

import msgpack
import zmq

HELLO, WELCOME, RESET, REQUEST, REPLY, REFUSAL, PING, PONG, GOODBYE, CANCEL = range(1, 11)
NUM_ELEMENTS = {
    HELLO: 7,
    WELCOME: 6,
    RESET: 1,
    REQUEST: 6,
    REPLY: 3,
    REFUSAL: 4,
    PING: 1,
    PONG: 1,
    GOODBYE: 3,
    CANCEL: 2,
}
LIMITS = [65536, 16777216, 64]
TIMEOUT_MS = 10_000


class OldPeer:
    """One end of a link: a DEALER that dials, or a ROUTER that is dialled by one peer."""

    def __init__(self, kind):
        self.context = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.linger = 0
        self.socket.rcvtimeo = self.socket.sndtimeo = TIMEOUT_MS
        self.route = []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.socket.close()
        self.context.term()

    def send(self, header, *frames):
        self.socket.send_multipart([*self.route, msgpack.packb(header), *frames])

    def receive(self):
        """The elements that version 1 knows, and the frames behind them; a node of version 1 reads no other header."""
        frames = self.socket.recv_multipart()
        if self.socket.type == zmq.ROUTER:
            self.route, frames = frames[:1], frames[1:]
        header = msgpack.unpackb(frames[0])
        assert header[0] in NUM_ELEMENTS, f"version 1 has no header {header}"
        assert len(header) >= NUM_ELEMENTS[header[0]]
        header = header[: NUM_ELEMENTS[header[0]]]
        num_frames = {REQUEST: 1, REPLY: 1, REFUSAL: 1}.get(header[0], 0)
        if header[0] in (REQUEST, REPLY):
            num_frames += len(header[-1])
        assert len(frames) == 1 + num_frames, f"{header} in {len(frames)} frames"
        return header, frames[1:]

    def expect(self, tag):
        """The next message that is no ping; pings are answered, as by any node."""
        for _ in range(100):
            header, frames = self.receive()
            if header[0] == PING:
                self.send([PONG])
                continue
            assert header[0] == tag, header
            return header, frames
        raise AssertionError("a hundred pings in a row")

    def dial(self, endpoint, low=1, high=1):
        """Greet; returns the answer, a welcome or a goodbye."""
        self.socket.connect(endpoint)
        self.send([HELLO, low, high, "old", os.urandom(16), 1, LIMITS])
        header, _ = self.receive()
        return header

    def listen(self):
        self.socket.bind("tcp://127.0.0.1:*")
        return self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def welcome(self):
        """Wait for a greeting and answer it."""
        hello, _ = self.expect(HELLO)
        _, low, high, _, _, greeting, _ = hello
        assert low <= 1 <= high
        self.send([WELCOME, 1, "old", bytes(16), greeting, LIMITS])
