"""Fault scripts: what happens when. They print as they are written, and can be read back.

>>> script = Script(at(2.0, partition("a", "b")), between(1.0, 5.0, loss(0.3, "a", "b")))
>>> script
Script(at(2.0, partition('a', 'b')), between(1.0, 5.0, loss(0.3, 'a', 'b')))
>>> Script.parse(repr(script)) == script
True
"""

# ruff: noqa: N801 - as in faults.py
from __future__ import annotations

import ast
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgebus.testing.faults import (
    FAULTS,
    CableFault,
    Fault,
    bandwidth,
    clock,
    corrupt,
    crash,
    delay,
    duplicate,
    freeze,
    half_open,
    loss,
    partition,
    reorder,
    reset,
    restart,
)


@dataclass(frozen=True, repr=False)
class at(Fault):
    """A fault happens, or one of a cable is in force from then on."""

    at_s: float
    fault: Fault

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.fault, Fault) or isinstance(self.fault, at | between):
            raise TypeError(f"at: {self.fault!r} is no fault")


@dataclass(frozen=True, repr=False)
class between(Fault):
    """A fault of a cable is in force from one time to another."""

    from_s: float
    to_s: float
    fault: CableFault

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.fault, CableFault):
            raise ValueError(f"between: {self.fault!r} happens at an instant: write at({self.from_s}, ...)")
        if self.to_s < self.from_s:
            raise ValueError(f"between: it ends at {self.to_s} s, before it begins at {self.from_s} s")


Step = at | between


class Script:
    """Steps in virtual seconds from the network's beginning; a value.

    Args:
        steps: at(...) and between(...), in any order.
    """

    def __init__(self, *steps: Step) -> None:
        for step in steps:
            if not isinstance(step, at | between):
                raise TypeError(f"a step is at(...) or between(...), got {step!r}")
        self.steps = steps

    def __repr__(self) -> str:
        return f"Script({', '.join(map(repr, self.steps))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Script) and self.steps == other.steps

    def __hash__(self) -> int:
        return hash(self.steps)

    def __add__(self, other: Script) -> Script:
        return Script(*self.steps, *other.steps)

    @property
    def end_s(self) -> float:
        """When the last step is over: from then on nothing is wrong but what at(...) left so."""
        return max(map(_ends_at, self.steps), default=0.0)

    @staticmethod
    def parse(text: str) -> Script:
        """Read what repr() printed; nothing is executed.

        Raises:
            ValueError: it is not a script.
        """
        try:
            script = _build(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise ValueError(f"not a script: {error}") from None
        if not isinstance(script, Script):
            raise ValueError(f"not a script but {script!r}")
        return script

    @staticmethod
    def random(
        seed: int, nodes: Sequence[str], duration_s: float, *, kinds: Sequence[type[Fault]] | None = None
    ) -> Script:
        """One to six faults by chance; all are over by `duration_s`, but for clocks.

        Args:
            seed: the same one gives the same script.
            nodes: names, at least two.
            duration_s: when all is well again.
            kinds: which faults, None for all; corrupt only as receivers must notice it.
        """
        kinds = kinds or [kind for kind in FAULTS if kind in _BY_CHANCE]
        if len(nodes) < 2:
            raise ValueError(f"faults need two nodes, got {list(nodes)}")
        chance = random.Random(f"script {seed}")  # noqa: S311 - to be repeatable is the point
        return Script(*(_step(chance.choice(kinds), nodes, duration_s, chance) for _ in range(chance.randint(1, 6))))

    def simplest(self, fails: Callable[[Script], bool]) -> Script:
        """Leave out every step without which it still fails.

        Args:
            fails: runs a script, True if it fails.
        """
        script = self
        for step in self.steps:
            shorter = Script(*(other for other in script.steps if other is not step))
            if fails(shorter):
                script = shorter
        return script


def _ends_at(step: Step) -> float:
    if isinstance(step, between):
        return step.to_s
    match step.fault:
        case crash(down_s=lasts_s) | freeze(for_s=lasts_s):
            return step.at_s + (lasts_s or 0.0)
    return step.at_s


_WORDS: dict[str, Callable[..., Any]] = {"Script": Script} | {word.__name__: word for word in (*FAULTS, at, between)}


def _build(tree: ast.expr) -> object:
    if isinstance(tree, ast.Starred):
        raise ValueError(f"not a script: {ast.unparse(tree)!r} stands for several words")
    if not isinstance(tree, ast.Call):
        return ast.literal_eval(tree)
    word = _WORDS.get(tree.func.id) if isinstance(tree.func, ast.Name) else None
    if word is None:
        raise ValueError(f"not a script: {ast.unparse(tree.func)!r} is not one of {' '.join(_WORDS)}")
    named = {item.arg: _build(item.value) for item in tree.keywords if item.arg is not None}
    return word(*map(_build, tree.args), **named)


# -- by chance ------------------------------------------------------------------------------------------

_Ends = tuple[str, str]
_OF_CABLES: dict[type[Fault], Callable[[random.Random, _Ends, bool], CableFault]] = {
    loss: lambda chance, ends, one_way: loss(_up_to(chance, 0.5), *ends, one_way),
    duplicate: lambda chance, ends, one_way: duplicate(_up_to(chance, 0.5), *ends, one_way),
    delay: lambda chance, ends, one_way: delay(0.0, _up_to(chance, 1.0), *ends, one_way),
    reorder: lambda chance, ends, one_way: reorder(_up_to(chance, 0.5), _up_to(chance, 2.0), *ends, one_way),
    bandwidth: lambda chance, ends, one_way: bandwidth(float(chance.randint(500, 20_000)), *ends, one_way),
    corrupt: lambda chance, ends, one_way: corrupt(_up_to(chance, 0.5), *ends, one_way),
    partition: lambda chance, ends, one_way: partition(*ends),
    half_open: lambda chance, ends, one_way: half_open(*ends),
}
_AT_INSTANTS: dict[type[Fault], Callable[[random.Random, _Ends, float], Fault]] = {
    reset: lambda chance, ends, left_s: reset(*ends),
    crash: lambda chance, ends, left_s: crash(ends[0], _up_to(chance, left_s), chance.random() < 0.5),
    restart: lambda chance, ends, left_s: restart(ends[0]),
    freeze: lambda chance, ends, left_s: freeze(ends[0], _up_to(chance, left_s)),
    clock: lambda chance, ends, left_s: clock(
        ends[0], drift=round(chance.uniform(0.98, 1.02), 4), jump_s=_up_to(chance, 3.0)
    ),
}
_BY_CHANCE = {*_OF_CABLES, *_AT_INSTANTS}


def _step(kind: type[Fault], nodes: Sequence[str], duration_s: float, chance: random.Random) -> Step:
    a, b = chance.sample(nodes, 2)
    begins_s, ends_s = sorted((_up_to(chance, duration_s), _up_to(chance, duration_s)))
    if kind in _OF_CABLES:
        return between(begins_s, ends_s, _OF_CABLES[kind](chance, (a, b), chance.random() < 0.3))
    if kind not in _AT_INSTANTS:
        raise ValueError(f"{kind.__name__} does not come by chance: it undoes others")
    if kind is clock and chance.random() < 0.5:
        return at(0.0, clock(a, float(chance.randint(-1000, 1000))))  # later it would be a jump of that size
    return at(begins_s, _AT_INSTANTS[kind](chance, (a, b), ends_s - begins_s))


def _up_to(chance: random.Random, most: float) -> float:
    """Few digits, rounded down: scripts are read by people."""
    return int(chance.uniform(0, most) * 1000) / 1000
