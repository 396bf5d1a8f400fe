"""Settings that people write: a node's, and profiles of devices; what is wrong is said, never a traceback."""

from __future__ import annotations

import math
from collections.abc import Iterator

from edgebus.errors import ConfigError
from edgebus.settings import NodeSettings, load_settings, to_toml
from qpart import profiles
from qpart.errors import RequestError
from sled.errors import ParameterError
from sled.swarm.profiles import BUILT_IN, read_profiles
from tests.fuzz.model_files import on_disk


def settings(data: bytes) -> None:
    """A node's settings: refused in one line, or they read back the same when they are written."""
    refusal = ""
    with on_disk(data, ".toml") as path:
        try:
            found = load_settings(path, {}, complete=False)
        except ConfigError as refused:
            refusal = str(refused)
        else:
            path.write_text(to_toml(found), encoding="utf-8")
            assert load_settings(path, {}, complete=False) == found
    assert "\n" not in refusal


def boards(data: bytes) -> None:
    """Profiles of devices, of both applications: refused, or numbers."""
    with on_disk(data, ".toml") as path:
        try:
            tables = profiles.read(path)
        except RequestError:
            tables = {}
        for table in tables.values():
            for value in table.values():
                assert all(
                    isinstance(number, int | float) for number in (value if isinstance(value, tuple) else [value])
                )
        if tables and not any(
            math.isnan(x) for table in tables.values() for x in table.values() if isinstance(x, float)
        ):
            assert profiles.parse(profiles.written(tables), "again") == tables
        try:
            devices = read_profiles(path)
        except ParameterError:
            return
        assert all(profile.name == name for name, profile in devices.items())


def settings_seeds() -> Iterator[bytes]:
    """The settings that a node has by itself, and most of what can be said."""
    yield to_toml(NodeSettings(insecure=True, bind=("tcp://127.0.0.1:0",))).encode()
    yield b"""name = "n"
keys = "keys"
allow = "any"
announce = ["tcp://10.0.0.1:7000"]
metrics = "off"
tap = "headers"
[log]
level = "debug"
format = "json"
[limits]
max_peers = 9
on_full = "wait"
heartbeat_s = 0.5
[[peers]]
endpoint = "tcp://h:1"
server_key = "k\\u0001\\"q\\\\x"
[[services]]
name = "s"
module = "a.b:c"
threads = 2
"""


def board_seeds() -> Iterator[bytes]:
    """A profile that comes with each."""
    for name in profiles.names()[:2]:
        yield profiles.written({"device": profiles.board(name)["device"]}).encode()[:4000]
    yield b"[device]\nclock_hz = 1e9\ncycles_per_mac = 0.5\nkappa = 1e-28\nlayer_s = [0.123456789012, 1]\n[channel]\n"
    yield BUILT_IN.read_bytes()[:3000].rpartition(b"\n[")[0]


SEEDS = {"settings": settings_seeds, "boards": board_seeds}
