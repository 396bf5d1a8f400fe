"""docs/guide/quickstart.md and bus.md: commands and programs run as they stand there, each server with each device."""

from __future__ import annotations

import doctest
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.net
GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "quickstart.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
PROGRAMS = {text.splitlines()[0].removeprefix("# "): text for kind, text in BLOCKS if kind == "python"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands were run, and the programs lie; their port is one that is free here."""
    pytest.importorskip("typer")
    here = tmp_path_factory.mktemp("quickstart")
    [commands] = [text for kind, text in BLOCKS if kind == "sh"]
    for line in commands.splitlines():
        command = [sys.executable, "-m", "edgebus.cli", *shlex.split(line)[1:]]
        subprocess.run(command, cwd=here, check=True, timeout=60, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name, text in PROGRAMS.items():
        assert ":7000" in text
        (here / name).write_text(text.replace("0.0.0.0", "127.0.0.1").replace(":7000", f":{port}"))
    return here


def test_programs_have_ten_lines():
    assert set(PROGRAMS) == {"server.py", "device.py", "server_asyncio.py", "device_asyncio.py"}
    for name, text in PROGRAMS.items():
        lines = [line for line in text.splitlines()[1:] if line and not line.startswith(("import", "from"))]
        assert len(lines) <= 10, name


@pytest.mark.parametrize("server", ["server.py", "server_asyncio.py"])
@pytest.mark.parametrize("device", ["device.py", "device_asyncio.py"])
def test_every_device_talks_to_every_server(folder, server, device):
    serving = subprocess.Popen([sys.executable, server], cwd=folder)
    try:
        asked = subprocess.run(
            [sys.executable, device], check=False, cwd=folder, timeout=30, capture_output=True, text=True
        )
    finally:
        serving.kill()
        serving.wait(5)
    assert (asked.stdout, asked.stderr) == ("b'HELLO' [0. 2. 4.]\n", "")


def test_guide_to_the_rest_of_the_bus_runs_as_it_stands():
    result = doctest.testfile(str(GUIDE.with_name("bus.md")), module_relative=False)
    assert result.attempted > 40
    assert result.failed == 0
