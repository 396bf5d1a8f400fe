"""What a device takes from the world: time, chance, and a disk. A simulation gives it its own."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgebus.files import write_whole


def _write(path: Path, content: bytes) -> None:
    write_whole(path, content, private=True, durable=True)


def _keep(path: Path, content: bytes) -> None:
    write_whole(path, content, private=True)


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)


@dataclass(frozen=True, slots=True)
class Around:
    """Time, chance, and where answers are kept.

    Args:
        clock: seconds.
        sleep: lets so many seconds pass.
        new_id: 8 random bytes, another session each time.
        chance: of pauses; spreads load, keeps no secret.
        look_s: how often a waiting request looks whether its server still lives.
        write: a file, whole or not at all, for its owner alone.
        read: so many bytes of a file at most.
        keep: as write, but it may be lost, or torn, with the power: nobody waits for the disk.
    """

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    new_id: Callable[[], bytes] = lambda: secrets.token_bytes(8)
    chance: random.Random = field(default_factory=random.Random)
    look_s: float = 0.02
    write: Callable[[Path, bytes], None] = _write
    read: Callable[[Path, int], bytes] = _read
    keep: Callable[[Path, bytes], None] = _keep
