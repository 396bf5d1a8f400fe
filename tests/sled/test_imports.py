"""What loads when."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", ["serve", "generate"])
def test_threads_of_the_command_line_do_not_spin_while_they_wait(command):
    """OpenMP reads its environment when it is loaded: nothing may load it before the commands have set that."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-m", "sled.cli", command, "--help"],
        env={**environment, "OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    said = [line.split("=")[1].strip() for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert said
    assert set(said) == {"'0'"}
