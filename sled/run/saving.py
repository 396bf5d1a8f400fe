"""The file of an answer that may be gone on with: written whole, not too often, and read back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from sled.errors import StateUnusable
from sled.run.around import Around
from sled.saved import MAX_BYTES, Saved, pack, unpack

log = logging.getLogger("sled.device")
EVERY_S = 0.5
SHARE = 0.05  # of the time at most is spent on writing


class Saver:
    """Keeps a file up to date.

    Args:
        path: of the file.
        state: the answer as it is now.
        around: the clock and the disk.
    """

    def __init__(self, path: Path, state: Callable[[], Saved], around: Around) -> None:
        self.path, self._state, self._around = path, state, around
        self._next_at = 0.0

    def begin(self) -> None:
        """Write it for the first time.

        Raises:
            StateUnusable: it cannot be written.
        """
        try:
            self._write()
        except OSError as error:
            raise StateUnusable(
                f"cannot save the answer to {self.path}: {error}; give a file that can be written"
            ) from None

    def look(self) -> None:
        """The answer may be longer now: write it, if that is not too soon."""
        if self._around.clock() >= self._next_at:
            self.write()

    def write(self) -> None:
        """Write it; what fails costs the file, not the answer."""
        try:
            self._write()
        except OSError as error:
            log.warning("the answer could not be saved", extra={"path": str(self.path), "why": str(error)})

    def _write(self) -> None:
        began = self._around.clock()
        self._around.write(self.path, pack(self._state()))
        ended = self._around.clock()
        self._next_at = ended + max(EVERY_S, (ended - began) / SHARE)


def load(path: Path, around: Around) -> Saved:
    """A saved answer, from the disk of this world.

    Raises:
        StateUnusable: there is none that can be gone on with.
    """
    try:
        content = around.read(path, MAX_BYTES + 1)
    except OSError as error:
        raise StateUnusable(f"cannot read {path}: {error.strerror}; give a file that `save_to` has written") from None
    if len(content) > MAX_BYTES:
        raise StateUnusable(f"{path} has more than {MAX_BYTES} bytes and is no saved answer; give another file")
    return unpack(content, str(path))
