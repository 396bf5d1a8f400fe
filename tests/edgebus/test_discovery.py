"""Zeroconf as a hint: the adapter against a false zeroconf, and the real one on the loopback interface."""

from __future__ import annotations

import sys
import threading
import time

import pytest

import edgebus
from edgebus import discovery
from edgebus.directory import fingerprint
from edgebus.discovery import SERVICE_TYPE, Browser, advertise, browse

MARK = fingerprint("name:server")
MARK_BYTES = MARK.encode()
LOOPBACK = ["127.0.0.1"]


class FalseInfo:
    """What zeroconf found out about an instance."""

    def __init__(self, mark=MARK_BYTES, port=7000, addresses=(b"\x0a\x00\x00\x01",)):
        self.properties = {} if mark is None else {b"id": mark}
        self.port = port
        self._addresses = addresses

    def addresses_by_version(self, version):
        return list(self._addresses)


class FalseZeroconf:
    """A network in one object."""

    def __init__(self):
        self.registered, self.closed = [], False

    def add_service_listener(self, kind, listener):
        assert kind == "_edgebus._tcp.local."
        self.listener = listener

    def remove_service_listener(self, listener):
        assert listener is self.listener
        self.listener = None

    def register_service(self, info, *, cooperating_responders):
        self.registered.append(info)

    def unregister_service(self, info):
        self.registered.remove(info)

    def close(self):
        self.closed = True


def test_instances_are_hints_while_they_last():
    network = FalseZeroconf()
    browser = browse(zeroconf=network)
    browser.note("one", FalseInfo())
    browser.note("two", FalseInfo(b"0123456789abcdef", 7001, [b"\x0a\x00\x00\x02", bytes(15) + b"\x01"]))
    assert browser.hints() == [
        (MARK, "tcp://10.0.0.1:7000"),
        ("0123456789abcdef", "tcp://10.0.0.2:7001"),
        ("0123456789abcdef", "tcp://[::1]:7001"),
    ]
    browser.note("one", FalseInfo(port=7009))
    network.listener.remove_service(network, "_edgebus._tcp.local.", "two")
    assert browser.hints() == [(MARK, "tcp://10.0.0.1:7009")]
    browser.close()
    browser.close()
    assert (network.listener, network.closed) == (None, False), "somebody else's is left open"


@pytest.mark.parametrize(
    "info",
    [
        None,
        FalseInfo(mark=None),
        FalseInfo(mark=b"0123456789ABCDEF"),
        FalseInfo(mark=b"0123456789abcde"),
        FalseInfo(mark=b"\xff" * 16),
        FalseInfo(port=0),
        FalseInfo(port=None),
        FalseInfo(addresses=()),
        FalseInfo(addresses=(bytes(4), b"\xe0\x00\x00\x01")),
    ],
)
def test_what_is_no_hint_is_ignored_and_counted(info):
    network = FalseZeroconf()
    browser = Browser(network, owned=False)
    browser.note("one", FalseInfo())
    browser.note("one", info)
    assert (browser.hints(), browser.num_ignored) == ([], 1)


def test_flood_of_instances_is_bounded():
    network = FalseZeroconf()
    browser = Browser(network, owned=True)
    for n in range(1000):
        browser.note(str(n), FalseInfo(port=1 + n, addresses=[bytes((10, 0, 0, i + 1)) for i in range(50)]))
    hints = browser.hints()
    assert len(hints) == 1024
    assert hints[-1] == (MARK, "tcp://10.0.0.4:1000")
    browser.close()
    assert network.closed


def test_advertisement_carries_address_and_fingerprint_and_no_key():
    pytest.importorskip("zeroconf")
    network = FalseZeroconf()
    with edgebus.Node("server", insecure=True) as node:
        with advertise(node, "tcp://10.0.0.1:7000", zeroconf=network) as advertisement:
            [info] = network.registered
            assert (info.port, info.addresses, info.properties) == (
                7000,
                [b"\x0a\x00\x00\x01"],
                {b"v": b"1", b"id": MARK_BYTES},
            )
            assert info.name == f"{MARK}-7000._edgebus._tcp.local."
        advertisement.close()
        assert (network.registered, network.closed) == ([], False)
        for endpoint in ("tcp://0.0.0.0:7000", "tcp://host:7000", "tcp://10.0.0.1", "tcp://10.0.0.1:0", "ipc:///tmp/x"):
            with pytest.raises(ValueError, match="is not tcp://ADDRESS:PORT"):
                advertise(node, endpoint, zeroconf=network)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    with pytest.raises(edgebus.ConfigError, match=r"pip install 'edgebus\[discovery\]', or give static endpoints"):
        browse()


def test_import_does_not_bring_zeroconf():
    import subprocess

    code = "import sys, edgebus.discovery, edgebus.pool; print('zeroconf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.net
def test_nodes_find_each_other_on_the_loopback_interface():
    pytest.importorskip("zeroconf")
    with edgebus.Node("server", insecure=True) as node, browse(interfaces=LOOPBACK) as browser:
        with advertise(node, "tcp://127.0.0.1:7000", interfaces=LOOPBACK):
            until(lambda: browser.hints() == [(MARK, "tcp://127.0.0.1:7000")])
        until(lambda: browser.hints() == [])


@pytest.fixture
def loud():
    """Somebody on the network who announces names and nothing behind them."""
    zeroconf = pytest.importorskip("zeroconf")
    opened = zeroconf.Zeroconf(interfaces=LOOPBACK)

    def announce(*names):
        for name in names:
            message = zeroconf.DNSOutgoing(0x8400)  # an answer nobody asked for
            pointer = zeroconf.DNSPointer(SERVICE_TYPE, 12, 1, 4500, f"{name}.{SERVICE_TYPE}")
            message.add_answer_at_time(pointer, 0)
            opened.send(message)

    yield announce
    opened.close()


@pytest.mark.net
def test_names_with_nothing_behind_them_hold_up_neither_who_is_there_nor_the_end(loud):
    with edgebus.Node("server", insecure=True) as node, browse(interfaces=LOOPBACK) as browser:
        loud(*(f"ghost{number}" for number in range(100)))
        until(lambda: browser.num_ignored > 0)  # more than are asked about at once
        with advertise(node, "tcp://127.0.0.1:7000", interfaces=LOOPBACK):
            until(lambda: browser.hints() == [(MARK, "tcp://127.0.0.1:7000")], 5.0)
        loud(*(f"spectre{number}" for number in range(100)))
        began = time.monotonic()
    assert time.monotonic() - began < 5.0


@pytest.mark.net
def test_name_that_zeroconf_does_not_take_ends_nothing(loud):
    with edgebus.Node("server", insecure=True) as node, browse(interfaces=LOOPBACK) as browser:
        loud("bad\x1b[31m")
        until(lambda: browser.num_ignored == 1)
        with advertise(node, "tcp://127.0.0.1:7000", interfaces=LOOPBACK):
            until(lambda: browser.hints() == [(MARK, "tcp://127.0.0.1:7000")], 5.0)


@pytest.mark.net
def test_node_speaks_although_somebody_took_its_name():
    pytest.importorskip("zeroconf")
    with (
        edgebus.Node("server", insecure=True) as node,
        browse(interfaces=LOOPBACK) as browser,
        advertise(node, "tcp://127.0.0.9:7000", interfaces=LOOPBACK),
    ):
        until(browser.hints)
        with advertise(node, "tcp://127.0.0.1:7000", interfaces=LOOPBACK):
            until(lambda: (MARK, "tcp://127.0.0.1:7000") in browser.hints())


@pytest.mark.net
def test_instance_that_has_to_be_asked_about_is_found_and_one_that_left_meanwhile_is_not():
    """As with a responder that announces its name alone."""
    zeroconf = pytest.importorskip("zeroconf")
    with edgebus.Node("server", insecure=True) as node, advertise(node, "tcp://127.0.0.1:7000", interfaces=LOOPBACK):
        name = f"{MARK}-7000.{SERVICE_TYPE}"
        alone = zeroconf.Zeroconf(interfaces=LOOPBACK)
        with Browser(alone, owned=True) as browser:
            alone.remove_service_listener(browser._listener)  # it hears of nothing but from us
            alone.cache.cache.clear()
            browser.look_up(name)
            until(lambda: browser.hints() == [(MARK, "tcp://127.0.0.1:7000")])
            browser.forget(name)
            browser.look_up(f"gone.{SERVICE_TYPE}")
            assert len(browser._asked) == 1
            browser.forget(f"gone.{SERVICE_TYPE}")
            assert (browser.hints(), browser._asked) == ([], {})


def until(condition, timeout_s=20.0):
    end_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_at, "multicast does not come back on the loopback interface"
        threading.Event().wait(0.02)


def test_bounds_of_the_adapter_are_those_of_the_specification():
    assert (discovery._MOST_INSTANCES, discovery._MOST_ADDRESSES) == (256, 4)
