"""The command line as a user meets it: exit status, one line of error, JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import edgebus


def run(*arguments, code="from edgebus.cli import main; main()"):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
    return done


def test_keygen_and_allow(tmp_path):
    made = run("keygen", tmp_path / "a", "--json")
    assert made.returncode == 0
    assert json.loads(made.stdout)["public_key"] == edgebus.load_keys(tmp_path / "a").public
    assert run("keygen", tmp_path / "b").returncode == 0
    for added in (1, 0):
        allowed = run("allow", tmp_path / "a", tmp_path / "b" / "node.key", "--json")
        assert json.loads(allowed.stdout)["added"] == added
    again = run("keygen", tmp_path / "a")
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "--force" in again.stderr
    assert run("keygen", tmp_path / "a", "--force").returncode == 0


@pytest.mark.net
def test_ping_measures_and_explains(ring):
    with ring.server() as server:
        endpoint = server.bind("tcp://127.0.0.1:0")
        key_file = ring.directory / "server" / "node.key"
        common = ("ping", endpoint, "--server-key", key_file, "--count", "3")
        done = run(*common, "--keys", ring.directory / "device", "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["count"], result["peer"], len(result["round_trips_us"])) == (3, "server", 3)
        table = run(*common, "--keys", ring.directory / "device")
        assert "median us" in table.stdout
        stranger = run(*common, "--keys", ring.directory / "stranger")
        assert stranger.returncode == 1
        assert stranger.stderr.count("\n") == 1
        assert "edgebus allow" in stranger.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",),
        ("ping",),
        ("ping", "tcp://h:1"),
        ("ping", "tcp://h:1", "--insecure", "--keys", "x"),
        ("ping", "h:1", "--insecure"),
        ("ping", "tcp://h:1", "--insecure", "--count", "0"),
        ("keygen", "--nosuch"),
    ],
)
def test_usage_errors_exit_2_with_one_line(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("edgebus: ")


def test_help_teaches_with_examples():
    assert "edgebus keygen ./server" in run("--help").stdout
    for command in ("keygen", "allow", "ping"):
        assert f"Example: edgebus {command}" in " ".join(run(command, "--help").stdout.split())


def test_missing_typer_is_one_line():
    code = "import sys; sys.modules['typer'] = None; from edgebus.cli import main; main()"
    done = run("keygen", "x", code=code)
    assert done.returncode == 1
    assert done.stderr == "edgebus: the command line needs typer and rich: pip install 'edgebus[cli]'\n"
