"""Who may open the path of an ipc endpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress

_OTHERS = 0o007
_WRITE = 0o002


def bind_kept_from_others(bind: Callable[[], object]) -> None:
    """Bind a path so that only its owner and its group may connect, whatever the umask is.

    Whoever may write to the file may connect, and libzmq gives it what the umask leaves: with 000, as in some
    containers, that is everybody. The umask is of the whole process, so it is changed only where it is like that; what
    another thread makes in that moment is closed to others as well.
    """
    before = _umask()
    if before & _WRITE:
        bind()
        return
    try:  # a signal handler may raise at any line
        os.umask(before | _OTHERS)
        bind()
    finally:
        os.umask(before)


def _umask() -> int:
    with suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        found = re.search(r"^Umask:\s*([0-7]+)", file.read(), re.MULTILINE)
        if found is not None:
            return int(found[1], 8)
    before = os.umask(0o077)  # elsewhere it can be asked for only by changing it
    os.umask(before)
    return before
