"""Files that are there whole or not at all, and where devices keep what they fetched."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgebus.errors import ConfigError, FileError

_FULL = "make room, or choose another disk"
_NOT_OURS = "run as the user it belongs to, or choose another path"
_CURES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _NOT_OURS,
    errno.EPERM: _NOT_OURS,
    errno.EROFS: "choose a path that can be written",
    errno.ENOENT: "check the path, or make its directory",
    errno.ENOTDIR: "check the path, part of it is a file",
    errno.EISDIR: "give the path of a file, not of a directory",
    errno.EEXIST: "choose another path, or move away what is there",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "check the path, one of its links leads nowhere",
    errno.ENOMEM: "free some memory",
    errno.EMFILE: "raise the limit of descriptors (ulimit -n), or close some",
    errno.ENFILE: "close some files, the whole machine has too many open",
}

_kinds: dict[type[OSError], type[FileError]] = {OSError: FileError}


def cure(error: OSError) -> str:
    """What to do about a file or directory that cannot be used."""
    return _CURES.get(error.errno or 0, "check its disk, or choose another path")


def _kind_of(cause: type[OSError]) -> type[FileError]:
    if cause not in _kinds:
        _kinds[cause] = type("FileError", (FileError, cause), {})
    return _kinds[cause]


@contextmanager
def telling(what: str, path: object) -> Iterator[None]:
    """Have an OSError of the system say what could not be done, with which file, and what to do.

    Raises:
        FileError: instead of it, and of its kind: who expects a FileNotFoundError, say, still gets one.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        if type(error).__module__ != "builtins":  # of a file object that somebody gave us
            raise
        raise _kind_of(type(error))(f"cannot {what} {path}: {error.strerror or error}; {cure(error)}", error) from error


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
