"""Checks of the arguments of packed matrices: errors carry the offending value and say what to pass."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels import _bits_checks, _checks

GROUPS = (16, 32, 64, 128, 256)
UNIT = 32
"""Columns of a unit; a bent matrix has whole ones."""
MOST_BEND = 15
FACTORS = (np.dtype(np.float32), np.dtype(np.float16))


def group(value: object) -> int:
    """Insist on a size of a group which there are kernels for."""
    number = _bits_checks.integer("group", value, GROUPS[0], GROUPS[-1])
    if number not in GROUPS:
        raise ValueError(f"group is {number}; pass one of {', '.join(map(str, GROUPS))}")
    return number


def shape(name: str, found: tuple[int, ...], group: int) -> tuple[int, int]:
    """Insist on a matrix with at least one row and one group, and nothing but whole groups."""
    rows, columns = found
    if rows < 1 or columns < 1:
        raise ValueError(f"{name} has shape {found}; pass at least one row and one column")
    if columns % group:
        raise ValueError(f"{name} has {columns} columns, {columns % group} more than groups of {group} hold")
    return rows, columns


def bent(name: str, value: object, found: tuple[int, ...], group: object, offset: object) -> tuple[int, int]:
    """Insist on a bend, and on a matrix that may have one: a scale for each row of whole units, and no offsets.

    Returns:
        The bend, and the size of the only group.
    """
    bend = _bits_checks.integer("bend", value, 0, MOST_BEND)
    columns = found[1]
    if columns < UNIT or columns % UNIT or group != columns or offset is not None:
        raise ValueError(
            f"{name} has {columns} columns, group is {group} and offset {'given' if offset is not None else 'None'}; "
            f"bent codes have no offset, one scale for each row (group = columns), and a multiple of {UNIT} columns"
        )
    return bend, columns


def factor_type(value: npt.DTypeLike) -> np.dtype[Any]:
    """Insist on a dtype for scales and offsets."""
    dtype = np.dtype(value)
    if dtype not in FACTORS:
        raise TypeError(f"factors is {dtype}; pass numpy.float32 or numpy.float16")
    return dtype


def factors(name: str, value: Any, wanted: tuple[int, int], dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """Insist on finite float32 or float16 factors (rows, groups), perhaps on one of the two."""
    allowed = FACTORS if dtype is None else (np.dtype(dtype),)
    if not isinstance(value, np.ndarray) or value.dtype not in allowed:
        found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        names = " or ".join(f"numpy.{kind}" for kind in allowed)
        raise TypeError(f"{name} is {found}; pass numpy.asarray({name}, {names})")
    if value.shape != wanted:
        raise ValueError(f"{name} has shape {value.shape}; pass {wanted}, one for each row and group")
    if not np.isfinite(value).all():
        row, part = np.argwhere(~np.isfinite(value))[0]
        raise ValueError(f"{name}[{row}, {part}] is {value[row, part]}; pass finite numbers")
    return value


def fitted(name: str, value: npt.NDArray[Any], first_row: int) -> None:
    """Insist on factors (rows, groups) which their dtype can hold, of values that are finite."""
    if not np.isfinite(value).all():
        row, part = np.argwhere(~np.isfinite(value))[0]
        other = ", or pass factors=numpy.float32" if value.dtype == np.float16 else ""
        raise ValueError(
            f"{name}[{first_row + row}, {part}] is {value[row, part]} in {value.dtype}; scale the values down{other}"
        )


def extremes(low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], first_row: int, group: int) -> None:
    """Insist on finite values, given the extremes (rows, groups) of their groups."""
    bad = ~(np.isfinite(low) & np.isfinite(high))
    if bad.any():
        row, part = np.argwhere(bad)[0]
        raise ValueError(
            f"values[{first_row + row}, {part * group}:{(part + 1) * group}] goes from {low[row, part]} to "
            f"{high[row, part]}; pass finite numbers"
        )


def row_numbers(value: Any, rows: int) -> npt.NDArray[np.int64]:
    """Insist on numbers of rows of a matrix."""
    checked = _checks.array("rows", value, np.int64, 1)
    if len(checked) and not (checked.min() >= 0 and checked.max() < rows):
        first = int(np.argmax((checked < 0) | (checked >= rows)))
        raise ValueError(f"rows[{first}] is {checked[first]}; pass 0 .. {rows - 1}")
    return checked


def bias(value: Any, rows: int) -> npt.NDArray[np.float32]:
    """Insist on one float32 for each row."""
    checked = _checks.array("bias", value, np.float32, 1)
    if checked.shape != (rows,):
        raise ValueError(f"bias has shape {checked.shape}; pass ({rows},), one for each row")
    return checked
