"""Whole numbers that an application gives, checked where they come in: inside they are int and fit the wire. Pure."""

from __future__ import annotations

from operator import index


def number(value: object, name: str, least: int, most: int) -> int:
    """A whole number as an int: whatever stands for one will do, such as numpy's.

    >>> number(7, "depth", 1, 10)
    7

    Args:
        value: what the application gave.
        name: of its argument.
        least, most: its bounds, both taken.

    Raises:
        TypeError: it is no whole number; bool and 1e6 are none.
        ValueError: it is out of bounds.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    try:
        found = index(value)
    except TypeError:  # an array of several
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if not least <= found <= most:
        raise ValueError(f"{name} must be in {least}..{most}, got {value!r}")
    return found
