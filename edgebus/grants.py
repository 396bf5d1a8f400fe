"""What a key may do, and the allow-list as text. Pure; whatever cannot be understood grants nothing.

Grammar and meaning: docs/spec/bus-security.md. A line is `KEY [NAME] [option=value ...] [# comment]`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from edgebus.keyfiles import is_key

GUARDED = frozenset({"edgebus.stats", "edgebus.tap"})
"""Services that show what others do: granted only by a pattern that begins with `edgebus.`."""
MAX_LIST_BYTES = 4 * 1024 * 1024
MAX_LINE_CHARS = 4096
OPTIONS = ("services", "deny", "requests_per_s", "burst", "bytes_per_s", "bytes_burst", "max_links", "until")
_NAME_CHARS = 64
_MAX_PATTERNS = 64
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,3})?")
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)(B|kB|KB|MB|GB|KiB|MiB|GiB)?")
_PATTERN = re.compile(r"[!-+\--<>-~]{1,64}")  # printable ASCII but comma and equals sign
_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})(?:T([0-9]{2}):([0-9]{2})Z)?")
_UNITS = {
    "": 1,
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}


class BadGrant(ValueError):
    """An option that cannot be understood; the text never contains what stood there, which may be a secret."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What the owner of one key may do; by default everything but the guarded services, without limit.

    Args:
        name: what the operator calls the key.
        services: patterns of services it may call; none given means all that are not guarded.
        deny: patterns of services it may not call, whatever `services` says.
        requests_per_s: requests in the long run; None is without limit.
        burst: requests at once; by default one second's worth, at least 1.
        bytes_per_s: bytes of requests in the long run, headers included; None is without limit.
        bytes_burst: bytes at once, and so the largest request; by default one second's worth.
        max_links: links at once; None leaves it to Limits.max_links_per_key.
        until: seconds since 1970 at which the key expires; inf is never.
    """

    name: str = ""
    services: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    requests_per_s: float | None = None
    burst: int | None = None
    bytes_per_s: float | None = None
    bytes_burst: int | None = None
    max_links: int | None = None
    until: float = math.inf

    @property
    def is_limited(self) -> bool:
        """True if requests have to be counted."""
        return self.requests_per_s is not None or self.bytes_per_s is not None

    def covers(self, service: str) -> bool:
        """True if the service may be called.

        >>> Grant().covers("sled.verify"), Grant().covers("edgebus.tap"), Grant(services=("*",)).covers("edgebus.tap")
        (True, False, False)
        >>> Grant(services=("*", "edgebus.tap"), deny=("sled.*",)).covers("edgebus.tap")
        True
        """
        if any(fnmatchcase(service, pattern) for pattern in self.deny):
            return False
        if service in GUARDED:
            return any(p.startswith("edgebus.") and fnmatchcase(service, p) for p in self.services)
        return not self.services or any(fnmatchcase(service, pattern) for pattern in self.services)


ANYBODY = Grant()
"""What a stranger gets where every key is admitted."""


class Line(NamedTuple):
    """One line of an allow-list that is not empty and not a comment alone."""

    number: int
    key: str | None  # None if it does not start with one
    grant: Grant | None  # None if the line allows nobody
    reason: str  # why, without its text
    name: str
    options: dict[str, str]
    comment: str


class Parsed(NamedTuple):
    """A whole list: what each key may do, which lines allow nobody and why, and the lines by their text."""

    grants: dict[str, Grant]
    problems: dict[int, str]
    lines: dict[str, Line | None]


def parse_list(text: str, known: Mapping[str, Line | None] | None = None) -> Parsed:
    """Read a whole list. A key is allowed only if every line that starts with it can be understood and agrees.

    Args:
        text: the list.
        known: `lines` of an earlier result, which are not parsed again.

    >>> key = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
    >>> parse_list(f"{key} phone services=sled.* burst=5").problems
    {1: 'burst= needs requests_per_s='}
    """
    grants: dict[str, Grant] = {}
    problems: dict[int, str] = {}
    first: dict[str, int] = {}
    bad: set[str] = set()
    lines: dict[str, Line | None] = {}
    for number, raw in enumerate(text.split("\n"), 1):
        line = lines[raw] = known[raw] if known is not None and raw in known else parse_line(raw, number)
        if line is None:
            continue
        if line.key is None or line.grant is None:
            problems[number] = line.reason
        elif line.key in grants and not _same_rights(grants[line.key], line.grant):
            problems[number] = f"the key of line {first[line.key]} again, with other permissions"
        else:
            grants[line.key] = line.grant
            first.setdefault(line.key, number)
            continue
        if line.key is not None:
            bad.add(line.key)
    return Parsed({key: grant for key, grant in grants.items() if key not in bad}, problems, lines)


def parse_lines(text: str) -> list[Line]:
    """Every line that says something. Lines end at line feeds alone: no other character hides one in another."""
    lines = (parse_line(line, number) for number, line in enumerate(text.split("\n"), 1))
    return [line for line in lines if line is not None]


def parse_line(text: str, number: int = 1) -> Line | None:
    """Read one line; None if there is nothing but white space or a comment."""
    text = text.strip(" \t\r")
    if not text:
        return None
    key, rest = re.match(r"([^ \t]*)[ \t]*(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    name, options = "", dict[str, str]()
    if not is_key(key):
        if key.startswith("#"):  # after is_key: a key may start with it too
            return None
        return Line(number, None, None, "it does not start with a key of 40 characters", name, options, "")
    words, comment = _split_comment(rest)
    try:
        _check_characters(text)
        name, options = _split_words(words)
        return Line(number, key, make_grant(name, options), "", name, options, comment)
    except BadGrant as error:
        return Line(number, key, None, str(error), name, options, comment)


def make_grant(name: str, options: dict[str, str]) -> Grant:
    """A grant from the words of a line.

    Raises:
        BadGrant: an option or value that is none.
    """
    if any(option not in OPTIONS for option in options):
        raise BadGrant(f"an option is unknown: there are {', '.join(OPTIONS)}")
    for option, base in (("burst", "requests_per_s"), ("bytes_burst", "bytes_per_s")):
        if option in options and base not in options:
            raise BadGrant(f"{option}= needs {base}=")
    bytes_burst = _size(options, "bytes_burst")
    return Grant(
        name,
        _patterns(options, "services"),
        _patterns(options, "deny"),
        _number(options, "requests_per_s"),
        _count(options, "burst"),
        _size(options, "bytes_per_s"),
        None if bytes_burst is None else max(1, int(bytes_burst)),
        _count(options, "max_links"),
        _until(options),
    )


def format_line(key: str, name: str, options: dict[str, str], comment: str = "") -> str:
    """The line that parse_line reads back."""
    words = [key, name, *(f"{option}={options[option]}" for option in OPTIONS if option in options), comment]
    return " ".join(word for word in words if word)


def clean_name(text: str) -> str:
    """A name as a list can hold it: what would start an option, a comment or a line is replaced."""
    kept = "".join("-" if char in "=#" or _is_odd(char) else char for char in text)
    return " ".join(kept.split())[:_NAME_CHARS].rstrip()


# -- values -----------------------------------------------------------------------------------------


def _split_comment(rest: str) -> tuple[list[str], str]:
    match = re.search(r"(?:^|(?<=[ \t]))#.*", rest, re.DOTALL)
    words, comment = (rest, "") if match is None else (rest[: match.start()], match.group())
    return [word for word in re.split(r"[ \t]+", words) if word], comment


def _split_words(words: list[str]) -> tuple[str, dict[str, str]]:
    num_names = next((i for i, word in enumerate(words) if "=" in word), len(words))
    name = " ".join(words[:num_names])
    if len(name) > _NAME_CHARS:
        raise BadGrant(f"the name has {len(name)} characters, at most {_NAME_CHARS} are kept")
    options: dict[str, str] = {}
    for position, word in enumerate(words[num_names:], 1):
        option, equals, value = word.partition("=")
        if not equals:
            raise BadGrant(f"word {position} after the name is no option=value")
        if option in options:
            raise BadGrant(f"option {position} stands there twice")
        options[option] = value
    return name, options


def _check_characters(text: str) -> None:
    if len(text) > MAX_LINE_CHARS:
        raise BadGrant(f"it has {len(text)} characters, at most {MAX_LINE_CHARS} are read")
    if not (text.isascii() and text.isprintable()) and any(char != "\t" and _is_odd(char) for char in text):
        raise BadGrant("it has control or invisible characters")


def _is_odd(char: str) -> bool:
    return not " " <= char <= "~" and unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}


def _same_rights(one: Grant, other: Grant) -> bool:
    return [getattr(one, item) for item in OPTIONS] == [getattr(other, item) for item in OPTIONS]


def _patterns(options: dict[str, str], option: str) -> tuple[str, ...]:
    if option not in options:
        return ()
    patterns = tuple(options[option].split(","))
    if len(patterns) > _MAX_PATTERNS or not all(_PATTERN.fullmatch(pattern) for pattern in patterns):
        raise BadGrant(f"{option}= is no list of 1..{_MAX_PATTERNS} patterns such as sled.*,edgebus.ping")
    return patterns


def _number(options: dict[str, str], option: str) -> float | None:
    if option not in options:
        return None
    value = float(options[option]) if _NUMBER.fullmatch(options[option]) else 0.0
    if value <= 0:
        raise BadGrant(f"{option}= is no positive number such as 50 or 0.5")
    return value


def _count(options: dict[str, str], option: str) -> int | None:
    if option not in options:
        return None
    value = int(options[option]) if re.fullmatch(r"[0-9]{1,9}", options[option]) else 0
    if value <= 0:
        raise BadGrant(f"{option}= is no positive count such as 4")
    return value


def size_in(text: str) -> float:
    """Bytes that a text such as 1000000, 10MB or 1MiB stands for; 0 if it is none.

    >>> size_in("2GiB"), size_in("two")
    (2147483648.0, 0.0)
    """
    match = _SIZE.fullmatch(text)
    return float(match[1]) * _UNITS[match[2] or ""] if match else 0.0


def _size(options: dict[str, str], option: str) -> float | None:
    if option not in options:
        return None
    value = size_in(options[option])
    if value <= 0:
        raise BadGrant(f"{option}= is no size such as 1000000, 10MB or 1MiB")
    return value


def _until(options: dict[str, str]) -> float:
    if "until" not in options:
        return math.inf
    from datetime import UTC, datetime, timedelta

    match = _DATE.fullmatch(options["until"])
    try:
        if match is None:
            raise ValueError
        year, month, day, hour, minute = (int(group or 0) for group in match.groups())
        at = datetime(year, month, day, hour, minute, tzinfo=UTC)
        # A date alone includes its day.
        return (at if match[4] else at + timedelta(days=1)).timestamp()
    except (ValueError, OverflowError):
        raise BadGrant("until= is no date such as 2031-12-31 or 2031-12-31T18:00Z") from None
