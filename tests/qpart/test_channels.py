"""Devices behind a channel that breaks, hangs and slows down: a proxy between real sockets."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from msgspec.structs import replace

import edgebus
from edgebus.testing import Proxy
from qpart import Channel, DeviceProfile, DriftLimits
from qpart.head import Head
from qpart.solve import Solver
from tests.qpart import small
from tests.qpart.serving import PRIVATE
from tests.qpart.test_streaming import close_to

pytestmark = pytest.mark.net


def test_a_connection_that_breaks_again_and_again_costs_no_answer(served, inputs):
    with served.serving() as endpoint, Proxy(endpoint) as proxy, served.device(proxy.endpoint) as device:
        pattern = device.prepare(PRIVATE).plan.pattern
        answers = []
        for i, logits in enumerate(device.infer_stream((inputs[i : i + 1] for i in range(12)), depth=3)):
            answers.append(logits)
            if i in (2, 6):
                proxy.cut()
        assert close_to(np.concatenate(answers), served.simulated(pattern, inputs))
        assert device.server_answers == 12
        counters = served.server.report().counters
        assert counters["accepted"] == counters["answered"] + counters["withdrawn"] + counters["expired"]
        assert counters["answered"] >= 12


def test_a_cable_that_is_pulled_is_a_named_error_in_time_or_no_loss_at_all(served, inputs):
    """Nothing says that the other end is gone: the timeout of each request does."""
    with served.serving() as endpoint, Proxy(endpoint) as proxy:
        with served.device(proxy.endpoint, timeout_s=1.0) as device:
            device.prepare(PRIVATE)
            proxy.stall()
            began = time.monotonic()
            with pytest.raises(edgebus.RemoteError):
                device.infer(inputs)
            assert time.monotonic() - began < 3
            proxy.resume()
        with served.device(proxy.endpoint, timeout_s=1.0, on_loss="local") as device:
            device.prepare(PRIVATE)
            proxy.stall()
            assert device.infer(inputs).shape == (12, small.CLASSES)
            assert device.local_answers == 12
            proxy.resume()


@pytest.fixture
def as_slow_as_said(monkeypatch):
    """Heads take the time that a million multiply-accumulates per second take."""
    real, macs = Head.run, small.network().macs

    def run(head, values):
        threading.Event().wait(sum(macs[: len(head.segment.nodes)]) * len(values) / 1e6)
        return real(head, values)

    monkeypatch.setattr(Head, "run", run)


def test_an_uplink_that_becomes_slow_is_noticed_and_less_is_sent(served, inputs, as_slow_as_said):
    """2 kB/s, headers and encryption included, where there was as much as is wanted: the device computes more.

    Twelve inputs in a request, since for one alone the headers are most of it, and another plan gains nothing.
    """
    tables = served.artefact.tables
    whole = Solver(tables).best(6, tables.budget.budget(PRIVATE.accuracy))
    assert whole is not None
    said = replace(
        PRIVATE,
        channel=Channel(up_bits_per_s=1e7, down_bits_per_s=1e7),
        device=DeviceProfile(macs_per_s=1e6, joules_per_mac=0, memory_bytes=whole.device_bytes - 1),
        inferences=10_000,
    )
    limits = DriftLimits(hold_s=0.3, pause_s=0.5, half_life_s=0.5, requests=3)
    with (
        served.serving() as endpoint,
        Proxy(endpoint) as proxy,
        served.device(proxy.endpoint, adapt=True, drift=limits) as device,
    ):
        first = device.prepare(said).plan.pattern
        for _ in range(20):
            device.infer(inputs)
        assert device.switches == 0
        proxy.bytes_per_s = 2000.0
        until = time.monotonic() + 30
        while not device.switches and time.monotonic() < until:
            device.infer(inputs)
        pattern = device.planned.plan.pattern
        assert device.switches == 1
        assert pattern.cut > first.cut
        assert pattern.up_bytes < first.up_bytes
        proxy.bytes_per_s = None
        assert close_to(device.infer(inputs), served.simulated(pattern, inputs))
