"""One server and many devices: batches, floods, faults, slow plans, drains, and numbers that add up."""

from __future__ import annotations

import contextlib
import threading
import time

import msgspec
import numpy as np
import pytest

import edgebus
from edgebus.payloads import decode, encode
from qpart import messages
from qpart.batching import BatchLimits
from qpart.executors.with_numpy import NumpyExecutor
from qpart.executors.with_torch import TorchExecutor
from qpart.messages import Busy, Infer
from qpart.metrics import HELP, ServerReport, render
from qpart.network import INPUT
from qpart.quantiser import quantise_activation
from qpart.tables import WIDTHS
from qpart.tail import BATCH_TOLERANCE, Tail
from tests.qpart import small
from tests.qpart.serving import LAZY, MANY, PRIVATE, close_to, wait_until
from tests.qpart.test_streaming import gate

pytestmark = pytest.mark.net


def packed(artefact, cut, bits, inputs):
    """What a device with weights in full precision sends at a cut."""
    network = artefact.network
    live = network.live[cut]
    values = NumpyExecutor(network.nodes, artefact.parameters.__getitem__).run({INPUT: inputs}, 0, cut, live)
    arrays = [
        quantise_activation(values[value], width, artefact.ranges[value][WIDTHS.index(width)])
        for value, width in zip(live, bits, strict=True)
    ]
    return Infer(artefact.model_id, cut, tuple(bits)), arrays


def reconciled(server) -> dict[str, float]:
    """The server's counters, which have to add up."""
    report = server.report()
    counters, gauges = report.counters, report.gauges
    ended = sum(counters[name] for name in ("answered", "failed", "expired", "withdrawn"))
    assert counters["accepted"] == ended + gauges["waiting"] + gauges["running"]
    return counters


@pytest.mark.parametrize("executor", [TorchExecutor, NumpyExecutor])
def test_answers_are_the_same_whatever_they_are_computed_with(inputs, executor):
    """Every cut at several widths, alone and all in one pass, requests of other cuts and sizes in between."""
    artefact = small.artefact()
    parameters = artefact.parameters.__getitem__ if executor is NumpyExecutor else artefact.parameters
    tail = Tail(artefact, executor(artefact.network.nodes, parameters))
    works = []
    for i, (cut, bits) in enumerate((cut, bits) for cut in range(6) for bits in (2, 5, 16)):
        infer, arrays = packed(
            artefact, cut, (bits,) * len(artefact.network.live[cut]), inputs[i % 7 : i % 7 + 1 + i % 3]
        )
        works.append(tail.check(infer, arrays))
    together = tail.answers(works[::-1])[::-1]
    largest = max(float(np.abs(each).max()) for each in together)
    for work, found in zip(works, together, strict=True):
        (alone,) = tail.answers([work])
        assert found.shape == alone.shape == (work.samples, small.CLASSES)
        assert np.abs(found - alone).max() <= BATCH_TOLERANCE * largest
        assert np.array_equal(found.argmax(axis=1), alone.argmax(axis=1))


def test_devices_that_wait_are_answered_by_one_forward(served, inputs):
    model = served.model()
    let, reached = gate(model)
    with served.serving(models=[model]) as endpoint, contextlib.ExitStack() as stack:
        devices = [stack.enter_context(served.device(endpoint)) for _ in range(3)]
        for device, request in zip(devices, (PRIVATE, MANY, LAZY), strict=True):
            device.prepare(request)
        asking = [each for each in devices if not each._prepared.head.is_whole]
        first = threading.Thread(target=lambda: devices[0].infer(inputs[:1]))
        first.start()
        assert reached.wait(10)
        answers = [None] * len(asking)

        def ask(i):
            answers[i] = asking[i].infer(inputs)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asking)) if asking[i] is not devices[0]]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        let.set()
        for thread in (first, *threads):
            thread.join(20)
        for i, device in enumerate(asking):
            if device is not devices[0]:
                assert close_to(answers[i], served.simulated(device.planned.plan.pattern, inputs))
        counters = reconciled(served.server)
        assert counters["batches"] == 2
        assert counters["answered"] == 1 + len(threads)


def test_plans_that_take_long_do_not_hold_up_inference(served, inputs):
    """A pattern is being run on the calibration inputs, for ever as it seems; everybody else is answered meanwhile."""
    model = served.model()
    real, let, reached = model._verifier.holds, threading.Event(), threading.Event()
    armed = threading.Event()
    model._verifier._known.clear()  # as if calibration had run none of them

    def holds(pattern, accuracy):
        if armed.is_set():
            reached.set()
            assert let.wait(20)
        return real(pattern, accuracy)

    model._verifier.holds = holds
    with (
        served.serving(models=[model]) as endpoint,
        served.device(endpoint) as device,
        served.device(endpoint) as other,
    ):
        device.prepare(PRIVATE)
        armed.set()
        planning = threading.Thread(target=lambda: other.prepare(msgspec.structs.replace(MANY, accuracy=0.1)))
        planning.start()
        assert reached.wait(10)
        began = time.monotonic()
        for i in range(12):
            device.infer(inputs[i : i + 1])
        assert time.monotonic() - began < 5
        assert planning.is_alive()
        assert served.server.report().gauges["planning"] == 1
        let.set()
        planning.join(20)
        assert other.planned is not None


def test_a_full_queue_says_busy_and_devices_come_back(served, inputs):
    """Two places: a flood from one device is refused, and the other one is answered in its turn."""
    model = served.model()
    let, reached = gate(model)
    limits = BatchLimits(max_waiting=2, max_batch=1)
    with (
        served.serving(models=[model], limits=limits) as endpoint,
        served.device(endpoint) as device,
    ):
        device.prepare(PRIVATE)
        infer, arrays = packed(served.artefact, 3, (4, 4), inputs[:1])
        link, payload = device._line.link, encode(infer)
        flood = [link.send_request(messages.INFER, payload, arrays, 10)]
        assert reached.wait(10)
        flood += [link.send_request(messages.INFER, payload, arrays, 10) for _ in range(5)]
        late = threading.Thread(target=lambda: device.infer(inputs[:1]))
        late.start()
        time.sleep(0.2)
        let.set()
        late.join(20)
        assert device.server_answers == 1
        outcomes = [outcome(pending) for pending in flood]
        assert outcomes.count("busy") >= 3
        assert outcomes[0] == (1, small.CLASSES)
        counters = reconciled(served.server)
        assert counters["answered"] == len(outcomes) - outcomes.count("busy") + 1
        assert served.server.report().refusals["busy"] == outcomes.count("busy") + device.traffic.asked_again


def outcome(pending):
    """Shape of an answer, or the code of a refusal that says when to come back."""
    try:
        return pending.result().arrays[0].shape
    except edgebus.Refused as refused:
        return refused.code if decode(Busy, refused.info).retry_after_s > 0 else None


def test_expired_and_abandoned_requests_are_not_computed(served, inputs):
    model = served.model()
    let, reached = gate(model)
    with served.serving(models=[model]) as endpoint, served.device(endpoint) as device:
        infer, arrays = packed(served.artefact, 3, (4, 4), inputs[:1])
        ask = lambda within_s: device._line.link.send_request(messages.INFER, encode(infer), arrays, within_s)  # noqa: E731
        first = ask(20)
        assert reached.wait(10)
        late, given_up, kept = ask(0.3), ask(20), ask(20)
        time.sleep(0.1)
        given_up.cancel()
        with pytest.raises(edgebus.DeadlineExceeded):
            late.result()
        time.sleep(0.2)
        let.set()
        assert first.result().arrays[0].shape == kept.result().arrays[0].shape
        wait_until(lambda: served.server.report().gauges["running"] == 0)
        counters = reconciled(served.server)
        assert counters["samples"] == counters["answered"] == 2


def test_a_device_that_disappears_costs_nobody_else_anything(served, inputs):
    model = served.model()
    let, reached = gate(model)
    with served.serving(models=[model]) as endpoint, served.device(endpoint) as device:
        device.prepare(PRIVATE)
        infer, arrays = packed(served.artefact, 2, (4,), inputs[:1])
        stranger = served.device(endpoint)
        stranger._line.link.send_request(messages.INFER, encode(infer), arrays, 20)
        assert reached.wait(10)
        stranger._line.link.send_request(messages.INFER, encode(infer), arrays, 20)
        time.sleep(0.1)
        stranger.close()
        let.set()
        assert close_to(device.infer(inputs), served.simulated(device.planned.plan.pattern, inputs))
        wait_until(lambda: served.server.report().gauges["running"] == 0)
        reconciled(served.server)


def test_a_request_that_breaks_a_forward_is_found_and_refused_alone(served, inputs):
    model = served.model()
    real, let, reached = model.tail.answers, threading.Event(), threading.Event()

    def answers(works):
        reached.set()
        assert let.wait(10)
        if any(work.live_bits == (7,) for work in works):
            raise MemoryError("this one")
        return real(works)

    model.tail.answers = answers
    with served.serving(models=[model]) as endpoint, served.device(endpoint) as device:
        good, bad = packed(served.artefact, 2, (4,), inputs[:1]), packed(served.artefact, 2, (7,), inputs[:1])
        pending = []
        for infer, arrays in (good, good, bad, good, good):
            pending.append(device._line.link.send_request(messages.INFER, encode(infer), arrays, 20))
            assert reached.wait(10)
        time.sleep(0.1)
        let.set()
        with pytest.raises(edgebus.Refused) as caught:
            pending.pop(2).result()
        assert caught.value.code == "internal"
        assert all(each.result().arrays[0].shape == (1, small.CLASSES) for each in pending)
        counters = reconciled(served.server)
        assert (counters["failed"], counters["answered"]) == (1, 4)


def hostile(artefact, inputs):
    """Inference requests that are refused, by what is wrong with them."""
    infer, arrays = packed(artefact, 3, (4, 16), inputs[:2])
    first, second = arrays
    poisoned = second.copy()
    poisoned[1, 5] = np.nan
    replaced = msgspec.structs.replace
    return {
        "NaN": (infer, [first, poisoned]),
        "shape": (infer, [first[:, :-1], second]),
        "dtype": (infer, [first.astype(np.float16), second]),
        "bits": (replaced(infer, live_bits=(9, 16)), arrays),
        "widths": (replaced(infer, live_bits=(4,)), arrays),
        "cut": (replaced(infer, cut=6, live_bits=()), []),
        "other cut": (replaced(infer, cut=2, live_bits=(4,)), arrays),
        "rows": (infer, [first[:1], second]),
        "scalar": (infer, [np.array(3, np.uint8), second]),
        "no samples": (infer, [first[:0], second[:0]]),
        "giant": (infer, [np.zeros((1 << 17, first.shape[1]), np.uint8), np.zeros((1, 144), np.float16)]),
        "model": (replaced(infer, model_id=bytes(16)), arrays),
    }


@pytest.mark.parametrize("what", hostile(small.artefact(), np.zeros((2, *small.SHAPE), np.float32)))
def test_hostile_requests_are_named_and_never_reach_a_forward(served, inputs, what):
    infer, arrays = hostile(served.artefact, inputs)[what]
    with served.serving() as endpoint, served.device(endpoint) as device:
        with pytest.raises(edgebus.Refused) as caught:
            device._line.link.request(messages.INFER, encode(infer), arrays, timeout_s=10)
        assert caught.value.code == ("unknown_model" if what == "model" else "invalid")
        assert caught.value.detail
        counters = reconciled(served.server)
        assert counters["accepted"] == counters["batches"] == 0


def test_a_drain_answers_what_was_accepted_and_refuses_the_rest(served, inputs):
    model = served.model()
    let, reached = gate(model)
    with served.serving(models=[model]) as endpoint, served.device(endpoint) as device:
        infer, arrays = packed(served.artefact, 3, (4, 4), inputs[:1])
        ask = lambda: device._line.link.send_request(messages.INFER, encode(infer), arrays, 20)  # noqa: E731
        before = [ask()]
        assert reached.wait(10)
        before += [ask(), ask()]
        time.sleep(0.2)
        served.server.drain()
        let.set()
        assert all(each.result().arrays[0].shape == (1, small.CLASSES) for each in before)
        with pytest.raises(edgebus.Refused) as caught:
            ask().result()
        assert caught.value.code in ("closing", "unknown_service")
        assert reconciled(served.server)["answered"] == 3


def test_a_server_that_drains_says_so(served):
    """A plan is being made meanwhile, which the drain waits for."""
    model, reached, let = served.model(), threading.Event(), threading.Event()
    real = model.plan

    def plan(request, cached=b"", **more):
        reached.set()
        assert let.wait(20)
        return real(request, cached, **more)

    model.plan = plan
    with served.serving(models=[model]) as endpoint, served.device(endpoint) as device:
        link = device._line.link
        ask = encode(messages.Ask(served.artefact.model_id, PRIVATE, b""))
        accepted = link.send_request(messages.PLAN, ask, (), 20)
        assert reached.wait(10)
        served.server.drain()
        wait_until(lambda: served.server.report().phase == "draining")
        report = decode(ServerReport, link.request(messages.STATS).payload)
        assert (report.phase, report.gauges["planning"], report.refusals) == ("draining", 1.0, {})
        with pytest.raises(edgebus.Refused) as caught:
            link.request(messages.DESCRIBE)
        assert caught.value.code == "closing"
        let.set()
        assert accepted.result().payload


def test_a_server_that_is_stopped_refuses_what_waits(served, inputs):
    model = served.model()
    let, reached = gate(model)
    with served.serving(models=[model]) as endpoint, served.device(endpoint) as device:
        infer, arrays = packed(served.artefact, 3, (4, 4), inputs[:1])
        pending = []
        for _ in range(3):
            pending.append(device._line.link.send_request(messages.INFER, encode(infer), arrays, 20))
            assert reached.wait(10)
        time.sleep(0.1)
        served.server.stop()
        let.set()
        assert pending[0].result().arrays[0].shape == (1, small.CLASSES)
        for each in pending[1:]:
            with pytest.raises(edgebus.Refused) as caught:
                each.result()
            assert caught.value.code == "closing"
        reconciled(served.server)


def test_numbers_are_told_on_the_bus_and_as_prometheus_reads_them(served, inputs):
    from prometheus_client.parser import text_string_to_metric_families

    reports = []
    with served.serving(on_report=reports.append) as endpoint, served.device(endpoint) as device:
        device.prepare(PRIVATE)
        for i in range(3):
            device.infer(inputs[: i + 1])
        report = decode(ServerReport, device._line.link.request(messages.STATS).payload)
        sent = device.traffic.up_bytes - 3 * len(device._prepared.payload)
        wait_until(lambda: reports and reports[-1].counters["answered"] == 3)
    assert report.models == ["stripes"]
    assert report.phase == "serving"
    assert (report.counters["answered"], report.counters["samples"], report.counters["plans"]) == (3, 6, 1)
    assert report.counters["received_bytes"] == sent
    assert report.counters["sent_bytes"] == 6 * 4 * small.CLASSES
    assert set(report.gauges) | set(report.counters) | set(report.histograms) == set(HELP)
    text = render(report, name="server", version="1")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["qpart_answered"].samples[0].value == 3
    assert sum(s.value for s in families["qpart_batch_requests"].samples if s.name.endswith("_sum")) == 3
    assert {s.labels["model"] for s in families["qpart_model"].samples} == {"stripes"}
