"""A progress bar on stderr while something loads: a live bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


@contextmanager
def load_bar(title: str, *, quiet: bool = False) -> Iterator[Callable[[float], None]]:
    """Show `title` and the share done, which the caller reports as 0 .. 1 through the yielded function."""
    if quiet:
        yield lambda share: None
    elif sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=1.0)
            yield lambda share: progress.update(task, completed=share)
            progress.update(task, completed=1.0)
    else:
        yield _Lines(title)


class _Lines:
    """Prints a line each time another quarter is done."""

    def __init__(self, title: str) -> None:
        self._title, self._next = title, 0.0

    def __call__(self, share: float) -> None:
        while share >= self._next:
            print(f"{self._title}: {self._next:.0%}", file=sys.stderr, flush=True)
            self._next += 0.25


@contextmanager
def stage_bar(title: str) -> Iterator[Callable[[str, float], None]]:
    """Like `load_bar` for long work: the yielded function takes the stage's name and the share of all work done.

    Shows the stage and the time left, which is judged by the pace since the start.
    """
    if not sys.stderr.isatty():
        lines = _StageLines(title)
        yield lines
        lines("done", 1.0)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task, pace = progress.add_task(title, total=1.0, left=""), _Pace()

        def update(stage: str, share: float) -> None:
            progress.update(task, description=f"{title}: {stage}", completed=share, left=pace.left(share))

        yield update
        progress.update(task, completed=1.0, left="")


class _Pace:
    """Time left by the pace since the first share that was told; what was done before it took no time now."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: tuple[float, float] | None = None

    def left(self, share: float) -> str:
        """For people; empty while nothing can be said."""
        now = self._clock()
        if self._start is None or share <= self._start[1]:
            self._start = self._start or (now, share)
            return ""
        began, first = self._start
        seconds = (now - began) * (1 - share) / (share - first)
        return f"{seconds:.0f} s left" if seconds < 100 else f"{seconds / 60:.0f} min left"


class _StageLines:
    """Prints a line when a stage begins, and each time another tenth is done."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._next, self._stage, self._pace = title, 0.0, "", _Pace(clock)

    def __call__(self, stage: str, share: float) -> None:
        left = self._pace.left(share)
        if stage == self._stage and share < self._next:
            return
        self._stage, self._next = stage, share + 0.1
        print(f"{self._title}: {share:.0%}, {stage}{f', {left}' if left else ''}", file=sys.stderr, flush=True)
