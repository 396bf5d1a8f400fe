"""Inputs of a network from files and from memory: float32 as they are, uint8 as pixels."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qpart.errors import ArtefactError, ShapeMismatch
from qpart.ops import Shape

PIXEL_MAX = 255


def load_inputs(path: str | Path, shape: Shape) -> NDArray[np.float32]:
    """Read inputs from a .npy file.

    Args:
        path: of an array (n, *shape), or of one sample (*shape), float32 or uint8; uint8 are pixels and divided by 255.
        shape: what the network takes, per sample.

    Returns:
        Inputs (n, *shape).

    Raises:
        ArtefactError: there is no such file, it is damaged, or not of numbers that can be taken.
        ShapeMismatch: the shape is another one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy warns of headers of Python 2
            array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ArtefactError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError, OverflowError, Warning) as error:
        raise ArtefactError(
            f"{path} is no array that can be read ({_first_line(error)}): write it with numpy.save, not as objects"
        ) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ArtefactError(f"{path} is an archive of several arrays: write one with numpy.save")
    return as_float(array, shape, name=str(path))


def as_float(array: NDArray[np.generic], shape: Shape, *, name: str = "the input") -> NDArray[np.float32]:
    """Inputs in memory as a network takes them; arguments, result and errors as of `load_inputs`."""
    if array.shape == shape:
        array = array[None]
    if array.shape[1:] != shape or array.ndim != len(shape) + 1 or not len(array):
        raise ShapeMismatch(
            f"{name} has shape {array.shape}; the network takes one sample {shape} or several {('n', *shape)}"
        )
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(PIXEL_MAX)
    if array.dtype != np.float32:
        raise ArtefactError(
            f"{name} is of {array.dtype}; float32, or uint8 for pixels, is needed: use array.astype(numpy.float32)"
        )
    result = np.ascontiguousarray(array, np.float32)
    bad = np.flatnonzero(~np.isfinite(result).reshape(len(result), -1).all(axis=1))
    if len(bad):
        raise ArtefactError(f"{name} has numbers that are not finite in {len(bad)} samples, first in sample {bad[0]}")
    return result


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
