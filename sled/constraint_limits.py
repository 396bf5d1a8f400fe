"""Bounds on what a constraint may ask of the grammar library, checked before the library sees it.

The library bounds most of its own work, but not how deep it recurses (chains of rules or references of a few ten
kilobytes end the process), nor what divisibility and intersections of expressions take. Pure; the bounds are cheap and
conservative.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from sled.types import MAX_CONSTRAINT_CHARS

MAX_DEPTH = 64  # of brackets in a schema
MAX_LEVELS = 500  # of a schema with every reference followed; 8 MB of stack overflow at 1,400 to 6,000
MAX_MARKS = 1000  # of a grammar: colons and brackets; 8 MB of stack overflow at 3,500
MAX_DIVISOR = 4096  # an automaton of so many states
MAX_MERGED = 8  # expressions that a text may have to match at once: time and memory double with each
_NOTES = {
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "$defs",
    "$schema",
}
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def check_schema(text: str) -> dict[str, Any]:
    """The schema that a text holds.

    Raises:
        ValueError: it is no JSON object, or beyond a bound.
    """
    _check_size(text)
    try:
        schema = json.loads(text)
    except RecursionError:
        raise ValueError(f"the JSON schema is nested too deeply; at most {MAX_DEPTH} levels are allowed") from None
    except ValueError as error:
        raise ValueError(f"the JSON schema is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ValueError(f"the JSON schema is {type(schema).__name__}; give an object, {{}} for any JSON")
    walk = _Walk(schema)
    levels = walk.depth + sum(_depth(_resolve(schema, name)) for name in walk.references)
    if levels > MAX_LEVELS:
        raise ValueError(
            f"the JSON schema has {levels} levels with its {len(walk.references)} references followed; "
            f"at most {MAX_LEVELS} are allowed: divide it"
        )
    if walk.divisor > MAX_DIVISOR:
        raise ValueError(
            f"multipleOf values of the JSON schema have the common multiple {walk.divisor} (powers of ten left out); "
            f"at most {MAX_DIVISOR} is allowed: use smaller ones"
        )
    if walk.merges and len(walk.expressions) > MAX_MERGED:
        raise ValueError(
            f"the JSON schema merges parts (allOf, or $ref, anyOf or oneOf beside other keys) and has "
            f"{len(walk.expressions)} different patterns and formats; at most {MAX_MERGED} are allowed: merge by hand"
        )
    return schema


def check_regex(text: str) -> None:
    """Insist on the size of an expression; the library bounds its nesting.

    Raises:
        ValueError: it is too long.
    """
    _check_size(text)


def check_grammar(text: str) -> None:
    """Insist on the bounds of a Lark grammar.

    Raises:
        ValueError: it is beyond a bound, or embeds a grammar of another kind, whose bounds are not checked.
    """
    _check_size(text)
    marks = sum(text.count(mark) for mark in ":([{~")
    if marks > MAX_MARKS:
        raise ValueError(f"the grammar has {marks} colons, brackets and ~; at most {MAX_MARKS} are allowed: divide it")
    sets = text.count("&") + text.count("~")
    if sets > MAX_MERGED - 2:
        raise ValueError(f"the grammar has {sets} & and ~; at most {MAX_MERGED - 2} are allowed: write them out")
    embedded = re.search(r"%(json|lark|llguidance)|@\w", text)
    if embedded:
        raise ValueError(f"the grammar uses {embedded[0]!r}, which is not allowed; give a constraint of one kind")


def _check_size(text: str) -> None:
    if len(text) > MAX_CONSTRAINT_CHARS:
        raise ValueError(f"the constraint has {len(text)} characters; at most {MAX_CONSTRAINT_CHARS} are allowed")


class _Walk:
    """What a schema holds: depth, distinct references and expressions, and the common multiple of its divisors."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.depth = _depth(schema)
        self.references: set[str] = set()
        self.expressions: set[str] = set()
        self.divisor = 1
        self.merges = False
        waiting: list[Any] = [schema]
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict):
                self._look_at(node)
                waiting += node.values()
            elif isinstance(node, list):
                waiting += node

    def _look_at(self, node: dict[str, Any]) -> None:
        merging = {"$ref", "anyOf", "oneOf"} & node.keys()
        self.merges |= "allOf" in node or len(merging) > 1 or bool(merging and node.keys() - merging - _NOTES)
        self.expressions |= {node[key] for key in ("pattern", "format") if isinstance(node.get(key), str)}
        patterns = node.get("patternProperties")
        self.expressions |= set(patterns) if isinstance(patterns, dict) else set()
        self.references |= {node[key] for key in _REFERENCES if isinstance(node.get(key), str)}
        divisor = node.get("multipleOf")
        if isinstance(divisor, int | float) and not isinstance(divisor, bool):
            exact = Decimal(repr(divisor))  # not normalised, which rounds
            if exact and exact.is_finite():
                digits = "".join(map(str, exact.as_tuple().digits)).rstrip("0")
                self.divisor = min(math.lcm(self.divisor, int(digits)), 10**12)


def _depth(node: Any) -> int:
    """Levels of brackets.

    Raises:
        ValueError: more than MAX_DEPTH.
    """
    level, depth = [node], 0
    while level:
        level = [child for parent in level for child in _children(parent)]
        depth += 1
        if depth > MAX_DEPTH + 1:
            raise ValueError(f"the JSON schema is nested too deeply; at most {MAX_DEPTH} levels are allowed")
    return depth - 1


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values()) or [None]
    return (node or [None]) if isinstance(node, list) else []


def _resolve(schema: Any, reference: str) -> Any:
    """What a reference within the schema points at.

    Raises:
        ValueError: it points elsewhere, or at nothing.
    """
    if reference != "#" and not reference.startswith("#/"):
        raise ValueError(
            f"the JSON schema refers to {reference[:100]!r}; only references like '#/$defs/name' are allowed"
        )
    node = schema
    for step in reference.split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        elif isinstance(node, dict) and name in node:
            node = node[name]
        else:
            raise ValueError(f"the JSON schema refers to {reference[:100]!r}, which it does not hold; define it")
    return node
