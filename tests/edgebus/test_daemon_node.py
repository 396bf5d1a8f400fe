"""A daemon in this process: who may see its counters and traffic, and what it tells the directory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

import edgebus
from edgebus.allowedit import allow_keys
from edgebus.daemon.daemon import NodeDaemon, check_state
from edgebus.daemon.reports import ask_stats
from edgebus.daemon.tapping import TAP_SERVICE, TapRequest
from edgebus.directory import TOPIC, decode_record
from edgebus.errors import ConfigError
from edgebus.payloads import encode
from edgebus.settings import NodeSettings, ServiceSettings
from edgebus.subscribing import Subscription

PLAIN = {"bind": ("tcp://127.0.0.1:0",), "metrics": "off", "stop_within_s": 3.0}


@pytest.fixture
def secured(tmp_path):
    for name in ("server", "granted", "other"):
        edgebus.generate_keys(tmp_path / name)
    allow_keys(
        tmp_path / "server", tmp_path / "granted" / "node.key", options={"services": "*,edgebus.stats,edgebus.tap"}
    )
    allow_keys(tmp_path / "server", tmp_path / "other" / "node.key", options={})
    with NodeDaemon(NodeSettings(keys=str(tmp_path / "server"), **PLAIN)) as daemon:
        yield SimpleNamespace(home=tmp_path, endpoint=daemon.endpoints[0], public=daemon.public_key)


def command(secured, name, *arguments):
    access = ("--server-key", secured.public, "--keys", secured.home / name)
    return subprocess.run(
        [sys.executable, "-m", "edgebus.cli", *map(str, (*arguments, *access))],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.net
def test_an_allowed_key_without_the_grant_is_refused_with_one_line(secured):
    assert command(secured, "granted", "top", secured.endpoint, "--once").returncode == 0
    for arguments in (("top", secured.endpoint, "--once"), ("tap", secured.endpoint, "--count", "1")):
        done = command(secured, "other", *arguments)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "edgebus." + arguments[0].replace("top", "stats") in done.stderr
        assert "edgebus allow" in done.stderr


@pytest.mark.net
@pytest.mark.parametrize("opened", [(), ("edgebus.stats",), ("edgebus.stats", "edgebus.tap")])
def test_in_plaintext_only_what_was_opened_is_there(opened):
    settings = NodeSettings(insecure=True, plaintext_services=opened, **PLAIN)
    with NodeDaemon(settings) as daemon, edgebus.Node("reader", insecure=True) as node:
        link = node.connect(daemon.endpoints[0])
        if "edgebus.stats" in opened:
            assert ask_stats(link, 5.0).name == "node"
        else:
            with pytest.raises(edgebus.Refused):
                ask_stats(link, 5.0)
        stream = link.stream(TAP_SERVICE, encode(TapRequest()), timeout_s=10.0)
        if "edgebus.tap" in opened:
            assert stream.get(5.0).pos == 0
            stream.cancel()
        else:
            with pytest.raises(edgebus.Refused):
                stream.result()
    assert not [thread for thread in threading.enumerate() if thread.name == "edgebus-tap"]


@pytest.mark.net
def test_services_of_a_daemon_are_in_the_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "directory_services.py").write_text("def upper(request):\n    return request.payload.upper()\n")
    service = ServiceSettings(name="upper", module="directory_services:upper", threads=3)
    settings = NodeSettings(insecure=True, services=(service,), state=str(tmp_path), **PLAIN)
    with NodeDaemon(settings) as daemon, edgebus.Node("reader", insecure=True) as node:
        link = node.connect(daemon.endpoints[0])
        with Subscription(link, TOPIC) as subscription:
            subscription.wait_synced(5.0)
            [record] = map(decode_record, subscription.snapshot().values())
        assert (record.service, record.name, record.capacity) == ("upper", "node", 3.0)
        assert record.endpoints == daemon.endpoints
        assert link.request(record.service, b"hall").payload == b"HALL"


@pytest.mark.net
@pytest.mark.parametrize(("who", "granted"), [("granted", True), ("other", False), ("stranger", False)])
def test_what_shows_the_traffic_of_others_asks_for_the_grant_by_itself(tmp_path, who, granted):
    """Also where the node's policy had let the request through."""
    for name in ("server", "granted", "other", "stranger"):
        edgebus.generate_keys(tmp_path / name)
    allow_keys(tmp_path / "server", tmp_path / "granted" / "node.key", options={"services": "*,edgebus.tap"})
    allow_keys(tmp_path / "server", tmp_path / "other" / "node.key", options={})
    refused = []
    peer = SimpleNamespace(key=edgebus.load_keys(tmp_path / who).public)
    request = SimpleNamespace(service=TAP_SERVICE, peer=peer, refuse=lambda code, *_: refused.append(code))
    with NodeDaemon(NodeSettings(keys=str(tmp_path / "server"), **PLAIN)) as daemon:
        assert daemon._is_granted(request) is granted
    assert refused == ([] if granted else ["forbidden"])


@pytest.mark.net
def test_directory_for_state_is_made_and_kept_to_its_owner(tmp_path):
    state = tmp_path / "state"
    with NodeDaemon(NodeSettings(insecure=True, state=str(state), **PLAIN)):
        assert state.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("spoil", ["no parent", "a file", "not writable"])
def test_settings_whose_state_has_no_place_fail_the_check_and_the_start_alike(tmp_path, spoil, monkeypatch):
    state = tmp_path / "state"
    if spoil == "no parent":
        state = tmp_path / "gone" / "state"
    elif spoil == "a file":
        state.write_text("")
    else:
        state.mkdir(mode=0o500)
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    settings = NodeSettings(insecure=True, state=str(state), **PLAIN)
    with pytest.raises(ConfigError, match="state"):
        check_state(settings)
    with pytest.raises(ConfigError, match="state"):
        NodeDaemon(settings)


def test_check_makes_nothing(tmp_path):
    check_state(NodeSettings(insecure=True, state=str(tmp_path / "state"), **PLAIN))
    assert list(tmp_path.iterdir()) == []
