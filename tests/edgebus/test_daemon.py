"""The daemon's parts, each on its own: metrics, their server, logs, systemd, taps, services, the unit."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgebus import messages as m
from edgebus.config import Limits
from edgebus.daemon.announcing import Announcer, reachable
from edgebus.daemon.http import MetricsServer, split_address
from edgebus.daemon.logs import fields_of, remove_logs, set_up_logs
from edgebus.daemon.metrics import MAX_PEERS, OTHERS, render
from edgebus.daemon.reports import StatsReport, answer_stats, make_report
from edgebus.daemon.sdnotify import Notifier
from edgebus.daemon.tapping import PART_BYTES, Tap, TapRequest, TapService, to_record
from edgebus.daemon.unit import unit_text
from edgebus.daemon.user_services import Workers, find_function
from edgebus.directory import decode_record
from edgebus.errors import BindError, ConfigError, EdgebusError
from edgebus.payloads import decode, encode
from edgebus.recorder import Lost, Traffic, decode_records
from edgebus.settings import ServiceSettings
from edgebus.stats import LinkStats, NodeStats


def stats(peers=2, name="phone"):
    links = {f"peer{index}": LinkStats(bytes_sent=10 + index, started=3) for index in range(peers)}
    return NodeStats(total=LinkStats(bytes_sent=25, started=6), peers=links, rejected_handshakes=4)


def families(text):
    parser = pytest.importorskip("prometheus_client.parser")
    return {family.name: family for family in parser.text_string_to_metric_families(text)}


# -- metrics --------------------------------------------------------------------------------------------


def test_metrics_parse_with_the_clients_own_parser():
    found = families(render(stats(), name='no"de\\', version="1", uptime_s=2.5))
    assert found["edgebus_info"].samples[0].labels == {"name": 'no"de\\', "version": "1"}
    assert found["edgebus_uptime_seconds"].samples[0].value == 2.5
    assert found["edgebus_bytes_sent"].type == "counter"
    assert found["edgebus_bytes_sent"].samples[0].value == 25
    assert {s.labels["peer"]: s.value for s in found["edgebus_peer_bytes_sent"].samples} == {"peer0": 10, "peer1": 11}
    assert found["edgebus_outstanding"].type == "gauge"
    assert found["edgebus_node_rejected_handshakes"].samples[0].value == 4
    assert all(family.documentation for family in found.values())
    assert all(name.startswith("edgebus_") for name in found)


def test_every_counter_of_the_stats_has_its_series():
    found = families(render(stats(), name="n", version="1", uptime_s=0))
    for field in LinkStats.__dataclass_fields__:
        if isinstance(getattr(LinkStats(), field), int | float) and not field.endswith("round_trip_s"):
            assert f"edgebus_{field}" in found
            assert f"edgebus_peer_{field}" in found


def test_names_of_peers_are_bounded_in_number_and_cannot_break_a_line():
    links = {f'evil{index}"\n\x1b[2J\\': LinkStats(started=1) for index in range(MAX_PEERS + 10)}
    text = render(NodeStats(LinkStats(), links), name="n", version="1", uptime_s=0)
    assert "\x1b" not in text
    samples = families(text)["edgebus_peer_started"].samples
    assert len(samples) == MAX_PEERS + 1
    assert {sample.labels["peer"]: sample.value for sample in samples}[OTHERS] == 10


def test_links_to_peers_of_one_name_are_summed():
    links = {
        "a": LinkStats(started=1, name="twin", health="up", round_trip_s=0.25),
        "b": LinkStats(started=2, name="twin", health="wedged"),
    }
    found = families(render(NodeStats(LinkStats(), links), name="n", version="1", uptime_s=0))
    assert [(s.labels, s.value) for s in found["edgebus_peer_started"].samples] == [({"peer": "twin"}, 3)]
    assert [s.value for s in found["edgebus_peer_round_trip_seconds"].samples] == [0.25]
    assert {s.labels["health"]: s.value for s in found["edgebus_peers"].samples} == {
        "up": 1, "busy": 0, "wedged": 1, "down": 0,
    }  # fmt: skip
    assert "edgebus_round_trip_seconds" not in found


@pytest.fixture
def served():
    server = MetricsServer("127.0.0.1:0", lambda: "a_metric 1\n")
    yield server
    server.close()


def get(address, path, method="GET"):
    request = urllib.request.Request(f"http://{address}{path}", method=method)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.status, answer.headers["Content-Type"], answer.read()


@pytest.mark.net
def test_metrics_are_served_over_http(served):
    assert get(served.address, "/metrics") == (200, "text/plain; version=0.0.4; charset=utf-8", b"a_metric 1\n")
    assert get(served.address, "/metrics?x=1")[2] == b"a_metric 1\n"
    assert get(served.address, "/healthy")[2] == b"ok\n"
    assert get(served.address, "/metrics", "HEAD")[2] == b""
    for path, method, status in (("/other", "GET", 404), ("/metrics", "POST", 405)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(served.address, path, method)
        caught.value.close()
        assert caught.value.code == status


@pytest.mark.net
def test_a_node_that_does_not_answer_is_status_500():
    def render():
        raise EdgebusError("stuck")

    server = MetricsServer("127.0.0.1:0", render)
    try:
        for path in ("/metrics", "/healthy"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                get(server.address, path)
            caught.value.close()
            assert caught.value.code == 500
    finally:
        server.close()


@pytest.mark.net
def test_slow_and_endless_requests_are_cut(served, monkeypatch):
    monkeypatch.setattr("edgebus.daemon.http.REQUEST_WITHIN_S", 0.2)
    host, port = split_address(served.address)
    with socket.create_connection((host, port), 5) as slow, socket.create_connection((host, port), 5) as endless:
        slow.sendall(b"GET /metr")
        endless.sendall(b"GET /" + b"a" * 20_000)
        assert get(served.address, "/metrics")[0] == 200
        for each in (slow, endless):
            each.settimeout(5)
            with contextlib.suppress(ConnectionResetError):  # closed with bytes unread
                assert each.recv(100) == b""


@pytest.mark.net
def test_an_endless_request_is_cut_by_its_size(served, monkeypatch):
    monkeypatch.setattr("edgebus.daemon.http.REQUEST_WITHIN_S", 60.0)
    with socket.create_connection(split_address(served.address), 5) as endless:
        endless.settimeout(5)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            endless.sendall(b"GET /" + b"a" * 100_000)
            assert endless.recv(100) == b""


@pytest.mark.net
def test_an_address_that_is_taken_is_named(served):
    with pytest.raises(BindError, match=r'metrics = "off"'):
        MetricsServer(served.address, lambda: "")


@pytest.mark.parametrize("address", ["9464", "h:", ":1", "h:x", "h:70000"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        split_address(address)


# -- reports --------------------------------------------------------------------------------------------


def report(peers):
    return make_report(stats(peers), name="n", version="1", uptime_s=5.0, limits=Limits(), services=["a"])


def test_a_report_travels_and_is_cut_to_size_by_leaving_out_peers():
    whole = decode(StatsReport, answer_stats(report(100), 1 << 20))
    assert (len(whole.peers), whole.total["bytes_sent"], whole.node["rejected_handshakes"]) == (100, 25, 4)
    assert whole.peers[0].counters["bytes_sent"] == 10
    assert "round_trip_s" not in whole.peers[0].counters  # not measured: NaN is no JSON
    content = answer_stats(report(100), 10_000)
    assert len(content) <= 10_000
    assert 0 < len(decode(StatsReport, content).peers) < 100


# -- systemd --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_states_reach_the_notify_socket(tmp_path, abstract):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"@edgebus-{os.getpid()}" if abstract else str(tmp_path / "notify")
        sock.bind("\0" + name[1:] if abstract else name)
        sock.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())})
        assert notifier.send("READY=1", "STATUS=up")
        assert sock.recv(100) == b"READY=1\nSTATUS=up"
        assert notifier.watchdog_s == 15.0


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}],
)
def test_without_systemd_nothing_happens(environment, tmp_path):
    assert Notifier(environment).watchdog_s is None
    assert not Notifier(environment | {"NOTIFY_SOCKET": str(tmp_path / "none")}).send("READY=1")
    assert not Notifier(environment).send("READY=1")


@pytest.mark.parametrize("home", ["/home/pi", "/root", "/run/user/1000"])
def test_the_unit_sees_an_installation_or_settings_in_a_home(home, monkeypatch):
    hidden, seen = "ProtectHome=yes\n", "ProtectHome=read-only\n"
    assert hidden in unit_text(program="/usr/bin/edgebus")
    assert hidden in unit_text(Path("/srv/home/node.toml"), program="/usr/bin/edgebus")
    assert seen in unit_text(program=f"{home}/venv/bin/edgebus")
    assert seen in unit_text(Path(home, "node.toml"), program="/usr/bin/edgebus")
    monkeypatch.setattr(sys, "base_prefix", f"{home}/.pyenv/versions/3.11")  # an environment elsewhere links to it
    assert seen in unit_text()


def test_the_unit_has_our_paths_and_is_one_that_systemd_takes(tmp_path):
    config = tmp_path / "no de.toml"
    text = unit_text(config, program="/opt/edge bus/edgebus")
    assert f'ExecStart="/opt/edge bus/edgebus" node --config "{config}"' in text
    assert "Type=notify" in text
    assert "edgebus node --config /etc/edgebus/node.toml" in unit_text(program="/usr/bin/edgebus")
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    unit = tmp_path / "edgebus-node.service"
    unit.write_text(unit_text(program=sys.executable).replace("User=edgebus\nGroup=edgebus\n", ""))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "edgebus-node.service" not in done.stderr


# -- logs -----------------------------------------------------------------------------------------------


@pytest.fixture
def logged(request):
    root = logging.getLogger()
    level = root.level
    stream = io.StringIO()
    handler = set_up_logs("info", request.param, stream)
    yield stream
    remove_logs(handler)
    root.setLevel(level)


@pytest.mark.parametrize("logged", ["json", "auto"], indirect=True)
def test_json_lines_have_the_fields_of_the_call(logged):
    log = logging.getLogger("edgebus.node")
    log.info("hello %s", "you\n\x1b[2J", extra={"peer": "phone", "level": "not ours", "key": b"x"})
    log.debug("not this")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("failed")
    first, second = map(json.loads, logged.getvalue().splitlines())
    assert (
        first.items()
        >= {"event": "hello you\n\x1b[2J", "level": "info", "logger": "edgebus.node", "peer": "phone"}.items()
    )
    assert first["key"] == "b'x'"
    assert first["at"].endswith("Z")
    assert "ValueError: why" in second["exception"]
    assert "\x1b" not in logged.getvalue()


@pytest.mark.parametrize("logged", ["console"], indirect=True)
def test_console_lines_escape_what_could_drive_the_terminal(logged):
    logging.getLogger("edgebus.node").warning("from \x1b[2J\u202e", extra={"peer": "a\x07"})
    assert logged.getvalue().endswith("warning from \\x1b[2J\\u202e peer='a\\x07'\n")


@pytest.mark.parametrize("logged", ["json"], indirect=True)
def test_structlog_joins_in_where_it_is_installed(logged):
    structlog = pytest.importorskip("structlog")
    try:
        structlog.get_logger("mine").info("taken 100%", name="phone", count=3)
        line = json.loads(logged.getvalue())
    finally:
        structlog.reset_defaults()
    assert line.items() >= {"event": "taken 100%", "logger": "mine", "name_": "phone", "count": 3}.items()


def test_fields_of_a_record_are_what_extra_gave():
    record = logging.makeLogRecord({"msg": "x", "mine": 1})
    assert fields_of(record) == {"mine": 1}


# -- taps -----------------------------------------------------------------------------------------------


def event(header, *frames, direction="in", peer="p1", sizes=None):
    sizes = tuple(map(len, frames)) if sizes is None else sizes
    return SimpleNamespace(
        at=1.0, direction=direction, peer_id=peer, peer_key=None, peer_name="phone", lane="control", header=header,
        sizes=sizes, frames=frames,
    )  # fmt: skip


def request(number=0, service="echo", payload=b"secret", **options):
    return event(m.Request(number, service, 1000, 0, (), payload), payload, **options)


def test_a_record_without_contents_has_none_not_even_inline():
    record = to_record(request(), 0)
    assert (record.frames, record.sizes) == ((), (6,))
    assert b"secret" not in record.header
    whole = to_record(request(), 6)
    assert whole.frames == (b"secret",)
    assert to_record(request(payload=b"1234567"), 6).frames == ()
    follows = to_record(event(m.Request(1, "x", 1, 0, (), None, None, m.Transfer(0, (10, 20)))), 100)
    assert (follows.sizes, follows.is_whole) == ((10, 20), False)


def test_a_pattern_shows_requests_that_fit_and_what_belongs_to_them():
    tap = Tap(TapRequest(pattern="ech*"))
    for each in (
        request(0),
        request(1, "other"),
        event(m.Reply(0), b"", direction="out"),
        event(m.Reply(1), b"", direction="out"),
        event(m.Reply(0), b"", direction="out", peer="p2"),
        event(m.Ping()),
        event(m.Cancel(0)),
    ):
        tap.offer(each)
    kinds = [type(m.decode_header(record.header)).__name__ for record in tap.take(0)]
    assert kinds == ["Request", "Reply", "Cancel"]


def test_a_pattern_shows_the_chunks_of_what_it_shows():
    tap = Tap(TapRequest(pattern="echo"))
    for number, service in enumerate(("echo", "other")):
        header = m.Request(number, service, 1000, 0, (), None, None, m.Transfer(10 + number, (5,)))
        tap.offer(event(header))
        tap.offer(event(m.Chunk(10 + number, 0), b"12345"))
        tap.offer(event(m.Credit(10 + number, 5), direction="out"))
    headers = [m.decode_header(record.header) for record in tap.take(0)]
    assert [type(header).__name__ for header in headers] == ["Request", "Chunk", "Credit"]
    assert headers[1].transfer == 10


def test_a_slow_reader_loses_messages_that_are_counted_and_memory_is_bounded():
    tap = Tap(TapRequest(content_bytes=1000), buffer_bytes=10_000)
    for number in range(100):
        tap.offer(request(number, payload=bytes(1000)))
    part = tap.take(0)
    held = [record for record in part if isinstance(record, Traffic)]
    assert 0 < len(held) <= 10
    assert part[-1] == Lost(100 - len(held))
    tap.offer(request(200))
    [again] = tap.take(0)
    assert isinstance(again, Traffic)


def test_a_part_has_a_bounded_size():
    tap = Tap(TapRequest(content_bytes=100_000))
    for number in range(10):
        tap.offer(request(number, payload=bytes(100_000)))
    sizes = []
    while part := tap.take(0):
        sizes.append(sum(len(record.frames[0]) for record in part))
    assert sum(sizes) == 1_000_000
    assert max(sizes) <= PART_BYTES + 100_000


class FakeRequest:
    """A request for a stream, of which the test reads the parts."""

    def __init__(self, wanted, is_stream=True, peer="reader"):
        self.payload = wanted if isinstance(wanted, bytes) else encode(wanted)
        self.is_stream = is_stream
        self.peer = SimpleNamespace(id=peer, key=None, name="reader")
        self.parts = []
        self.pushed = threading.Semaphore(0)
        self.refused = []
        self.ended = False

    def push(self, payload=b"", arrays=(), timeout_s=None):
        if self.ended:
            raise EdgebusError("nobody wants it")
        self.parts.append(payload)
        self.pushed.release()
        return len(self.parts)

    def refuse(self, code, detail, info=b""):
        self.refused.append(code)


class FakeNode:
    """Keeps the callbacks of taps."""

    def __init__(self):
        self.callbacks = []
        self.tapped = threading.Semaphore(0)

    def tap(self, callback):
        self.callbacks.append(callback)
        self.tapped.release()
        return lambda: self.callbacks.remove(callback)

    def see(self, each):
        for callback in list(self.callbacks):
            callback(each)


def test_a_tap_streams_what_the_node_sees_but_not_itself():
    node = FakeNode()
    service = TapService(node.tap, contents=True)
    reader, other = FakeRequest(TapRequest(content_bytes=10)), FakeRequest(TapRequest(), peer="other")
    for each in (reader, other):
        service.handle(each)
        assert each.pushed.acquire(timeout=5)  # an empty part: it has begun
    node.see(request(peer="reader"))
    node.see(request(peer="other"))
    node.see(request(7))
    assert reader.pushed.acquire(timeout=5)
    assert other.pushed.acquire(timeout=5)
    assert decode_records(reader.parts[0]) == ()
    [record] = decode_records(reader.parts[1])
    assert (record.peer_id, record.frames) == ("p1", (b"secret",))
    service.close()
    assert node.callbacks == []
    assert reader.refused == ["closing"]


def test_a_reader_that_leaves_frees_its_place():
    node = FakeNode()
    service = TapService(node.tap, contents=True)
    reader = FakeRequest(TapRequest())
    reader.ended = True
    service.handle(reader)
    assert node.tapped.acquire(timeout=5)
    node.see(request())
    service.close()
    assert node.callbacks == []


@pytest.mark.parametrize(
    ("asked", "is_stream", "contents", "code"),
    [
        (TapRequest(), False, True, "not_a_stream"),
        (b"nonsense", True, True, "malformed"),
        (TapRequest(content_bytes=1), True, False, "no_contents"),
    ],
)
def test_taps_that_cannot_be_are_refused(asked, is_stream, contents, code):
    node = FakeNode()
    service = TapService(node.tap, contents=contents)
    asking = FakeRequest(asked, is_stream)
    service.handle(asking)
    service.close()
    assert asking.refused == [code]


def test_the_specification_names_every_refusal():
    root = Path(__file__).parents[2]
    code = "".join((root / f"edgebus/daemon/{name}.py").read_text() for name in ("tapping", "daemon"))
    made = set(re.findall(r'refuse\((?:request, )?"(\w+)"', code))
    assert made >= {"forbidden", "busy", "closing"}
    assert made <= set(re.findall(r"`(\w+)`", (root / "docs/spec/bus-recording.md").read_text()))


def test_more_taps_than_four_are_refused():
    node = FakeNode()
    service = TapService(node.tap, contents=True)
    asking = [FakeRequest(TapRequest()) for _ in range(5)]
    for each in asking:
        service.handle(each)
    assert [each.refused for each in asking] == [[], [], [], [], ["busy"]]
    service.close()


# -- services of the user's own -------------------------------------------------------------------------


class FakeInbox:
    def __init__(self, requests):
        self._requests = iter(requests)

    def get(self, timeout_s):
        return next(self._requests, None)


class Asked:
    def __init__(self, payload):
        self.payload = payload
        self.peer = SimpleNamespace(name="phone")
        self.answers = []

    def reply(self, payload, arrays=()):
        self.answers.append(payload)

    def refuse(self, code, detail, info=b""):
        self.answers.append((code, detail))


def test_answers_of_a_function_are_sent_and_its_faults_are_refused(caplog):
    def function(request):
        if request.payload == b"own":
            request.reply(b"by itself")
            return None
        if request.payload == b"text":
            return "text"
        return b"%d" % (1 // int(request.payload))

    asked = [Asked(payload) for payload in (b"1", b"0", b"own", b"text", b"1")]
    workers = Workers(FakeInbox(asked), ServiceSettings(name="div", module="a:b"), function)
    assert workers.join(5)
    assert [each.answers for each in asked] == [
        [b"1"],
        [("failed", "div raised ZeroDivisionError: see the node's log")],
        [b"by itself"],
        [("failed", "div raised TypeError: see the node's log")],
        [b"1"],
    ]
    assert len(caplog.records) == 2


def test_functions_are_found_beside_the_settings_last(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "hall_services.py").write_text("def greet(request):\n    return b'hi'\n")
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('taken for the library')")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert find_function("hall_services:greet", tmp_path)(None) == b"hi"
    assert find_function("colorsys:rgb_to_hsv", tmp_path)(0.0, 0.0, 1.0)[2] == 1.0
    (tmp_path / "broken_services.py").write_text("raise RuntimeError('two\\nlines')")
    for module, said in (
        ("no_such_module:x", "ModuleNotFoundError"),
        ("hall_services:no", "AttributeError"),
        ("hall_services:__name__", "is a str"),
        ("broken_services:x", "two lines"),
    ):
        with pytest.raises(ConfigError, match=said):
            find_function(module, tmp_path)


# -- announcing -----------------------------------------------------------------------------------------


class FakeTopic:
    """A node that keeps what it publishes."""

    name = "hall"
    key = None

    def __init__(self):
        self.published = {}

    def publish(self, topic, key, value):
        self.published[key] = value

    def unpublish(self, topic, key):
        del self.published[key]


def test_services_are_announced_with_their_load_and_withdrawn(tmp_path):
    node = FakeTopic()
    workers = SimpleNamespace(num_threads=4, load=0.0)
    announcer = Announcer(node, {"upper": workers, "count": workers}, ["tcp://10.0.0.1:7000"], tmp_path)
    try:
        records = {record.service: record for record in map(decode_record, node.published.values())}
        assert set(records) == {"upper", "count"}
        assert (records["upper"].capacity, records["upper"].endpoints) == (4.0, ["tcp://10.0.0.1:7000"])
        workers.load = 0.5
        announcer.look()
        assert {decode_record(value).load for value in node.published.values()} == {0.5}
        workers.load = 0.55  # not worth telling
        announcer.look()
        assert {decode_record(value).load for value in node.published.values()} == {0.5}
    finally:
        announcer.close()
    assert node.published == {}
    assert int((tmp_path / "epoch").read_text()) > 0


def test_what_cannot_be_dialled_is_not_announced(tmp_path):
    bound = ["tcp://0.0.0.0:7000", "ipc:///run/x", "tcp://10.0.0.1:7000"]
    assert reachable([], bound) == ["tcp://10.0.0.1:7000"]
    assert reachable(["tcp://name:1"], bound) == ["tcp://name:1"]
    with pytest.raises(ConfigError, match="cannot be announced"):
        Announcer(FakeTopic(), {"a": SimpleNamespace(num_threads=1, load=0.0)}, ["tcp://0.0.0.0:1"])


def test_load_is_the_part_of_the_threads_that_work():
    entered, leave = threading.Semaphore(0), threading.Event()

    def function(request):
        entered.release()
        leave.wait(5)
        return b""

    workers = Workers(FakeInbox([Asked(b""), Asked(b"")]), ServiceSettings(name="a", module="a:b", threads=4), function)
    assert entered.acquire(timeout=5)
    assert entered.acquire(timeout=5)
    assert (workers.load, workers.num_threads) == (0.5, 4)
    leave.set()
    assert workers.join(5)
    assert workers.load == 0.0
