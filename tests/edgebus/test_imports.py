"""What importing edgebus costs, and which modules stay pure."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import edgebus

PURE = [
    "config",
    "errors",
    "hub",
    "link",
    "messages",
    "requests",
    "wire",
    "arrays",
    "handshake",
    "stats",
    "keys",
    "zap",
]


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_import_is_fast_and_brings_no_sockets(tmp_path):
    code = (
        "import sys, time; start = time.thread_time(); import edgebus; took = time.thread_time() - start; "
        "print(took, [m for m in ('zmq', 'torch', 'numpy', 'typer') if m in sys.modules])"
    )
    byte_code = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}  # the first run compiles it
    outputs = [run(code, **byte_code).split(maxsplit=1) for _ in range(4)]
    assert min(float(took) for took, _ in outputs) < 0.150
    assert outputs[0][1].strip() == "[]"


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_load_without_zmq(module):
    assert run(f"import sys, edgebus.{module}; print('zmq' in sys.modules)").strip() == "False"


@pytest.mark.parametrize("module", ["hub", "link", "messages", "requests", "wire", "handshake"])
def test_machines_do_not_look_at_clock_threads_or_chance(module):
    import importlib

    names = vars(importlib.import_module(f"edgebus.{module}"))
    assert not {"time", "threading", "random", "os", "socket"} & set(names)


def test_every_public_name_exists():
    for name in edgebus.__all__:
        assert getattr(edgebus, name).__doc__
    with pytest.raises(AttributeError, match="Nodee"):
        edgebus.Nodee  # noqa: B018


def test_doctests_hold():
    import doctest

    from edgebus import node, testing, wire

    for module in (node, testing, wire):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0
