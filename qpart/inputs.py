"""Inputs of a network from files and from memory: float32 as they are, uint8 as pixels, integers as tokens."""

from __future__ import annotations

import warnings
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from qpart.errors import ArtefactError, ShapeMismatch
from qpart.ops import Shape

PIXEL_MAX = 255
TOKEN_MAX = 1 << 24
UNREADABLE = (  # what numpy raises of files that are damaged, cut off or something else
    OSError, ValueError, EOFError, SyntaxError, MemoryError, OverflowError, RecursionError, Warning, TokenError,
    BadZipFile, NotImplementedError,
)  # fmt: skip


def load_inputs(path: str | Path, shape: Shape, *, tokens: bool = True) -> NDArray[np.float32]:
    """Read inputs from a .npy file; `load_array`, then `as_float`.

    Args:
        path: of an array (n, *shape), or of one sample (*shape), float32, uint8, int32 or int64; uint8 are pixels
            and divided by 255, other integers are tokens, a row per sample, and stay what they are.
        shape: what the network takes, per sample.
        tokens: whether it takes tokens (`Network.takes_tokens`); integers but uint8 are refused where not.

    Returns:
        Inputs (n, *shape).

    Raises:
        ArtefactError: there is no such file, it is damaged, or not of numbers that can be taken.
        ShapeMismatch: the shape is another one.
    """
    return as_float(load_array(path), shape, name=str(path), tokens=tokens)


def load_array(path: str | Path) -> NDArray[np.generic]:
    """What a .npy file holds, whatever its shape.

    Raises:
        ArtefactError: there is no such file, or it is no array of numbers.
    """
    try:
        array: NDArray[np.generic] = _read(path)
    except FileNotFoundError:
        raise ArtefactError(f"there is no file {path}") from None
    except UNREADABLE as error:
        raise ArtefactError(
            f"{path} is no array that can be read ({_why(error)}): write it with numpy.save, not as objects"
        ) from None
    if not isinstance(array, np.ndarray):
        raise ArtefactError(f"{path} is an archive of several arrays: write one with numpy.save")
    return array


def as_float(
    array: NDArray[np.generic], shape: Shape, *, name: str = "the input", tokens: bool = True
) -> NDArray[np.float32]:
    """Inputs in memory as a network takes them; arguments, result and errors as of `load_inputs`."""
    if not isinstance(array, np.ndarray):
        raise ArtefactError(f"{name} is a {type(array).__name__}, not an array: use numpy.asarray")
    if array.shape == shape:
        array = array[None]
    if array.shape[1:] != shape or array.ndim != len(shape) + 1 or not len(array):
        raise ShapeMismatch(
            f"{name} has shape {array.shape}; the network takes one sample {shape} or several {('n', *shape)}"
        )
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(PIXEL_MAX)
    if array.dtype in (np.int32, np.int64):
        if len(shape) > 1 or not tokens:
            why = f"of which a sample has a row, not {shape}" if tokens else "which this network does not take"
            raise ArtefactError(
                f"{name} is of {array.dtype}, and integers are tokens, {why}: "
                "pixels are uint8 (array.astype(numpy.uint8)) and divided by 255, all else is float32"
            )
        if not bool((abs(array.astype(np.float64)) <= TOKEN_MAX).all()):
            raise ArtefactError(f"{name} has integers beyond {TOKEN_MAX}, which float32 cannot tell apart")
        return array.astype(np.float32)
    if array.dtype != np.float32:
        raise ArtefactError(
            f"{name} is of {array.dtype}; float32, uint8 for pixels, or int32 or int64 for tokens is needed: "
            "use array.astype(numpy.float32)"
        )
    result = np.ascontiguousarray(array, np.float32)
    bad = np.flatnonzero(~np.isfinite(result).reshape(len(result), -1).all(axis=1))
    if len(bad):
        raise ArtefactError(f"{name} has numbers that are not finite in {len(bad)} samples, first in sample {bad[0]}")
    return result


def load_labels(path: str | Path) -> NDArray[np.int64]:
    """Read labels from a .npy file: one array (n,) of whole numbers.

    Raises:
        ArtefactError: there is no such file, or it holds something else.
    """
    try:
        labels = _read(path)
    except UNREADABLE as error:
        raise ArtefactError(f"labels {path} cannot be read: {_why(error)}; write them with numpy.save") from None
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ArtefactError(f"labels {path} must be one array (n,) of whole numbers")
    return labels.astype(np.int64)


def check_labels(labels: NDArray[np.int64], num_inputs: int, num_classes: int) -> NDArray[np.int64]:
    """Labels (n,) as they are, if they are for so many inputs and classes.

    Raises:
        ShapeMismatch: they are not.
    """
    if len(labels) != num_inputs:
        raise ShapeMismatch(f"{len(labels)} labels are given for {num_inputs} inputs")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ShapeMismatch(f"labels go from {labels.min()} to {labels.max()}, the model has {num_classes} classes")
    return labels


def _read(path: str | Path) -> Any:
    """What numpy makes of a file: an array, or an archive of several."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy warns of headers of Python 2
        with Path(path).open("rb") as file:  # numpy leaves one open that it opened and took for an archive
            return np.load(file, allow_pickle=False)


def _why(error: BaseException) -> str:
    """In a few words; numpy takes any text for a pickle, and its remedy is to load that."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return "it is no .npy file" if "pickle" in first else first
