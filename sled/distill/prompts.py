"""What users may ask: prompts drawn from templates, or from a file; none is both learned from and held out."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from sled.errors import ParameterError

_HELD = 5  # one in so many is held out
_MOST_BYTES = 1 << 30


class Prompts(Protocol):
    """A source of prompts."""

    def draw(self, chance: random.Random, *, held_out: bool) -> str:
        """One prompt; those held out are never among the others."""


class TemplatePrompts:
    """Prompts from templates with slots, each filled from a list: stories, questions, code, rewriting, copying ...

    Of every list the last fifth is kept for prompts that are held out.
    """

    def __init__(self) -> None:
        table = tomllib.loads((files("sled.distill") / "templates.toml").read_text("utf-8"))
        self._templates: list[str] = table["templates"]
        self._styles: list[str] = table["styles"]
        self._slots: dict[str, list[str]] = table["slots"]

    def draw(self, chance: random.Random, *, held_out: bool) -> str:
        """See Prompts."""
        parts = {name: _part(values, held_out) for name, values in self._slots.items()}
        filled: dict[str, str] = {name: chance.choice(values) for name, values in parts.items()}
        filled |= {f"{name}2": chance.choice(values) for name, values in parts.items()}
        texts = parts["text"]
        filled["text"] = " ".join(chance.sample(texts, min(chance.randint(1, 3), len(texts))))
        return chance.choice(self._templates).format(**filled) + chance.choice(self._styles)


class FilePrompts:
    """Prompts from a file: one a line, or a JSON string a line where a prompt has several lines; every fifth held out.

    Args:
        path: of the file, UTF-8.

    Raises:
        ParameterError: it cannot be read, or has fewer than five prompts.
    """

    def __init__(self, path: Path) -> None:
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ParameterError(f"{path} has {path.stat().st_size} bytes, at most {_MOST_BYTES} are allowed")
            lines = path.read_text("utf-8").splitlines()
            found = [_line(line.strip()) for line in lines if line.strip()]
        except (OSError, ValueError) as error:
            if isinstance(error, ParameterError):
                raise
            raise ParameterError(f"prompts in {path} cannot be read: {error}; give one a line, as UTF-8") from None
        if len(found) < _HELD:
            raise ParameterError(f"{path} has {len(found)} prompts; {_HELD} or more are needed, one is held out")
        self._learned = [prompt for number, prompt in enumerate(found) if number % _HELD != _HELD - 1]
        self._held = [prompt for prompt in found[_HELD - 1 :: _HELD] if prompt not in set(self._learned)]
        if not self._held:
            raise ParameterError(f"{path} repeats its prompts so that none can be held out; give each once")

    def draw(self, chance: random.Random, *, held_out: bool) -> str:
        """See Prompts."""
        return chance.choice(self._held if held_out else self._learned)


def _part(values: Sequence[str], held_out: bool) -> list[str]:
    """The last fifth of a list, or the rest."""
    cut = len(values) - max(1, len(values) // _HELD)
    return list(values[cut:] if held_out else values[:cut])


def _line(line: str) -> str:
    if not line.startswith('"'):
        return line
    text = json.loads(line)
    if not isinstance(text, str) or not text:
        raise ValueError(f"{line[:60]} is no JSON string")
    return text


def open_prompts(path: str) -> Prompts:
    """The prompts a user names; empty are the package's own."""
    return FilePrompts(Path(path).expanduser()) if path else TemplatePrompts()
