"""The list of keys that may talk to this node: one file, followed while it changes, nobody if it cannot be read.

Two answers, because a file that is being rewritten is short or empty for a moment. A new connection is decided by what
the file says now (`permits`). What exists already, links and grants, goes only when two looks in a row miss it.
"""

from __future__ import annotations

import enum
import logging
import math
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edgebus.grants import ANYBODY, MAX_LIST_BYTES, Grant, Line, parse_list
from edgebus.keyfiles import PathLike, read_bounded
from edgebus.policy import Denial

_log = logging.getLogger("edgebus")
LOOK_EVERY_S = 0.5
"""Two looks in a row are at least this far apart, so a removed key is cut within two calls of `changed`."""
_YOUNG_S = 1.0  # a file changed less than this ago may be half written, and its time stamps too coarse to tell
_MAX_WARNINGS = 20


class _Anybody(enum.Enum):
    ANYBODY = enum.auto()


class AllowList:
    """The public keys that may connect and what each may do; may be used from any thread.

    Args:
        path: the file; see docs/spec/bus-security.md for its grammar.
        wall: seconds since 1970, for expiry dates.

    Attributes:
        version: counts up whenever an answer of `grant` or `cut_reason` may have changed.

    Raises:
        TypeError: not a path; only any() admits everybody.
    """

    def __init__(self, path: PathLike | _Anybody, *, wall: Callable[[], float] = time.time) -> None:
        if not isinstance(path, str | os.PathLike | _Anybody):
            raise TypeError(f"an allow-list is a path, got {path!r}; AllowList.any() admits every key")
        self.version = 0
        self._path = None if isinstance(path, _Anybody) else Path(path)
        self._wall = wall
        self._lock = threading.Lock()
        self._next_look = -math.inf
        self._told = 0  # version that changed() has reported
        self._stamp: tuple[int, ...] | None = None  # of the file as read, None while it has to be read again
        self._content: bytes | None = None
        self._num_same = 0  # looks of changed() in a row that found this content
        self._listed: dict[str, Grant] = {}  # what the file says now
        self._held: dict[str, Grant] = {}  # and besides what it said at the look before
        self._missing: set[str] = set()  # held, and not listed at the latest look
        self._next_expiry = math.inf
        self._lines: dict[str, Line | None] = {}  # as parsed: of a long list only new lines cost time
        self._warned: set[int] = set()
        self._problem = ""
        if self._path is not None:
            self._read(self._path)  # here rather than while the first device waits

    @classmethod
    def from_file(cls, path: PathLike) -> AllowList:
        """Allow the keys in a file: a key, white space, an optional name and options per line, `#` comments."""
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
            self._read(self._path)
            grant = self._listed.get(key)
            return grant is not None and self._wall() < grant.until

    def grant(self, key: str) -> Grant | None:
        """What a connected key may do (expired or not: see Grant.until), None if nothing. Reads no file."""
        return ANYBODY if self._path is None else self._held.get(key)

    def cut_reason(self, key: str) -> Denial | None:
        """Why an existing link of this key has to end, None if it may stay. Reads no file."""
        grant = self.grant(key)
        if grant is None:
            return Denial("forbidden", "our key was taken off the server's allow-list: `edgebus allow DIR KEY` there")
        if self._wall() >= grant.until:
            return Denial("expired_key", "our key has expired: raise its until= in the server's allow-list")
        return None

    def changed(self, now: float) -> bool:
        """Look at the file; True if links have to be held against cut_reason again. To be called once a second.

        Args:
            now: monotonic seconds; calls less than LOOK_EVERY_S after the last look cost nothing.
        """
        if self._path is None or now < self._next_look:
            return False
        with self._lock:
            self._next_look = now + LOOK_EVERY_S
            before = self._content
            self._read(self._path)
            self._num_same = self._num_same + 1 if self._content is not None and self._content == before else 0
            self._let_go()
            if self._wall() >= self._next_expiry:
                self.version += 1
                self._find_expiry()
            if self.version == self._told:
                return False
            self._told = self.version
            return True

    def describe(self) -> str:
        """What decides, for messages to people."""
        return "any key" if self._path is None else str(self._path)

    # -- inside, with the lock held -----------------------------------------------------------------

    def _read(self, path: Path) -> None:
        """Bring `listed` up to date; what is new there is held at once, what is gone is kept for now."""
        try:
            info = path.stat()
            if _stamp(info) == self._stamp:
                return
            content, info = read_bounded(path, MAX_LIST_BYTES)
            _check_owner(info)
            text = content.decode("utf-8-sig")
        except (OSError, ValueError) as error:
            self._take({}, None)
            self._report(path, error)
            return
        age_s = self._wall() - max(info.st_mtime, info.st_ctime)
        if content != self._content:
            self._num_same = 0
        is_settled = age_s >= _YOUNG_S or self._num_same >= 2
        self._stamp = _stamp(info) if is_settled else None
        if content == self._content and not is_settled:
            return
        if not is_settled:
            # A last line without its line feed may be cut in the middle, and then grant more than the whole one.
            text = text[: text.rfind("\n") + 1]
        parsed = parse_list(text, self._lines)
        self._problem, self._lines = "", parsed.lines
        self._take(parsed.grants, content)
        self._warn(path, text, parsed.problems)

    def _take(self, listed: dict[str, Grant], content: bytes | None) -> None:
        self._listed, self._content = listed, content
        if content is None:
            self._stamp = None
        held = self._held | listed
        if held != self._held:
            self._held = held
            self.version += 1
            self._find_expiry()

    def _let_go(self) -> None:
        """Drop what is held and has not been listed at two looks in a row."""
        missing = self._held.keys() - self._listed.keys()
        gone = missing & self._missing
        if gone:
            self._held = {key: grant for key, grant in self._held.items() if key not in gone}
            self.version += 1
            self._find_expiry()
        self._missing = missing - gone

    def _find_expiry(self) -> None:
        wall = self._wall()
        self._next_expiry = min((g.until for g in self._held.values() if g.until > wall), default=math.inf)

    # -- what people are told -----------------------------------------------------------------------

    def _report(self, path: Path, error: Exception) -> None:
        problem = f"{path} admits nobody: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"
        is_new = problem != self._problem
        self._problem = problem
        if is_new and (self._held or not isinstance(error, FileNotFoundError)):  # no list yet is how a server starts
            _log.warning("%s", problem)

    def _warn(self, path: Path, text: str, problems: dict[int, str]) -> None:
        """Say once which lines allow nobody. Their text is not logged: it may be a secret in the wrong place."""
        lines = text.split("\n")
        seen = {hash(lines[number - 1]): number for number in problems}
        fresh = sorted(number for digest, number in seen.items() if digest not in self._warned)
        for number in fresh[:_MAX_WARNINGS]:
            _log.warning("%s line %d allows nobody: %s", path, number, problems[number])
        if len(fresh) > _MAX_WARNINGS:
            _log.warning("%s has %d more such lines: `edgebus keys` lists them", path, len(fresh) - _MAX_WARNINGS)
        self._warned = set(seen)


def _stamp(info: os.stat_result) -> tuple[int, ...]:
    return info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino, info.st_dev


def _check_owner(info: os.stat_result) -> None:
    """Refuse a list in which somebody else could write himself.

    Raises:
        OSError: it is writable by everybody, or belongs to another user (root reads what it is told to).
    """
    if info.st_mode & stat.S_IWOTH:
        raise PermissionError(0, f"mode {stat.S_IMODE(info.st_mode):04o} lets everybody write it, chmod o-w")
    user = os.geteuid()
    if user != 0 and info.st_uid not in (0, user):
        raise PermissionError(0, f"it belongs to user {info.st_uid}, not to {user} or root, chown it")
