"""Typed payloads, and decoders that are made while others are."""

from __future__ import annotations

import threading

import msgspec
import pytest

from edgebus import payloads
from edgebus.payloads import Payload, decode, encode


class Point(Payload):
    x: int
    y: int = 0


def test_payloads_come_back_and_what_is_none_says_why():
    assert decode(Point, encode(Point(1, 2))) == Point(1, 2)
    assert decode(Point, msgspec.msgpack.encode([1, 2, "a later version's"])) == Point(1, 2)
    for wrong in (b"", b"\xc1", encode(Point(1))[:-1], msgspec.msgpack.encode(["x", 2])):
        with pytest.raises(ValueError, match="not a valid Point message"):
            decode(Point, wrong)


def test_one_thread_at_a_time_makes_a_decoder(monkeypatch):
    """msgspec crashes where two threads describe types to it at once, so nobody does while another is at it."""
    making, most, inside = 0, 0, threading.Event()
    made, counting, real = [], threading.Lock(), msgspec.msgpack.Decoder

    class Decoder:
        def __init__(self, kind):
            nonlocal making, most
            with counting:
                making += 1
                most = max(most, making)
                made.append(kind)
                if making > 1:
                    inside.set()
            inside.wait(0.3)  # until a second one is in here too: none ever is
            self.decode = real(kind).decode
            with counting:
                making -= 1

    kinds = [msgspec.defstruct(f"Kind{i}", [("x", int)], bases=(Payload,), frozen=True) for i in range(2)]
    contents = [encode(kind(i)) for i, kind in enumerate(kinds)]
    monkeypatch.setattr(payloads, "_decoders", {})
    monkeypatch.setattr(msgspec.msgpack, "Decoder", Decoder)
    found = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(decode(kinds[i % 2], contents[i % 2]))) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == 1
    assert sorted(made, key=str) == sorted(kinds, key=str), "each is made once"
    assert len(found) == 4
