"""How each sequence chooses its tokens: checked numbers, made into one record for each."""

import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from edgekernels import _checks
from edgekernels._task import RULE

MIN_TEMPERATURE = 1e-30  # finite logits stay finite after division
MAX_TEMPERATURE = 1e30
MAX_PENALTY = 1e6


class Filters(TypedDict, total=False):
    """What `accept` and `sample` take besides the temperature, each a scalar or one number for each sequence.

    Args:
        top_k: integers; keep the top_k largest logits and their ties, 0 is off.
        top_p: keep the smallest set of most likely ids with this mass, 1 is off.
        min_p: keep ids at least this likely, as a share of the likeliest one's probability; 0 is off.
        repetition_penalty: divides positive logits of ids seen before, multiplies negative ones; 1 is off.
        frequency_penalty: taken from a logit once for each time its id was generated; 0 is off.
        presence_penalty: taken from the logits of all ids that were generated; 0 is off.
    """

    top_k: Any
    top_p: Any
    min_p: Any
    repetition_penalty: Any
    frequency_penalty: Any
    presence_penalty: Any


class _Number(NamedTuple):
    field: str
    default: float
    good: Callable[[Any], Any]
    remedy: str
    integers: bool = False


_NUMBERS = {
    "top_p": _Number("top_p", 1.0, lambda p: (p > 0) & (p <= 1), "a number in (0, 1], 1 to switch it off"),
    "min_p": _Number("log_min_p", 0.0, lambda p: (p >= 0) & (p <= 1), "a number in [0, 1], 0 to switch it off"),
    "top_k": _Number("top_k", 0, lambda k: (k >= 0) & (k < 1 << 62), "1 or more, or 0 to switch it off", integers=True),
    "repetition_penalty": _Number(
        "repetition",
        1.0,
        lambda r: (r >= 1 / MAX_PENALTY) & (r <= MAX_PENALTY),
        f"a number from {1 / MAX_PENALTY} to {MAX_PENALTY:.0f}, 1 to switch it off",
    ),
    "frequency_penalty": _Number(
        "frequency",
        0.0,
        lambda f: (f >= -MAX_PENALTY) & (f <= MAX_PENALTY),
        f"a number from -{MAX_PENALTY:.0f} to {MAX_PENALTY:.0f}, 0 to switch it off",
    ),
    "presence_penalty": _Number(
        "presence",
        0.0,
        lambda f: (f >= -MAX_PENALTY) & (f <= MAX_PENALTY),
        f"a number from -{MAX_PENALTY:.0f} to {MAX_PENALTY:.0f}, 0 to switch it off",
    ),
}
_OFF: dict[str, float] = dict.fromkeys(RULE.names or (), 0) | {
    number.field: -math.inf if name == "min_p" else number.default for name, number in _NUMBERS.items()
}  # in the order of RULE
_RECORD = struct.Struct("=" + "".join(RULE[name].char for name in _OFF).replace("l", "q").replace("L", "Q"))
_TEMPERATURES = f"0 for greedy, or a number from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}"


def _is_temperature(value: Any) -> Any:
    return (value == 0) | ((value >= MIN_TEMPERATURE) & (value <= MAX_TEMPERATURE))


def rules(
    count: int, *, temperature: Any, seed: Any, position: Any, filters: Filters | dict[str, Any]
) -> npt.NDArray[np.void]:
    """One record (count,) of RULE for each sequence.

    Args:
        count: number of sequences.
        temperature: 0 is greedy.
        seed: 0 .. 2**64 - 1.
        position: of the token which the first row decides.
        filters: see Filters.

    Raises:
        TypeError: a name is unknown, or a value is not a number or array of numbers.
        ValueError: a value has another shape or is out of its range.
    """
    values: dict[str, Any] = _OFF | {
        "temperature": _checks.per_sequence(
            "temperature", temperature, count, good=_is_temperature, remedy=_TEMPERATURES
        ),
        "seed": _checks.seed(seed, count),
        "position": _checks.position(position, count),
    }
    for name, value in filters.items():
        number = _NUMBERS.get(name)
        if number is None:
            raise TypeError(f"{name} is no argument; there are {', '.join(_NUMBERS)}")
        checked = _checks.per_sequence(
            name, value, count, integers=number.integers, good=number.good, remedy=number.remedy
        )
        values[number.field] = _logarithm(checked) if name == "min_p" else checked
    return _records(values, count)


def _logarithm(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        with np.errstate(divide="ignore"):
            return np.log(value.astype(np.float64))
    return math.log(value) if value > 0 else -math.inf


def _records(values: dict[str, Any], count: int) -> npt.NDArray[np.void]:
    arrays = {name: value for name, value in values.items() if type(value) is np.ndarray}
    one = _RECORD.pack(*(values | dict.fromkeys(arrays, 0) if arrays else values).values())
    records = np.frombuffer(bytearray(one * count), RULE)  # faster than to fill them, for the few there are
    for name, value in arrays.items():
        records[name] = value
    return records
