"""Signed segments: a publisher's Ed25519 key over the hash of what a device is to run.

A segment names model, cut, widths, operations and the address of every piece, so its hash covers all that runs. The
library (PyNaCl) is the optional extra `sign`; who neither signs nor pins a publisher needs none.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import edgebus
from edgebus.keyfiles import read_bounded, write_file
from qpart.errors import SegmentRejected

PUBLIC_FILE, SECRET_FILE = "publisher.key", "publisher.key_secret"
KEY_BYTES = 32
_CONTEXT = b"qpart segment 2\0"
_MAX_FILE_BYTES = 4096
_PUBLIC, _SECRET = "ed25519-public-key", "ed25519-secret-key"


class Signer:
    """Signs segments; made by `load_signer`.

    Args:
        secret: 32 bytes.

    Raises:
        edgebus.ConfigError: there is no PyNaCl.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = _nacl("signing segments").SigningKey(secret)

    def __repr__(self) -> str:
        return f"Signer(public={self.public.hex()})"  # the secret half stays out of logs

    @property
    def public(self) -> bytes:
        """What devices pin, 32 bytes."""
        return bytes(self._key.verify_key)

    def __call__(self, segment_id: bytes) -> bytes:
        """The signature of a segment, 64 bytes."""
        return bytes(self._key.sign(_CONTEXT + segment_id).signature)


def verify(publisher: bytes, segment_id: bytes, signature: bytes) -> None:
    """Check that this publisher signed this segment.

    Raises:
        SegmentRejected: it did not.
        edgebus.ConfigError: there is no PyNaCl; nothing is accepted unchecked.
    """
    nacl = _nacl("checking a publisher's signature")
    if not signature:
        raise SegmentRejected(
            f"the server does not sign, but only what {publisher.hex()} signed may run here; "
            "have it started with --sign, or drop --publisher"
        )
    try:
        nacl.VerifyKey(publisher).verify(_CONTEXT + segment_id, signature)
    except (nacl.exc.BadSignatureError, ValueError):
        raise SegmentRejected(
            f"the segment is not signed by the publisher {publisher.hex()}; check the key, or do not trust this server"
        ) from None


def generate_signing_key(directory: str | os.PathLike[str], force: bool = False) -> bytes:
    """Write a new key pair: DIR/publisher.key (public) and DIR/publisher.key_secret (0600); returns the public half.

    Raises:
        edgebus.KeyFileError: there is a key already and force is False, or DIR cannot be written.
        edgebus.ConfigError: there is no PyNaCl.
    """
    folder = Path(directory)
    secret_path = folder / SECRET_FILE
    if os.path.lexists(secret_path) and not force:
        raise edgebus.KeyFileError(f"{secret_path} exists, devices may trust it: --force (force=True) replaces it")
    secret = os.urandom(KEY_BYTES)
    public = Signer(secret).public
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(secret_path, f"{_PUBLIC} = {public.hex()}\n{_SECRET} = {secret.hex()}\n".encode(), 0o600)
        write_file(folder / PUBLIC_FILE, f"{_PUBLIC} = {public.hex()}\n".encode(), 0o644)
    except OSError as error:
        raise edgebus.KeyFileError(f"cannot write a signing key to {folder}: {error.strerror}") from None
    return public


def load_signer(directory: str | os.PathLike[str]) -> Signer:
    """The signing key of a directory written by `generate_signing_key`.

    Raises:
        edgebus.KeyFileError: missing, malformed, readable by others, or two halves that do not belong together.
        edgebus.ConfigError: there is no PyNaCl.
    """
    path = Path(directory) / SECRET_FILE
    hint = f"make a signing key with `qpart keygen {path.parent}`"
    text, mode = _read(path, hint)
    if mode & 0o077:
        raise edgebus.KeyFileError(f"{path} has mode {mode:04o}, others can read it: chmod 600 {path}")
    public, secret = _field(text, _PUBLIC), _field(text, _SECRET)
    if public is None or secret is None:
        raise edgebus.KeyFileError(f"{path} has no {_PUBLIC} and {_SECRET} of 64 hexadecimal digits: {hint}")
    signer = Signer(secret)
    if signer.public != public:
        raise edgebus.KeyFileError(f"{path} has a public half that is not of its secret half: {hint}")
    return signer


def read_publisher(file_or_key: str | os.PathLike[str]) -> bytes:
    """A publisher's public key: 64 hexadecimal digits, or a file `publisher.key`.

    Raises:
        edgebus.KeyFileError: neither; or the file of the secret key, which stays where segments are signed.
    """
    if isinstance(file_or_key, str) and (key := _key(file_or_key)) is not None:
        return key
    text, _ = _read(Path(file_or_key), "give the publisher's file publisher.key, or its 64 hexadecimal digits")
    if any(line.partition("=")[0].strip() == _SECRET for line in text.splitlines()):
        raise edgebus.KeyFileError(
            f"{str(file_or_key)!r} holds the publisher's secret key, which stays with whoever signs: "
            f"give the public file {PUBLIC_FILE}, and make a new key if this one got into other hands"
        )
    if (public := _field(text, _PUBLIC)) is None:
        raise edgebus.KeyFileError(f"{str(file_or_key)!r} has no {_PUBLIC}: give the publisher's file publisher.key")
    return public


def _read(path: Path, hint: str) -> tuple[str, int]:
    try:
        content, info = read_bounded(path, _MAX_FILE_BYTES)
        return content.decode(), stat.S_IMODE(info.st_mode)
    except (OSError, ValueError) as error:
        raise edgebus.KeyFileError(f"cannot read {path} ({error}): {hint}") from None


def _field(text: str, name: str) -> bytes | None:
    for line in text.splitlines():
        left, equals, right = line.partition("=")
        if equals and left.strip() == name:
            return _key(right.strip())
    return None


def _key(text: str) -> bytes | None:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES and len(text) == 2 * KEY_BYTES else None


def _nacl(what: str) -> Any:
    """The signing half of PyNaCl."""
    try:
        from nacl import signing
    except ModuleNotFoundError:
        raise edgebus.ConfigError(f"{what} needs PyNaCl: pip install 'edgebus[sign]'") from None
    return signing
