"""Who may connect: the answer to libzmq's question (ZAP, ZeroMQ RFC 27). Pure; fails closed."""

from __future__ import annotations

from collections.abc import Sequence

from edgebus.keys import AllowList

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_DOMAIN = b"edgebus"
_DENIED = b"400"  # 300 would make libzmq fall silent towards the peer, which then learns nothing


def zap_answer(frames: Sequence[bytes], allow: AllowList | None) -> list[bytes]:
    """Answer one ZAP request; the user id it grants is the CURVE public key in Z85.

    Args:
        frames: version, request id, domain, address, routing id, mechanism, credentials...
        allow: the list; None allows nobody.
    """
    from zmq.utils import z85

    denied = zap_denied(frames)
    if len(frames) != 7 or frames[0] != b"1.0" or frames[5] != b"CURVE" or len(frames[6]) != 32:
        return denied
    if frames[2] != ZAP_DOMAIN:  # another library in this process asks about a socket of its own
        return denied
    key = z85.encode(frames[6])
    if allow is None or not allow.permits(key.decode()):
        return denied
    return [b"1.0", frames[1], b"200", b"OK", key, b""]


def zap_denied(frames: Sequence[bytes]) -> list[bytes]:
    """The answer no to one ZAP request."""
    request_id = frames[1] if len(frames) > 1 else b""
    return [b"1.0", request_id, _DENIED, b"key not in the allow-list", b"", b""]
