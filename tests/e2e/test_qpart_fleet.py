"""One `qpart serve` process and eight devices with three kinds of plans over tcp with CURVE; killed servers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.e2e.conftest import ServerProcess, run

pytest.importorskip("torch")

from qpart import Device, PieceCache, artefact
from qpart.executors.simulator import Simulator
from qpart.inputs import as_float
from tests.qpart import small
from tests.qpart.serving import LAZY, MANY, PRIVATE

pytestmark = [pytest.mark.net, pytest.mark.timeout(180)]

KINDS = (PRIVATE, MANY, LAZY)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    from tests.qpart.conftest import write_files

    return write_files(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def images():
    return as_float(small.examples(40, seed=12)[0], small.SHAPE)


def start(keys, files, *more) -> ServerProcess:
    arguments = (files.artefact, "--keys", keys / "server", "--macs-per-s", "1e10", "--json", *more)
    return ServerProcess("qpart.cli", *arguments)


def open_device(ready, keys, cache, **more) -> Device:
    servers = [each["endpoint"] for each in ready] if isinstance(ready, list) else ready["endpoint"]
    key = keys / "server" / "node.key"
    return Device(servers, server_key=key, keys=keys / "device", cache=PieceCache(cache), timeout_s=30.0, **more)


def simulated(path, pattern, inputs):
    a = artefact.load(path)
    bits = pattern.cut, pattern.weight_bits, pattern.live_bits
    return Simulator(a.network, a.parameters, a.ranges).logits(*bits, inputs)


def close_to(found, expected) -> bool:
    return np.allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_eight_devices_with_three_plans_get_the_simulated_answers(keys, files, images, tmp_path):
    server = start(keys, files, "--metrics", "127.0.0.1:0")
    ready = json.loads(server.ready_line)
    together = threading.Barrier(8)

    def work(i):
        with open_device(ready, keys, tmp_path / f"cache {i}") as device:
            pattern = device.prepare(KINDS[i % 3]).plan.pattern
            together.wait(60)
            stream = device.infer_stream((images[k : k + 1] for k in range(len(images))), depth=1 + i % 3)
            return pattern, np.concatenate(list(stream)), device.traffic

    try:
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(work, range(8)))
        shown = run("qpart.cli", "stats", "--server", ready["endpoint"], "--keys", keys / "device", "--json",
                    "--server-key", keys / "server" / "node.key")  # fmt: skip
        # After a process has run: what is exported may be half a second old.
        text = urllib.request.urlopen(f"http://{ready['metrics']}/metrics", timeout=10).read().decode()
    finally:
        status, errors = server.end()
    assert (status, errors.count("Traceback")) == (0, 0), errors
    asked = 0
    for pattern, logits, traffic in results:
        assert close_to(logits, simulated(files.artefact, pattern, images))
        if not traffic.resends:
            assert traffic.up_bytes == traffic.planned_up_bytes
            assert traffic.answer_bytes == traffic.planned_answer_bytes
        asked += len(images) if traffic.planned_up_bytes else 0
    assert len({pattern.cut for pattern, _, _ in results}) >= 2
    answered = next(float(line.split()[1]) for line in text.splitlines() if line.startswith("qpart_answered_total"))
    assert answered == asked
    report = json.loads(shown.out)
    assert report["counters"]["answered"] == report["counters"]["accepted"] == asked
    assert report["refusals"] == {}


KILLED = """
import os, signal, sys
import numpy as np
from qpart import Device, PieceCache
from tests.qpart.serving import PRIVATE

endpoint, server_key, keys, cache, inputs, after = sys.argv[1:]
device = Device(endpoint, server_key=server_key, keys=keys, cache=PieceCache(cache), timeout_s=30.0)
if after == "connecting":
    os.kill(os.getpid(), signal.SIGKILL)
device.prepare(PRIVATE)
images = np.load(inputs)
stream = device.infer_stream((images for _ in range(100)), depth=8)
print(next(stream).shape[0], flush=True)  # by now seven more are on their way
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_devices_killed_in_the_middle_of_a_request_cost_nobody_else_anything(keys, files, images, tmp_path):
    """No goodbye: the kernel closes their sockets, with requests waiting and running at the server."""
    server, many = start(keys, files), tmp_path / "many.npy"
    ready, server_key = json.loads(server.ready_line), keys / "server" / "node.key"
    np.save(many, np.tile(images, (20, 1, 1, 1)))

    def killed(i):
        after = "connecting" if i == 2 else "asking"
        arguments = ready["endpoint"], server_key, keys / "device", tmp_path / f"killed {i}", many, after
        command = [sys.executable, "-c", KILLED, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    try:
        with ThreadPoolExecutor(3) as pool, open_device(ready, keys, tmp_path / "cache") as device:
            pattern = device.prepare(PRIVATE).plan.pattern
            gone, logits = [pool.submit(killed, i) for i in range(3)], []
            while not all(one.done() for one in gone) or len(logits) < 3:
                logits.append(device.infer(images))
            logits.append(device.infer(images))
        ended = [one.result() for one in gone]
        asking = "stats", "--server", ready["endpoint"], "--keys", keys / "device", "--json", "--server-key", server_key
        report = run("qpart.cli", *asking).json  # after a process has run, nothing of theirs is left to compute
    finally:
        status, errors = server.end()
    assert [one.returncode for one in ended] == [-signal.SIGKILL] * 3, ended
    assert [one.stdout for one in ended] == ["800\n", "800\n", ""]
    expected = simulated(files.artefact, pattern, images)
    assert all(close_to(one, expected) for one in logits)
    counters, gauges = report["counters"], report["gauges"]
    assert gauges["waiting"] == gauges["running"] == counters["failed"] == 0
    assert counters["accepted"] == sum(counters[name] for name in ("answered", "expired", "withdrawn"))
    assert counters["accepted"] >= len(logits) + 2
    assert (status, errors.count("Traceback")) == (0, 0), errors


@pytest.mark.slow
def test_a_killed_server_costs_no_answer_where_devices_may_finish_alone(keys, files, images, tmp_path):
    server = start(keys, files)
    with open_device(json.loads(server.ready_line), keys, tmp_path / "cache", on_loss="local") as device:
        pattern = device.prepare(PRIVATE).plan.pattern
        stream = device.infer_stream((images[k : k + 1] for k in range(len(images))), depth=3)
        answers = [next(stream) for _ in range(10)]
        server.process.send_signal(signal.SIGKILL)
        answers += list(stream)
        logits = np.concatenate(answers)
        assert len(logits) == len(images)
        assert device.server_answers + device.local_answers == len(images)
        assert device.server_answers >= 10
        assert device.local_answers >= 20
    server.process.communicate(timeout=60)
    expected = simulated(files.artefact, pattern, images)
    assert close_to(logits[:10], expected[:10])
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.7


@pytest.mark.slow
def test_a_killed_server_is_left_for_another_one(keys, files, images, tmp_path):
    """Both have the same key here, as replicas of one service may: one name, two addresses."""
    servers = [start(keys, files) for _ in range(2)]
    ready = [json.loads(each.ready_line) for each in servers]
    try:
        with open_device(ready, keys, tmp_path / "cache") as device:
            pattern = device.prepare(PRIVATE).plan.pattern
            stream = device.infer_stream((images[k : k + 1] for k in range(len(images))), depth=2)
            answers = [next(stream) for _ in range(10)]
            lost = next(i for i, each in enumerate(ready) if each["endpoint"] == device.server)
            servers[lost].process.send_signal(signal.SIGKILL)
            answers += list(stream)
            assert device.server == ready[1 - lost]["endpoint"]
            assert close_to(np.concatenate(answers), simulated(files.artefact, pattern, images))
    finally:
        for each in servers:
            each.end()
