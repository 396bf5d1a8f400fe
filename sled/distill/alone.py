"""One run at a time in a directory: two would write the same corpus and the same checkpoint."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from sled.errors import DirectoryInUse

NAME = "running"


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Hold a directory while this runs; the system lets go of it when the process ends, however it ends.

    The lock is on the file `running`, which holds the process id for people to read and stays behind.

    Args:
        directory: exists.

    Raises:
        DirectoryInUse: another run is at work there.
        OSError: the file cannot be written.
    """
    fd = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            process = f"process {who}" if who.isdecimal() else "another process"
            raise DirectoryInUse(
                f"{process} distils into {directory} now: wait for it, stop it, or give another directory"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def look_alone(directory: Path) -> None:
    """Raise what `alone_in` would now; writes nothing where no run has been."""
    if (directory / NAME).exists():
        with alone_in(directory):
            pass
