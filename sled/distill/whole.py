"""Files of tensors that are there whole or as they were, and say so like other files where they cannot be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def written_beside(path: Path, part: Path) -> Generator[None]:
    """Around the writing of `part`, which takes the place of `path` in the end, or is removed.

    Raises:
        OSError: it cannot be written, e.g. the disk is full; what was at `path` stays.
    """
    try:
        yield
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, SafetensorError):
            raise OSError(errno.EIO, str(error), str(part)) from None
        raise
