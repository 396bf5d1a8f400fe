"""The command line as a user meets it: exit status, one line of error, JSON, tables."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

from qpart.cli.options import DEFAULTS, read_profile, request_from
from qpart.errors import RequestError
from tests.qpart.commands import assert_one_line, caller
from tests.qpart.serving import close_to

pytest.importorskip("torch")

MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))
    return net, torch.zeros(2, 1, 6, 6)
"""
SLOW_DEVICE = ("--raw-input-stays", "--device-macs-per-s", "1e4", "--round-trip-s", "0")


@pytest.fixture
def qpart(monkeypatch, capsys):
    return caller(monkeypatch, capsys)


def test_plan_as_json_has_costs_and_reason_and_rows_only_when_asked(qpart, files):
    ran = qpart("plan", files.artefact, "--json", *SLOW_DEVICE, accuracy=0.05, inferences=1000)
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)
    assert (found["model"], len(found["model_id"])) == ("stripes", 32)
    plan = found["plan"]
    assert 0 < plan["pattern"]["cut"] < 6
    assert plan["inferences"] == 1000
    assert plan["cost"]["objective"] > 0
    assert "wins" in plan["reason"]
    assert "rows" not in plan
    explained = json.loads(qpart("plan", files.artefact, "--json", "--explain", *SLOW_DEVICE, accuracy=0.05).out)
    assert [row["cut"] for row in explained["plan"]["rows"]] == list(range(7))


def test_flags_reach_the_plan(qpart, files):
    def cut(*arguments):
        ran = qpart("plan", files.artefact, "--json", *arguments, accuracy=0.05)
        return json.loads(ran.out)["plan"]["pattern"]["cut"]

    assert cut("--device-macs-per-s", 1e3) == 0
    assert cut("--device-macs-per-s", 1e12, "--round-trip-s", 1) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accuracy": "1e-6", "memory_bytes": "100000", "raw": True}, ("infeasible (accuracy)", "ask for a drop of")),
        ({"accuracy": "0.2", "memory_bytes": "100", "raw": True}, ("infeasible (memory)", "give")),
    ],
)
def test_infeasible_requests_say_what_would_do(qpart, files, options, words):
    raw = ["--raw-input-stays"] if options.pop("raw") else []
    assert_one_line(qpart("plan", files.artefact, *raw, **options), 1, *words)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"accuracy": "0"}, "accuracy"),
        ({"accuracy": "1.5"}, "accuracy"),
        ({"accuracy": "nan"}, "accuracy"),
        ({"accuracy": "x"}, "--accuracy"),
        ({}, "--accuracy"),
        ({"memory_bytes": "0"}, "memory_bytes"),
        ({"up_bits_per_s": "0"}, "up_bits_per_s"),
        ({"down_bits_per_s": "nan"}, "down_bits_per_s"),
        ({"round_trip_s": "-1"}, "round_trip_s"),
        ({"inferences": "0"}, "inferences"),
        ({"weight_time": "0"}, "weights"),
        ({"server_macs_per_s": "0"}, "macs_per_s"),
        ({"profile": "/no/such.toml"}, "/no/such.toml"),
    ],
)
def test_bad_requests_are_usage_errors(qpart, files, options, word):
    given = options if "accuracy" in options or not options else {"accuracy": "0.05", **options}
    assert_one_line(qpart("plan", files.artefact, **given), 2, word)


def test_what_is_no_artefact_is_said(qpart, files, tmp_path):
    damaged = tmp_path / "damaged.qpart"
    content = bytearray(files.artefact.read_bytes())
    content[len(content) // 3] ^= 0xFF
    damaged.write_bytes(content[:-100])
    for path in (tmp_path / "missing.qpart", files.inputs, damaged):
        assert_one_line(qpart("plan", path, accuracy=0.05), 2, str(path))


def test_profile_fills_the_request_and_flags_override_it(tmp_path):
    profile = tmp_path / "p.toml"
    profile.write_text(
        "[device]\nclock_hz = 1e9\ncycles_per_mac = 4\nkappa = 1e-28\nmemory_bytes = 1000000\n"
        "[channel]\nup_bits_per_s = 1e5\n[weights]\ntime = 0\nenergy = 2\n"
    )
    found = request_from(accuracy=0.05, profile=profile)
    assert found.device.macs_per_s == 2.5e8
    assert found.device.joules_per_mac == pytest.approx(1e-28 * 1e18 * 4)
    assert found.device.memory_bytes == 1_000_000
    assert (found.channel.up_bits_per_s, found.channel.down_bits_per_s) == (1e5, DEFAULTS["channel"]["down_bits_per_s"])
    assert (found.weights.time, found.weights.energy) == (0, 2)
    changed = request_from(accuracy=0.05, profile=profile, device_macs_per_s=7.0, weight_time=1.0, memory_bytes=5)
    assert (changed.device.macs_per_s, changed.weights.time, changed.device.memory_bytes) == (7.0, 1.0, 5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[devise]\nmacs_per_s = 1", ("'devise'", "device, channel, weights")),
        ("[channel]\nup = 1", ("'up'", "up_bits_per_s, down_bits_per_s")),
        ("[weights]\ntime = 'much'", ("time", "'much'", "number")),
        ("[weights]\ntime = true", ("time", "number")),
        ("weights = 3", ("weights", "[weights]")),
        ("[device]\nclock_hz = 1e9", ("clock_hz, cycles_per_mac, kappa",)),
        ("[device]\nclock_hz = 1e9\ncycles_per_mac = 1\nkappa = 0\nmacs_per_s = 1", ("instead",)),
        ("[device\n", ("TOML",)),
    ],
)
def test_profiles_that_nobody_understands_are_refused(tmp_path, text, words):
    profile = tmp_path / "p.toml"
    profile.write_text(text)
    with pytest.raises(RequestError) as refused:
        read_profile(profile)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("value", ["1.5", "inf", "nan"])
def test_memory_in_a_profile_is_a_whole_number(tmp_path, value):
    profile = tmp_path / "p.toml"
    profile.write_text(f"[device]\nmemory_bytes = {value}\n")
    with pytest.raises(RequestError, match="whole number"):
        request_from(accuracy=0.05, profile=profile)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    return f"{tmp_path / 'model.py'}:make"


def test_calibrate_writes_what_plan_reads(qpart, files, model, tmp_path):
    out = tmp_path / "made" / "net.qpart"
    options = {"inputs": files.inputs, "out": out, "levels": "0.05,0.2", "patterns": 20, "limit": 150}
    ran = qpart("calibrate", model, "--json", **options)
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)
    assert (found["name"], found["nodes"], found["cuts"], found["inputs"]) == ("net", 4, 5, 150)
    assert "150 inputs are few" in found["doubt"]
    assert found["file_bytes"] == out.stat().st_size
    assert list(out.parent.iterdir()) == [out]  # what a killed run would have left for the next one is gone
    assert [level["accuracy"] for level in found["levels"]] == [0.05, 0.2]
    assert "100%" in ran.err
    assert json.loads(qpart("plan", out, "--json", accuracy=0.2).out)["model_id"] == found["model_id"]
    text = qpart("calibrate", model, **options, name="Another")
    assert "Another: 4 nodes, 5 cuts, 150 inputs" in text.out
    from qpart.artefact import load

    assert load(out).inputs.dtype == np.uint8  # pixels stay bytes


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"levels": "0.2,0.1"}, "ascending"),
        ({"levels": "0,0.1"}, "levels"),
        ({"levels": "much"}, "levels"),
        ({"levels": ",".join(f"0.{i}" for i in range(100, 165))}, "64"),
        ({"name": "x" * 65}, "name"),
        ({"name": ""}, "name"),
        ({"out": "/proc/no/net.qpart"}, "/proc/no"),
        ({"out": "/"}, "--out"),
        ({"inputs": "/no/such.npy"}, "/no/such.npy"),
        ({"patterns": "3"}, "--patterns"),
        ({"limit": "5"}, "--limit"),
    ],
)
def test_calibrate_says_what_is_wrong_before_it_works(qpart, files, model, tmp_path, options, word):
    given = {"inputs": files.inputs, "out": tmp_path / "net.qpart", **options}
    ran = qpart("calibrate", model, **given)
    assert_one_line(ran, 1 if "/proc" in word else 2, word)


def test_calibrate_refuses_inputs_and_models_that_do_not_fit(qpart, files, model, tmp_path):
    wrong, out = tmp_path / "wrong.npy", tmp_path / "net.qpart"
    np.save(wrong, np.zeros((200, 1, 5, 5), np.uint8))
    assert_one_line(qpart("calibrate", model, inputs=wrong, out=out), 2, "(200, 1, 5, 5)")
    for source in ("model.onnx", "/no/model.pt2", f"{tmp_path / 'model.py'}:other", "no.such.module:make"):
        assert_one_line(qpart("calibrate", source, inputs=files.inputs, out=out), 2, source.split(":")[0])
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["--server", "tcp://127.0.0.1:1"], 2, "--server-key"),
        (["--server", "nowhere", "--insecure"], 2, "tcp://"),
        (["--server", "tcp://127.0.0.1:1", "--insecure", "--labels", "/no/labels.npy"], 2, "/no/labels.npy"),
        (["--server", "tcp://127.0.0.1:1", "--insecure", "--timeout", "0"], 2, "timeout"),
        (["--server", "tcp://127.0.0.1:1", "--insecure", "--batch", "0"], 2, "--batch"),
        (["--insecure"], 2, "--server"),
    ],
)
def test_infer_usage_errors(qpart, files, arguments, status, word):
    assert_one_line(qpart("infer", *arguments, inputs=files.inputs, accuracy=0.05), status, word)


@pytest.mark.parametrize("option", ["input", "inputs"])
def test_infer_takes_one_input_or_several(qpart, option):
    asked = {"server": "tcp://127.0.0.1:9", option: "none.npy", "accuracy": "0.02"}
    assert_one_line(qpart("infer", "--insecure", **asked), 2, "there is no file none.npy")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inputs": "none.npy"}, ["there is no file none.npy"]),
        ({"inputs": "text.txt"}, ["text.txt", "it is no .npy file", "numpy.save"]),
        ({"labels": "text.txt"}, ["text.txt", "it is no .npy file", "numpy.save"]),
        ({"out": "."}, ["cannot be written", "--out"]),
        ({"out": "text.txt/new.npy"}, ["cannot be written", "--out"]),
        ({"out": "text.txt/new/new.npy"}, ["cannot be written", "--out"]),
        ({"out": "pipe"}, ["cannot be written", "--out"]),
        ({"inferences": "0"}, ["--inferences"]),
        ({"inferences": str(10**13)}, ["--inferences"]),
        ({"keys": "."}, ["--insecure", "drop --server-key and --keys"]),
    ],
)
def test_infer_looks_at_files_before_it_asks_anybody(qpart, files, tmp_path, monkeypatch, options, words):
    """Nobody listens there, and the half hour is not waited for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("no array")
    os.mkfifo(tmp_path / "pipe")
    asked = {"server": "tcp://127.0.0.1:9", "inputs": files.inputs, "accuracy": "0.02", "timeout": "1800", **options}
    assert_one_line(qpart("infer", "--insecure", **asked), 2, *words)


def test_infer_refuses_an_endpoint_that_is_none_beside_one_that_is(qpart, files):
    servers = ("--server", "tcp://127.0.0.1:9", "--server", "nonsense")
    ran = qpart("infer", "--insecure", *servers, inputs=files.inputs, accuracy="0.02", timeout="1800")
    assert_one_line(ran, 2, "'nonsense' is not tcp://HOST:PORT")


@pytest.mark.parametrize("options", [{"keys": "keys"}, {"allow": "any"}])
def test_serve_goes_without_keys_or_with_them(qpart, files, options):
    ran = qpart("serve", files.artefact, "--insecure", bind="tcp://127.0.0.1:0", **options)
    assert_one_line(ran, 2, "--insecure goes without keys", "--keys and --allow")


def test_labels_are_whole_numbers_in_one_row(qpart, files, tmp_path):
    labels = tmp_path / "labels.npy"
    for array in (np.zeros(200), np.zeros((200, 1), np.int64)):
        np.save(labels, array)
        ran = qpart("infer", "--insecure", server="tcp://127.0.0.1:1", inputs=files.inputs, labels=labels, accuracy=0.1)
        assert_one_line(ran, 2, "whole numbers")


@pytest.mark.net
def test_serve_refuses_what_it_cannot_serve(qpart, files, tmp_path):
    bind = {"bind": "tcp://127.0.0.1:0"}
    assert_one_line(qpart("serve", files.artefact, files.artefact, "--insecure", **bind), 2, "'stripes'", "--name")
    assert_one_line(qpart("serve", files.artefact, **bind), 2, "--keys")
    assert_one_line(qpart("serve", tmp_path / "missing.qpart", "--insecure", **bind), 2, "missing.qpart")
    assert_one_line(qpart("serve", files.artefact, "--insecure", bind="nowhere"), 2, "tcp://")
    assert_one_line(qpart("serve", files.artefact, "--insecure", macs_per_s="-1", **bind), 2, "macs_per_s")


@pytest.mark.parametrize("command", [None, "calibrate", "plan", "serve", "infer"])
def test_help_teaches(qpart, command):
    ran = qpart(*([command] if command else []), "--help")
    assert ran.status == 0
    assert (f"qpart {command}" in ran.out and "Example" in ran.out) if command else "calibrate" in ran.out


def test_missing_typer_is_one_line(qpart, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    ran = qpart("plan")
    assert (ran.status, ran.err) == (1, "qpart: the command line needs typer and rich: pip install 'edgebus[cli]'\n")


@pytest.mark.net
def test_infer_computes_with_what_it_is_told(qpart, served, inputs, tmp_path):
    np.save(tmp_path / "inputs.npy", inputs)
    with served.serving() as endpoint:
        found = {}
        for executor in ("numpy", "torch"):
            out = tmp_path / f"{executor}.npy"
            options = {
                "server": endpoint,
                "server_key": served.directory / "server" / "node.key",
                "keys": served.directory / "device",
                "inputs": tmp_path / "inputs.npy",
                "cache": tmp_path / "cache",
            }
            ran = qpart("infer", "--raw-input-stays", *SLOW_DEVICE, accuracy=0.2, executor=executor, out=out, **options)
            assert ran.status == 0, ran.err
            found[executor] = np.load(out)
        assert close_to(found["torch"], found["numpy"])
        assert qpart("infer", accuracy=0.2, executor="jax", **options).status == 2


@pytest.mark.net
def test_what_a_server_says_cannot_command_the_terminal(qpart, served, inputs, tmp_path):
    """Names of models and nodes, and reasons of refusals, are whatever a server likes."""
    import msgspec

    from qpart.run.served import ServedModel

    class Loud(ServedModel):
        def __init__(self, honest):
            self.__dict__.update(honest.__dict__)

        @property
        def info(self):
            return msgspec.structs.replace(super().info, name="loud\x1b[2J")

        def plan(self, request, cached=b"", **more):
            if request.inferences == 13:
                raise RequestError("out\x1b[2J")
            planned = super().plan(request, cached, **more)
            replace, plan = msgspec.structs.replace, planned.plan
            table = replace(plan.table, after=("\x1b[31m[/b]\n",) * len(plan.rows))
            return replace(planned, plan=replace(plan, table=table))

    np.save(tmp_path / "inputs.npy", inputs)
    with served.serving(models=[Loud(served.model())]) as endpoint:
        options = {
            "server": endpoint,
            "server_key": served.directory / "server" / "node.key",
            "keys": served.directory / "device",
            "inputs": tmp_path / "inputs.npy",
            "cache": tmp_path / "cache",
        }
        for more in ({}, {"model": "quiet"}, {"inferences": 13}):
            ran = qpart("infer", "--explain", *SLOW_DEVICE, accuracy=0.2, **options, **more)
            assert ran.status == (1 if more else 0), ran.err
            assert "\x1b" not in ran.out + ran.err
            assert "\\x1b" in ran.err
