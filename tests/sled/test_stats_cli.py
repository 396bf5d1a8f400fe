"""`sled stats`: what it shows of a server over real sockets."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("typer")
from typer.testing import CliRunner

from sled.cli.app import app
from sled.cli.stats import Shot, render
from sled.metrics import ServerReport
from sled.testing import ToyDrafter
from sled.types import Sampling
from sled.window import Window

pytestmark = pytest.mark.net


def test_numbers_of_a_server_as_table_and_as_json(served):
    with served.serving() as endpoint, served.device(endpoint, ToyDrafter(served.target)) as device:
        device.generate([5, 6, 7], max_tokens=20, sampling=Sampling(0.8, seed=3), window=Window(4)).answer()
        key = str(served.directory / "server" / "node.key")
        options = ["--server", endpoint, "--server-key", key, "--keys", str(served.directory / "device"), "--once"]
        shown = CliRunner().invoke(app, ["stats", *options])
        assert shown.exit_code == 0, shown.output
        assert "toy float32 toy  serving" in shown.output
        assert "accepted by position" in shown.output
        told = json.loads(CliRunner().invoke(app, ["stats", *options, "--json"]).output)
        assert told["counters"]["committed"] >= 1
        assert told["drafted_at"][0] == told["counters"]["rounds"] or told["drafted_at"][0] > 0
        assert told["histograms"]["step_seconds"]["total"] > 0


def test_report_that_lies_about_its_lengths_is_still_shown():
    report = ServerReport(
        "\x1b[2Jtoy", "float32", "serving", 1.0, {}, {}, {"b\x1bad": 2.0}, [3, 2], [1], {}, "na\x1btive"
    )
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render("tcp://x:1", Shot(1.0, report), Shot(0.0, report)))
    console.file.close()
    text = console.export_text()
    assert "\x1b" not in text
    assert "0.33 0.00" in text


def test_into_a_pipe_every_look_is_written_at_once(monkeypatch, capsys):
    from sled.cli import stats as module

    report = ServerReport("toy", "float32", "serving", 1.0, {}, {}, {}, [3], [1], {})
    seen = []

    def sleep(seconds):
        seen.append(capsys.readouterr().out)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", sleep)
    monkeypatch.setattr(module, "look", lambda link, timeout_s: Shot(2.0, report))
    module._watch("tcp://x:1", None, Shot(1.0, report), 1.0, 1.0)
    assert [text.count("accepted by position") for text in seen] == [1, 1, 1]
