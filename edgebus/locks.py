"""Locks that their owner may take again, and that cost little where nobody else wants them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import repeat
from typing import Any

_RLock: Any = type(threading.RLock())


class PlainLock(_RLock):  # type: ignore[misc]
    """threading.RLock, to be taken inside of `try` and released in its `finally`, whatever came in between.

    `with` does the same; compiled it costs several times as much. An exception of a signal handler may come while
    acquire sleeps, which is why release does nothing for who is not its owner.
    """

    def __init__(self) -> None:
        # Give it back, if it is this thread's. No function of Python: on the way into one a signal handler may raise,
        # and the lock would stay taken for ever. Each step makes a new `map(exit, iter(is_owned, False))`, and `next`
        # of that asks whose it is, and gives it back once.
        askings = map(iter, repeat(self._is_owned), repeat(False))
        givings = map(map, repeat(self.__exit__), askings)
        self.release: Callable[[], None] = map(next, givings, repeat(None)).__next__

    def enter(self, wait_s: float = -1.0) -> bool:
        """Take it once: not again where this thread has it, as a signal handler's.

        Args:
            wait_s: most seconds to wait; -1 waits for ever.

        Returns:
            False if it could not be had. Before `try`, therefore: `release` would give back what another one took.
        """
        if self._is_owned():
            return False
        try:
            return bool(self.acquire(timeout=wait_s))
        except BaseException:  # of a signal handler, perhaps as soon as it was taken
            self.release()
            raise

    def is_mine(self) -> bool:
        """True if this thread has it."""
        return bool(self._is_owned())


open_lock: Callable[[], PlainLock] = PlainLock
"""The best lock there is."""
try:
    from edgebus import _waiting

    open_lock = _waiting.Lock
except ImportError:  # not built
    pass
