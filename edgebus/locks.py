"""Locks that their owner may take again, and that cost little where nobody else wants them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class PlainLock:
    """threading.RLock, to be taken inside of `try` and released in its `finally`, whatever came in between.

    `with` does the same; compiled it costs several times as much. An exception of a signal handler may come while
    acquire sleeps, which is why release does nothing for who is not its owner.
    """

    def __init__(self) -> None:
        lock: Any = threading.RLock()
        self._lock = lock
        self.acquire: Callable[[], bool] = lock.acquire
        # What threading.Condition asks for:
        self._is_owned, self._release_save, self._acquire_restore = (
            lock._is_owned,
            lock._release_save,
            lock._acquire_restore,
        )

    def enter(self, wait_s: float = -1.0) -> bool:
        """Take it once: not again where this thread has it, as a signal handler's.

        Args:
            wait_s: most seconds to wait; -1 waits for ever.

        Returns:
            False if it could not be had. Before `try`, therefore: `release` would give back what another one took.
        """
        return not self._is_owned() and bool(self._lock.acquire(timeout=wait_s))

    def is_mine(self) -> bool:
        """True if this thread has it."""
        return bool(self._is_owned())

    def release(self) -> None:
        """Give it back, if it is this thread's."""
        if self._is_owned():
            self._lock.release()

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(self, *error: object) -> None:
        self._lock.__exit__(*error)


open_lock: Callable[[], PlainLock] = PlainLock
"""The best lock there is."""
try:
    from edgebus import _waiting

    open_lock = _waiting.Lock
except ImportError:  # not built
    pass
