"""Who may open the path of an ipc endpoint, and what is not removed for it."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Callable
from contextlib import suppress

from edgebus.errors import BindError

SCHEME = "ipc://"
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


def keep_what_is_there(endpoint: str) -> None:
    """Refuse a path that is taken: libzmq removes whatever lies there before it binds, a file or the socket of another.

    Only a socket that nobody listens at may go: what a killed node left. Two nodes that ask in the same moment both
    hear that the path is free, as nothing holds it in between.

    Raises:
        BindError: something else lies there, or somebody listens.
    """
    path = endpoint.removeprefix(SCHEME)
    if path.startswith("@") or path == "*":  # has no file; or a new one in a directory of its own
        return
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # nothing is there, or libzmq says why not
        return
    if not stat.S_ISSOCK(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "a link" if stat.S_ISLNK(mode) else "a file, not a socket"
        raise BindError(f"cannot bind {endpoint}: {what} is there already; choose another path, or move it away")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)  # a listener with a full backlog is one
            sock.connect(path)
        why = "Address already in use"
    except (ConnectionRefusedError, FileNotFoundError):
        return
    except BlockingIOError:
        why = "Address already in use"
    except OSError as error:
        why = f"its socket cannot be looked at ({error.strerror or error})"
    raise BindError(f"cannot bind {endpoint}: {why}; choose another path, or stop who has it")


def _umask() -> int:
    with suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        found = re.search(r"^Umask:\s*([0-7]+)", file.read(), re.MULTILINE)
        if found is not None:
            return int(found[1], 8)
    before = os.umask(0o077)  # elsewhere it can be asked for only by changing it
    os.umask(before)
    return before
