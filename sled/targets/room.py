"""How many pages of keys and values a target has."""

from __future__ import annotations

import os

from sled.errors import ParameterError

PAGE_TOKENS_ON_CPU = 16
SHARE_ON_CPU = 0.25  # of what is free once the model is loaded
_MOST_PAGES = 1 << 16  # by default; more only if asked for


def host_bytes() -> int:
    """Memory that could be had of this machine."""
    try:
        with open("/proc/meminfo") as file:
            found = next(line for line in file if line.startswith("MemAvailable"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def pages_in(kv_bytes: int | None, page_bytes: int, page_tokens: int, *, by_default: float) -> int:
    """How many pages `kv_bytes` holds, None being as many bytes as `by_default`.

    Raises:
        ParameterError: not even one page.
    """
    if kv_bytes is None:
        return max(1, min(int(by_default) // page_bytes, _MOST_PAGES))
    if kv_bytes < page_bytes:
        raise ParameterError(f"kv_bytes is {kv_bytes}; one page of {page_tokens} tokens needs {page_bytes}")
    return kv_bytes // page_bytes


def insist_on_pages(num_pages: int, least: int, page_bytes: int) -> None:
    """Insist on as many pages as the check at load needs.

    Raises:
        ParameterError: there are fewer.
    """
    if num_pages < least:
        raise ParameterError(f"kv_bytes gives {num_pages} pages of {page_bytes} bytes; give room for {least} or more")
