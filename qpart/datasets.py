"""Inputs for calibration from what people have: arrays in .npy or .npz files, or a directory of pictures."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpart.errors import ArtefactError, ShapeMismatch
from qpart.inputs import UNREADABLE, as_float, load_inputs
from qpart.ops import Shape

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_NAMES = ("inputs", "images", "x", "data", "x_train", "x_test")
_MODES = {1: "L", 3: "RGB"}
MAX_BYTES = 1 << 33
"""Of pixels that are read from a directory."""
_DAMAGED = (*UNREADABLE, zlib.error, RuntimeError)  # the last: encrypted, or compressed by means unknown


def load_data(path: Path, shape: Shape, *, limit: int | None = None, tokens: bool = True) -> NDArray[Any]:
    """Inputs (n, *shape): pixels stay uint8, which makes an artefact a quarter of the size.

    Args:
        path: a .npy file; a .npz file with one array, or one of a usual name (`inputs`, `images`, `x`, ...); or a
            directory, whose pictures, in the order of their names, are brought to the network's size and colours.
        shape: what the network takes, per sample.
        limit: take the first so many.
        tokens: see `qpart.inputs.load_inputs`.

    Raises:
        ArtefactError: there is nothing, it is damaged, or not of numbers that can be taken.
        ShapeMismatch: the shape is another one, or pictures do not fit it.
    """
    if path.is_dir():
        return _pictures(path, shape, limit)
    if path.suffix == ".npz":
        array = _from_archive(path)
        numbers = as_float(array, shape, name=str(path), tokens=tokens)
    else:
        numbers = load_inputs(path, shape, tokens=tokens)
        array = np.load(path, allow_pickle=False)
    pixels = array.dtype == np.uint8 and array.shape == numbers.shape
    return (array if pixels else numbers)[:limit]


def _from_archive(path: Path) -> NDArray[Any]:
    try:
        # numpy leaves a file open that it opened itself and found damaged; it warns of headers of Python 2
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("error")
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("it is one array: name it .npy")
            names = archive.files
            known = [name for name in _NAMES if name in names]
            if len(names) != 1 and not known:
                raise ArtefactError(f"{path} has the arrays {', '.join(names) or 'none'}; name one of them inputs")
            array: NDArray[Any] = archive[names[0] if len(names) == 1 else known[0]]
            return array
    except FileNotFoundError:
        raise ArtefactError(f"there is no file {path}") from None
    except _DAMAGED as error:
        raise ArtefactError(f"{path} is no archive of arrays: {error}; write it with numpy.savez") from None


def _pictures(path: Path, shape: Shape, limit: int | None) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ArtefactError("pictures need Pillow: pip install pillow; or give a .npy file") from None
    if len(shape) != 3 or shape[0] not in _MODES:
        raise ShapeMismatch(f"the network takes {shape}, pictures are for (1 or 3, height, width): give a .npy file")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())[:limit]
    if not files:
        raise ArtefactError(f"{path} has no pictures ({', '.join(PICTURES)})")
    if len(files) * int(np.prod(shape)) > MAX_BYTES:
        raise ArtefactError(f"{len(files)} pictures of {shape} are more than {MAX_BYTES >> 30} GiB; use --limit")
    channels, height, width = shape
    found = np.empty((len(files), *shape), np.uint8)
    for row, file in enumerate(files):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(file) as opened:
                    picture = opened.convert(_MODES[channels]).resize((width, height), Image.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
            raise ArtefactError(f"{file} is no picture that can be read: {error}") from None
        pixels = np.asarray(picture, np.uint8)
        found[row] = pixels if channels == 1 else pixels.transpose(2, 0, 1)
    return found
