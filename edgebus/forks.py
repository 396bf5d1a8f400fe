"""How often this process was forked off, counted: cheaper to look at than to ask the kernel who we are."""

from __future__ import annotations

import os

forks = [0]
"""The count; as a list, so that whoever imports it sees it grow."""


def _count() -> None:
    forks[0] += 1


os.register_at_fork(after_in_child=_count)
