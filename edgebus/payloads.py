"""Typed payloads for applications: msgpack arrays whose fields are bounded, decoded before anything is believed.

The bus itself carries payloads without looking into them.
"""

from __future__ import annotations

import threading
from typing import TypeVar

import msgspec


class Payload(msgspec.Struct, frozen=True, array_like=True):
    """Base of a payload: fields in order, bounds as `msgspec.Meta`; readers ignore further fields at the end."""


_encoder = msgspec.msgpack.Encoder()
_P = TypeVar("_P", bound=Payload)
_decoders: dict[type[Payload], msgspec.msgpack.Decoder[Payload]] = {}
_making = threading.Lock()


def encode(payload: Payload) -> bytes:
    """The payload as a msgpack array."""
    return _encoder.encode(payload)


def decode(kind: type[_P], payload: bytes) -> _P:
    """The payload of this kind in some bytes.

    Raises:
        ValueError: not such a payload, or a value out of its bounds; the text says which.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        with _making:  # msgspec crashes where two threads describe the same types to it at once
            decoder = _decoders[kind] = _decoders.get(kind) or msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(payload)  # type: ignore[return-value]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"not a valid {kind.__name__} message: {error}") from None
