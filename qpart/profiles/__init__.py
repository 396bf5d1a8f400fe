"""Profiles in TOML: what a device, its channel and a server can do; some boards are here, with sources.

>>> names()
('orin-nano', 'rpi4b', 'rpi5')
>>> device("rpi5").watts
7.7
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from qpart.errors import RequestError
from qpart.profile import Channel, DeviceProfile, ServerProfile, Weights

Settings = dict[str, dict[str, Any]]
"""Tables by name; numbers by key, and `layer_s` as a tuple of seconds."""

_ANALYTIC = ("clock_hz", "cycles_per_mac", "kappa")
_INFORMATION = "measured"
_KINDS = {"device": DeviceProfile, "channel": Channel, "weights": Weights, "server": ServerProfile}
KNOWN: dict[str, tuple[str, ...]] = {
    table: (*kind.__struct_fields__, *(_ANALYTIC if table == "device" else ())) for table, kind in _KINDS.items()
}


def names() -> tuple[str, ...]:
    """The boards whose profiles come with the package."""
    found = (file.name for file in resources.files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


def board(name: str) -> Settings:
    """The profile of a board that comes with the package.

    Raises:
        RequestError: there is none of this name.
    """
    if name not in names():
        raise RequestError(f"there is no device {name!r}; known are {', '.join(names())}, others go into --profile")
    text = (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
    return parse(text, f"{name}.toml")


def device(name: str) -> DeviceProfile:
    """The device of a board's profile; errors as of `board`."""
    return DeviceProfile(**board(name)["device"])


def read(path: Path) -> Settings:
    """Tables of a profile file; see `parse`.

    Raises:
        RequestError: it cannot be read, or `parse` refuses it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"profile {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise RequestError(f"profile {path} is not TOML: {error}") from None
    return parse(text, str(path))


def parse(text: str, path: str) -> Settings:
    """Tables and numbers of a profile, with the analytic model of a device worked out.

    A table `[measured]` is for people: `qpart profile` says there what it ran, where and when.

    Raises:
        RequestError: it is no TOML, says what nobody knows, or what should be a number is none.
    """
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"profile {path} is not TOML: {error}") from None
    found.pop(_INFORMATION, None)
    _check_known(path, "table", found, KNOWN)
    settings: Settings = {}
    for table, keys in found.items():
        if not isinstance(keys, dict):
            raise RequestError(f"{table} in {path} is {keys!r}, make it a table: [{table}]")
        _check_known(path, f"key of [{table}]", keys, KNOWN[table])
        settings[table] = {key: _value(f"{key} of [{table}] in {path}", key, value) for key, value in keys.items()}
    if "device" in settings:
        settings["device"] = _worked_out(path, settings["device"])
    return settings


def written(settings: Mapping[str, Mapping[str, Any]], *, head: Iterable[str] = ()) -> str:
    """A profile as TOML; `parse` reads it again.

    >>> print(written({"device": {"macs_per_s": 1e9, "layer_s": (0.25, 0.5)}}, head=["of a toy"]), end="")
    # of a toy
    <BLANKLINE>
    [device]
    macs_per_s = 1000000000.0
    layer_s = [
        0.25,
        0.5,
    ]
    """
    lines = [f"# {line}".rstrip() for line in head]
    for table, keys in settings.items():
        lines += ["", f"[{table}]"] if lines else [f"[{table}]"]
        for key, value in keys.items():
            if isinstance(value, tuple | list):
                lines += [f"{key} = [", *(f"    {item!r}," for item in value), "]"]
            else:
                lines.append(f"{key} = {_quoted(value) if isinstance(value, str) else repr(value)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else " " for c in escaped) + '"'


def _value(where: str, key: str, value: Any) -> Any:
    several = key == "layer_s"
    numbers = value if several and isinstance(value, list) else [value]
    if several != isinstance(value, list) or any(
        isinstance(x, bool) or not isinstance(x, int | float) for x in numbers
    ):
        raise RequestError(f"{where} is {value!r}, give {'a list of numbers' if several else 'a number'}")
    return tuple(float(number) for number in numbers) if several else value


def _check_known(path: str, what: str, found: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in found:
        if name not in known:
            raise RequestError(f"{name!r} in {path} is no {what}; known are {', '.join(known)}")


def _worked_out(path: str, keys: dict[str, Any]) -> dict[str, Any]:
    """A device by its clock becomes one by its speed."""
    given = [key for key in _ANALYTIC if key in keys]
    if not given:
        return keys
    if len(given) < len(_ANALYTIC) or "macs_per_s" in keys or "joules_per_mac" in keys:
        raise RequestError(f"[device] in {path}: give {', '.join(_ANALYTIC)}, or macs_per_s and joules_per_mac instead")
    found = DeviceProfile.from_clock(
        clock_hz=keys["clock_hz"], cycles_per_mac=keys["cycles_per_mac"], kappa=keys["kappa"], memory_bytes=1
    )
    rest = {key: value for key, value in keys.items() if key not in _ANALYTIC}
    return {"macs_per_s": found.macs_per_s, "joules_per_mac": found.joules_per_mac, **rest}
