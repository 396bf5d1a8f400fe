"""What devices have learned of their drafters, as a file: a process that begins goes on where the last one stood.

docs/spec/sled-windows.md, "Between processes", is the specification. Pure: bytes in, bytes out. It makes answers
quicker and never changes one, so whatever is wrong with a file costs no more than the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

import msgspec

from edgebus.payloads import Payload, decode, encode
from sled.calibration import MOST_TOKENS, Calibration
from sled.learned import Learned

MAGIC = b"SLEDKEPT"
VERSION = 2
MAX_PAIRS = 16
MAX_BYTES = 1 << 17
LEAST_TOKENS = 32.0  # heard of; what less of them taught is not worth keeping
_CHECKSUM_BYTES = 16
_HEAD_BYTES = len(MAGIC) + 2 + _CHECKSUM_BYTES
_MAX_ID_BYTES = 16
_Id = Annotated[bytes, msgspec.Meta(min_length=1, max_length=_MAX_ID_BYTES)]
_Count = Annotated[float, msgspec.Meta(ge=0.0, le=MOST_TOKENS)]
_Counts = Annotated[list[Annotated[list[_Count], msgspec.Meta(max_length=16)]], msgspec.Meta(max_length=16)]


class Kept(Payload, frozen=True, array_like=True):
    """What is known of one drafter beside one target: how often it is right. The fields are the calibration's.

    Nothing is kept of links, servers and speed, which are others next time. A token tells how quick its drafter is, but
    one that was slow when it was heard of last would not be asked for one.
    """

    target_id: _Id
    drafter_id: _Id
    tried: _Counts
    right: _Counts
    following: _Counts


class _File(Payload, frozen=True, array_like=True):
    pairs: Annotated[list[Kept], msgspec.Meta(max_length=MAX_PAIRS)]


def drafter_id(spec: str, files: Sequence[tuple[str, int, int]] = ()) -> bytes:
    """What a drafter is known by: 16 bytes.

    Args:
        spec: as users write it.
        files: of its models, where there are any: name, size and time of change, so that another model has another id.
    """
    return hashlib.blake2b(repr((spec, *files)).encode(), digest_size=16).digest()


def kept_of(learned: Learned, target_id: bytes, drafter: bytes) -> Kept | None:
    """What is worth keeping of it; None if that is too little, or nobody knows of which target."""
    tried, right, following = learned.calibration.counts()
    if sum(map(sum, tried)) < LEAST_TOKENS or not 0 < len(target_id) <= _MAX_ID_BYTES:
        return None
    return Kept(target_id, drafter, tried, right, following)


def restore(kept: Kept) -> Learned:
    """A device that knows its drafter, and nothing of links, servers and speed.

    Raises:
        ValueError: counts that no calibration has.
    """
    return Learned(calibration=Calibration.of_counts(kept.tried, kept.right, kept.following))


def with_pair(pairs: Sequence[Kept], newest: Kept) -> list[Kept]:
    """The newest first, instead of what was known of the same pair, and no more than there is room for."""
    rest = [each for each in pairs if (each.target_id, each.drafter_id) != (newest.target_id, newest.drafter_id)]
    return [newest, *rest][:MAX_PAIRS]


def pack(pairs: Sequence[Kept]) -> bytes:
    """The content of the file."""
    body = encode(_File(list(pairs)))
    return MAGIC + VERSION.to_bytes(2, "little") + _checksum(body) + body


def unpack(content: bytes) -> list[Kept]:
    """What a file holds.

    Raises:
        ValueError: it is another kind of file, of another version, or damaged; the text says which.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    if content[: len(MAGIC)] != MAGIC or len(content) < _HEAD_BYTES:
        raise ValueError("it holds nothing that a device has learned")
    version = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 2], "little")
    if version != VERSION:
        raise ValueError(f"it is of version {version}, this program reads version {VERSION}")
    body = content[_HEAD_BYTES:]
    if _checksum(body) != content[_HEAD_BYTES - _CHECKSUM_BYTES : _HEAD_BYTES]:
        raise ValueError("it is damaged: its checksum does not match")
    return decode(_File, body).pairs


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).digest()
