"""Bounds of a node over real sockets, and faults that must stay where they happen."""

from __future__ import annotations

import errno

import pytest
import zmq

import edgebus

pytestmark = pytest.mark.net


def test_too_many_dials_are_a_config_error_that_names_the_limit():
    limits = edgebus.Limits(max_peers=2)
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True, limits=limits) as device:
        endpoint = server.bind("tcp://127.0.0.1:0")
        first, _ = device.connect(endpoint), device.connect(endpoint)
        with pytest.raises(edgebus.ConfigError, match="max_peers is 2"):
            device.connect(endpoint)
        first.close()
        assert device.connect(endpoint).request("edgebus.ping").payload == b""


def test_error_of_libzmq_leaves_as_one_of_ours(monkeypatch):
    with edgebus.Node("a", insecure=True) as node:
        full = zmq.ZMQError(errno.EMFILE)

        def socket(*_):
            raise full

        monkeypatch.setattr(node._engine.runner.sockets._context, "socket", socket, raising=False)
        with pytest.raises(edgebus.ConfigError, match="max_peers"):
            node.connect("tcp://127.0.0.1:1")
        with pytest.raises(edgebus.ConfigError, match="ulimit"):
            node.bind("tcp://127.0.0.1:0")


def test_ping_echoes_a_kilobyte_at_most(pair):
    _, _, link, _ = pair
    assert link.request("edgebus.ping", bytes(1024)).payload == bytes(1024)
    with pytest.raises(edgebus.Refused, match="at most 1024 B") as caught:
        link.request("edgebus.ping", bytes(1025))
    assert caught.value.code == "too_large"


def test_services_whose_names_are_made_up_at_run_time_cost_no_memory(pair):
    _, _, link, _ = pair
    pendings = [link.send_request(f"made up {number}") for number in range(2000)]
    assert {pending.outcome if pending.wait(5) else None for pending in pendings} == {"refused"}
    assert len(link._checked) <= 256


def test_names_that_do_not_encode_are_value_errors_and_details_are_mended(pair):
    server, _, link, _ = pair
    for lone in ("\ud800", "a\udfff"):
        with pytest.raises(ValueError, match="does not encode"):
            link.send_request(lone)
        with pytest.raises(ValueError, match="does not encode"):
            server.serve(lone)
        with pytest.raises(ValueError, match="does not encode"):
            edgebus.Node(lone)
    inbox = server.serve("x")
    pending = link.send_request("x")
    inbox.get(5).refuse("odd", "file \udce9")
    with pytest.raises(edgebus.Refused, match=r"file \?"):
        pending.result()


def test_request_that_fails_on_the_short_way_goes_the_usual_one_and_leaves_the_others_alone(pair, monkeypatch, caplog):
    _, _, link, _ = pair
    original = edgebus.express.offer

    def offer(inbox, attached, arrived, desk):
        if arrived.frames[0] == b"bad":
            raise RuntimeError("on purpose")
        original(inbox, attached, arrived, desk)

    monkeypatch.setattr(edgebus.express, "offer", offer)
    pendings = [link.send_request("echo", payload, timeout_s=5) for payload in (b"1", b"2", b"3")]
    bad = link.send_request("echo", b"bad", timeout_s=5)
    pendings += [link.send_request("echo", b"4", timeout_s=5)]
    assert [pending.result().payload for pending in pendings] == [b"1", b"2", b"3", b"4"]
    assert bad.result().payload == b"bad", "it goes the usual way"
    assert "on purpose" in caplog.text


def test_allow_list_that_fails_denies_and_the_next_is_asked_again(ring, monkeypatch):
    allow = ring.allow
    original = allow.permits

    def permits(key):
        monkeypatch.setattr(allow, "permits", original)
        raise RuntimeError("on purpose")

    monkeypatch.setattr(allow, "permits", permits)
    with ring.server(allow=allow) as server, ring.device() as device:
        endpoint = server.bind("tcp://127.0.0.1:0")
        with pytest.raises(edgebus.KeyNotAllowed):
            device.connect(endpoint, ring.public("server"))
        device.connect(endpoint, ring.public("server"))
