"""Device and server shells over real sockets with CURVE: planned is sent, delivered is simulated."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

import edgebus
from edgebus.blobs import BlobCorrupt
from edgebus.payloads import encode
from qpart import Device, messages
from qpart.errors import Infeasible, ProtocolError, RequestError, SegmentRejected, ShapeMismatch, UnknownModel
from qpart.executors.simulator import Simulator
from qpart.executors.with_torch import PackedTorchExecutor
from qpart.inputs import as_float
from qpart.messages import Chosen, Infer
from qpart.pieces import ADDRESS_BYTES
from qpart.run.cache import PieceCache
from qpart.run.line import Line
from qpart.run.published import Published
from qpart.run.served import ServedModel
from qpart.run.traffic import Traffic
from tests.qpart import small
from tests.qpart.serving import FAST, LAZY, MANY, PRIVATE, close_to

pytestmark = pytest.mark.net


@pytest.mark.parametrize(
    ("request_", "cut"), [(MANY, None), (PRIVATE, None), (LAZY, 0)], ids=["many", "private", "lazy"]
)
def test_planned_bytes_are_sent_and_answers_are_the_simulated_ones(served, inputs, request_, cut):
    with served.serving() as endpoint, served.device(endpoint) as device:
        planned = device.prepare(request_)
        logits = np.concatenate([device.infer(inputs[i : i + 1]) for i in range(len(inputs))])
        traffic, pattern = device.traffic, planned.plan.pattern
    assert cut is None or pattern.cut == cut
    assert not request_.raw_input_stays or pattern.cut > 0
    assert traffic.download_bytes == traffic.planned_download_bytes == pattern.download_bytes
    assert traffic.up_bytes == traffic.planned_up_bytes == len(inputs) * pattern.up_bytes
    assert traffic.answer_bytes == traffic.planned_answer_bytes
    assert traffic.wire_bytes > traffic.download_bytes + traffic.up_bytes + traffic.answer_bytes
    a = served.artefact
    simulated = Simulator(a.network, a.parameters, a.ranges).logits(
        pattern.cut, pattern.weight_bits, pattern.live_bits, inputs
    )
    assert np.allclose(logits, simulated, atol=1e-4 * np.abs(simulated).max())


def test_the_table_of_all_cuts_comes_when_it_is_asked_for(served):
    """The plan is the same; one that names no wish, as devices did before there was one, gets all of it."""
    with served.serving() as endpoint, served.device(endpoint) as device:
        asked = (device._preparer.ask(device.model, PRIVATE, Traffic(), explain=explain) for explain in (False, True))
        short, full = (planned.plan for planned in asked)
        assert device.prepare(PRIVATE).plan == short
        ask = msgspec.msgpack.encode([served.artefact.model_id, PRIVATE, b""])
        answer = device._line.link.request(messages.PLAN, ask).payload
    assert [row.cut for row in full.rows] == list(range(served.artefact.network.num_nodes + 1))
    assert short.rows == (full.row(),)
    assert (short.cost, short.pattern, short.last_cut) == (full.cost, full.pattern, full.last_cut)
    assert len(msgspec.msgpack.decode(answer, type=messages.Planned).plan.rows) == len(full.rows)


class OfAnother(ServedModel):
    """Its tables are of the chosen cut alone, whatever was asked for, or of a network with a node more."""

    def __init__(self, honest, what):
        self.__dict__.update(honest.__dict__)
        self._what = what

    def plan(self, request, cached=b"", *, explain=True):
        planned = super().plan(request, cached, explain=False)
        if self._what == "alone":
            return planned
        table = planned.plan.table
        table = msgspec.structs.replace(table, only=(table.only[0], table.only[1] + 1))
        return msgspec.structs.replace(planned, plan=msgspec.structs.replace(planned.plan, table=table))


@pytest.mark.parametrize(("what", "explain"), [("alone", True), ("longer", False)])
def test_a_table_that_was_not_asked_for_is_refused(served, what, explain):
    model = OfAnother(served.model(), what)
    with (
        served.serving(models=[model]) as endpoint,
        served.device(endpoint) as device,
        pytest.raises(ProtocolError, match="table"),
    ):
        device.prepare(PRIVATE, explain=explain)


def test_why_a_device_cannot_finish_alone_needs_the_table_that_was_asked_for(served):
    """Not an error of indexing: the server sent the chosen cut alone."""
    model = OfAnother(served.model(), "alone")
    with served.serving(models=[model]) as endpoint:
        with served.device(endpoint) as device:
            need = device.prepare(PRIVATE).plan.pattern.device_bytes
        roomier = msgspec.structs.replace(FAST, memory_bytes=need + 500)  # for the head alone, but not for all of it
        tight = msgspec.structs.replace(PRIVATE, device=roomier)
        with served.device(endpoint, on_loss="local", cache="other") as device, pytest.raises(ProtocolError):
            device.prepare(tight)


def test_a_device_may_run_its_head_on_torch(served, inputs):
    with served.serving() as endpoint, served.device(endpoint, executor="torch", on_loss="local") as device:
        pattern = device.prepare(PRIVATE).plan.pattern
        assert close_to(device.infer(inputs), served.simulated(pattern, inputs))
        assert isinstance(device.head._executor, PackedTorchExecutor)
        assert isinstance(device._prepared.whole._executor, PackedTorchExecutor)


def test_an_executor_that_there_is_not_is_named_before_anybody_is_asked(served, monkeypatch):
    with pytest.raises(RequestError, match="'jax', give one of numpy, torch"):
        served.device("tcp://127.0.0.1:1", executor="jax")
    monkeypatch.setattr("qpart.executors.devices.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="needs torch: pip install"):
        served.device("tcp://127.0.0.1:1", executor="torch")


@pytest.mark.parametrize("kind", [str, Path, PieceCache])
def test_a_cache_may_be_said_as_a_directory(served, inputs, kind):
    where = served.directory / "pieces here"
    with (
        served.serving() as endpoint,
        Device(
            endpoint,
            server_key=served.directory / "server" / "node.key",
            keys=served.directory / "device",
            cache=kind(where),
        ) as device,
    ):
        device.prepare(PRIVATE)
        assert device.infer(inputs).shape == (len(inputs), small.CLASSES)
    assert PieceCache(where).marks()


def test_plans_differ_with_what_is_asked(served):
    with served.serving() as endpoint, served.device(endpoint) as device:
        cuts = {name: device.prepare(r).plan.pattern.cut for name, r in (("many", MANY), ("lazy", LAZY))}
    assert cuts["many"] > cuts["lazy"]


def test_a_batch_is_counted_as_planned(served, inputs):
    with served.serving() as endpoint, served.device(endpoint) as device:
        device.prepare(PRIVATE)
        device.infer(inputs)
        assert device.traffic.up_bytes == device.traffic.planned_up_bytes


def test_pieces_travel_once(served):
    with served.serving() as endpoint:
        with served.device(endpoint) as device:
            first = device.prepare(PRIVATE).plan.pattern
        with served.device(endpoint) as device:
            second = device.prepare(PRIVATE).plan.pattern
            assert device.traffic.download_bytes == second.download_bytes
    nodes = [i for i in small.network().parametric if i < second.cut]
    described = small.artefact().tables.manifest_bytes[second.cut] + ADDRESS_BYTES * len(nodes)
    assert first.download_bytes > described
    assert second.download_bytes == described


def test_a_spoiled_cache_is_fetched_again(served):
    with served.serving() as endpoint:
        with served.device(endpoint) as device:
            first = device.prepare(PRIVATE).plan.pattern
        for path in (served.directory / "cache").glob("?" * 64):
            path.write_bytes(b"spoiled")
        with served.device(endpoint) as device:
            device.prepare(PRIVATE)
            assert device.traffic.download_bytes == first.download_bytes
            assert device.traffic.download_bytes > device.traffic.planned_download_bytes


def test_a_request_nobody_can_serve_says_why_and_what_would_do(served):
    with served.serving() as endpoint, served.device(endpoint) as device:
        small_device = msgspec.structs.replace(FAST, memory_bytes=100)
        with pytest.raises(Infeasible) as caught:
            device.prepare(msgspec.structs.replace(PRIVATE, device=small_device))
        assert caught.value.constraint == "memory"
        with pytest.raises(Infeasible) as caught:
            device.prepare(msgspec.structs.replace(PRIVATE, accuracy=1e-9))
        assert caught.value.constraint == "accuracy"
        nearest = caught.value.nearest_accuracy
        assert nearest is not None
        device.prepare(msgspec.structs.replace(PRIVATE, accuracy=nearest))


def test_models_are_chosen_by_name(served):
    with served.serving() as endpoint:
        with served.device(endpoint, model="stripes") as device:
            assert device.model.name == "stripes"
        with pytest.raises(UnknownModel, match="it has stripes"):
            served.device(endpoint, model="dots")


def test_a_model_that_was_replaced_is_unknown(served):
    with served.serving() as endpoint, served.device(endpoint) as device:
        device.model = messages.ModelInfo(
            "stripes", bytes(16), device.model.input_shape, device.model.num_classes, 6, ()
        )
        with pytest.raises(UnknownModel, match="ask for a plan"):
            device.prepare(PRIVATE)


def test_nothing_runs_before_it_is_prepared_and_shapes_are_checked(served, inputs):
    with served.serving() as endpoint, served.device(endpoint) as device:
        with pytest.raises(RequestError, match="prepare"):
            device.infer(inputs)
        device.prepare(PRIVATE)
        with pytest.raises(ShapeMismatch):
            device.infer(inputs[:, :, :3])


@pytest.mark.parametrize(
    ("service", "payload", "arrays"),
    [
        (messages.PLAN, b"", ()),
        (messages.PLAN, b"\xc1" * 40, ()),
        (messages.SEGMENT, lambda i: encode(Chosen(i, 99, (), ())), ()),
        (messages.SEGMENT, lambda i: encode(Chosen(i, 3, (9, 9), (3, 3))), ()),
        (messages.INFER, lambda i: encode(Infer(i, 1, (3,))), (np.zeros((1, 3), np.uint8),)),
        (messages.INFER, lambda i: encode(Infer(i, 1, (3,))), ()),
        (messages.INFER, lambda i: encode(Infer(i, 1, (3,))), (np.zeros((1 << 18, 54), np.uint8),)),
    ],
)
def test_hostile_requests_are_refused_and_the_server_lives_on(served, inputs, service, payload, arrays):
    with served.serving() as endpoint, served.device(endpoint) as device:
        raw = payload(device.model.model_id) if callable(payload) else payload
        with pytest.raises(edgebus.Refused) as caught:
            device._line.link.request(service, raw, arrays, timeout_s=10)
        assert caught.value.code == "invalid"
        device.prepare(PRIVATE)
        assert device.infer(inputs).shape == (12, small.CLASSES)


class Lying(ServedModel):
    """A server that ships something else than it planned."""

    def __init__(self, honest: ServedModel, what: str) -> None:
        self.__dict__.update(honest.__dict__)
        self._what = what

    def segment(self, chosen):
        raw = super().segment(chosen)
        self._asked = getattr(self, "_asked", 0) + 1
        return raw[:-1] + bytes([raw[-1] ^ 1]) if self._what == "segment" and self._asked > 1 else raw


class Spoiled(Published):
    """Pieces of which one bit is wrong."""

    def chunk(self, blob_id, index):
        content = super().chunk(blob_id, index)
        return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("what", "error", "match"), [("segment", SegmentRejected, "hash"), ("piece", BlobCorrupt, "3 times")]
)
def test_what_does_not_match_its_hash_is_not_run_and_not_kept(served, what, error, match):
    liar = Lying(served.model(), what)
    if what == "piece":
        liar.published = Spoiled(served.artefact)
    with served.serving(models=[liar]) as endpoint, served.device(endpoint) as device:
        with pytest.raises(error, match=match):
            device.prepare(PRIVATE)
        with pytest.raises(RequestError):
            device.infer(np.zeros((1, *small.SHAPE), np.float32))
    assert not PieceCache(served.directory / "cache").marks()


def test_unknown_operations_from_a_server_are_rejected(served):
    class Odd(ServedModel):
        def __init__(self, honest):
            self.__dict__.update(honest.__dict__)

        def segment(self, chosen):
            raw = msgspec.msgpack.decode(super().segment(chosen))
            raw[2][0][0][0] = "exec"
            return msgspec.msgpack.encode(raw)

    with (
        served.serving(models=[Odd(served.model())]) as endpoint,
        served.device(endpoint) as device,
        pytest.raises(SegmentRejected, match="'exec'"),
    ):
        device.prepare(PRIVATE)


def test_a_server_that_asks_for_the_input_does_not_get_it(served, inputs):
    class Curious(ServedModel):
        def __init__(self, honest):
            self.__dict__.update(honest.__dict__)

        def segment(self, chosen):
            raw = msgspec.msgpack.decode(super().segment(chosen))
            raw[5][0][0] = 0  # the first live value is the input now; hash and sizes are all right
            return msgspec.msgpack.encode(raw)

    with served.serving(models=[Curious(served.model())]) as endpoint, served.device(endpoint) as device:
        with pytest.raises(SegmentRejected, match="was to stay"):
            device.prepare(PRIVATE)
        assert device.traffic.up_bytes == 0


def test_pixels_are_taken_as_they_are(served):
    pixels = small.examples(3, seed=8)[0]
    with served.serving() as endpoint, served.device(endpoint) as device:
        device.prepare(PRIVATE)
        assert np.array_equal(device.infer(pixels), device.infer(as_float(pixels, small.SHAPE)))
        with pytest.raises(edgebus.LocalError, match="float64"):
            device.infer(pixels.astype(np.float64))
        with pytest.raises(edgebus.LocalError, match=r"a list, not an array: use numpy\.asarray"):
            device.infer(pixels.tolist())


def test_a_slow_server_makes_the_bus_ask_again_and_that_is_counted(served, inputs):
    slow = served.model()
    real = slow.tail.answers

    def answers(works):
        threading.Event().wait(1.6)
        return real(works)

    slow.tail.answers = answers
    with served.serving(models=[slow]) as endpoint, served.device(endpoint) as device:
        device.prepare(PRIVATE)
        device.infer(inputs)
        assert device.traffic.resends == 1
        assert device.traffic.up_bytes == 2 * device.traffic.planned_up_bytes


def test_a_server_that_is_gone_is_named(served, inputs):
    with served.serving() as endpoint:
        device = served.device(endpoint, timeout_s=1.0)
        device.prepare(PRIVATE)
    with device:  # it has heard that the link is down
        until = time.monotonic() + 5
        while device._line.link.health != "down" and time.monotonic() < until:
            time.sleep(0.01)
        started_at = time.monotonic()
        with pytest.raises(edgebus.DeadlineExceeded, match="the peer was not there"):
            device.infer(inputs)
    assert time.monotonic() - started_at < 1.9, "one timeout, not one for each attempt"


@pytest.mark.parametrize("waited_s", [0.5, 2.0])
def test_a_lost_request_is_asked_again_only_in_what_is_left_of_the_timeout(monkeypatch, waited_s):
    """The clock stands still but for the time which the first attempt takes until its link is lost."""
    now, timeouts = [100.0], []

    class Pending:
        def __init__(self, error):
            self.error = error

        def wait(self, timeout_s):
            return True

        def result(self):
            now[0] += waited_s
            raise self.error

    class Link:
        health, endpoint = "up", "tcp://there"

        def send_request(self, service, payload, arrays, timeout_s):
            timeouts.append(timeout_s)
            late = edgebus.DeadlineExceeded("the peer was not there")
            return Pending(late if len(timeouts) > 1 else edgebus.LinkLost("the link went down"))

    class Node:
        def connect(self, endpoint, **options):
            return Link()

    monkeypatch.setattr("qpart.run.line._now", lambda: now[0])
    line = Line(Node(), [("tcp://there", None)], 2.0)
    with pytest.raises(edgebus.LinkLost, match="went down"):
        line.request(messages.INFER)
    assert timeouts == ([2.0, 1.5] if waited_s == 0.5 else [2.0])


def test_a_server_that_comes_back_answers_the_next_request(served, inputs):
    with served.serving() as endpoint:
        device = served.device(endpoint)
        device.prepare(PRIVATE)
        before = device.infer(inputs)
    with device, served.serving(endpoint):
        assert np.array_equal(device.infer(inputs), before)


def test_answers_of_another_shape_are_a_protocol_error(served, inputs):
    short = served.model()
    short.tail.answers = lambda works: [np.zeros((1, 1), np.float32) for _ in works]
    with served.serving(models=[short]) as endpoint, served.device(endpoint) as device:
        device.prepare(PRIVATE)
        with pytest.raises(ProtocolError):
            device.infer(inputs)
