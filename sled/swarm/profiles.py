"""What the boards of a fleet are like: a table with a source for each number, and files of your own."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from sled.errors import ParameterError

BUILT_IN = Path(__file__).with_name("profiles.toml")
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of device.

    Attributes:
        draft_tokens_per_s: what its small model drafts.
        acceptance: how often a draft is right, by its position in the round; the last one holds from there on.
        delay_s: one way over its link, besides what the real link takes.
        think_s: mean pause of its user between two answers.
        source: where each number comes from.
        name: filled in from the table's.
    """

    draft_tokens_per_s: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    acceptance: Annotated[tuple[_Share, ...], msgspec.Meta(min_length=1, max_length=64)]
    delay_s: _Seconds = 0.0
    think_s: _Seconds = 0.0
    source: dict[str, str] = {}
    name: str = ""


def read_profiles(path: Path = BUILT_IN) -> dict[str, Profile]:
    """The profiles of a TOML file, a table each.

    Raises:
        ParameterError: it cannot be read, or a value is none.
    """
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=dict[str, Profile])
    except (OSError, UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
        raise ParameterError(f"cannot take profiles from {path}: {error}; see sled/swarm/profiles.toml") from None
    return {name: msgspec.structs.replace(profile, name=name) for name, profile in found.items()}


def chosen(names: str, own: Path | None = None) -> list[Profile]:
    """Profiles by their names, with commas between them; those of a file of your own go first.

    Raises:
        ParameterError: no such profile.

    >>> [profile.name for profile in chosen("rpi5,jetson-orin-nano")]
    ['rpi5', 'jetson-orin-nano']
    """
    known = read_profiles() | (read_profiles(own) if own is not None else {})
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"do you mean {near[0]}?" if near else f"give some of {', '.join(known)}"
            raise ParameterError(f"no profile {name!r}: {hint}")
    if not wanted:
        raise ParameterError(f"no profile: give some of {', '.join(known)}")
    return [known[name] for name in wanted]


def dealt(profiles: Sequence[Profile], num_devices: int) -> list[Profile]:
    """A profile for each device, in turn."""
    return [profiles[number % len(profiles)] for number in range(num_devices)]
