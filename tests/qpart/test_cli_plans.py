"""Commands that plan, solve, measure and draw, as a user meets them."""

from __future__ import annotations

import json
import re

import pytest
from rich.console import Console

from qpart import profiles
from tests.qpart import small
from tests.qpart.commands import assert_one_line, caller

pytest.importorskip("torch")
SLOW_DEVICE = ("--raw-input-stays", "--device-macs-per-s", "1e4", "--round-trip-s", "0")


@pytest.fixture
def qpart(monkeypatch, capsys):
    return caller(monkeypatch, capsys)


def heads(text):
    return [line.split() for line in text.splitlines() if line.startswith(" cut")]


def test_plan_in_words_shows_every_cut_within_120_columns(qpart, files):
    ran = qpart("plan", files.artefact, "--explain", *SLOW_DEVICE, accuracy=0.05)
    assert ran.status == 0, ran.err
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= 120
    assert sum(line.startswith(" > ") for line in lines) == 1
    assert "shows the input" in ran.out
    assert all(name in ran.out for name in ("stem", "block.conv", "block.add", "mean", "fc"))
    assert [" ".join(head) for head in heads(ran.out)] == [
        "cut after weights sent down up memory device channel server energy U"
    ]
    priced = qpart("plan", files.artefact, "--explain", *SLOW_DEVICE, accuracy=0.05, server_price_per_s=1)
    assert heads(priced.out)[0][-2:] == ["price", "U"]


def test_plan_in_words_within_80_columns_stands_in_two_tables(qpart, files, monkeypatch):
    monkeypatch.setattr("qpart.cli.show.WIDTH", 80)
    ran = qpart("plan", files.artefact, "--explain", *SLOW_DEVICE, accuracy=0.05, server_price_per_s=1)
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [" ".join(head) for head in heads(ran.out)] == [
        "cut after weights sent down up memory",
        "cut after device channel server energy price U",
    ]
    assert sum(line.startswith(" > ") for line in lines) == 2


def test_other_solvers_plan_too_and_are_not_verified(qpart, files):
    for solver in ("exact", "uniform", "closed_form", "floor_repair"):
        ran = qpart("plan", files.artefact, "--json", *SLOW_DEVICE, accuracy=0.2, inferences=100, solver=solver)
        assert ran.status == 0, ran.err
        found = json.loads(ran.out)
        assert found["solver"] == solver
        assert found["plan"]["pattern"]["psi"] <= found["plan"]["budget"]
    assert_one_line(qpart("plan", files.artefact, accuracy=0.2, solver="magic"), 2, "no solver", "closed_form")


def test_boards_have_profiles_that_files_and_flags_override(qpart, files, tmp_path):
    def all_device(**options):
        ran = qpart("plan", files.artefact, "--json", "--explain", accuracy=0.2, **options)
        assert ran.status == 0, ran.err
        return json.loads(ran.out)["plan"]["rows"][-1]

    macs, measured = sum(small.network().macs), tmp_path / "here.toml"
    board = all_device(device="rpi4b")
    assert board["device_time_s"] == pytest.approx(macs / 5.9e9)
    assert all_device(device="rpi5")["device_time_s"] < board["device_time_s"]
    measured.write_text("[device]\nlayer_s = [0.5, 0.25, 0, 0, 0, 1]\n")
    assert all_device(device="rpi4b", profile=measured)["device_time_s"] == 1.75
    assert all_device(profile=measured, device_macs_per_s=1e6)["device_time_s"] == pytest.approx(macs / 1e6)
    assert all_device(profile=measured, device="rpi4b")["energy_j"] >= 1.75 * 4.5
    assert all_device(profile=measured, device="rpi4b", watts=0)["energy_j"] < 1
    assert_one_line(qpart("plan", files.artefact, accuracy=0.2, device="rpi9"), 2, "no device 'rpi9'", "rpi4b")
    measured.write_text("[device]\nlayer_s = [0.5]\n")
    assert_one_line(qpart("plan", files.artefact, accuracy=0.2, profile=measured), 2, "times of 1 nodes", "has 6")


def test_profile_of_a_server_computes_as_a_server_does(qpart, files, monkeypatch):
    monkeypatch.setattr("qpart.run.threads.worthwhile_threads", lambda forward, most: 1)
    for given, said in ((0, "1 thread"), (2, "2 threads")):
        ran = qpart("profile", files.artefact, "--server", "--json", threads=given, runs=1)
        assert json.loads(ran.out)["measured"]["executor"].endswith(f", {said}")
    for wrong, word in (
        (("--server", "--executor", "numpy"), "leave --executor out"),
        (("--threads", "2"), "--server"),
    ):
        ran = qpart("profile", files.artefact, *wrong)
        assert ran.status
        assert word in ran.err


def test_profile_measures_and_plan_takes_it(qpart, files, tmp_path):
    here, server = tmp_path / "here.toml", tmp_path / "server.toml"
    ran = qpart("profile", files.artefact, out=here, device="rpi5", runs=2)
    assert ran.status == 0, ran.err
    assert "slowest:" in ran.out
    device = profiles.read(here)["device"]
    assert (len(device["layer_s"]), device["watts"]) == (6, 7.7)
    assert device["memory_bytes"] > 1 << 20
    assert qpart("profile", files.artefact, "--server", out=server, runs=2).status == 0
    ran = qpart("plan", files.artefact, "--json", "--explain", accuracy=0.2, profile=here, server_profile=server)
    rows = json.loads(ran.out)["plan"]["rows"]
    assert rows[-1]["device_time_s"] == pytest.approx(sum(device["layer_s"]))
    assert rows[0]["server_time_s"] == pytest.approx(sum(profiles.read(server)["server"]["layer_s"]))
    printed = json.loads(qpart("profile", files.artefact, "--json", runs=1).out)
    assert sum(printed["device"]["layer_s"]) == pytest.approx(printed["whole_s"])
    with_torch = json.loads(qpart("profile", files.artefact, "--json", executor="torch", runs=1).out)
    assert with_torch["measured"]["executor"].startswith("torch ")
    assert len(with_torch["device"]["layer_s"]) == 6
    assert_one_line(qpart("profile", files.artefact, bits=9), 2, "9 bits")


def test_solve_lists_patterns_of_every_cut_and_level(qpart, files, monkeypatch):
    found = json.loads(qpart("solve", files.artefact, "--json", inferences=100).out)["patterns"]
    assert [(row["cut"], row["level"]) for row in found] == [(c, a) for c in range(7) for a in (0.01, 0.05, 0.2)]
    assert all(row["pattern"]["psi"] <= row["budget"] for row in found if row["pattern"])
    other = json.loads(qpart("solve", files.artefact, "--json", inferences=100, solver="uniform").out)["patterns"]
    compared = [(row["pattern"], worse["pattern"]) for row, worse in zip(found, other, strict=True) if worse["pattern"]]
    assert len(compared) > 10
    assert all(a["bytes_per_inference"] <= b["bytes_per_inference"] * (1 + 1e-12) for a, b in compared)
    ran = qpart("solve", files.artefact, cut=2, level=0.2)
    assert ran.status == 0, ran.err
    assert "stem.relu" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 120
    monkeypatch.setattr("qpart.cli.solve.console", lambda: Console(width=60, highlight=False))
    narrow = qpart("solve", files.artefact, level=0.2).out
    assert "weights" in narrow
    assert "\u2026" not in narrow  # nothing is cut off: noise stands in a second table
    assert max(map(len, narrow.splitlines())) <= 60
    assert narrow.count("cut") == 2
    assert_one_line(qpart("solve", files.artefact, cut=9), 2, "no cut 9")
    assert_one_line(qpart("solve", files.artefact, level=0.3), 2, "0.3 was not calibrated")
    assert_one_line(qpart("solve", files.artefact, solver="magic"), 2, "no solver")


def test_plot_draws_characters(qpart, files):
    ran = qpart("plot", files.artefact, *SLOW_DEVICE, accuracy=0.2)
    assert ran.status == 0, ran.err
    assert "from 10 kbit/s: cut" in ran.out
    assert "bits by layer" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 120
    assert "uniform width" in qpart("plot", files.artefact, what="payload").out
    assert_one_line(qpart("plot", files.artefact, cut=9), 2, "no cut 9")


def test_plot_writes_pictures(qpart, files, tmp_path):
    pytest.importorskip("matplotlib")
    ran = qpart("plot", files.artefact, *SLOW_DEVICE, accuracy=0.2, out=tmp_path)
    assert ran.status == 0, ran.err
    assert ran.out.split() == [str(tmp_path / f"stripes-{name}.png") for name in ("payload", "cost", "bits")]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ran.out.split())


def test_infeasible_plot_says_so(qpart, files):
    ran = qpart("plot", files.artefact, "--raw-input-stays", memory_bytes=100)
    assert_one_line(ran, 1, "no calibrated accuracy")


@pytest.mark.parametrize(
    ("accuracy", "memory_bytes", "pattern"),
    [(1e-6, 4000, r"ask for a drop of ([\d.e-]+)"), (0.2, 600, r"give (\d+) bytes of memory")],
)
def test_what_an_infeasible_request_is_told_to_ask_for_is_served(qpart, files, accuracy, memory_bytes, pattern):
    asked = {"accuracy": accuracy, "memory_bytes": memory_bytes}
    ran = qpart("plan", files.artefact, "--raw-input-stays", **asked)
    assert_one_line(ran, 1, "infeasible (")
    told = re.search(pattern, ran.err)[1]
    asked["accuracy" if accuracy < 0.1 else "memory_bytes"] = told
    ran = qpart("plan", files.artefact, "--raw-input-stays", "--json", **asked)
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)["plan"]
    assert found["pattern"]["device_bytes"] <= int(asked["memory_bytes"])
    assert found["level"] <= float(asked["accuracy"])
