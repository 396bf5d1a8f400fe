"""What the guide to testing says is so, and its example does what it claims."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgebus.testing import faults

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide" / "testing.md"


@pytest.mark.net
def test_guide_runs_as_it_stands():
    result = doctest.testfile(str(GUIDE), module_relative=False)
    assert result.attempted > 8
    assert result.failed == 0


def test_guide_names_every_fault():
    text = GUIDE.read_text()
    for fault in faults.FAULTS:
        assert f"`{fault.__name__}(" in text


@pytest.mark.parametrize("name", ["clocks", "faults", "script", "pipe"])
def test_doctests_hold(name):
    result = doctest.testmod(importlib.import_module(f"edgebus.testing.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_example_tells_the_right_server_from_the_careless_one():
    command = [sys.executable, str(ROOT / "examples" / "device_under_faults.py")]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    right, careless = out.splitlines()
    assert right == "50 seeds: every reading is counted once"
    assert re.fullmatch(
        r"careless server: the total is \d+, not 36; seed \d+ fails; .* it replayed exactly: .*", careless
    )
