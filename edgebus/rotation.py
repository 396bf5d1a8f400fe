"""A new key in the place of an old one, in steps of which each may be the last before a crash.

`node.key_secret` holds both halves and is replaced by one rename: it is a valid pair before, and another one after.
Everything else is a copy that the next call puts right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from edgebus.errors import KeyFileError
from edgebus.keyfiles import (
    PUBLIC_FILE,
    SECRET_FILE,
    Keys,
    PathLike,
    certificate,
    load_keys,
    load_secret,
    locked,
    new_pair,
    read_public_key,
    sync_directory,
    write_file,
    write_pair,
)

NEW, OLD = ".new", ".old"


class Rotation(NamedTuple):
    """Where a change of key stands.

    Attributes:
        current: the pair in use.
        waiting: the pair that activate_rotation would put in its place, None if there is none.
        previous: public key of the pair in use before, None if there is none.
        is_made: True if this call made the waiting pair, or put it in place.
    """

    current: Keys
    waiting: Keys | None
    previous: str | None
    is_made: bool = False


def read_rotation(directory: PathLike) -> Rotation:
    """Where a change of key stands in a key directory.

    Raises:
        KeyFileError: a key cannot be read.
    """
    folder = Path(directory)
    waiting, previous = folder / (SECRET_FILE + NEW), folder / (SECRET_FILE + OLD)
    return Rotation(
        load_keys(folder),
        load_secret(waiting) if waiting.exists() else None,
        load_secret(previous).public if previous.exists() else None,
    )


def start_rotation(directory: PathLike, *, force: bool = False) -> Rotation:
    """Make the next pair beside the current one: node.key_secret.new and node.key.new. The current one stays in use.

    Called again it changes nothing: the pair that waits may have been given to peers.

    Args:
        directory: a key directory.
        force: make another pair even so.

    Raises:
        KeyFileError: there is no valid pair to follow, or the directory cannot be written.
    """
    folder = Path(directory)
    with _changing(folder):
        current = load_keys(folder)
        secret, public = folder / (SECRET_FILE + NEW), folder / (PUBLIC_FILE + NEW)
        is_made = force or not os.path.lexists(secret)
        if is_made:
            write_pair(new_pair(), secret, public)
        waiting = load_secret(secret)
        _copy_public(waiting, public)
        _copy_public(current, folder / PUBLIC_FILE)
        return read_rotation(folder)._replace(current=current, waiting=waiting, is_made=is_made)


def activate_rotation(directory: PathLike) -> Rotation:
    """Put the waiting pair in the place of the current one, which is kept as node.key_secret.old and node.key.old.

    A running node keeps the key it was started with. Interrupted, it is called again and finishes.

    Raises:
        KeyFileError: no pair waits, or the directory cannot be written; the current pair is still in use.
    """
    folder = Path(directory)
    with _changing(folder):
        current = load_keys(folder)
        secret, public = folder / SECRET_FILE, folder / PUBLIC_FILE
        next_secret, next_public = folder / (SECRET_FILE + NEW), folder / (PUBLIC_FILE + NEW)
        if os.path.lexists(next_secret):
            waiting = load_secret(next_secret)  # before anything is touched: it must be a pair too
            write_pair(current, folder / (SECRET_FILE + OLD), folder / (PUBLIC_FILE + OLD))
            next_secret.replace(secret)  # here the key changes
            sync_directory(folder)
            current = waiting
        elif _holds(public, current) and not _holds(next_public, current):  # else an earlier call was interrupted
            raise KeyFileError(f"no key waits in {folder}: make one with `edgebus rotate {folder}`, give it to peers")
        _copy_public(current, public)
        next_public.unlink(missing_ok=True)
        return read_rotation(folder)._replace(is_made=True)


def _copy_public(keys: Keys, path: Path) -> None:
    if not _holds(path, keys):
        write_file(path, certificate(keys), 0o644)


def _holds(path: Path, keys: Keys) -> bool:
    try:
        return read_public_key(path) == keys.public
    except KeyFileError:
        return False


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """The lock of a key directory; what the system refuses is told in one line."""
    if not folder.is_dir():
        raise KeyFileError(f"there is no key directory {folder}: make it with `edgebus keygen {folder}`")
    try:
        with locked(folder):
            for left in folder.glob(f".{PUBLIC_FILE}*"):  # by a command that was killed; it may hold a secret
                left.unlink()
            yield
    except OSError as error:
        what = f"cannot change keys in {folder}: {error.strerror}"
        raise KeyFileError(f"{what}; the pair in use is as valid as before: put it right and try again") from None
