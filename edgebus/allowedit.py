"""Changes to an allow-list file: lines are added, changed and removed one by one, the rest stays as people wrote it.

Each change reads, writes and replaces the file under a lock, so two commands at once both take effect and a reader
sees the old list or the new one.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from edgebus.errors import ConfigError, KeyFileError
from edgebus.files import cure
from edgebus.grants import (
    MAX_LIST_BYTES,
    BadGrant,
    Line,
    Parsed,
    clean_name,
    format_line,
    make_grant,
    parse_line,
    parse_lines,
    parse_list,
)
from edgebus.keyfiles import (
    PUBLIC_FILE,
    PathLike,
    holds_secret,
    is_key,
    locked,
    read_bounded,
    read_public_key,
    shell_key,
    write_file,
)

ALLOW_FILE = "allowed_keys"
_HEAD = "# keys that may connect: one per line, then a name and option=value words\n"


class AllowEdit(NamedTuple):
    """What allow_keys did: keys that were new, and keys whose line changed."""

    file: Path
    added: int
    updated: int


def add_to_allow_list(path: PathLike, *public_key_files: PathLike) -> int:
    """Add keys to an allow-list; those already there are left alone. Returns how many were new.

    Args:
        path: the list, or a key directory, whose list is DIR/allowed_keys. Where nothing is there yet, a list is
            made if it is called allow... or has a suffix and its directory exists: a mistyped DIR does neither.
        public_key_files: certificate files or 40-character keys.

    Raises:
        KeyFileError: a key or the list cannot be read or written; nothing was changed.
    """
    return allow_keys(path, *public_key_files).added


def allow_keys(
    path: PathLike,
    *public_key_files: PathLike,
    options: Mapping[str, str | None] | None = None,
    name: str | None = None,
    like: str | None = None,
) -> AllowEdit:
    """Add keys to an allow-list, or change the lines of those already there.

    Args:
        path: as in add_to_allow_list.
        public_key_files: certificate files or 40-character keys.
        options: values as they stand in the file, by option; None takes an option off. Others stay as they are.
        name: what to call the keys; by default a new one is called like the directory of its file.
        like: a key or name in the list whose name and options new keys get, as far as none are given here.

    Raises:
        KeyFileError: a key or the list cannot be read or written; nothing was changed.
        ConfigError: an option that does not exist, or a value that cannot work.
    """
    wanted = {_public_key(item): _name_of(item) for item in public_key_files}
    new_name = None if name is None else clean_name(name)
    options = dict(options or {})
    file = list_file(path)
    model = None if like is None else _model(file, read_list(path)[0], like)
    added = {key: _new_line(key, model or (wanted[key], {}), new_name, options) for key in wanted}
    if not file.exists() and not (file.parent.is_dir() and (file.name.startswith("allow") or file.suffix)):
        raise KeyFileError(f"there is no directory {path}: make it with `edgebus keygen {path}`, or check the path")
    counts = {"updated": 0}

    def change(line: Line) -> str | None:
        if line.key not in wanted:
            return None
        if line.grant is None:
            remedy = f"`edgebus deny {path} {shell_key(line.key)}` first"
            raise KeyFileError(f"{file} line {line.number} allows nobody ({line.reason}): {remedy}")
        added.pop(line.key, None)
        text = _changed_line(line, new_name, options)
        counts["updated"] += text is not None
        return text

    def rewrite(text: str) -> str:
        lines = parse_lines(text)
        if lines and all(line.key is None for line in lines):
            remedy = f"give a key directory or its {ALLOW_FILE}, or empty the file first"
            raise KeyFileError(f"{file} is no allow-list, none of its lines starts with a key: {remedy}")
        text = _each_line(text or _HEAD, change)
        end = "" if text.endswith("\n") or not added else "\n"
        text += end + "".join(f"{line}\n" for line in added.values())
        if wanted.keys() - parse_list(text).grants.keys():
            raise KeyFileError(f"{file} has lines that contradict each other: `edgebus deny {path} KEY` first")
        return text

    _edit(file, rewrite)
    return AllowEdit(file, len(added), counts["updated"])


def deny_keys(path: PathLike, *keys_or_names: str) -> list[Line]:
    """Take keys off an allow-list; their links are cut within seconds. Returns the lines that went.

    Args:
        path: the list, or a key directory, whose list is DIR/allowed_keys.
        keys_or_names: 40-character keys, names in the list (all keys of that name go), or certificate files.

    Raises:
        KeyFileError: one of them is not in the list, or the list cannot be read or written; nothing was changed.
    """
    file = list_file(path)
    if not file.exists():
        raise KeyFileError(f"there is no allow-list {file}: nobody is allowed, or check the path")
    gone: list[Line] = []

    def rewrite(text: str) -> str:
        lines = parse_lines(text)
        chosen = {key for item in keys_or_names for key in _chosen(file, lines, item)}
        gone.extend(line for line in lines if line.key in chosen)
        return _each_line(text, lambda line: "" if line.key in chosen else None)

    _edit(file, rewrite)
    return gone


def list_file(path: PathLike) -> Path:
    """The allow-list of a key directory, or the file itself.

    Raises:
        KeyFileError: it cannot be looked at.
    """
    try:
        file = Path(path) / ALLOW_FILE if Path(path).is_dir() else Path(path)
        file.exists()  # raises where the directory is another's
    except OSError as error:
        raise KeyFileError(f"cannot look at {path}: {error.strerror or error}; {cure(error)}") from error
    return file


def read_list(path: PathLike) -> tuple[list[Line], Parsed]:
    """Every line of a list that is not a comment alone, also those that allow nobody, and what all together say.

    Raises:
        KeyFileError: the list cannot be read.
    """
    file = list_file(path)
    try:
        text = _decode(read_bounded(file, MAX_LIST_BYTES)[0])
        return parse_lines(text), parse_list(text)
    except (OSError, ValueError) as error:
        raise KeyFileError(f"cannot read {file} ({error}): make it with `edgebus allow {path} NODE_KEY`") from None


# -- inside -----------------------------------------------------------------------------------------


def _edit(file: Path, rewrite: Callable[[str], str]) -> None:
    file = file.resolve()  # a link stays one, what it leads to is replaced
    try:
        with locked(file.parent):
            text, mode = "", 0o600
            if file.exists():
                content, info = read_bounded(file, MAX_LIST_BYTES)
                text, mode = _decode(content), stat.S_IMODE(info.st_mode) & 0o644 | 0o600
            changed = rewrite(text)
            if changed == text:
                return
            content = changed.encode()
            if len(content) > MAX_LIST_BYTES:
                raise KeyFileError(f"{file} would have {len(content)} B, at most {MAX_LIST_BYTES} are read: deny some")
            write_file(file, content, mode)
    except UnicodeDecodeError as error:
        raise KeyFileError(f"cannot update {file}: {error}") from None
    except OSError as error:
        raise KeyFileError(f"cannot update {file}: {error.strerror or error}; {cure(error)}") from error


def _decode(content: bytes) -> str:
    return content.decode("utf-8-sig")


def _each_line(text: str, change: Callable[[Line], str | None]) -> str:
    """Pass every line through `change`, which says what stands there instead: None the same, "" nothing."""
    kept = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = parse_line(raw, number)
        new = None if line is None else change(line)
        if new is None:
            kept.append(raw)
        elif new:
            kept.append(new + ("\r" if raw.endswith("\r") else ""))
    return "\n".join(kept)


def _new_line(key: str, model: tuple[str, dict[str, str]], name: str | None, options: Mapping[str, str | None]) -> str:
    merged = _merged(model[1], options)
    new_name = model[0] if name is None else name
    _check(new_name, merged, options)
    return format_line(key, new_name, merged)


def _model(file: Path, lines: list[Line], item: str) -> tuple[str, dict[str, str]]:
    key = _chosen(file, lines, item)[0]
    line = next(line for line in lines if line.key == key)
    if line.grant is None:
        raise KeyFileError(f"{file} line {line.number} allows nobody ({line.reason}): no model for another")
    return line.name, line.options


def _merged(old: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    return {option: value for option, value in {**old, **changes}.items() if value is not None}


def _changed_line(line: Line, name: str | None, options: Mapping[str, str | None]) -> str | None:
    merged = _merged(line.options, options)
    new_name = line.name if name is None else name
    if (new_name, merged) == (line.name, line.options):
        return None
    _check(new_name, merged, options)
    assert line.key is not None
    return format_line(line.key, new_name, merged, line.comment)


def _check(name: str, merged: dict[str, str], given: Mapping[str, str | None]) -> None:
    try:
        make_grant(name, merged)
        # What reads as an option has to read the same once it stands in a line.
        line = parse_line(format_line("0" * 40, name, merged))
        assert line is not None
        if line.grant is None or line.options != merged:
            raise BadGrant(line.reason or "white space in a value")
    except BadGrant as error:
        told = " ".join(f"{option}={value}" for option, value in given.items() if value is not None)
        raise ConfigError(f"{told or 'the permissions'} cannot work: {error}") from None


def _chosen(file: Path, lines: list[Line], item: str) -> list[str]:
    keys = [line.key for line in lines if line.key is not None]
    if is_key(item):
        found = [item] if item in keys else []
    else:
        found = [line.key for line in lines if line.key is not None and line.name == item]
        if not found and Path(item).is_file():
            key = read_public_key(item)
            found = [key] if key in keys else []
    if not found:
        raise KeyFileError(f"{item!r} is no key and no name in {file}: `edgebus keys {file}` lists them")
    return found


def _public_key(item: PathLike) -> str:
    key = read_public_key(item)
    if holds_secret(item):
        public = Path(item).with_name(PUBLIC_FILE)
        raise KeyFileError(f"{item} is a secret key, which stays where it was made: give {public}, the public one")
    return key


def _name_of(item: PathLike) -> str:
    if isinstance(item, str) and is_key(item):
        return ""
    return clean_name(Path(item).resolve().parent.name)
