"""What a device reads back of what it learned: whatever the file says, drafts go on."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator

from sled.auto_pace import AutoPace
from sled.kept import MAGIC, VERSION, drafter_id, kept_of, pack, restore, unpack
from sled.learned import Learned

_SAID = (0.0, 0.05, 0.3, 0.97, 1.0)
_HEAD_BYTES = len(pack([])) - 2  # an array of an empty array


def kept(body: bytes) -> None:
    """The body of a file whose checksum is right: refused with a ValueError, or a device that drafts by it."""
    checksum = hashlib.blake2b(body, digest_size=16).digest()
    with contextlib.suppress(ValueError):
        for pair in unpack(MAGIC + VERSION.to_bytes(2, "little") + checksum + body):
            _drafts(restore(pair))


def _drafts(learned: Learned) -> None:
    """A few rounds of every kind; what is learned of them stays a number, and can be kept again."""
    now = 0.0
    for right in (0, 5, 2, 5, 5):
        pace = AutoPace(learned)
        pace.begin()
        pace.streams(100, 0.001)
        for length in range(5):
            pace.another(_SAID[:length], (), None, unread=length * 20)
            pace.more(_SAID[:length], _SAID[length], ())
            pace.another(_SAID[:length], _SAID, 0.01, hop=True, unread=1)
        pace.read(20, 0.01)
        pace.drafted(5, 0.01)
        now += 0.05
        pace.told(_SAID, right, 0.03, (), now=now)
        assert 0.0 <= learned.calibration.survival(_SAID, 2) <= 1.0
        assert math.isfinite(learned.draft_s)
        assert math.isfinite(learned.rate)
    again = kept_of(learned, b"t", b"d")
    if again is not None:
        restore(unpack(pack([again]))[0])


def kept_seeds() -> Iterator[bytes]:
    """What a device that has heard of little and of much would write."""
    learned, now = Learned(), 0.0
    for number in range(40):
        pace = AutoPace(learned)
        now += 0.1
        pace.drafted(5, 0.01)
        pace.told(_SAID, number % 6, 0.05, (), now=now)
        found = kept_of(learned, b"target", drafter_id("ngram"))
        if found is not None and number % 10 == 9:
            yield pack([found, found])[_HEAD_BYTES:]
