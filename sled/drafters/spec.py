"""What users write to name a drafter: `ngram`, `torch:DIR`, `smollm2-135m@bits=4,group=64`, `ngram+smollm2-12m`.

spec    = one *("+" one)            a "+" divides only behind a name without a path
one     = [backend ":"] model ["@" options]
options = key "=" value *("," (key "=" value | value))      a value alone goes on with the list before it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sled.errors import ParameterError

BACKENDS = ("native", "torch", "llama")
_OPTIONS = re.compile(r"@([a-z_]+=[^/@]*)$")
_NAME = re.compile(r"[A-Za-z0-9_.-]+(@[^/+]*)?$")


@dataclass(frozen=True, slots=True)
class Spec:
    """One drafter as it was named; `text` is all of it."""

    text: str
    backend: str
    model: str
    options: Mapping[str, str]


def divided(text: str) -> tuple[str, str]:
    """The first drafter of a chain and the rest of it, which is empty for a single one.

    >>> divided("ngram+smollm2-12m"), divided("./a+b.gguf")
    (('ngram', 'smollm2-12m'), ('./a+b.gguf', ''))
    """
    first, plus, rest = text.partition("+")
    return (first, rest) if plus and rest and _NAME.match(first) else (text, "")


def parse(text: str) -> Spec:
    """A single drafter.

    Raises:
        ParameterError: an option is not KEY=VALUE, or comes twice.

    >>> parse("torch:dir@skip=5,17,bits=4").options
    {'skip': '5,17', 'bits': '4'}
    """
    rest, backend = text, ""
    head, colon, tail = text.partition(":")
    if colon and head in BACKENDS:
        backend, rest = head, tail
    found = _OPTIONS.search(rest)
    options: dict[str, str] = {}
    if found:
        rest = rest[: found.start()]
        key = ""
        for item in found[1].split(","):
            name, equals, value = item.partition("=")
            if equals and name in options:
                raise ParameterError(f"drafter {text!r} has {name} twice; give it once")
            if equals:
                key, options[name] = name, value
            else:
                options[key] += f",{item}"
    return Spec(text, backend, rest, options)


def numbers(spec: Spec, key: str) -> tuple[int, ...]:
    """A list of numbers and ranges, e.g. `5,17` or `10-14`; empty if it is not there.

    Raises:
        ParameterError: it is no such list.

    >>> numbers(parse("m@skip=2,5-7"), "skip")
    (2, 5, 6, 7)
    """
    text = spec.options.get(key)
    if text is None:
        return ()
    found: list[int] = []
    for item in text.split(","):
        bounds = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", item)
        several = range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1) if bounds else range(0)
        if not several:
            raise ParameterError(f"{key} is {text!r} in {spec.text!r}; give numbers, e.g. 5,17 or 10-14")
        found += several
    return tuple(sorted(set(found)))


def number(spec: Spec, key: str, low: int, high: int) -> int | None:
    """A whole number, or None if it is not there.

    Raises:
        ParameterError: it is none, or out of its range.
    """
    text = spec.options.get(key)
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,6}", text) or not low <= int(text) <= high:
        raise ParameterError(f"{key} is {text!r} in {spec.text!r}; give a whole number from {low} to {high}")
    return int(text)


def insist_known(spec: Spec, known: tuple[str, ...]) -> None:
    """Refuse options that mean nothing.

    Raises:
        ParameterError: an option is not among those known.
    """
    for key in spec.options:
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ParameterError(f"drafter {spec.text!r}: option {key!r} means nothing here; {takes}")
