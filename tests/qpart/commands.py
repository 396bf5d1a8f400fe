"""`qpart` in this process, and what its errors look like."""

from __future__ import annotations

import sys

import msgspec
import pytest


class Ran(msgspec.Struct):
    """What a command said."""

    status: int
    out: str
    err: str


def caller(monkeypatch, capsys):
    """`qpart` as a function; keyword arguments are options."""
    from qpart.cli import main

    def call(*arguments, **options):
        flat = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        monkeypatch.setattr(sys, "argv", ["qpart", *map(str, arguments), *flat])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Ran(ended.value.code or 0, said.out, said.err)

    return call


def assert_one_line(ran, status, *words):
    """One line of error with this status and these words."""
    assert ran.status == status, ran
    lines = [line for line in ran.err.splitlines() if not line.startswith("calibrating")]
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("qpart: ")
    for word in words:
        assert word in lines[0], lines[0]
