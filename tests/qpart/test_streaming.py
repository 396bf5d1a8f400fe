"""Devices that stream, lose their server, move to another one, and change plans meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time

import msgspec
import numpy as np
import pytest

import edgebus
from edgebus.payloads import encode
from edgebus.testing import Proxy
from qpart import AsyncDevice, DriftLimits, messages
from qpart.errors import Infeasible, RequestError, UnknownModel
from qpart.head import Head
from qpart.messages import Infer
from qpart.profile import Channel, DeviceProfile
from qpart.run.cache import PieceCache
from qpart.run.served import ServedModel
from qpart.solve import Solver
from tests.qpart import small
from tests.qpart.serving import FAST, PRIVATE, close_to, in_haste, wait_until

pytestmark = pytest.mark.net

ROOMY = msgspec.structs.replace(PRIVATE, device=msgspec.structs.replace(FAST, memory_bytes=1 << 20))


def gate(model):
    """A model whose tails wait until they are let through; also whether one is waiting."""
    real, let, reached = model.tail.answers, threading.Event(), threading.Event()

    def answers(works):
        reached.set()
        assert let.wait(20)
        return real(works)

    model.tail.answers = answers
    return let, reached


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_streams_give_all_answers_in_order_and_count_every_byte(served, inputs, depth):
    with served.serving() as endpoint, served.device(endpoint) as device:
        pattern = device.prepare(PRIVATE).plan.pattern
        parts = list(device.infer_stream((inputs[i : i + 1] for i in range(len(inputs))), depth))
        traffic = device.traffic
        assert close_to(np.concatenate(parts), served.simulated(pattern, inputs))
        assert traffic.up_bytes == traffic.planned_up_bytes == len(inputs) * pattern.up_bytes
        assert traffic.answer_bytes == traffic.planned_answer_bytes
        assert device.server_answers == len(inputs)


def test_the_next_head_runs_while_the_tail_is_away(served, inputs):
    """The server holds the first tail back: by then the second input has been sent, and a third not yet taken."""
    model, taken = served.model(), []
    let, reached = gate(model)

    def source():
        for i in range(4):
            taken.append(i)
            yield inputs[i : i + 1]

    with served.serving(models=[model]) as endpoint, served.device(endpoint) as device:
        device.prepare(PRIVATE)
        stream = device.infer_stream(source(), depth=2)
        threading.Timer(0.1, lambda: reached.wait(10) and let.set()).start()
        first = next(stream)
        assert taken == [0, 1]
        assert close_to(first, served.simulated(device.planned.plan.pattern, inputs[:1]))
        assert len(list(stream)) == 3
        assert taken == [0, 1, 2, 3]


def test_a_cancelled_stream_ends_at_once_and_the_device_goes_on(served, inputs):
    model = served.model()
    let, reached = gate(model)
    with served.serving(models=[model]) as endpoint, served.device(endpoint) as device:
        device.prepare(PRIVATE)
        stream = device.infer_stream([inputs[:1]] * 10)
        threading.Timer(0.0, lambda: reached.wait(10) and device.cancel()).start()
        began = time.monotonic()
        assert list(stream) == []
        assert time.monotonic() - began < 5
        let.set()
        assert device.infer(inputs).shape == (12, small.CLASSES)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("what", ["input", "source"])
def test_an_error_comes_after_the_answers_before_it(served, inputs, depth, what):
    def source():
        yield inputs[:1]
        yield inputs[1:2]
        if what == "source":
            raise OSError("the camera is gone")
        yield inputs[:1, :, :2]
        yield inputs[:1]

    with served.serving() as endpoint, served.device(endpoint) as device:
        device.prepare(PRIVATE)
        stream, answers = device.infer_stream(source(), depth=depth), []
        with pytest.raises((OSError, edgebus.LocalError), match=r"camera|shape"):
            answers.extend(stream)
        assert close_to(np.concatenate(answers), served.simulated(device.planned.plan.pattern, inputs[:2]))
        assert list(stream) == []


def test_an_error_in_a_stream_closes_it(served, inputs):
    with served.serving() as endpoint, served.device(endpoint) as device:
        device.prepare(PRIVATE)
        stream = device.infer_stream([inputs[:1], inputs[:1, :, :2]], depth=1)
        next(stream)
        with pytest.raises(edgebus.LocalError, match="shape"):
            next(stream)
        assert list(stream) == []
        device.prepare(PRIVATE)
        with pytest.raises(RequestError, match="depth"):
            device.infer_stream([], depth=0)
        with device.infer_stream([inputs[:1]] * 3) as stream:
            next(stream)
            with pytest.raises(RequestError, match="stream is open"):
                device.prepare(PRIVATE)
        for _ in device.infer_stream([inputs[:1]] * 3):
            break  # and forgotten
        device.prepare(PRIVATE)
        unsent = device.traffic.planned_up_bytes - device.traffic.up_bytes
        assert unsent in (0, device._prepared.up_bytes(1)), "what was given up in time was not sent"


def test_large_activations_take_the_bulk_lane_and_small_ones_the_other(served, inputs, monkeypatch):
    lanes = {}
    plain = edgebus.Limits(share_bytes=0)  # as between two machines
    monkeypatch.setattr("edgebus.Node", functools.partial(edgebus.Node, limits=plain))
    with served.serving() as endpoint, served.device(endpoint) as device:
        device.prepare(PRIVATE)
        live = sum(-(-small.network().items(v) * b // 8) for v, b in live_of(device))
        many = np.concatenate([inputs] * (1 + (1 << 17) // (live * len(inputs))))

        def note(event):
            if event.direction == "out":
                lanes[event.lane] = lanes.get(event.lane, 0) + sum(event.sizes)

        device._node.tap(note)
        device.infer(inputs[:1])
        assert set(lanes) == {"control"}
        device.infer(many)
        assert lanes["bulk"] >= 1 << 17
        assert lanes["control"] < 1 << 12
        assert device.traffic.up_bytes == device.traffic.planned_up_bytes


def live_of(device):
    pattern = device.planned.plan.pattern
    return zip(small.network().live[pattern.cut], pattern.live_bits, strict=True)


def test_a_device_that_may_finishes_alone_and_goes_back_to_the_server(served, inputs):
    with served.serving() as endpoint:
        device = served.device(endpoint, on_loss="local")
        device.prepare(ROOMY)
        assert device.traffic.download_bytes == device.traffic.planned_download_bytes
        first = device.infer(inputs)
    with device:
        began = time.monotonic()
        alone = np.concatenate(list(device.infer_stream(inputs[i : i + 1] for i in range(12))))
        assert time.monotonic() - began < 8, "nobody waits for the timeout"
        assert (device.server_answers, device.local_answers) == (12, 12)
        assert (alone.argmax(axis=1) == first.argmax(axis=1)).mean() > 0.7
        with served.serving(endpoint):
            wait_until(lambda: device._line.link.health == "up")
            assert close_to(device.infer(inputs), first)
        assert device.server_answers == 24


def test_a_server_lost_with_requests_on_their_way_loses_no_answer(served, inputs):
    """The server is stopped between two forwards, with requests waiting; it refuses them, and the device finishes."""
    with contextlib.ExitStack() as lost:
        endpoint = lost.enter_context(served.serving())
        with served.device(endpoint, on_loss="local") as device:
            pattern = device.prepare(ROOMY).plan.pattern
            stream = device.infer_stream((inputs[i : i + 1] for i in range(12)), depth=3)
            answers = [next(stream), next(stream)]
            lost.close()
            answers += list(stream)
            assert len(answers) == 12
            assert close_to(np.concatenate(answers[:2]), served.simulated(pattern, inputs[:2]))
            assert device.server_answers + device.local_answers == 12
            assert device.local_answers >= 7


def test_inputs_in_a_buffer_that_is_used_again_are_those_that_were_given(served, inputs):
    """A camera's: when the device finishes alone, the frame is another one by then."""
    model = served.model()
    let, reached = gate(model)
    frame = np.empty_like(inputs[:1])

    def frames():
        for i in range(3):
            frame[:] = inputs[i]
            yield frame

    with served.serving() as endpoint, served.device(endpoint, on_loss="local", cache="other") as device:
        device.prepare(ROOMY)
        expected = device._prepared.whole.answer(inputs[:3])
    with served.serving(models=[model]) as endpoint, served.device(endpoint, on_loss="local", timeout_s=1) as device:
        device.prepare(ROOMY)
        answers = list(device.infer_stream(frames(), depth=3))
        assert reached.is_set()
        assert device.local_answers == 3
        let.set()
    assert close_to(np.concatenate(answers), expected)


def test_a_device_that_cannot_hold_it_all_says_so_before_it_is_too_late(served):
    with served.serving() as endpoint:
        with served.device(endpoint) as device:
            need = device.prepare(PRIVATE).plan.pattern.device_bytes
        tight = msgspec.structs.replace(PRIVATE, device=msgspec.structs.replace(FAST, memory_bytes=need))
        with served.device(endpoint, on_loss="local") as device, pytest.raises(Infeasible) as caught:
            device.prepare(tight)
    assert caught.value.constraint == "memory"


@pytest.mark.parametrize("claim", [0, -1_000_000])
def test_what_a_server_says_of_the_head_gives_the_rest_no_more_memory(served, claim):
    """Head and whole network are held together: what the head takes is known here, whatever the plan says."""

    class Modest(ServedModel):
        def __init__(self, honest):
            self.__dict__.update(honest.__dict__)
            self.memory_bytes = []

        def plan(self, request, cached=b"", **more):
            self.memory_bytes.append(request.device.memory_bytes)
            planned = super().plan(request, cached, **more)
            pattern = msgspec.structs.replace(planned.plan.pattern, segment_bytes=claim)
            return msgspec.structs.replace(planned, plan=msgspec.structs.replace(planned.plan, pattern=pattern))

    model = Modest(served.model())
    with served.serving(models=[model]) as endpoint, served.device(endpoint, on_loss="local") as device:
        device.prepare(ROOMY)
        for_head, for_whole = model.memory_bytes
        assert for_whole <= for_head - device.head.held_bytes


def test_a_device_that_waits_goes_on_when_the_server_is_back(served, inputs):
    with served.serving() as endpoint:
        device = served.device(endpoint, on_loss="wait")
        device.prepare(PRIVATE)
        before = device.infer(inputs)
        in_haste(device, 0.5)
    answers = []
    with device:
        thread = threading.Thread(target=lambda: answers.append(device.infer(inputs)))
        thread.start()
        thread.join(1.5)
        assert thread.is_alive(), "three timeouts later it still waits"
        with served.serving(endpoint):
            thread.join(20)
    assert close_to(answers[0], before)


def test_another_server_goes_on(served, inputs):
    edgebus.generate_keys(served.directory / "second")
    edgebus.add_to_allow_list(served.allow_file, served.directory / "device" / "node.key")
    keys = [served.directory / name / "node.key" for name in ("server", "second")]
    with served.serving() as kept, contextlib.ExitStack() as lost:
        endpoint = lost.enter_context(served.serving(name="second"))
        with served.device([kept, endpoint], server_key=keys) as device:
            device.prepare(PRIVATE)
            wait_until(lambda: all(each.health == "up" for each in device._line._pool.stats().members.values()))
            if device.server == kept:
                assert device._line.elsewhere()
            assert device.server == endpoint
            before = device.infer(inputs)
            stream = device.infer_stream([inputs] * 5)
            answers = [next(stream)]
            lost.close()
            answers += list(stream)
            assert all(close_to(each, before) for each in answers)
            assert device.server == kept


def test_pieces_come_from_another_server_where_theirs_is_lost(served, inputs):
    """The cable is pulled between the segment and its pieces."""
    edgebus.generate_keys(served.directory / "second")
    edgebus.add_to_allow_list(served.allow_file, served.directory / "device" / "node.key")
    keys = [served.directory / name / "node.key" for name in ("second", "server")]
    with (
        served.serving() as kept,
        served.serving(name="second") as endpoint,
        Proxy(endpoint) as proxy,
        served.device([proxy.endpoint, kept], server_key=keys, timeout_s=25.0) as device,
    ):
        wait_until(lambda: all(each.health == "up" for each in device._line._pool.stats().members.values()))
        if device.server == kept:
            assert device._line.elsewhere()
        fetch = device._cache.fetch

        def pulled(link, sizes, timeout_s):
            proxy.stall()
            proxy.refuse()
            return fetch(link, sizes, timeout_s)

        device._cache.fetch = pulled
        began = time.monotonic()
        pattern = device.prepare(PRIVATE).plan.pattern
        assert time.monotonic() - began < 20, "nobody waits for the timeout"
        assert device.server == kept
        assert close_to(device.infer(inputs), served.simulated(pattern, inputs))


def test_a_server_that_comes_back_with_another_artefact_is_named(served, inputs):
    from dataclasses import replace

    from qpart.artefact import save

    other = save(replace(small.artefact(), seed=small.artefact().seed + 1), served.directory / "other.qpart")
    with served.serving() as endpoint:
        device = served.device(endpoint, on_loss="local")
        device.prepare(ROOMY)
        device.infer(inputs)
    wait_until(lambda: device._line.link.health == "down")  # else "up" is what it was before
    with device, served.serving(endpoint, models=[served.model(other)]):
        wait_until(lambda: device._line.link.health == "up")
        with pytest.raises(UnknownModel, match="ask for a plan"):
            device.infer(inputs)


def test_a_plan_is_changed_while_it_runs_and_no_answer_is_dropped(served, inputs, monkeypatch):
    """The device said that its uplink is slow, and it is a loopback: it runs less of the network after a while."""
    tables = served.artefact.tables
    whole = Solver(tables).best(6, tables.budget.budget(PRIVATE.accuracy))
    assert whole is not None
    said = msgspec.structs.replace(
        PRIVATE,
        channel=Channel(up_bits_per_s=1e3, down_bits_per_s=1e6),
        device=DeviceProfile(macs_per_s=2e5, joules_per_mac=0, memory_bytes=whole.device_bytes - 1),
        inferences=10_000,
    )
    real = Head.run

    def run(head, values):
        threading.Event().wait(sum(small.network().macs[: len(head.segment.nodes)]) / 2e5)  # as slow as it said
        return real(head, values)

    monkeypatch.setattr(Head, "run", run)
    limits = DriftLimits(margin=0.05, hold_s=0.0, gain=0.01, pause_s=0.0, requests=2)
    with served.serving() as endpoint, served.device(endpoint, adapt=True, drift=limits) as device:
        first = device.prepare(said).plan.pattern
        assert 0 < first.cut < 6
        answers = 0
        until = time.monotonic() + 20
        while not device.switches and time.monotonic() < until:
            expected = served.simulated(device.planned.plan.pattern, inputs[:1])
            found = device.infer(inputs[:1])
            answers += 1
            if not device.switches:
                assert close_to(found, expected)
        assert device.switches >= 1
        after = device.planned.plan.pattern
        assert (after.cut, after.live_bits) != (first.cut, first.live_bits)
        assert close_to(device.infer(inputs), served.simulated(device.planned.plan.pattern, inputs))
        assert device.server_answers == answers + 12
        traffic = device.traffic
        assert traffic.download_bytes == traffic.planned_download_bytes
        assert traffic.up_bytes == traffic.planned_up_bytes


def test_a_plan_that_comes_too_late_is_not_a_switch(served, inputs):
    """It is being made for the request before while the device asks for another one."""
    model = served.model()
    real, second, let = model.plan, threading.Event(), threading.Event()

    def plan(request, cached=b"", **more):
        if first:
            second.set()
            assert let.wait(20)
        first.append(request)
        return real(request, cached, **more)

    first, model.plan = [], plan
    limits = DriftLimits(margin=0.001, hold_s=0.0, gain=0.0, pause_s=0.0, requests=1)
    slow = DeviceProfile(macs_per_s=1e4, joules_per_mac=0, memory_bytes=1 << 20)
    said = msgspec.structs.replace(PRIVATE, device=slow, inferences=1000)
    with served.serving(models=[model]) as endpoint, served.device(endpoint, adapt=True, drift=limits) as device:
        device.prepare(said)
        while not second.is_set():
            device.infer(inputs[:1])
        threading.Timer(0.3, let.set).start()
        device.prepare(msgspec.structs.replace(said, accuracy=0.05))
        assert device.planned.plan.accuracy == 0.05
        assert device.switches == 0
        traffic = device.traffic
        assert traffic.download_bytes == traffic.planned_download_bytes


def test_asyncio_devices_answer_stream_and_are_cancelled(served, inputs):
    model = served.model()

    async def use(endpoint):
        device = await AsyncDevice.open(
            endpoint,
            server_key=served.directory / "server" / "node.key",
            keys=served.directory / "device",
            cache=PieceCache(served.directory / "cache"),
            timeout_s=10.0,
        )
        async with device:
            plan = (await device.prepare(PRIVATE)).plan
            whole = await device.infer(inputs)
            parts = [part async for part in device.infer_stream(inputs[i : i + 1] for i in range(12))]
            assert close_to(np.concatenate(parts), whole)
            let, reached = gate(model)
            task = asyncio.create_task(device.infer(inputs))
            while not reached.is_set():
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            let.set()
            assert close_to(await device.infer(inputs), whole)
            return plan.pattern, whole

    with served.serving(models=[model]) as endpoint:
        pattern, whole = asyncio.run(use(endpoint))
    assert close_to(whole, served.simulated(pattern, inputs))


def test_asyncio_devices_that_cannot_connect_leave_nothing_open(served):
    with pytest.raises(edgebus.EdgebusError):
        asyncio.run(AsyncDevice.open("tcp://127.0.0.1:1", insecure=True, timeout_s=0.2))


def test_infer_messages_are_as_large_as_planned():
    assert len(encode(messages.Answered(0.25, 1e-9))) == messages.ANSWERED_BYTES
    assert len(encode(Infer(bytes(16), 3, (2, 3)))) == messages.infer_bytes(small.network(), 3)
