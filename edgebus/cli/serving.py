"""What commands that serve have in common: who may connect, and an end that a signal asks for."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from edgebus.errors import ConfigError
from edgebus.keys import AllowList, Keys, load_keys


class Access(NamedTuple):
    """A server's own keys and the keys that may connect; both None without security."""

    own: Keys | None
    allow: AllowList | None

    @property
    def public_key(self) -> str | None:
        return self.own.public if self.own else None


def read_access(program: str, *, keys: Path | None, allow: str | None, insecure: bool) -> Access:
    """Keys and allow-list of a server, from its options.

    Args:
        program: in front of what is said on stderr, "sled serve" say.
        keys: key directory.
        allow: allow-list file, or "any"; None is KEYS/allowed_keys.
        insecure: neither.

    Raises:
        ConfigError: the options do not go together, or name nothing.
        KeyFileError: the keys cannot be read.
    """
    if insecure:
        if keys is not None or allow is not None:
            raise ConfigError("--insecure goes without keys: leave out --keys and --allow, or leave out --insecure")
        return Access(None, None)
    if keys is None:
        raise ConfigError("give --keys DIR (made by `edgebus keygen DIR`), or --insecure to go without")
    own = load_keys(keys)
    if allow == "any":
        return Access(own, AllowList.any())
    path = Path(allow) if allow is not None else keys / "allowed_keys"
    if not path.is_file():
        if allow is not None:
            raise ConfigError(f"no allow-list {path}; make it with `edgebus allow {keys} PUBLIC_KEY_FILE`, or say any")
        print(
            f"{program}: nobody may connect yet; let devices in with `edgebus allow {keys} NODE_KEY`", file=sys.stderr
        )
    return Access(own, AllowList.from_file(path))


def ready_line(endpoint: str, access: Access) -> str:
    """What a server says when it is ready."""
    return f"ready {endpoint} key {access.public_key or 'none (insecure)'}"


@contextmanager
def ended_by_signals(drain: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT drain a server, the second one stops it, the third ends the process.

    Args:
        drain, stop: called in a signal handler; they set flags only.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)
    count = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count == 1:
            drain()
            return
        stop()
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
