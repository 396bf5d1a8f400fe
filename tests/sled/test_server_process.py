"""A server as a process: ready line, metrics over HTTP, log lines, and how signals end it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

import edgebus
from edgebus.daemon.exporter import STUCK_S, Exporter
from edgebus.directory import Directory
from edgebus.services import Follower
from sled.metrics import render
from sled.run.device import Device
from sled.testing import ToyTarget
from sled.types import Sampling

pytestmark = pytest.mark.net

PROMPT = [5, 6, 7]
SAMPLED = Sampling(temperature=0.8, top_k=20, seed=3)
RIGHT = ToyTarget().plain_answer(PROMPT, SAMPLED, 30)


@contextmanager
def process(**settings):
    """A server process and what it said when it was ready."""
    given = {
        "model": "toy",
        "bind": "tcp://127.0.0.1:0",
        "insecure": True,
        "metrics": "127.0.0.1:0",
        "log_json": True,
        "announce": "sled",
    }
    command = [sys.executable, str(Path(__file__).with_name("child_server.py")), json.dumps(given | settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            line = child.stdout.readline()
            assert line, child.stderr.read()
            yield child, json.loads(line)
        finally:
            if child.poll() is None:
                child.kill()


def device(ready) -> Device:
    return Device(ready["endpoint"], insecure=True, drafter="none", timeout_s=10.0)


def fetch(ready, path) -> str:
    with urllib.request.urlopen(f"http://{ready['metrics']}{path}", timeout=5) as answer:
        return answer.read().decode()


def test_drain_lets_a_running_answer_finish_and_ends_with_status_0():
    with process(drain_s=20.0) as (child, ready), device(ready) as unit:
        stream = iter(unit.generate(PROMPT, max_tokens=30, sampling=SAMPLED))
        got = [next(stream).id]
        assert fetch(ready, "/healthy") == "ok\n"
        text = fetch(ready, "/metrics")
        assert 'sled_info{name="sled-server"' in text
        assert "sled_kv_bytes_budget" in text
        child.send_signal(signal.SIGTERM)
        got += [token.id for token in stream]
        assert got == RIGHT
        _, errors = child.communicate(timeout=10)
    assert child.returncode == 0
    events = [json.loads(line) for line in errors.splitlines()]
    assert [each["event"] for each in events if each["logger"] == "sled.server"] == ["serving", "draining", "ended"]


def test_announcement_is_withdrawn_when_the_drain_begins_not_when_it_ends():
    """Else new devices would be sent to a server that refuses them, for as long as its sessions go on."""
    with process(drain_s=20.0) as (child, ready), device(ready) as unit, edgebus.Node("eye", insecure=True) as node:
        with contextlib.closing(Follower(Directory())) as follower:
            follower.follow(node.connect(ready["endpoint"]), "")

            def wait_for(num_records):
                until = time.monotonic() + 10.0
                while len(follower.directory.records()) != num_records:
                    follower.turn(time.monotonic())
                    assert time.monotonic() < until

            wait_for(1)
            stream = iter(unit.generate(PROMPT, max_tokens=30, sampling=SAMPLED))
            got = [next(stream).id]
            child.send_signal(signal.SIGTERM)
            wait_for(0)
            assert child.poll() is None, "it drains: its session is open"
            got += [token.id for token in stream]
        assert got == RIGHT
        assert child.wait(10) == 0


def test_second_signal_ends_at_once_though_sessions_are_open():
    with process(drain_s=1000.0) as (child, ready), device(ready) as unit:
        next(iter(unit.generate(PROMPT, max_tokens=30, sampling=SAMPLED)))
        child.send_signal(signal.SIGTERM)
        while "draining" not in child.stderr.readline():
            assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0


def test_exporter_says_when_the_server_is_not_there_yet_or_hangs():
    now = [0.0]
    exporter = Exporter(lambda report: render(report, name="a", version="1"), lambda: now[0])
    with pytest.raises(RuntimeError, match="being loaded"):
        exporter.text()
    from sled.run.server import TargetServer

    exporter.tell(TargetServer(None, ToyTarget()).report())
    assert "sled_uptime_seconds" in exporter.text()
    now[0] = STUCK_S + 1.0
    with pytest.raises(RuntimeError, match="hangs"):
        exporter.text()


def test_loading_leaves_nothing_but_json_in_a_json_log(monkeypatch, capsys):
    from edgebus.daemon.logs import remove_logs, set_up_logs
    from sled.cli import loading
    from sled.settings import ServeSettings
    from sled.targets.catalog import ModelFiles

    def load_engine(files, *, progress, **settings):
        progress(1.0)
        target = ToyTarget()
        target.num_threads = 1
        return target

    monkeypatch.setattr(loading, "find_model", lambda name: ModelFiles(name, "gguf", Path("toy.gguf")))
    monkeypatch.setattr("sled.targets.engines.load_engine", load_engine)
    handler = set_up_logs("info", "json")
    try:
        loading._target(ServeSettings(model="toy", log_json=True))
    finally:
        remove_logs(handler)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["target"]) for line in lines] == [("loaded", "toy")]
