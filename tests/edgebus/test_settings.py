"""Settings: what a file, the environment and flags make together, and what is said about mistakes."""

from __future__ import annotations

import re
import tomllib

import pytest

from edgebus.config import Limits
from edgebus.errors import ConfigError
from edgebus.settings import NodeSettings, PeerSettings, ServiceSettings, load_settings, to_toml

WHOLE = """
name = "hall"
bind = ["tcp://127.0.0.1:7000", "ipc:///run/edgebus/node"]
keys = "keys"
allow = "any"
metrics = "off"
tap = "headers"
stop_within_s = 3

[log]
level = "debug"
format = "json"

[limits]
max_peers = 12
silence_s = 9.5

[[peers]]
endpoint = "tcp://10.0.0.2:7000"
server_key = "peer.key"

[[services]]
name = "greet"
module = "hall.services:greet"
threads = 2
"""
PLAIN = 'insecure = true\nbind = ["tcp://127.0.0.1:0"]\n'


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "node.toml"
        path.write_text(text)
        return path

    return write


def test_a_whole_file_is_read_and_paths_are_beside_it(file, tmp_path):
    (tmp_path / "peer.key").write_text("")
    settings = load_settings(file(WHOLE), {})
    assert settings.keys == str(tmp_path / "keys")
    assert settings.allow == "any"
    assert settings.bind == ("tcp://127.0.0.1:7000", "ipc:///run/edgebus/node")
    assert settings.limits == Limits(max_peers=12, silence_s=9.5)
    assert settings.peers == (PeerSettings(endpoint="tcp://10.0.0.2:7000", server_key=str(tmp_path / "peer.key")),)
    assert settings.services == (ServiceSettings(name="greet", module="hall.services:greet", threads=2),)
    assert (settings.log.level, settings.log.format, settings.stop_within_s) == ("debug", "json", 3.0)


def test_a_key_of_a_peer_may_stand_in_the_file(file):
    key = "a" * 40
    text = f'keys = "k"\n[[peers]]\nendpoint = "tcp://h:1"\nserver_key = "{key}"\n'
    assert load_settings(file(text), {}).peers[0].server_key == key
    long = "a" * 5000  # more than a file's name may have
    assert load_settings(file(text.replace(key, long)), {}).peers[0].server_key == long


def test_environment_is_over_the_file_and_flags_over_both(file):
    environment = {
        "EDGEBUS_NODE_NAME": "from-environment",
        "EDGEBUS_NODE_BIND": "tcp://127.0.0.1:1, tcp://127.0.0.1:2",
        "EDGEBUS_NODE_LOG_LEVEL": "error",
        "EDGEBUS_NODE_LIMITS_MAX_PEERS": "7",
        "EDGEBUS_NODE_LIMITS_SILENCE_S": "8.5",
        "EDGEBUS_NODE_INSECURE": "true",
        "HOME": "/nowhere",
    }
    text = 'name = "from-file"\nstop_within_s = 4\n[log]\nformat = "json"\n'
    settings = load_settings(file(text), environment, {"name": "from-flag", "log.level": "debug"})
    assert settings.name == "from-flag"
    assert settings.bind == ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")
    assert (settings.log.level, settings.log.format) == ("debug", "json")
    assert settings.limits == Limits(max_peers=7, silence_s=8.5)
    assert (settings.insecure, settings.stop_within_s) == (True, 4.0)


def test_no_file_is_needed():
    settings = load_settings(None, {}, {"insecure": True, "bind": ["tcp://127.0.0.1:7000"]})
    assert settings == NodeSettings(insecure=True, bind=("tcp://127.0.0.1:7000",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('nmae = "x"', "unknown key 'nmae', is name meant?"),
        ("[limits]\nmax_peer = 3", "unknown key 'limits.max_peer', is limits.max_peers meant?"),
        ('level = "debug"', "unknown key 'level', is log.level meant?"),
        ('[[peers]]\nendpoint = "tcp://h:1"\nserverkey = "x"', "'peers[0].serverkey', is peers[0].server_key meant?"),
        ("[log]\ncolour = true", "unknown key 'log.colour'; known here are format, level"),
        ("[limits]\nmax_peers = 'many'", "limits.max_peers: expected `int`, got `str`"),
        ("[limits]\nmax_peers = 0", "limits: max_peers must be positive, got 0"),
        ("[log]\nlevel = 'loud'", "log.level: invalid enum value 'loud'"),
        ("log = 3", "log: expected `object`, got `int`"),
        ("name = ''", "name: expected `str` of length >= 1"),
        ("services = [{name = 'a', module = 'os'}]", "services[0].module"),
        ("services = [{name = 'edgebus.x', module = 'a:b'}]", "choose one without edgebus."),
        ("services = [{name = 'x', module = 'a:b'}, {name = 'x', module = 'a:c'}]", "'x' is there twice"),
        ("keys = 'k'", "drop it, or drop keys and allow"),
        ("peers = [{endpoint = 'tcp://h:1', server_key = 'k'}]", "drops server_key"),
        ("a = = 3", "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
    ],
)
def test_mistakes_are_named_with_their_path_and_the_nearest_key(file, text, said):
    with pytest.raises(ConfigError) as caught:
        load_settings(file(PLAIN + text), {})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"EDGEBUS_NODE_NAEM": "x"}, "unknown variable 'EDGEBUS_NODE_NAEM', is EDGEBUS_NODE_NAME meant?"),
        ({"EDGEBUS_NODE_LIMITS_MAX_PEERS": "many"}, "EDGEBUS_NODE_LIMITS_MAX_PEERS must be int, got 'many'"),
        ({"EDGEBUS_NODE_PEERS": "x"}, "unknown variable"),
        ({"EDGEBUS_NODE_TAP": "all"}, "tap: invalid enum value 'all'"),
    ],
)
def test_mistakes_in_the_environment_are_named(environment, said):
    with pytest.raises(ConfigError, match=r"environment|settings") as caught:
        load_settings(None, environment, {"insecure": True, "bind": ["tcp://127.0.0.1:0"]})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"insecure": True}, "nothing to do"),
        ({"bind": ["tcp://h:1"]}, "give keys = DIR"),
        ({"keys": "k", "peers": [{"endpoint": "tcp://h:1"}]}, "needs server_key"),
    ],
)
def test_settings_that_cannot_work_say_what_is_missing(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_settings(None, {}, overrides)


def test_what_is_printed_reads_back_the_same(file, tmp_path):
    settings = load_settings(file(WHOLE), {}, {"name": 'quote " backslash \\ bell \x07 ü'})
    printed = to_toml(settings)
    assert tomllib.loads(printed)["name"] == settings.name
    assert load_settings(file(printed), {}) == settings


def test_a_huge_or_missing_file_is_refused(file, tmp_path):
    with pytest.raises(ConfigError, match="over 1048576 B"):
        load_settings(file("#" * (2 << 20)), {})
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(tmp_path / "none.toml", {})


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('bind = ["tcp:/127.0.0.1:7000"]', "bind: endpoint 'tcp:/127.0.0.1:7000' is not tcp://HOST:PORT"),
        ('bind = ["tcp://127.0.0.1:70000"]', "bind: endpoint 'tcp://127.0.0.1:70000' has no port"),
        ('[[peers]]\nendpoint = "10.0.0.2:7000"', "peers: endpoint '10.0.0.2:7000' is not tcp://HOST:PORT"),
    ],
)
def test_endpoint_of_no_transport_is_found_before_the_start(tmp_path, line, what):
    file = tmp_path / "node.toml"
    file.write_text(f"insecure = true\n{line}\n")
    with pytest.raises(ConfigError, match=re.escape(what)):
        load_settings(file, {})
