"""Chat templates, which come with models and are not trusted: rendered by Jinja in its sandbox, as elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.utils import Namespace

from sled.targets.sandbox import Sandbox, begin, checked

_MOST_INDENT = 64


class _Generation(Extension):
    """The tag around an assistant's words, which means something in training only."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What is within the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Variables(Namespace):
    """`namespace()` of templates, without names that reach into Python."""

    def __init__(*args: Any, **named: Any) -> None:
        values = dict(*args[1:], **named)
        for name in values:
            _insist_plain(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _insist_plain(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:  # not what is in it: that may be a billion times the same
        return "<Namespace>"


def _insist_plain(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template sets {name!r}; names there begin with no underscore")


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _json(value: Any, **options: Any) -> str:
    kept = {name: options[name] for name in ("indent", "separators", "sort_keys") if name in options}
    for each in (kept.get("indent"), *(kept.get("separators") or ())):
        if (each if isinstance(each, int) else len(each or "")) > _MOST_INDENT:
            raise SecurityError(f"a chat template indents by more than {_MOST_INDENT}")
    return json.dumps(value, ensure_ascii=options.get("ensure_ascii", False), **kept)


def _mapping(*args: Any, **named: Any) -> dict[Any, Any]:
    return dict(*args, **named)


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    sandbox.filters["tojson"] = checked("tojson", _json)
    sandbox.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": _Variables,
        "dict": _mapping,
    }
    return sandbox.from_string(template)


def render(template: str, messages: Sequence[Mapping[str, str]], special: Mapping[str, str]) -> str:
    """A conversation up to where the next answer begins.

    Args:
        template: Jinja source.
        messages: with `role` and `content`.
        special: tokens by the names which templates use.

    Raises:
        TemplateError: the template is none, refuses, fails, or takes too long (sandbox.py).
    """
    known = {"tools": None, "documents": None, "add_generation_prompt": True}
    try:
        compiled = _compiled(template)
        begin()
        return compiled.render(messages=[dict(each) for each in messages], **known, **special)
    except TemplateError:
        raise
    except Exception as error:  # what Python raises in the middle of it is the template's doing
        raise TemplateError(f"{type(error).__name__}: {error}") from error
