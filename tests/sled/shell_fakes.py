"""A bus that is none, for the server's shell: requests, an inbox, a target that fails."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import edgebus
from edgebus.payloads import decode, encode
from sled import messages
from sled.errors import OutOfMemory
from sled.history import History
from sled.messages import Decode, Open, Verdict, Verify
from sled.run.server import TargetServer
from sled.testing import ToyTarget
from sled.types import Sampling

PROMPT = [5, 6, 7]
GREEDY = Sampling()


@dataclass
class FakeRequest:
    """A request of the bus that remembers its answer; a stream has room for so many parts."""

    service: str
    payload: bytes
    peer: edgebus.Peer = edgebus.Peer("id", "key", "name")
    replies: list[bytes] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    info: bytes = b""
    too_large: bool = False
    is_stream: bool = False
    room: int = 1000
    parts: list[bytes] = field(default_factory=list)
    wants_room: object = None
    gone: bool = False
    arrived_at: float = field(default_factory=time.monotonic)

    def reply(self, payload=b"", arrays=()):
        assert not self.replies, "one answer"
        if self.too_large:
            raise edgebus.MessageTooLarge("the peer accepts 16 B")
        self.replies.append(payload)

    def refuse(self, code, detail, info=b""):
        if self.too_large and code != "too_large":
            raise edgebus.MessageTooLarge("the peer accepts 16 B")
        assert "\n" not in detail
        self.refusals.append(code)
        self.info = info

    def try_push(self, payload):
        if self.gone:
            raise edgebus.StreamEnded("nobody wants it")
        if self.too_large:
            raise edgebus.MessageTooLarge("the peer accepts 16 B")
        if len(self.parts) >= self.room:
            return False
        self.parts.append(payload)
        return True

    def when_room(self, callback):
        self.wants_room = callback

    def make_room(self, more):
        self.room += more
        callback, self.wants_room = self.wants_room, None
        callback()

    def remaining_s(self):
        return 0.0 if self.gone else 1.0

    @property
    def tokens(self):
        return [token for part in self.parts for token in decode(Verdict, part).tokens]


class FakeInbox:
    """Requests in a row."""

    def __init__(self, *requests):
        self.requests, self.closed = deque(requests), False

    def get(self, timeout_s=None):
        return self.requests.popleft() if self.requests else None

    def wake(self):
        pass

    def close(self):
        self.closed = True


def opening(number=0, prompt=PROMPT, sampling=GREEDY, **more) -> FakeRequest:
    return FakeRequest(messages.OPEN, encode(Open(bytes([number] * 8), sampling, prompt)), **more)


def asking(number=0, text=PROMPT, draft=(), **more) -> FakeRequest:
    digest = History(text).digest(len(text))
    return FakeRequest(messages.VERIFY, encode(Verify(bytes([number] * 8), len(text), digest, list(draft))), **more)


def streaming(number=0, text=PROMPT, max_tokens=10, **more) -> FakeRequest:
    digest = History(text).digest(len(text))
    payload = encode(Decode(bytes([number] * 8), len(text), digest, max_tokens))
    return FakeRequest(messages.DECODE, payload, **{"is_stream": True, **more})


def shell(target=None, *requests, **more) -> TargetServer:
    """A server that has handled these requests."""
    server = TargetServer(FakeInbox(), target or ToyTarget(), **more)
    for request in requests:
        server.handle(request)
    return server


def steps(server, at_most=200) -> int:
    """Run until there is nothing to do; returns how many steps that took."""
    for count in range(at_most):
        if not server.step():
            return count
    raise AssertionError("the server does not come to rest")


class Failing(ToyTarget):
    """Fails on chunks that `bad` is true of, and runs out of memory above so many tokens."""

    bad = staticmethod(lambda chunk: False)
    most_tokens = 1 << 20

    def verify(self, chunks, rounds):
        if any(map(self.bad, chunks)):
            raise RuntimeError("cannot")
        if sum(len(chunk.tokens) for chunk in chunks) > self.most_tokens:
            raise OutOfMemory("too much")
        return super().verify(chunks, rounds)
