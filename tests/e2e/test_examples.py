"""Every example runs as its first lines say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.net
EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_echo_with_curve():
    assert run_example("echo_with_curve.py") == "HELLO [0.0, 2.0, 4.0, 6.0]\n"


def test_echo_asyncio():
    out = run_example("echo_asyncio.py").splitlines()
    assert out == ["ALL AT ONCE", "3 part 3", "4 part 4", "cancelled, here and over there"]


def test_subscribe_to_state():
    out = run_example("subscribe_to_state.py").splitlines()
    assert out[:3] == ["wind = strong", "rain = none", "wind = weak"]
    assert out[3] == "the server restarts; the last known wind is weak"
    assert sorted(out[4:]) == ["rain is gone", "sun = some"]


def test_fail_over():
    assert run_example("fail_over.py") == "one greets you\ntwo greets you\nnobody is left\n"


def test_device_under_faults():
    out = run_example("device_under_faults.py")
    assert out.startswith("50 seeds: every reading is counted once\ncareless server: the total is ")


def test_blob_fetch():
    first, second = "first time: 5000000 bytes, 5 chunks fetched", "second time: 5000000 bytes, 0 chunks fetched"
    assert run_example("blob_fetch.py") == f"{first}\n{second}\n"


def test_own_acceptance():
    out = run_example("own_acceptance.py").splitlines()
    rejection, typical = (int(line.split()[2]) for line in out[:2])
    assert rejection < typical
    assert out[2].startswith("own noise chooses [")


@pytest.mark.model
def test_own_drafter(server, keys):
    pytest.importorskip("torch")
    out = run_example("own_drafter.py", server["endpoint"], keys / "server" / "node.key", keys / "device")
    first, second = (int(rounds) for rounds in re.findall(r"in (\d+) rounds", out))
    assert first == 24
    assert second <= 4


@pytest.mark.model
def test_async_device(server, keys):
    pytest.importorskip("torch")
    out = run_example("async_device.py", server["endpoint"], keys / "server" / "node.key", keys / "device")
    assert len(out) > 100
    assert out.endswith("no time for a story; the device is free again\nlength\n")


def test_split_a_network(tmp_path):
    pytest.importorskip("torch")
    out = run_example("split_a_network.py", tmp_path)
    cut, last = (int(number) for number in re.findall(r"cut (\d+) of (\d+), ", out)[0])
    assert 0 < cut < last


def test_plan_for_boards():
    pytest.importorskip("torch")
    out = run_example("plan_for_boards.py").splitlines()
    boards = [line for line in out if ": " in line and "bit/s" in line.split(": ")[0]]
    assert len(boards) == 9
    assert all("wins with U" in line for line in boards)
    assert all(float(line.split(": x")[1].split()[0]) >= 1 for line in out[9:])


def test_every_example_is_short_and_tested():
    tested = Path(__file__).read_text()
    for example in EXAMPLES.glob("*.py"):
        assert example.name in tested
        assert len(example.read_text().splitlines()) < 60
