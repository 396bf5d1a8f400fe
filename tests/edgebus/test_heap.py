"""Memory of large messages is used again instead of being mapped anew, where the C library can be told to."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from edgebus import heap

SCRIPT = """
import resource, sys
import numpy as np
from edgebus.heap import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory(32 << 20)
def messages():
    held = [np.ones((1 << 20) + n, np.uint8) for n in range(6)]
messages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    messages()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc learns so")
def test_pages_of_freed_messages_are_not_faulted_in_again():
    without, kept = faults("left alone"), faults("kept")
    assert kept * 5 < without, (kept, without)


def test_it_asks_for_no_more_than_counts_and_for_nothing_twice(monkeypatch):
    asked = []
    monkeypatch.setattr(heap, "_kept", [0])
    monkeypatch.setattr(heap.np, "empty", lambda size, dtype: asked.append(size))
    for num_bytes in (1 << 20, 1 << 20, 1 << 40, 1 << 41, 5):
        heap.keep_freed_memory(num_bytes)
    assert asked == [1 << 20, (32 << 20) - (1 << 16)]
