"""Numbers of things in messages for people. Pure."""

from __future__ import annotations


def count(number: int, thing: str, things: str = "") -> str:
    """So many of them.

    >>> count(1, "key"), count(0, "key"), count(2, "reply", "replies")
    ('1 key', '0 keys', '2 replies')
    """
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def times(number: int) -> str:
    """So often.

    >>> times(1), times(3)
    ('once', '3 times')
    """
    return "once" if number == 1 else f"{number} times"
