"""What a forked child must do with shared memory that it inherits: let go, so that it lives no longer through it."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Inherited(Protocol):
    """Something of the parent's."""

    def leave_to_parent(self) -> None:
        """Called in the child, whose only thread this is; locks may be held by threads that are not there."""


_everything: weakref.WeakSet[Inherited] = weakref.WeakSet()


def leave_when_forked(thing: Inherited) -> None:
    """Have `leave_to_parent` called in every forked child as long as `thing` is alive."""
    _everything.add(thing)


def _leave_all() -> None:
    for thing in list(_everything):
        thing.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
