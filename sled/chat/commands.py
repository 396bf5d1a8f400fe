"""What a line at the prompt means. Pure."""

from __future__ import annotations

import difflib
from typing import NamedTuple

import msgspec

from sled.chat.conversation import Settings
from sled.errors import ParameterError

HELP = {
    "help": ("", "this list"),
    "reset": ("", "forget the conversation"),
    "system": ("[TEXT]", "what the model is told first; without TEXT nothing"),
    "seed": ("N", "the same seed gives the same answer"),
    "temperature": ("X", "0 is greedy, higher is more varied"),
    "max": ("N", "tokens in an answer at most"),
    "save": ("FILE", "write the conversation to a file"),
    "load": ("FILE", "go on with a conversation from a file"),
    "stats": ("", "figures of the last answer and of all"),
    "quit": ("", "leave; so do Ctrl-D, and Ctrl-C twice"),
}


class Command(NamedTuple):
    """A line that began with a slash."""

    name: str
    argument: str


def parse(line: str) -> Command | str:
    """A command, or text for the model; `//` begins a text that begins with a slash.

    Raises:
        ParameterError: no such command.

    >>> parse("/seed 7"), parse("//etc is a directory")
    (Command(name='seed', argument='7'), '/etc is a directory')
    """
    if not line.startswith("/"):
        return line
    if line.startswith("//"):
        return line[1:]
    name, _, argument = line[1:].partition(" ")
    name = name.strip().lower()
    if name in ("exit", "q"):
        name = "quit"
    if name not in HELP:
        near = difflib.get_close_matches(name, HELP, n=1)
        hint = f", do you mean /{near[0]}?" if near else "; /help lists them, // begins a text with a slash"
        raise ParameterError(f"no command /{name}{hint}")
    return Command(name, argument.strip())


def changed(settings: Settings, command: Command) -> Settings:
    """Settings after /system, /seed, /temperature or /max.

    Raises:
        ParameterError: a value that is none.
    """
    try:
        match command:
            case Command("system", text):
                _check_text(text)
                return msgspec.structs.replace(settings, system=text)
            case Command("seed", text):
                return _sampled(settings, seed=int(text))
            case Command("temperature", text):
                return _sampled(settings, temperature=float(text))
            case Command("max", text):
                return msgspec.structs.replace(settings, max_tokens=_count(int(text)))
            case _:
                raise AssertionError(f"/{command.name} changes no setting")
    except (ValueError, OverflowError) as error:
        what = f"/{command.name} {HELP[command.name][0]}"
        raise ParameterError(f"{command.argument!r} is no value for {what}: {error}") from None


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # typed in another encoding than the terminal's
        raise ParameterError(f"the text of /system is not valid at character {error.start}; give it in UTF-8") from None


def _sampled(settings: Settings, **values: float) -> Settings:
    return msgspec.structs.replace(settings, sampling=msgspec.structs.replace(settings.sampling, **values))


def _count(value: int) -> int:
    if not 1 <= value <= 1 << 17:
        raise ValueError(f"give 1 to {1 << 17}")
    return value
