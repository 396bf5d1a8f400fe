"""What a process uses: CPU time and resident memory."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def own() -> dict[str, float]:
    """CPU seconds (user and system) of this process so far, and its resident bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_s": used.ru_utime + used.ru_stime, "rss_bytes": _resident_bytes("self")}


def of(pid: int) -> dict[str, float]:
    """The same of another process, its CPU time in ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return {"cpu_s": (int(fields[11]) + int(fields[12])) * _TICK_S, "rss_bytes": _resident_bytes(str(pid))}


def raise_file_limit() -> None:
    """Allow this process as many open files as the system lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _resident_bytes(process: str) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_BYTES
