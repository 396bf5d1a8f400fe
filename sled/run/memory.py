"""The file of what devices have learned: read when one begins, written now and then and when it ends."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from sled.drafters.opening import model_files
from sled.kept import MAX_BYTES, Kept, drafter_id, kept_of, pack, restore, unpack, with_pair
from sled.learned import Learned
from sled.run.around import Around

log = logging.getLogger("sled.device")
NAME = "learned.sled"
EVERY_S = 60.0


class Memory:
    """What is known of one drafter beside one target, from process to process.

    Whatever fails costs what was learned, and a line in the log.

    Args:
        directory: of the file.
        target_id: of the target.
        drafter: as users write it.
        around: the clock and the disk.
    """

    def __init__(self, directory: Path, target_id: bytes, drafter: str, around: Around) -> None:
        self._path, self._target_id, self._around = directory / NAME, target_id, around
        self._drafter_id = drafter_id(drafter, model_files(drafter))
        self._next_at = 0.0
        self._last: Kept | None = None

    def load(self) -> Learned:
        """What was known when the last process ended, or a device that knows nothing."""
        with contextlib.suppress(FileNotFoundError):
            try:
                for kept in self._pairs():
                    if (kept.target_id, kept.drafter_id) == (self._target_id, self._drafter_id):
                        learned = restore(kept)
                        self._last = kept
                        return learned
            except (OSError, ValueError) as error:
                if isinstance(error, FileNotFoundError):
                    raise
                log.warning("what was learned is ignored", extra={"path": str(self._path), "why": str(error)})
        return Learned()

    def look(self, learned: Learned) -> None:
        """More may be known now: write it, if that is not too soon."""
        if self._around.clock() >= self._next_at:
            self.save(learned)

    def save(self, learned: Learned) -> None:
        """Write it beside what is known of other drafters."""
        kept = kept_of(learned, self._target_id, self._drafter_id)
        if kept is None or kept == self._last:
            return
        self._next_at = self._around.clock() + EVERY_S
        pairs: list[Kept] = []
        with contextlib.suppress(OSError, ValueError):  # what cannot be read is written anew
            pairs = self._pairs()
        try:
            self._around.keep(self._path, pack(with_pair(pairs, kept)))
            self._last = kept
        except OSError as error:
            log.warning("what was learned could not be kept", extra={"path": str(self._path), "why": str(error)})

    def _pairs(self) -> list[Kept]:
        return unpack(self._around.read(self._path, MAX_BYTES + 1))
