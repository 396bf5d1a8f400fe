"""Real processes over tcp with CURVE: `qpart serve` and `qpart infer`; planned bytes are sent bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qpart.tail import BATCH_TOLERANCE
from tests.e2e.conftest import Ran, ServerProcess, run

pytest.importorskip("torch")

pytestmark = [pytest.mark.net, pytest.mark.timeout(180)]

SPLIT = ("--raw-input-stays", "--device-macs-per-s", "1e4", "--round-trip-s", "0", "--inferences", "1000")
MANY = 20_000


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    from tests.qpart.conftest import write_files

    return write_files(tmp_path_factory.mktemp("qpart"))


def start(keys: Path, *artefacts: Path, more: tuple[object, ...] = ()) -> ServerProcess:
    return ServerProcess("qpart.cli", *artefacts, "--keys", keys / "server", "--macs-per-s", "1e12", "--json", *more)


@pytest.fixture(scope="module")
def signing(tmp_path_factory) -> Path | None:
    """A publisher's key directory, where there is the library for it."""
    directory = tmp_path_factory.mktemp("signing") / "keys"
    ran = run("qpart.cli", "keygen", directory)
    if ran.status:
        assert "edgebus[sign]" in ran.err
        return None
    return directory


@pytest.fixture(scope="module")
def serving(keys, files, signing):
    """One server with two models for all tests here; it must outlive everything they do to it."""
    process = start(keys, files.artefact, files.other, more=() if signing is None else ("--sign", signing))
    yield json.loads(process.ready_line)
    status, errors = process.end()
    assert status == 0, errors
    assert "Traceback" not in errors


def command(ready, keys, files, cache, /, **options: object) -> list[str]:
    chosen: dict[str, object] = {
        "server": ready["endpoint"],
        "server-key": keys / "server" / "node.key",
        "keys": keys / "device",
        "inputs": files.inputs,
        "model": "stripes",
        "accuracy": 0.05,
        "cache": cache,
        **{name.replace("_", "-"): value for name, value in options.items()},
    }
    flags = [str(part) for name, value in chosen.items() if value is not None for part in (f"--{name}", value)]
    return ["infer", *flags]


@pytest.fixture
def infer(serving, keys, files, tmp_path):
    """`qpart infer` against the module's server; keyword arguments replace the usual options."""

    def call(*more: str, **options: object) -> Ran:
        return run("qpart.cli", *command(serving, keys, files, tmp_path / "cache", **options), *more)

    return call


def assert_one_line(ran: Ran, status: int, *words: str) -> None:
    assert ran.status == status, ran.err
    lines = [line for line in ran.err.splitlines() if not line.startswith("inferring")]
    assert len(lines) == 1, ran.err
    for word in words:
        assert word in lines[0], lines[0]


def moved(traffic, name: str) -> tuple[int, int]:
    return traffic[f"planned_{name}_bytes"], traffic[f"{name}_bytes"]


def test_the_ready_line_names_every_model(serving):
    assert [model["name"] for model in serving["models"]] == ["stripes", "other"]
    assert serving["models"][0]["model_id"] != serving["models"][1]["model_id"]
    assert serving["models"][0]["macs_per_s"] == 1e12
    assert len(serving["public_key"]) == 40


@pytest.mark.parametrize("batch", [1, 64])
def test_planned_bytes_are_counted_bytes_and_pieces_travel_once(infer, files, tmp_path, batch):
    options = {"labels": files.labels, "batch": batch, "out": tmp_path / "logits.npy"}
    first = infer("--json", *SPLIT, **options)
    assert first.status == 0, first.err
    found = first.json
    pattern, traffic = found["plan"]["pattern"], found["traffic"]
    assert 0 < pattern["cut"] < 6
    assert pattern["weight_bits"]
    for name in ("download", "up", "answer"):
        planned, counted = moved(traffic, name)
        assert planned == counted > 0
    assert traffic["download_bytes"] == pattern["download_bytes"] == pattern["segment_bytes"]
    assert traffic["control_bytes"] > 0
    logits, labels = np.load(tmp_path / "logits.npy"), np.load(files.labels)
    assert found["predictions"] == len(logits) == len(labels)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert found["accuracy"] > 0.8
    again = infer("--json", *SPLIT, **options).json
    manifest = again["plan"]["pattern"]["download_bytes"]
    assert moved(again["traffic"], "download") == (manifest, manifest)
    assert manifest < again["plan"]["pattern"]["segment_bytes"]
    assert np.allclose(np.load(tmp_path / "logits.npy"), logits, rtol=0, atol=BATCH_TOLERANCE * np.abs(logits).max())


def test_text_says_plan_reason_and_bytes(infer, files):
    ran = infer("--explain", *SPLIT, labels=files.labels, limit=20)
    assert ran.status == 0, ran.err
    for words in ("wins with U", "bytes, planned and counted", "20 inferences in", "accuracy", "block.add", " > "):
        assert words in ran.out


def test_infeasible_requests_name_constraint_and_nearest_accuracy(infer):
    assert_one_line(infer("--raw-input-stays", accuracy="1e-6"), 1, "infeasible (accuracy)", "ask for a drop of")
    assert infer("--json", limit=1).status == 0


def test_names_and_inputs_that_do_not_fit(infer, tmp_path):
    assert_one_line(infer(model="cats"), 1, "'cats'", "stripes, other")
    assert_one_line(infer(model=None), 1, "stripes, other", "--model")
    wrong, labels = tmp_path / "wrong.npy", tmp_path / "labels.npy"
    np.save(wrong, np.zeros((3, 28, 28), np.uint8))
    assert_one_line(infer(inputs=wrong), 2, "(3, 28, 28)")
    for array in (np.zeros(3, np.int64), np.full(200, 9)):
        np.save(labels, array)
        assert_one_line(infer(labels=labels), 2, "labels")


def test_wrong_keys_are_refused(infer, keys):
    assert_one_line(infer(keys=keys / "stranger"), 1, "edgebus allow")
    assert_one_line(infer(server_key=keys / "stranger" / "node.key"), 1, "key")
    assert infer("--json", limit=1).status == 0


def test_damaged_artefact_is_not_served(files, keys, tmp_path):
    damaged = tmp_path / "damaged.qpart"
    damaged.write_bytes(files.artefact.read_bytes()[:-200])
    ran = run("qpart.cli", "serve", damaged, "--bind", "tcp://127.0.0.1:0", "--keys", keys / "server")
    assert_one_line(ran, 2, "damaged.qpart", "qpart calibrate")


def test_a_server_that_goes_away_midway_is_an_error_in_time(keys, files, tmp_path):
    from tests.qpart import small

    inputs = tmp_path / "many.npy"
    np.save(inputs, small.examples(MANY, seed=6)[0])
    server = start(keys, files.artefact)
    arguments = command(json.loads(server.ready_line), keys, files, tmp_path / "cache", inputs=inputs, timeout=3)
    device = subprocess.Popen(
        [sys.executable, "-m", "qpart.cli", *arguments, *SPLIT],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert device.stderr is not None
        assert device.stderr.readline() == "inferring with stripes: 0%\n"
        server.process.kill()
        gone_at = time.monotonic()
        _, errors = device.communicate(timeout=60)
        assert time.monotonic() - gone_at < 30
        assert_one_line(Ran(device.returncode, "", errors), 1, "qpart: ", "tcp://127.0.0.1")
    finally:
        device.kill()
        server.end()


def test_sigterm_ends_an_idle_server_in_peace(keys, files):
    status, errors = start(keys, files.artefact).end()
    assert status == 0
    assert "Traceback" not in errors


def test_only_what_the_publisher_signed_runs(infer, signing):
    if signing is None:
        pytest.skip("needs PyNaCl")
    ran = infer(*SPLIT, "--json", publisher=signing / "publisher.key")
    assert ran.status == 0, ran.err
    assert_one_line(infer(*SPLIT, publisher="ab" * 32), 1, "not signed by the publisher", "abab")
    assert_one_line(infer(*SPLIT, publisher="nowhere"), 2, "publisher.key")
    assert_one_line(run("qpart.cli", "keygen", signing), 2, "--force")
