"""Files that are there whole or not at all, and where devices keep what they fetched."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from edgebus.errors import ConfigError


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/edgebus`, by default `~/.cache/edgebus`.

    Raises:
        ConfigError: neither is known: the environment has no HOME, and this user's number no name.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / "edgebus"
    try:
        return Path.home() / ".cache" / "edgebus"
    except RuntimeError:
        raise ConfigError(
            "this user has no home directory; set XDG_CACHE_HOME to a directory where what is fetched can be kept"
        ) from None


def write_whole(path: Path, content: bytes, *, private: bool = False, durable: bool = False) -> None:
    """Write a file under another name and give it its own at the end.

    Args:
        path: of the file; its folder is made if there is none.
        content: of the file.
        private: for its owner alone, whatever the umask.
        durable: it has its own name only when its content is on the disk.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if not private:  # which is how it was made
            os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
