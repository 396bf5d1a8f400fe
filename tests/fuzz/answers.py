"""What servers of both applications answer, as their devices and tools read it, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator

import qpart.messages as q
import qpart.metrics
import sled.messages as s
import sled.metrics
from edgebus.payloads import Payload, decode, encode
from sled.vocabulary import vocabulary_hash
from tests.fuzz.qpart_parts import REQUEST, served_model

KINDS: tuple[type[Payload], ...] = (
    s.Described, s.Vocabulary, s.Opened, s.Verdict, s.Later, s.Traced, sled.metrics.ServerReport,
    q.Described, q.Planned, q.InfeasibleInfo, q.Answered, q.Busy, qpart.metrics.ServerReport,
)  # fmt: skip


def answers(data: bytes) -> None:
    """An answer of each kind: refused with a ValueError, or the same when it is said again."""
    body = data[1:]
    kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    try:
        found = decode(kind, body)
    except ValueError:
        return
    again = decode(kind, encode(found))
    assert again == found or repr(again) == repr(found)  # not-a-numbers are not equal to themselves
    if isinstance(found, s.Vocabulary):
        assert len(vocabulary_hash(found)) == 16


def answer_seeds() -> Iterator[bytes]:
    """One of each kind that is not all numbers."""
    model = served_model()
    said: list[Payload] = [
        s.Described("t", "float32", 3, bytes(16), 64, 4, [0], b"id"),
        s.Vocabulary([b"", b"a", b"\xff"], [0]),
        s.Opened([1], 1, 4, [0.5]),
        s.Verdict(1, [2, 3], 1, "stop", 4, 2),
        s.Later(1.5, [("tcp://h:1", "k" * 40)]),
        s.Traced([s.TracedRound(1, 0.1, 0.2, 0.3, 4, 3, 4, 4, 2)], 7),
        q.Described((model.info,)),
        model.plan(REQUEST),
        q.InfeasibleInfo("memory", 0.5),
        q.Busy(0.25),
    ]
    for each in said:
        yield bytes([KINDS.index(type(each))]) + encode(each)


SEEDS = {"answers": answer_seeds}
