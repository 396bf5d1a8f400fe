"""Key pairs on disk, in the zmq.auth certificate format, so the tools of pyzmq read them too.

What is written is there whole or not at all; what is read is checked on the open file, not on its name.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgebus.errors import KeyFileError

PathLike = str | os.PathLike[str]
PUBLIC_FILE = "node.key"
SECRET_FILE = "node.key_secret"  # noqa: S105 - a file name
MAX_KEY_FILE_BYTES = 65_536
MAX_SERVER_KEYS = 8
_Z85 = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#")


@dataclass(frozen=True, slots=True)
class Keys:
    """A CURVE key pair, both halves as 40 characters of Z85."""

    public: str
    secret: str

    def __post_init__(self) -> None:
        if not isinstance(self.public, str) or not isinstance(self.secret, str):  # which it was may be a secret
            raise TypeError("keys are two strings of 40 characters of Z85: load_keys(DIR) reads them")

    def __repr__(self) -> str:
        return f"Keys(public={self.public!r}, secret=...)"  # keys end up in logs, this half must not


def is_key(text: str) -> bool:
    """True for 40 characters of Z85."""
    return isinstance(text, str) and len(text) == 40 and _Z85.issuperset(text)


def shell_key(key: str) -> str:
    """A key as the last argument of a command that is shown: half of its characters mean something to a shell.

    >>> shell_key("-a$b")
    "-- '-a$b'"
    """
    return f"-- '{key}'" if key.startswith("-") else f"'{key}'"  # Z85 has no apostrophe


def generate_keys(directory: PathLike, force: bool = False) -> Keys:
    """Write a new key pair: DIR/node.key (public) and DIR/node.key_secret (0600). A new DIR gets mode 0700.

    Raises:
        KeyFileError: there is a key already and force is False, DIR is open to others, or cannot be written.
    """
    folder = Path(directory)
    secret_path = folder / SECRET_FILE
    if os.path.lexists(secret_path) and not force:
        raise KeyFileError(f"{secret_path} exists, peers may know it: --force (force=True) replaces it")
    keys = new_pair()
    try:
        _make_private(folder)
        with locked(folder):
            # The secret file holds both halves: from here on it is the pair, the other file is a copy to give away.
            write_pair(keys, secret_path, folder / PUBLIC_FILE)
    except OSError as error:
        raise KeyFileError(f"cannot write keys to {folder}: {error.strerror}") from None
    return keys


def new_pair() -> Keys:
    """A key pair that is nowhere on disk yet."""
    import zmq

    public, secret = zmq.curve_keypair()
    return Keys(public.decode(), secret.decode())


def load_keys(directory: PathLike) -> Keys:
    """Read the key pair of a directory written by generate_keys.

    Raises:
        KeyFileError: missing, malformed, readable by others, in a directory where others can replace it, or two
            halves that do not belong together.
    """
    return load_secret(Path(directory) / SECRET_FILE)


def load_secret(path: Path) -> Keys:
    """Read a secret key file, which holds both halves; see load_keys."""
    hint = f"make keys with `edgebus keygen {path.parent}`"
    try:
        content, info = read_bounded(path, MAX_KEY_FILE_BYTES)
        text = content.decode()
        folder = path.parent.stat()
    except (OSError, ValueError) as error:
        raise KeyFileError(f"cannot read {path} ({error}): {hint}") from None
    mode = stat.S_IMODE(info.st_mode)
    if mode & 0o077:
        raise KeyFileError(f"{path} has mode {mode:04o}, others can read it: chmod 600 {path}")
    if folder.st_mode & 0o022 and not folder.st_mode & stat.S_ISVTX:
        raise KeyFileError(
            f"{path.parent} has mode {stat.S_IMODE(folder.st_mode):04o}, others can replace the key: "
            f"chmod 700 {path.parent}"
        )
    public, secret = next(fields_of(text, "public-key"), None), next(fields_of(text, "secret-key"), None)
    if public is None or secret is None:
        raise KeyFileError(f"{path} has no public-key and secret-key of 40 characters: edgebus keygen --force")
    if not _belong_together(public, secret):
        raise KeyFileError(f"{path} has a public-key that is not of its secret-key: edgebus keygen --force")
    return Keys(public, secret)


def read_public_key(file_or_key: PathLike) -> str:
    """The public key in a certificate file, or the argument itself where it is a key.

    Raises:
        KeyFileError: neither a key nor a file with one.
    """
    return read_public_keys(file_or_key)[0]


def read_public_keys(file_or_key: PathLike) -> tuple[str, ...]:
    """All public keys in a file, in its order: while a server changes its key, clients hold the old and the new one.

    Args:
        file_or_key: a key, or one or several certificates in one file (`cat server.key server.key.new > servers.key`).

    Raises:
        KeyFileError: neither a key nor a file with one, or more than 8 of them.
    """
    if isinstance(file_or_key, str) and is_key(file_or_key):
        return (file_or_key,)
    try:
        text = read_bounded(Path(file_or_key), MAX_KEY_FILE_BYTES)[0].decode()
    except (OSError, ValueError) as error:
        raise KeyFileError(
            f"{str(file_or_key)!r} is neither a key of 40 characters nor a readable key file ({error})"
        ) from None
    keys = tuple(dict.fromkeys(fields_of(text, "public-key")))
    if not keys:
        raise KeyFileError(f"{str(file_or_key)!r} has no public-key of 40 characters: give the file node.key")
    if len(keys) > MAX_SERVER_KEYS:
        raise KeyFileError(f"{str(file_or_key)!r} has {len(keys)} keys, at most {MAX_SERVER_KEYS} are tried: drop some")
    return keys


def holds_secret(file_or_key: PathLike) -> bool:
    """True for a file with the secret half of a pair, which is nobody's to be given."""
    if isinstance(file_or_key, str) and is_key(file_or_key):
        return False
    text = read_bounded(Path(file_or_key), MAX_KEY_FILE_BYTES)[0].decode(errors="replace")
    return next(fields_of(text, "secret-key"), None) is not None


def fields_of(text: str, name: str) -> Iterator[str]:
    """Every value of 40 characters that a certificate gives for `name`."""
    for line in text.splitlines():
        left, equals, right = line.strip().partition("=")
        value = right.strip().strip('"')
        if equals and left.strip() == name and is_key(value):
            yield value


# -- files ------------------------------------------------------------------------------------------


def read_bounded(path: Path, max_bytes: int) -> tuple[bytes, os.stat_result]:
    """Content and status of one open regular file.

    Raises:
        OSError: it cannot be read, is no regular file (a pipe would make the caller wait), or is too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes")
    return content, info


def write_pair(keys: Keys, secret_path: Path, public_path: Path) -> None:
    """Write both files of a key pair, the secret one (which holds both halves) first."""
    write_file(secret_path, certificate(keys, secret=True), 0o600)
    write_file(public_path, certificate(keys), 0o644)


def certificate(keys: Keys, *, secret: bool = False) -> bytes:
    """A key pair as file content, the public half alone or both."""
    text = f'#   edgebus key\nmetadata\ncurve\n    public-key = "{keys.public}"\n'
    return (text + (f'    secret-key = "{keys.secret}"\n' if secret else "")).encode()


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Replace a file in one step that survives a crash, never readable to more than `mode` allows.

    Run by root, the file belongs to whom it belonged before, or else to the owner of its directory: `sudo` must
    not take a file away from the service that reads it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if os.geteuid() == 0:
                owner = _status(path) or path.parent.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(folder: Path) -> None:
    """Have renames in a directory survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a directory against other commands that read, change and write its files."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for milliseconds, given back by the kernel if we die
        yield
    finally:
        os.close(descriptor)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & 0o077:
            # Not changed here: it may be a directory that others are meant to use.
            raise KeyFileError(f"{folder} has mode {mode:04o}, open to others: chmod 700 {folder}") from None


def _belong_together(public: str, secret: str) -> bool:
    import zmq

    try:
        return zmq.curve_public(secret.encode()) == public.encode()
    except (zmq.ZMQError, ValueError):  # characters of Z85 that are no five-character group of it
        return False
