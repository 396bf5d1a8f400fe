"""A progress bar on stderr while something loads: a live bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
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
