"""Scripts in a process of their own, which may die of what they touch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guard pages are set with mprotect")

SETUP = """
import ctypes, sys
import numpy as np
from tests.edgekernels.guarded import PAGE, guarded, keep
"""


def run(script: str, level: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script that finds numpy (`np`), `guarded` and what belongs to it, and its level in `sys.argv[1]`."""
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", SETUP + script, level]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths} | environment,
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
