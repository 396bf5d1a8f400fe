"""Jinja's sandbox with bounds: a chat template is done soon and makes texts of such a size, or is refused.

Jinja keeps templates from Python, not from time or memory: `range` ends at 100,000, three of those within each other
never do, and a text that is doubled 40 times is a terabyte. transformers renders templates in that sandbox as it is.
Here loops and calls are counted, what they make is weighed, and what would make too much in one go is looked at before.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, Sized, ValuesView
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler
from jinja2.visitor import NodeTransformer

MOST_STEPS = 200_000
"""Rounds of loops and calls while one conversation is rendered: those of today take some tens for each message."""
MOST_S = 5.0
"""Of a core, for what takes few steps and long ones."""
MOST = 1 << 22
"""Characters of a text, bytes of a number, 16 for each item of a list and what is in there."""
_ITEM = 16
_FILTERS = frozenset((
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape",
    "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min",
    "reject", "rejectattr", "replace", "reverse", "safe", "select", "selectattr", "sort", "string", "sum", "title",
    "tojson", "trim", "truncate", "unique", "upper",
))  # fmt: skip
_NO_METHODS = frozenset(
    ("center", "encode", "expandtabs", "ljust", "maketrans", "rjust", "to_bytes", "translate", "zfill")
)
_WIDE = re.compile(r"\d{5}|:[^{}]*\{|%[^%]*\*")  # of a format: 10,000 characters or more, or what an argument says


class _Spent(threading.local):
    steps, until = 0, 0.0


_spent = _Spent()


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's, in which whatever a template does ends soon."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = {name: checked(name, each) for name, each in self.filters.items() if name in _FILTERS}
        self.globals.pop("lipsum")
        self.globals["cycler"] = _cycler

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """What a loop goes through."""
        for item in items:
            _spend()
            yield item

    def weighed(self, thing: Any) -> Any:
        """A list or a mapping that a template writes down: in a few lines it may have itself in it a billion times."""
        _spend(thing)
        return thing

    def joined(self, *things: Any) -> str:
        """Texts one behind the other."""
        return _concat(map(str, things))

    def call(self, context: Context, function: Any, /, *args: Any, **options: Any) -> Any:
        """See SandboxedEnvironment."""
        if isinstance(function, LoopContext):  # one that calls itself
            args = tuple(map(self.counted, args))
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            args = tuple(map(_listed, args))
            _look(function.__name__, (owner, *args, *options.values()))
        made = super().call(context, function, *args, **options)
        _spend(made)
        return made

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """See SandboxedEnvironment."""
        if _size(operator, left, right) > MOST // 4:
            raise SecurityError(f"a chat template computes a {operator} b of more than {MOST // 4} bits or items")
        if operator == "%" and isinstance(left, str):
            _look("format", (left, right))
        made = super().call_binop(context, operator, left, right)
        _spend(made)
        return made

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """See SandboxedEnvironment."""
        unbounded = attr in _NO_METHODS and isinstance(obj, str | int)
        return not unbounded and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """See SandboxedEnvironment: of `format` and `format_map`, what templates get instead."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def formatted(*args: Any, **options: Any) -> str:
            _look("format", (value.__self__, *args, *options.values()))
            return wrapped(*args, **options)

        return formatted

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        begin()  # what is constant is computed with the template
        tree: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """The text of a template, a macro or a block."""
        return _concat(pieces)


def begin() -> None:
    """A template is about to be rendered on this thread."""
    _spent.steps, _spent.until = 0, time.thread_time() + MOST_S


def checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is looked at before it runs, and what it makes afterwards."""

    @wraps(function)
    def filtered(*args: Any, **options: Any) -> Any:
        if name == "join":
            args = tuple(map(_listed, args))
        _look(name, (*args, *options.values()))
        made = function(*args, **options)
        _spend(made)
        return made

    return filtered


class _Bounds(NodeTransformer):
    """Has loops counted, and lists and texts weighed."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja's names
        self.generic_visit(node)
        node.iter = _call("counted", [node.iter])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("joined", node.nodes)

    def visit_Name(self, node: nodes.Name) -> nodes.Node:  # noqa: N802
        is_made = node.ctx == "load" and node.name in ("varargs", "kwargs")  # of what a macro is given
        return _call("weighed", [node]) if is_made else node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("weighed", [node])

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("weighed", [node])

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("weighed", [node]) if node.ctx == "load" else node


def _call(name: str, args: list[Any]) -> nodes.Call:
    at = args[0].lineno if args else 1
    return nodes.Call(nodes.EnvironmentAttribute(name, lineno=at), args, [], None, None, lineno=at)


def _spend(made: Any = None) -> None:
    """Count a step, and what it made.

    Raises:
        SecurityError: there were too many, they took too long, or it is too large.
    """
    _spent.steps += 1 + _weight(made)
    if _spent.steps > MOST_STEPS:
        raise SecurityError(f"a chat template takes more than {MOST_STEPS} steps, in loops and calls")
    if time.thread_time() > _spent.until:
        raise SecurityError(f"a chat template takes more than {MOST_S:.0f} s")


def _cycler(*things: Any) -> Cycler:
    _spend(things)
    return Cycler(*things)


def _weight(thing: Any) -> int:
    """Steps that a thing stands for; it is refused if it is too large."""
    total, num_seen = _weigh(thing)
    return (num_seen >> 4) + (total >> 14)


def _weigh(thing: Any) -> tuple[int, int]:
    """What a thing weighs, and how many there are in it; it is refused if it is too large."""
    total, num_seen = 0, 0
    left: list[Any] = [thing]
    while left:
        each = left.pop()
        num_seen += 1
        if isinstance(each, str | bytes):
            total += len(each)
        elif isinstance(each, int):
            total += each.bit_length() >> 3
        elif isinstance(each, Mapping | KeysView | ValuesView | ItemsView | list | tuple | set | frozenset):
            total += _ITEM * len(each)
            if total <= MOST:
                left += each
                left += each.values() if isinstance(each, Mapping) else ()
        if total > MOST:
            raise SecurityError(f"a chat template makes a text or a list that weighs more than {MOST}")
    return total, num_seen


def _concat(pieces: Iterable[str]) -> str:
    kept, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MOST:
            raise SecurityError(f"a chat template makes a text of more than {MOST} characters")
        kept.append(piece)
    return "".join(kept)


def _size(operator: str, left: Any, right: Any) -> int:
    """Bits or items that come out, at most; 0 for what is small whatever it is."""
    if operator in "+%":
        return 0
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
    for sequence, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(sequence, Sized):
            return len(sequence) * times
    return 0


def _listed(thing: Any) -> Any:
    """What comes one by one, as a list: its size is known."""
    if not isinstance(thing, Iterator):
        return thing
    listed = []
    for each in thing:
        _spend()
        listed.append(each)
    return listed


def _look(name: str, args: Sequence[Any]) -> None:
    """Refuse what would make too much of what it is given, before it does.

    Args:
        name: of a filter or a method of texts.
        args: what it is given; a filter may have a context before that.
    """
    texts, size = [each for each in args if isinstance(each, str)], 0
    if name == "replace" and len(texts) > 2:
        size = (len(texts[0]) // max(1, len(texts[1])) + 1) * len(texts[2])
    elif name == "join":
        counts = [len(each) for each in args if isinstance(each, Sized) and not isinstance(each, str)]
        between = max(map(len, texts), default=0)
        size = max([*counts, between]) * between if texts else 0
    elif name == "indent" and texts:
        widths = [abs(each) for each in args if isinstance(each, int)] + [len(each) for each in texts[1:]]
        size = (texts[0].count("\n") + 1) * max(widths, default=4)
    elif name in ("format", "format_map") and texts:
        num_fields = texts[0].count("{") + texts[0].count("%")
        size = MOST + 1 if _WIDE.search(texts[0]) else num_fields * (10_000 + max(_weigh(each)[0] for each in args))
    if size > MOST:
        raise SecurityError(f"a chat template makes more than {MOST} characters by {name}")
