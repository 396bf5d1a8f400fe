"""The guide of devices: its Python runs, its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from qpart.metrics import HELP
from qpart.run.stream import OnLoss

TEXT = (Path(__file__).parents[2] / "docs/guide/qpart-device.md").read_text()


@pytest.mark.net
def test_code_of_the_guide_runs(served, capsys):
    from qpart.run.cache import PieceCache
    from tests.qpart import small

    code = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(code) == 5
    assert all(len([line for line in block.splitlines() if line.strip()]) <= 11 for block in code)
    with served.serving() as endpoint:
        names = {
            "server": endpoint,
            "server_key": served.directory / "server" / "node.key",
            "keys": served.directory / "device",
            "cache": PieceCache(served.directory / "cache"),
            "images": small.examples(20, seed=4)[0],
        }
        for block in code:
            exec(compile(block, "docs/guide/qpart-device.md", "exec"), names)
    said = capsys.readouterr().out
    for words in ("bytes sent", "3 answers", "4 answers with a server, 0 without", "the plan was changed"):
        assert words in said


def test_tables_name_what_there_is():
    named = set(re.findall(r"`([a-z_]+)(?:\{[a-z]+\})?`", TEXT))
    assert {*HELP, "refusals", "phase", "model"} <= named
    assert {f'"{each}"' for each in get_args(OnLoss)} <= set(re.findall(r"`(\"[a-z]+\")`", TEXT))


def test_options_of_the_guide_exist():
    typer = pytest.importorskip("typer")
    from qpart.cli.app import app

    commands = typer.main.get_command(app).commands
    known = {option for command in commands.values() for each in command.params for option in each.opts}
    assert set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", TEXT)) <= known
    assert set(re.findall(r"^qpart (\w+)", TEXT, re.M)) <= set(commands)
