"""Key pairs on disk and the list of keys that may talk to this node.

Key files have the zmq.auth certificate format, so the tools of pyzmq read them too.
"""

from __future__ import annotations

import enum
import logging
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

from edgebus.errors import KeyFileError

_Path = str | os.PathLike[str]
_log = logging.getLogger("edgebus")
_Z85 = set("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#")
PUBLIC_FILE = "node.key"
SECRET_FILE = "node.key_secret"  # noqa: S105 - a file name
ALLOW_FILE = "allowed_keys"


@dataclass(frozen=True, slots=True)
class Keys:
    """A CURVE key pair, both halves as 40 characters of Z85."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"Keys(public={self.public!r}, secret=...)"  # keys end up in logs, this half must not


def is_key(text: str) -> bool:
    """True for 40 characters of Z85."""
    return len(text) == 40 and set(text) <= _Z85


def generate_keys(directory: _Path, force: bool = False) -> Keys:
    """Write a new key pair: DIR/node.key (public) and DIR/node.key_secret (0600). A new DIR gets mode 0700.

    Raises:
        KeyFileError: there is a key already and force is False, DIR is open to others, or cannot be written.
    """
    import zmq

    folder = Path(directory)
    secret_path = folder / SECRET_FILE
    if secret_path.exists() and not force:
        raise KeyFileError(f"{secret_path} exists, peers may know it: --force (force=True) replaces it")
    public, secret = (half.decode() for half in zmq.curve_keypair())
    head = f'#   edgebus key\nmetadata\ncurve\n    public-key = "{public}"\n'
    try:
        _make_private(folder)
        _write(folder / PUBLIC_FILE, head, 0o644)
        _write(secret_path, head + f'    secret-key = "{secret}"\n', 0o600)
    except OSError as error:
        raise KeyFileError(f"cannot write keys to {folder}: {error.strerror}") from None
    return Keys(public, secret)


def load_keys(directory: _Path) -> Keys:
    """Read the key pair of a directory written by generate_keys.

    Raises:
        KeyFileError: missing, malformed, or readable by others.
    """
    path = Path(directory) / SECRET_FILE
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise KeyFileError(f"{path} has mode {mode:04o}, others can read it: chmod 600 {path}")
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"cannot read {path} ({error}): make keys with `edgebus keygen {directory}`") from None
    public, secret = _field(text, "public-key"), _field(text, "secret-key")
    if public is None or secret is None:
        raise KeyFileError(f"{path} has no public-key and secret-key of 40 characters: edgebus keygen --force")
    return Keys(public, secret)


def read_public_key(file_or_key: _Path) -> str:
    """The public key in a certificate file, or the argument itself where it is a key.

    Raises:
        KeyFileError: neither a key nor a file with one.
    """
    if isinstance(file_or_key, str) and is_key(file_or_key):
        return file_or_key
    try:
        key = _field(Path(file_or_key).read_text(), "public-key")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise KeyFileError(
            f"{str(file_or_key)!r} is neither a key of 40 characters nor a readable key file ({error})"
        ) from None
    if key is None:
        raise KeyFileError(f"{str(file_or_key)!r} has no public-key of 40 characters: give the file node.key")
    return key


class _Anybody(enum.Enum):
    ANYBODY = enum.auto()


class AllowList:
    """The public keys that may connect; one file, re-read when it changes, nobody if it cannot be read.

    Raises:
        TypeError: not a path; only any() admits everybody.
    """

    def __init__(self, path: _Path | _Anybody) -> None:
        if not isinstance(path, str | os.PathLike | _Anybody):
            raise TypeError(f"an allow-list is a path, got {path!r}; AllowList.any() admits every key")
        self._path = None if isinstance(path, _Anybody) else Path(path)
        self._warned: set[str] = set()
        self._version: tuple[int, int, int] | None = None
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_file(cls, path: _Path) -> AllowList:
        """Allow the keys in a file: a key, white space, an optional name per line, `#` comments."""
        return cls(path)

    @classmethod
    def any(cls) -> AllowList:
        """Allow every peer that proves to own some key; traffic is encrypted, peers are strangers."""
        return cls(_Anybody.ANYBODY)

    def permits(self, key: str) -> bool:
        """True if this key may connect now."""
        if self._path is None:
            return True
        with self._lock:
            self._reload(self._path)
            return key in self._names

    def describe(self) -> str:
        """What decides, for messages to people."""
        return "any key" if self._path is None else str(self._path)

    def _reload(self, path: Path) -> None:
        try:
            info = path.stat()
            version = (info.st_mtime_ns, info.st_size, info.st_ino)
            if version != self._version:
                text = path.read_text()
                self._names, self._version = _parse(text), version
                self._warn(path, text)
        except (OSError, UnicodeDecodeError):
            self._names, self._version = {}, None

    def _warn(self, path: Path, text: str) -> None:
        malformed = {line: number for number, line in enumerate(text.splitlines(), 1) if _is_malformed(line)}
        for line, number in malformed.items():
            if line not in self._warned:  # its text is not logged: it may be a secret in the wrong place
                _log.warning("%s line %d allows nobody: it does not start with a key of 40 characters", path, number)
        self._warned = set(malformed)


def add_to_allow_list(path: _Path, *public_key_files: _Path) -> int:
    """Add keys to an allow-list; those already there are left alone. Returns how many were new.

    Args:
        path: the list, or a key directory, whose list is DIR/allowed_keys. Where nothing is there yet, a list is
            made if it is called allow... or has a suffix and its directory exists: a mistyped DIR does neither.
        public_key_files: certificate files or 40-character keys.

    Raises:
        KeyFileError: a key or the list cannot be read or written; nothing was changed.
    """
    keys = [(read_public_key(item), _name_of(item)) for item in public_key_files]
    file = Path(path) / ALLOW_FILE if Path(path).is_dir() else Path(path)
    if not file.exists() and not (file.parent.is_dir() and (file.name.startswith("allow") or file.suffix)):
        raise KeyFileError(f"there is no directory {path}: make it with `edgebus keygen {path}`, or check the path")
    try:
        text = file.read_text() if file.exists() else "# keys that may connect: one per line, then a name\n"
        known = _parse(text)
        new = {key: name for key, name in keys if key not in known}
        if text and not text.endswith("\n"):
            text += "\n"
        text += "".join(f"{key} {name}".rstrip() + "\n" for key, name in new.items())
        if new:
            _write(file, text, 0o600)
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"cannot update {file}: {error}") from None
    return len(new)


def _parse(text: str) -> dict[str, str]:
    names = {}
    for line in text.splitlines():
        key, *name = line.split(maxsplit=1) or [""]
        # A key may contain '#', so only a line that starts with one is a comment. Bad lines allow nobody.
        if is_key(key):
            names[key] = "".join(name).partition(" #")[0].strip()
    return names


def _is_malformed(line: str) -> bool:
    words = line.split()
    return bool(words) and not is_key(words[0]) and not words[0].startswith("#")


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & 0o077:
            # Not changed here: it may be a directory that others are meant to use.
            raise KeyFileError(f"{folder} has mode {mode:04o}, open to others: chmod 700 {folder}") from None


def _name_of(item: _Path) -> str:
    if isinstance(item, str) and is_key(item):
        return ""
    return Path(item).resolve().parent.name.replace("#", "")


def _field(text: str, name: str) -> str | None:
    for line in text.splitlines():
        left, equals, right = line.strip().partition("=")
        value = right.strip().strip('"')
        if equals and left.strip() == name and is_key(value):
            return value
    return None


def _write(path: Path, text: str, mode: int) -> None:
    """Replace a file in one step, never readable to more than `mode` allows."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)
