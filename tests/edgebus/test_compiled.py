"""The hot path compiled and as plain Python: which one runs, and that the plain one works too."""

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILED = [path.stem for path in sorted(Path(importlib.import_module("edgebus").__file__).parent.glob("*.pxd"))]
TESTS = Path(__file__).parent
SUITES = ("test_express.py", "test_inbox.py", "test_requests.py", "test_copies.py", "test_failures.py")


def loaded(**environment):
    code = (
        "import importlib, sys, edgebus\n"
        "for name in sys.argv[1:]:\n"
        "    print(name, importlib.import_module(f'edgebus.{name}').__file__)\n"
    )
    names = [name for name in COMPILED if name != "_port"]
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def test_modules_with_types_are_compiled_wherever_a_compiler_is():
    if not shutil.which("cc"):
        pytest.skip("no compiler")
    assert len(COMPILED) > 8
    assert [name for name, path in loaded(EDGEBUS_PURE="").items() if path.endswith(".py")] == []
    assert importlib.util.find_spec("edgebus._port") is not None


def test_plain_python_can_be_asked_for():
    assert [name for name, path in loaded(EDGEBUS_PURE="1").items() if not path.endswith(".py")] == []


def test_plain_python_passes_the_same_tests():
    suites = [str(TESTS / name) for name in SUITES if (TESTS / name).exists()]
    assert len(suites) > 3
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *suites]
    done = subprocess.run(
        command, env=os.environ | {"EDGEBUS_PURE": "1"}, cwd=TESTS.parents[1], capture_output=True, text=True,
        timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
