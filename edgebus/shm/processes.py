"""Is it still the same process: a pid is told apart from its next holder by when that one started (Linux)."""

from __future__ import annotations

from pathlib import Path


def process_start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of the process; None if there is none, or none that we can see."""
    stat = _stat(pid)
    return stat[2] if stat is not None else None


def process_alive(pid: int, start_time: int) -> bool:
    """Whether the process with this pid that started then can still read memory.

    A zombie cannot, unless it is the first thread of a process whose others go on.
    """
    stat = _stat(pid)
    if stat is None:
        return False
    state, num_threads, started = stat
    return started == start_time and (state not in "ZX" or num_threads > 1)


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State letter, number of threads and start time."""
    try:
        return parse_stat(Path(f"/proc/{pid:d}/stat").read_bytes())
    except (OSError, ValueError, IndexError):
        return None


def parse_stat(content: bytes) -> tuple[str, int, int]:
    """Fields 3, 20 and 22 of /proc/<pid>/stat; the name in field 2 may hold spaces and brackets.

    Raises:
        ValueError, IndexError: not such a line.
    """
    fields = content[content.rindex(b")") + 1 :].split()
    return fields[0].decode("ascii"), int(fields[17]), int(fields[19])
