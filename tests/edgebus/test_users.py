"""What people did with the bus that it did not expect, each once: slips in arguments, handlers, ends and addresses."""

from __future__ import annotations

import gc
import sys
import threading
import time

import numpy as np
import pytest

import edgebus

pytestmark = pytest.mark.net


def test_large_payload_beside_a_large_array_arrives_between_processes_of_one_host(pair):
    _, _, link, _ = pair
    array = np.arange(100_000, dtype="f4")
    for _ in range(4):  # from the second on there is shared memory
        reply = link.request("echo", bytes(100_000), [array])
        assert (len(reply.payload), reply.arrays[0].tolist()) == (100_000, array.tolist())
        del reply
    gc.collect()


def test_answer_to_a_one_way_message_is_nothing_and_no_error(pair):
    _, _, link, echo = pair
    assert link.send("echo", b"once").result().payload == b""
    assert link.request("echo", b"still there").payload == b"still there"
    assert [request.is_one_way for request in echo.seen] == [True, False]


@pytest.mark.parametrize(
    ("payload", "arrays", "message"),
    [
        (5, (), "payload must be bytes, got int"),
        ("text", (), "payload must be bytes, got str"),
        ([1, 2], (), "payload must be bytes, got list"),
        (b"", np.zeros(1), "put it into a list"),
        (b"", np.ones(3), "put it into a list"),
        (b"", [[1, 2]], "numpy arrays, got list"),
    ],
)
def test_arguments_are_what_they_say_or_an_error(pair, payload, arrays, message):
    _, _, link, _ = pair
    for call in (link.request, link.send, link.stream):
        with pytest.raises(TypeError, match=message):
            call("echo", payload, arrays)
    assert link.stats().started == 0


def test_arrays_of_a_generator_travel_both_ways():
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        server.handle("twice", lambda request: request.reply(bytearray(b"x"), (2 * array for array in request.arrays)))
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        reply = link.request("twice", memoryview(b"y"), (np.full(2, value) for value in (1, 2)))
        assert (reply.payload, [array.tolist() for array in reply.arrays]) == (b"x", [[2, 2], [4, 4]])


def test_handler_that_ends_its_thread_costs_its_request_only(caplog):
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        server.handle("die", lambda request: sys.exit(3))
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        for _ in range(2):
            with pytest.raises(edgebus.Refused, match="internal"):
                link.request("die")
        assert link.request("edgebus.ping", b"on").payload == b"on"
    assert "the handler of die failed" in caplog.text


def test_one_way_messages_arrive_before_a_node_closes():
    with edgebus.Node("a", insecure=True) as server:
        inbox = server.serve("tell")
        with edgebus.Node("b", insecure=True) as device:
            link = device.connect(server.bind("tcp://127.0.0.1:0"))
            got = []
            server.handle("count", lambda request: request.reply(b"%d" % len(got)))
            pendings = [link.send("tell", b"%d" % number) for number in range(200)]
            while len(got) < 100:
                got.append(inbox.get(5).payload)
            rest = threading.Thread(target=lambda: [got.append(inbox.get(5).payload) for _ in range(100)])
            rest.start()
        rest.join(10)
    assert got == [b"%d" % number for number in range(200)]
    assert {pending.outcome for pending in pendings} == {"answered"}


def test_close_does_not_wait_for_one_way_messages_that_nobody_takes():
    with edgebus.Node("a", insecure=True) as server:
        server.serve("tell")
        device = edgebus.Node("b", insecure=True)
        pending = device.connect(server.bind("tcp://127.0.0.1:0")).send("tell")
        began = time.monotonic()
        device.close(linger_s=0.3)
        assert time.monotonic() - began < 3
        assert pending.outcome == "cancelled"


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:99999", "tcp://127.0.0.1:-1", "tcp://127.0.0.1", "tcp://127.0.0.1:1\0"]
)
def test_impossible_address_is_a_config_error(endpoint):
    with edgebus.Node("a", insecure=True) as node:
        for call in (node.bind, node.connect):
            with pytest.raises(edgebus.ConfigError, match="endpoint"):
                call(endpoint)


@pytest.mark.parametrize("timeout_s", [-1, float("nan"), float("inf")])
def test_impossible_timeout_of_connect_is_a_value_error(timeout_s):
    with edgebus.Node("a", insecure=True) as node, pytest.raises(ValueError, match="timeout_s"):
        node.connect("tcp://127.0.0.1:1", timeout_s=timeout_s)


def test_stream_that_is_left_is_given_up_on_both_sides():
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        inbox = server.serve("count")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        stream = link.stream("count")
        request = inbox.get(5)
        request.push(b"1")
        for _ in stream:
            break
        del stream, _
        gc.collect()
        until = time.monotonic() + 5
        while request.remaining_s() > 0 and time.monotonic() < until:
            inbox.get(0.01)  # whoever waits drives: the word of it has to be taken in
        with pytest.raises(edgebus.StreamEnded):
            request.push(b"2")
        assert link.stats().outstanding == 0


def test_slips_in_terms_are_named_and_a_number_is_not_taken_for_as_many_zeros(pair):
    _, _, link, echo = pair
    for key in ("order 17", 17):
        with pytest.raises(TypeError, match="an idempotency key is bytes, got"):
            link.request("echo", b"", key=key)
    for sequence in ((1,), (1, 2, 3), 5, "ab"):
        with pytest.raises(ValueError, match=r"sequence is \(stream, position\)"):
            link.request("echo", b"", sequence=sequence)
    assert echo.seen == []
    assert link.request("echo", b"x", key=bytearray(b"order 17"), sequence=[1, 2]).payload == b"x"


@pytest.mark.parametrize("value", ["text", 5, [1, 2], None])
def test_what_is_published_is_bytes_and_nothing_else(value):
    with edgebus.Node("a", insecure=True) as node:
        with pytest.raises(TypeError, match=f"state is str -> bytes, got str -> {type(value).__name__}"):
            node.publish("topic", "key", value)
        node.publish("topic", "key", bytearray(b"text"))
        node.publish("topic", "other", memoryview(b"text"))


@pytest.mark.parametrize(
    ("endpoint", "cure"),
    [
        ("tcp://203.0.113.9:7000", "bind an address of this machine"),  # of the documentation's net, RFC 5737
        ("ipc:///nonexistent/socket", "make its directory"),
        (None, "choose another port, or stop who has it"),
    ],
)
def test_endpoint_that_cannot_be_bound_names_what_would_help(endpoint, cure):
    with edgebus.Node("a", insecure=True) as one, edgebus.Node("b", insecure=True) as two:
        taken = two.bind("tcp://127.0.0.1:0")
        with pytest.raises(edgebus.BindError, match=cure):
            one.bind(endpoint or taken)


def test_name_that_does_not_resolve_is_not_called_a_port_where_nobody_listens():
    said = pytest.raises(edgebus.PeerUnreachable, match=r"no\.such\.host\.invalid:7000 cannot be looked up")
    with edgebus.Node("a", insecure=True) as node, said:
        node.connect("tcp://no.such.host.invalid:7000", timeout_s=0.5)


@pytest.mark.parametrize(
    "bad", [{"max_peers": "many"}, {"max_peers": 2.5}, {"max_pending": None}, {"heartbeat_s": "2"}, {"silence_s": None}]
)
def test_bound_of_another_kind_is_refused_by_name(bad):
    with pytest.raises(edgebus.ConfigError, match=next(iter(bad))):
        edgebus.Limits(**bad)
