"""The guide's Python runs, top to bottom, and what it says of commands and profiles is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qpart import profiles
from qpart.heuristics import KINDS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/guide/qpart.md").read_text()


def test_code_of_the_guide_runs(tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    code = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(code) == 4
    assert all(len([line for line in block.splitlines() if line.strip()]) <= 18 for block in code)
    names: dict[str, object] = {"directory": tmp_path}
    for block in code:
        exec(compile(block, "docs/guide/qpart.md", "exec"), names)
    said = capsys.readouterr().out
    assert "wins with U" in said
    assert "shows" in said or "raw_input_stays" in said
    assert "neurosurgeon: x" in said


def test_commands_of_the_guide_exist():
    pytest.importorskip("typer")
    from qpart.cli.app import app

    known = {command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"^qpart (\w+)", TEXT, re.M)) <= known
    assert set(re.findall(r"--solver (\w+)", TEXT)) <= set(KINDS)
    assert all(f"`{board}`" in TEXT or f"--device {board}" in TEXT for board in profiles.names())


def test_doctests_hold():
    import doctest

    from qpart import charts, explain

    for module in (profiles, charts, explain):
        result = doctest.testmod(module)
        assert (result.attempted > 0, result.failed) == (True, 0)


@pytest.mark.parametrize("board", profiles.names())
def test_every_number_of_a_board_has_words_before_it(board):
    """A number without a source or an assumption in a comment above it does not belong into these files."""
    lines = (ROOT / f"qpart/profiles/{board}.toml").read_text().splitlines()
    text = "\n".join(lines)
    assert len(re.findall(r"github\.com|forums\.|data sheet|chipwired", text)) >= 2
    for i, line in enumerate(lines):
        if "=" in line and not line.startswith("#") and not lines[i - 1].startswith("#"):
            assert "=" in lines[i - 1], line  # belongs to the comment above the number before
    found = profiles.board(board)
    assert set(found["device"]) >= {"macs_per_s", "watts", "memory_bytes"}
    assert profiles.device(board).macs_per_s > 1e9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[device]\nlayer_s = 3", "give a list of numbers"),
        ("[device]\nlayer_s = [1, 'a']", "give a list of numbers"),
        ("[device]\nmacs_per_s = [1]", "give a number"),
        ("[device]\nmacs = 1", "is no key"),
        ("[radio]\nwatts = 1", "is no table"),
        ("device = 3", "make it a table"),
        ("[device", "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
    ],
)
def test_profile_that_says_what_nobody_knows_is_refused(text, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        profiles.parse(text, "here.toml")


def test_profile_written_is_read_again():
    settings = {"device": {"macs_per_s": 1e9, "layer_s": (0.1, 1e-9)}, "channel": {"tx_watts": 0.5}}
    text = profiles.written({**settings, "measured": {"at": 'a "quoted" \\ place\n'}}, head=["words"])
    assert profiles.parse(text, "here.toml") == settings
