"""Descriptors that are closed with the last reference to them, whatever a signal handler raises in between.

Between `os.open` and the line that keeps what it gave a signal handler may raise, and nobody would ever close it.
edgebus.shm._files, where it is built, makes the descriptor and what owns it in one step.
"""

from __future__ import annotations

import os
from collections.abc import Callable


class PlainDescriptor:
    """An open file.

    Args:
        fd: its number, from now on ours to close.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Its number, -1 once it is closed."""
        return self._fd

    def close(self) -> None:
        """Close it; closing twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _plain_open(path: str, flags: int) -> PlainDescriptor:
    return PlainDescriptor(os.open(path, flags))


def _plain_memory(name: str, flags: int) -> PlainDescriptor:
    return PlainDescriptor(os.memfd_create(name, flags))


def _plain_pipe(flags: int) -> tuple[PlainDescriptor, PlainDescriptor]:
    read, write = os.pipe2(flags)
    return PlainDescriptor(read), PlainDescriptor(write)


open_file: Callable[[str, int], PlainDescriptor] = _plain_open
"""As os.open."""
open_memory: Callable[[str, int], PlainDescriptor] = _plain_memory
"""As os.memfd_create."""
open_pipe: Callable[[int], tuple[PlainDescriptor, PlainDescriptor]] = _plain_pipe
"""As os.pipe2."""
try:
    from edgebus.shm import _files

    open_file, open_memory, open_pipe = _files.open_file, _files.open_memory, _files.open_pipe
except ImportError:  # not built
    pass
