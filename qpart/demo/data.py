"""Images for the demonstration: Fashion-MNIST where Debian's package has put it, else the digits of scikit-learn."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpart.errors import ArtefactError

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
VARIABLE = "QPART_FASHION_MNIST"
UINT8_CODE = 8
NUM_CLASSES = 10
DIGITS_TEST = 400


class Dataset(NamedTuple):
    """Images (n, 1, height, width) uint8 and labels (n,) int64; `note` says what people should know about them."""

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    note: str


def load() -> Dataset:
    """The best data set there is on this machine.

    Raises:
        ArtefactError: the files are damaged, the directory that QPART_FASHION_MNIST names has none, or there is
            neither Fashion-MNIST nor scikit-learn.
    """
    named = os.environ.get(VARIABLE)
    directory = Path(named or FASHION_MNIST)
    if named or (directory / "train-images-idx3-ubyte.gz").is_file():
        return fashion_mnist(directory)
    return digits()


def fashion_mnist(directory: Path) -> Dataset:
    """60,000 and 10,000 images of clothes, 28 x 28, in the four files of the original."""
    (images, labels), test = (_labelled(directory, part) for part in ("train", "t10k"))
    return Dataset("Fashion-MNIST", images, labels, *test, f"from {directory}")


def _labelled(directory: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images = read_idx(directory / f"{part}-images-idx3-ubyte.gz", 3)
    labels = read_idx(directory / f"{part}-labels-idx1-ubyte.gz", 1)
    if not len(images) or len(images) != len(labels) or labels.max() >= NUM_CLASSES:
        raise ArtefactError(f"{directory}: {len(images)} images, {len(labels)} labels of {part}: reinstall it")
    return images[:, None], labels.astype(np.int64)


def read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes.

    Args:
        dims: how many dimensions the array must have.

    Raises:
        ArtefactError: there is no such file, or its header and its size do not agree.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise ArtefactError(f"there is no file {path}: install dataset-fashion-mnist, or unset {VARIABLE}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ArtefactError(f"{path} is damaged ({error}): reinstall dataset-fashion-mnist") from None
    header = 4 + 4 * dims
    if data[:4] != bytes([0, 0, UINT8_CODE, dims]) or len(data) < header:
        raise ArtefactError(f"{path} is not an IDX file of bytes in {dims} dimensions: reinstall dataset-fashion-mnist")
    shape = struct.unpack(f">{dims}I", data[4:header])
    if prod(shape) != len(data) - header:
        raise ArtefactError(f"{path} says {shape} and has {len(data) - header} bytes: reinstall dataset-fashion-mnist")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()  # writable, as torch wants it


def digits() -> Dataset:
    """1,797 handwritten digits, 8 x 8, that come with scikit-learn; the last ones, other writers', are the test set."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ArtefactError(
            "there is neither Fashion-MNIST (Debian: dataset-fashion-mnist) nor scikit-learn: install one of them"
        ) from None
    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = found.target.astype(np.int64)
    return Dataset(
        "digits",
        images[:-DIGITS_TEST],
        labels[:-DIGITS_TEST],
        images[-DIGITS_TEST:],
        labels[-DIGITS_TEST:],
        "8 x 8 digits of scikit-learn, since Fashion-MNIST is not installed: savings are smaller than on real images",
    )
