"""What the network around a node says before anybody is known: zeroconf, and greetings of listeners."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from edgebus import discovery
from edgebus.discovery import SERVICE_TYPE, Browser
from edgebus.zmtp import GREETING_BYTES, SIGNATURE, parse_greeting
from tests.fuzz.source import join_frames, split_frames

if find_spec("zeroconf"):
    from zeroconf import DNSCache, DNSIncoming, DNSPointer, ServiceInfo, Zeroconf

_HONEST = "fedcba9876543210"
_KINDS = {"zmtp", "silent", "closed", "http", "tls", "ssh", "other"}


class _Network:
    """What zeroconf makes of packets, without its sockets: its own parser and cache; nobody answers questions."""

    loop = None

    def __init__(self) -> None:
        self.cache = DNSCache()

    def add_service_listener(self, kind: str, listener: discovery._Listener) -> None:
        assert kind == SERVICE_TYPE
        self.listener = listener

    def hear(self, packet: bytes) -> None:
        records = DNSIncoming(packet).answers()
        self.cache.async_add_records(records)
        for record in records:
            if isinstance(record, DNSPointer) and record.name == SERVICE_TYPE:
                tell = self.listener.add_service if record.ttl else self.listener.remove_service
                tell(self, SERVICE_TYPE, record.alias)  # type: ignore[arg-type]


def announcements(data: bytes) -> None:
    """Packets of anybody on the network: hints that can be dialled, and what comes after them is heard."""
    network = _Network()
    browser = Browser(network, owned=False)  # type: ignore[arg-type]
    for packet in split_frames(data):
        network.hear(packet)
        for mark, endpoint in browser.hints():
            assert len(mark) == 16
            assert not set(mark) - set("0123456789abcdef")
            address, port = discovery._address_of(endpoint)
            assert port
            assert not address.is_multicast
    network.hear(_packet(_HONEST, 7000))
    assert (_HONEST, "tcp://10.0.0.1:7000") in browser.hints()


def greetings(data: bytes) -> None:
    """What a listener says to a greeting: a kind that we know, shown in a short line of plain letters."""
    found = parse_greeting(data, closed=bool(data) and data[-1] % 2 == 0)
    assert found.kind in _KINDS
    assert (found.kind in ("silent", "closed")) == (not data)
    assert (found.kind == "zmtp") == (data[:1] == b"\xff" and data[9:10] in (b"\x7f", b""))
    for text, most in ((found.shown, 60), (found.mechanism, 20)):
        assert text.isascii()
        assert text.isprintable() or not text
        assert len(text) <= 4 * most
    if found.mechanism and "\\" not in found.mechanism:
        assert data[12 : 12 + len(found.mechanism)] == found.mechanism.encode()


def _packet(mark: str, port: int, **changed: object) -> bytes:
    """What advertise() has zeroconf say."""
    said: dict[str, Any] = {"addresses": [b"\x0a\x00\x00\x01"], "properties": {"v": "1", "id": mark}} | changed
    info = ServiceInfo(SERVICE_TYPE, f"{mark}-{port}.{SERVICE_TYPE}", port, server=f"edgebus-{mark}.local.", **said)
    [packet] = Zeroconf.generate_service_broadcast(_SAYS, info, None).packets()  # type: ignore[arg-type]
    return packet


_SAYS = SimpleNamespace(_add_broadcast_answer=lambda *said: Zeroconf._add_broadcast_answer(_SAYS, *said))  # type: ignore[arg-type]


def announcement_seeds() -> Iterator[bytes]:
    """Nodes of one address and of several, one without a fingerprint, one that is gone, and names that are none."""
    six = socket.inet_pton(socket.AF_INET6, "fe80::1")
    usual = _packet("0123456789abcdef", 7000)
    others = [
        _packet("0123456789abcdef", 7001, addresses=[bytes(4), b"\xe0\x00\x00\x01", b"\x7f\x00\x00\x01", six]),
        _packet("0123456789ABCDEF", 7000),
        _packet("aaaaaaaaaaaaaaaa", 0, properties=b"\x03a=b\x02id\xff"),
    ]
    gone = usual.replace((4500).to_bytes(4, "big"), bytes(4))
    pointer = b"\x08_edgebus\x04_tcp\x05local\x00\x00\x0c\x00\x01\x00\x00\x11\x94"
    head = bytes.fromhex("000084000000000100000000")
    names = [b"\x06nobody\x00", b"\x01.\x08_edgebus\x04_tcp\x05local\x00", b"\x01\x07\x08_edgebus\x04_tcp\x05local\x00"]
    yield join_frames([usual])
    yield join_frames([*others, usual, gone])
    for name in names:
        yield join_frames([head + pointer + len(name).to_bytes(2, "big") + name])


def greeting_seeds() -> Iterator[bytes]:
    """A greeting of libzmq of either mechanism, one that is cut off, and what other servers say."""
    for mechanism in (b"NULL", b"CURVE"):
        yield (SIGNATURE + mechanism.ljust(20, b"\0")).ljust(GREETING_BYTES, b"\0")
    yield SIGNATURE[:10]
    yield b"HTTP/1.1 400 Bad Request\r\n\r\n\x1b[2J"
    yield b"SSH-2.0-OpenSSH"
    yield b"\x15\x03\x01\x00\x02\x02\x46"


TARGETS = {"greetings": greetings} | ({"announcements": announcements} if find_spec("zeroconf") else {})
SEEDS = {"announcements": announcement_seeds, "greetings": greeting_seeds}
