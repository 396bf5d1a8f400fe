"""What the golden bytes mean: the headers of bus_wire_v1.json and bus_wire_v2.json, written by hand."""

from __future__ import annotations

import json
from pathlib import Path

from edgebus import messages as m

FOLDER = Path(__file__).parent
VECTORS = json.loads((FOLDER / "bus_wire_v2.json").read_text())
OLD_VECTORS = json.loads((FOLDER / "bus_wire_v1.json").read_text())
WIRE_LIMITS = m.WireLimits(65536, 16777216, 64, 33554432)
BLOCK = m.Block(11, 4242, 7, 8388608, bytes(range(48, 64)), 4096, 4194304)
MATRIX = (m.ArraySpec("f4", (1024, 1024)),)
GOLDEN = {
    "hello": m.Hello(1, 2, "device", bytes(range(16)), 1, WIRE_LIMITS),
    "hello_of_the_bulk_lane": m.Hello(
        2, 2, "device", bytes(range(16)), 1, WIRE_LIMITS, 1, m.Share(bytes(range(32, 48)), 4242, 123456789)
    ),
    "welcome": m.Welcome(
        2, "server", bytes(range(16, 32)), 1, WIRE_LIMITS, share=m.Share(bytes(range(32, 48)), 4243, 123456790)
    ),
    "welcome_of_the_bulk_lane": m.Welcome(2, "server", bytes(range(16, 32)), 1, WIRE_LIMITS, 1),
    "reset": m.Reset(),
    "request": m.Request(3, "sled.verify", 250, 3, (m.ArraySpec("i4", (8,)),), b"payload"),
    "request_without_arrays": m.Request(300, "sled.open", 10_000, 299, inline=b""),
    "request_with_payload_apart": m.Request(4, "put", 86_400_000, 4),
    "request_one_way": m.Request(5, "log", 1000, 5, inline=b"line", terms=m.Terms(m.ONE_WAY)),
    "request_with_key": m.Request(6, "pay", 1000, 5, inline=b"payload", terms=m.Terms(key=bytes(range(64)))),
    "request_of_a_sequence": m.Request(
        7, "sled.verify", 1000, 5, inline=b"payload", terms=m.Terms(stream=2**63 - 1, pos=42)
    ),
    "request_of_a_stream": m.Request(
        8, "watch", 86_400_000, 5, inline=b"", terms=m.Terms(m.STREAM, from_pos=5, window_bytes=1 << 20)
    ),
    "request_as_transfer": m.Request(9, "put", 1000, 9, MATRIX, transfer=m.Transfer(12, (7, 4194304))),
    "request_as_transfer_that_is_whole": m.Request(
        9, "put", 1000, 9, (m.ArraySpec("u1", (60_000,)),), b"payload", transfer=m.Transfer(12, (7, 60_000))
    ),
    "request_with_blocks": m.Request(10, "put", 1000, 9, MATRIX, b"payload", blocks=(BLOCK,)),
    "reply": m.Reply(3, (m.ArraySpec("f2", (2, 1, 3)), m.ArraySpec("u1", ())), b""),
    "reply_that_ends_a_stream": m.Reply(8, inline=b"bye", num_parts=2**63 - 1),
    "reply_as_transfer": m.Reply(9, (m.ArraySpec("u1", (100_000,)),), transfer=m.Transfer(0, (0, 100_000))),
    "reply_with_blocks": m.Reply(10, MATRIX, b"", blocks=(BLOCK,)),
    "refusal": m.Refusal(3, "busy", "ask again later"),
    "ping": m.Ping(),
    "pong": m.Pong(),
    "pong_of_a_busy_node": m.Pong(3000, 86_400_000),
    "goodbye": m.Goodbye("closing", ""),
    "cancel": m.Cancel(2**63 - 1),
    "part": m.Part(8, 5, (m.ArraySpec("i8", (2,)),), b"payload"),
    "part_as_transfer": m.Part(8, 6, transfer=m.Transfer(13, (65_536,))),
    "part_with_blocks": m.Part(8, 7, MATRIX, b"", blocks=(BLOCK,)),
    "more": m.More(8, 6),
    "chunk": m.Chunk(12, 262_144),
    "credit": m.Credit(12, 327_680),
    "credit_that_rewinds": m.Credit(12, 65_536, True),
    "open_bulk": m.OpenBulk(),
    "leases": m.Leases(11, (3, 9)),
    "drop": m.Drop(12),
    "probe": m.Probe(BLOCK),
    "seen": m.Seen(True),
}
OLD_LIMITS = m.WireLimits(65536, 67108864, 64)
OLD_GOLDEN = {
    "hello": m.Hello(1, 1, "device", bytes(range(16)), 1, OLD_LIMITS),
    "welcome": m.Welcome(1, "server", bytes(range(16, 32)), 1, OLD_LIMITS),
    "reset": m.Reset(),
    "request": m.Request(3, "sled.verify", 250, 3, (m.ArraySpec("i4", (8,)),)),
    "request_without_arrays": m.Request(300, "sled.open", 10_000, 299),
    "reply": m.Reply(3, (m.ArraySpec("f2", (2, 1, 3)), m.ArraySpec("u1", ()))),
    "refusal": m.Refusal(3, "busy", "ask again later"),
    "ping": m.Ping(),
    "pong": m.Pong(),
    "goodbye": m.Goodbye("closing", ""),
    "cancel": m.Cancel(2**63 - 1),
}
OLD_BODY = {
    "request": (b"payload", bytes(32)),
    "request_without_arrays": (b"",),
    "reply": (b"", bytes(12), b"\x01"),
    "refusal": (b"info",),
}


def plain_of(value):
    """What stands in a vector, as msgpack has it: JSON has no bytes."""
    if isinstance(value, dict):
        return bytes.fromhex(value["bin"])
    return [plain_of(item) for item in value] if isinstance(value, list) else value


def frames_of(spelled):
    """Frames of a vector: each a pattern in hexadecimal and how often it stands there."""
    return [bytes.fromhex(pattern) * times for pattern, times in spelled]
