"""One run at a time in a directory: two would write the same corpus and the same checkpoint."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sled.errors import DirectoryInUse, LockUnavailable

NAME = "running"
log = logging.getLogger("sled.distill")


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Hold a directory while this runs; the system lets go of it when the process ends, however it ends.

    The lock is on the file `running`, which holds the process id for people to read and stays behind. On a file system
    without locks it is on a file in the temporary directory: runs on this machine see each other, others do not, which
    is logged.

    Args:
        directory: exists.

    Raises:
        DirectoryInUse: another run is at work there.
        LockUnavailable: neither file system has locks, or what lies in the temporary directory is not ours.
        OSError: the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        fd = _open(directory / NAME, 0o644)
        stack.callback(os.close, fd)
        try:
            _lock(fd)
        except BlockingIOError:
            raise _in_use(directory, fd) from None
        except OSError as error:
            _lock_here(directory, fd, error, stack)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield


def _open(path: Path, mode: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)


def _lock(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_here(directory: Path, told: int, why: OSError, stack: contextlib.ExitStack) -> None:
    """Have the lock on a file of this machine that stands for the directory, whatever it is called."""
    found = directory.stat()
    path = Path(tempfile.gettempdir(), f"sled-distill-{os.getuid()}-{found.st_dev:x}-{found.st_ino:x}.lock")
    try:
        fd = _open(path, 0o600)
        stack.callback(os.close, fd)
        _insist_on_ours(fd)
        _lock(fd)
    except BlockingIOError:
        raise _in_use(directory, told) from None
    except OSError as error:
        raise LockUnavailable(
            f"no lock on {directory} ({why}), nor on {path} ({error}): give a directory on a local disk, or set TMPDIR"
        ) from None
    log.warning(
        "the file system of %s has no locks (%s): a run on another machine with the same directory goes unseen",
        directory,
        why,
    )


def _insist_on_ours(fd: int) -> None:
    """Anybody may put a file there before us: its owner could hold it for ever, or take it away under our lock.

    Raises:
        OSError: it is not ours, or no file.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError("it belongs to another user, or is no file")


def _in_use(directory: Path, fd: int) -> DirectoryInUse:
    who = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
    process = f"process {who}" if who.isdecimal() else "another process"
    return DirectoryInUse(f"{process} distils into {directory} now: wait for it, stop it, or give another directory")


def look_alone(directory: Path) -> None:
    """Raise what `alone_in` would now; writes nothing where no run has been."""
    if (directory / NAME).exists():
        with alone_in(directory):
            pass
