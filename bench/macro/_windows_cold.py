"""First answers of devices that know nothing: auto beside every fixed window, in the mean over many short texts.

The best of many windows on one text is the one that was lucky there, and no rule can be as good. So windows are held
against each other by what they bring over all texts. What luck is worth is told along. Pure.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bench.macro._links_texts import Text
from bench.macro._links_world import FIXED, Cell, World
from sled.learned import Learned
from sled.messages import FORWARD_SIZES
from sled.pace import AutoPace, FixedPace, Pace
from sled.window import Window

TOKENS, TEXTS = 30, 24
MOST_DRAFTS = 16


@dataclass(frozen=True)
class First:
    """What one world came to.

    Args:
        auto: tokens per second over all texts, each the first answer of its device, of a server that tells what
            its forwards take.
        untold: the same of a server that tells nothing.
        window: the fixed window that is best over all texts.
        fixed: tokens per second of that.
        luck: what that window brings on a text, in parts of the window that is best there; mean over the texts.
    """

    auto: float
    untold: float
    window: int
    fixed: float
    luck: float


def new_pace(cell: Cell, *, told: bool) -> AutoPace:
    """Of a device that has drafted nothing yet, told what forwards take as a server tells it, or not."""
    pace = AutoPace(Learned())
    if told:
        pace.opened([cell.forward_s(size) for size in FORWARD_SIZES])
    return pace


def seconds(cell: Cell, pace: Callable[[], Pace], limit: int, *, tokens: int, texts: int, seed: int) -> list[float]:
    """Of each text's answer, each of a new pace."""
    found = []
    for number in range(texts):
        of = seed * 1000 + number
        world = World(cell, Text.of(cell.drafter, tokens + 200, of), pace(), tokens, limit, of)
        world.run()
        found.append(world.now)
    return found


def first_answers(cell: Cell, *, seed: int, tokens: int = TOKENS, texts: int = TEXTS) -> First:
    """One world."""
    auto, untold = (
        sum(
            seconds(
                cell, lambda told=told: new_pace(cell, told=told), MOST_DRAFTS, tokens=tokens, texts=texts, seed=seed
            )
        )
        for told in (True, False)
    )
    fixed = {
        size: seconds(cell, lambda size=size: FixedPace(Window(size)), size, tokens=tokens, texts=texts, seed=seed)
        for size in FIXED
    }
    best = min(fixed, key=lambda size: sum(fixed[size]))
    luck = statistics.mean(min(each) / mine for mine, *each in zip(fixed[best], *fixed.values(), strict=True))
    total = tokens * texts
    return First(total / auto, total / untold, best, total / sum(fixed[best]), luck)
