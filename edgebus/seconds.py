"""Times that an application gives, checked where they come in: inside they are floats that add up. Pure."""

from __future__ import annotations

import math
from numbers import Real
from typing import cast

from edgebus.messages import MAX_TIMEOUT_S

_FOR_EVER_S = 1e9  # locks and selectors take no more than some times that


def deadline(value: object, name: str = "timeout_s", *, zero: bool = False) -> float:
    """How long something may take, as a float: over 0 and at most a day.

    >>> deadline(3)
    3.0

    Args:
        value: what the application gave.
        name: of its argument.
        zero: 0 will do as well.

    Raises:
        TypeError: it is no number; bool is none.
        ValueError: it is over those bounds, infinite or nan.
    """
    seconds = _number(value, name, f"a number of seconds, {MAX_TIMEOUT_S:.0f} for the longest there is")
    if not (0 < seconds <= MAX_TIMEOUT_S or (zero and seconds == 0)):
        bounds = f"{'[' if zero else '('}0, {MAX_TIMEOUT_S:.0f}]"
        raise ValueError(
            f"{name} must be in {bounds} seconds, got {value!r}: what is to go on for longer has to be asked again"
        )
    return seconds


def wait(value: object, name: str = "timeout_s") -> float:
    """How long to wait for something that may never come, as a float: None and what is over 30 years wait for ever, 0
    and less look once.

    >>> wait(None), wait(-1), wait(1e300)
    (inf, 0.0, inf)

    Args:
        value: what the application gave.
        name: of its argument.

    Raises:
        TypeError: it is neither a number nor None; bool is none.
        ValueError: it is nan.
    """
    if value is None:
        return math.inf
    seconds = _number(value, name, "a number of seconds, or None to wait for ever")
    if math.isnan(seconds):
        raise ValueError(f"{name} must be a number of seconds, or None to wait for ever, got nan")
    return max(0.0, seconds) if seconds < _FOR_EVER_S else math.inf


def lingering(value: object, name: str = "linger_s") -> float:
    """How long to let what is on its way arrive, as a float: 0 and less not at all, a day at most."""
    return min(MAX_TIMEOUT_S, wait(0.0 if value is None else value, name))


def _number(value: object, name: str, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {what}, got {value!r}")
    try:
        return float(value)
    except OverflowError:  # a number of many digits
        return -math.inf if cast("int", value) < 0 else math.inf
