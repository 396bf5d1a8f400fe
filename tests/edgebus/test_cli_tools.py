"""The tools as a user meets them: a daemon in a process of its own, and every command against it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request

import numpy as np
import pytest
from rich.console import Console

import edgebus
from edgebus.allowedit import allow_keys
from edgebus.cli.options import safe
from edgebus.cli.tap import as_line
from edgebus.cli.top import Shot, render
from edgebus.daemon.reports import PeerReport, StatsReport, ask_stats
from edgebus.recorder import Lost, Start, Traffic, Writer

SERVICES = """
import time

calls = 0


def upper(request):
    return request.payload.upper()


def total(request):
    request.reply(arrays=[request.arrays[0].sum(keepdims=True)])


def count(request):
    global calls
    calls += 1
    return b"%d" % calls


def slow(request):
    time.sleep(float(request.payload))
    return b"late"
"""
PROGRAM = [sys.executable, "-m", "edgebus.cli"]


def run(*arguments, status=0, timeout=60, environment=None):
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | (environment or {}),
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == status, done.stderr + done.stdout
    if status:
        assert done.stderr.count("\n") <= 1
    return done


def start(*arguments, environment=None, cwd=None):
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
        cwd=cwd,
    )


def end(process, number=signal.SIGTERM):
    process.send_signal(number)
    output = process.communicate(timeout=20)
    return process.returncode, *output


@contextlib.contextmanager
def killed(process):
    """Whatever happens, the process does not outlive the test."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A daemon with keys and services of its own, a device that may tap it, and one that may nothing."""
    home = tmp_path_factory.mktemp("daemon")
    for name in ("server", "device", "stranger"):
        edgebus.generate_keys(home / name)
    allow_keys(home / "server", home / "device" / "node.key", options={"services": "*,edgebus.stats,edgebus.tap"})
    (home / "hall_services.py").write_text(SERVICES)
    services = "".join(
        f'[[services]]\nname = "{name}"\nmodule = "hall_services:{name}"\n' for name in ("upper", "total", "count")
    )
    (home / "node.toml").write_text(
        f'name = "hall\\u001b"\nbind = ["tcp://127.0.0.1:0"]\nkeys = "server"\nmetrics = "127.0.0.1:0"\n'
        f"stop_within_s = 3\n[limits]\nshare_bytes = 0\n{services}"
    )
    return home


@pytest.fixture(scope="module")
def daemon(home):
    with killed(start("node", "--config", home / "node.toml", "--json")) as process:
        ready = json.loads(process.stdout.readline())
        yield ready["endpoints"][0], ready["metrics"]


@pytest.fixture
def access(home):
    return ("--server-key", home / "server" / "node.key", "--keys", home / "device")


@contextlib.contextmanager
def client(home, endpoint, name="device"):
    with edgebus.Node("client", keys=edgebus.load_keys(home / name)) as node:
        yield node.connect(endpoint, edgebus.load_keys(home / "server").public)


# -- node -----------------------------------------------------------------------------------------------


@pytest.mark.net
def test_a_daemon_serves_functions_and_its_own_counters(home, daemon):
    endpoint, metrics = daemon
    with client(home, endpoint) as link:
        assert link.request("upper", b"hall").payload == b"HALL"
        assert link.request("total", arrays=[np.arange(5)]).arrays[0].tolist() == [10]
        report = ask_stats(link, 5.0)
    assert report.name == "hall\x1b"
    assert {"upper", "total", "count", "edgebus.stats", "edgebus.tap"} <= set(report.services)
    assert report.total["served"] >= 2
    assert abs(report.wall_time - time.time()) < 60
    assert [peer.health for peer in report.peers if peer.name == "client"][-1:] == ["up"]
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    assert 'edgebus_peers{health="up"}' in text
    assert "\x1b" not in text


@pytest.mark.net
def test_without_a_file_two_options_are_enough_and_sigterm_ends_it(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(20)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        arguments = ("node", "--bind", "tcp://127.0.0.1:0", "--insecure", "--metrics", "off", "--log-format", "json")
        with killed(start(*arguments, environment=environment)) as process:
            _, endpoint, *_ = process.stdout.readline().split()
            assert notify.recv(1000).startswith(b"READY=1")
            assert notify.recv(1000) == b"WATCHDOG=1"
            assert json.loads(run("ping", endpoint, "--insecure", "--count", "1", "--json").stdout)["peer"] == "node"
            process.send_signal(signal.SIGTERM)
            while notify.recv(1000) != b"STOPPING=1":
                pass  # the watchdog was fed meanwhile
            _, log = process.communicate(timeout=20)
            assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["event"] for line in lines] == ["node is up", "node is stopping", "node has stopped"]
    assert lines[0]["endpoints"] == [endpoint]


@pytest.mark.net
def test_peers_hear_goodbye_and_the_end_is_bounded(home, tmp_path):
    text = (home / "node.toml").read_text().replace("[limits]", "[limits]", 1)
    text += '[[services]]\nname = "slow"\nmodule = "hall_services:slow"\n'
    file = home / "slow.toml"
    file.write_text(text.replace("stop_within_s = 3", "stop_within_s = 0.5"))
    with killed(start("node", "--config", file, "--json")) as process:
        endpoint = json.loads(process.stdout.readline())["endpoints"][0]
        with client(home, endpoint) as link:
            pending = link.send_request("slow", b"60", timeout_s=30.0)
            link.request("upper", b"x")  # it has begun by now, or is next in line
            began = time.monotonic()
            status, _, _ = end(process)
            assert time.monotonic() - began < 6
            assert status == 0
            with pytest.raises(edgebus.EdgebusError):
                pending.result()
            assert time.monotonic() - began < 20  # told, not timed out


@pytest.mark.net
def test_sighup_reads_the_log_level_again(home, tmp_path):
    file = tmp_path / "node.toml"
    text = 'insecure = true\nbind = ["tcp://127.0.0.1:0"]\nmetrics = "off"\n[log]\nformat = "json"\nlevel = '
    file.write_text(text + '"info"\n')
    with killed(start("node", "--config", file)) as process:
        process.stdout.readline()
        assert json.loads(process.stderr.readline())["event"] == "node is up"
        file.write_text("name = 'other'\n" + text + '"warning"\n')
        process.send_signal(signal.SIGHUP)
        line = json.loads(process.stderr.readline())
        assert line["settings"] == ["name"]
        file.write_text("nonsense")
        process.send_signal(signal.SIGHUP)
        assert "kept as they were" in json.loads(process.stderr.readline())["event"]
        status, _, log = end(process, signal.SIGINT)
    assert (status, log) == (0, "")  # info lines are no longer there


@pytest.mark.net
def test_a_daemon_dials_its_peers_until_they_are_there(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    file = tmp_path / "node.toml"
    file.write_text(
        f'insecure = true\nmetrics = "off"\n[log]\nformat = "json"\n[[peers]]\nendpoint = "tcp://127.0.0.1:{port}"\n'
    )
    with killed(start("node", "--config", file)) as process:
        assert process.stdout.readline().startswith("ready (dials only)")
        assert json.loads(process.stderr.readline())["event"] == "node is up"
        with edgebus.Node("late", insecure=True) as node:
            node.bind(f"tcp://127.0.0.1:{port}")
            line = json.loads(process.stderr.readline())
            while line["event"] != "peer is up":
                line = json.loads(process.stderr.readline())
            assert line["peer"] == "late"
            assert [link.name for link in node.stats().peers.values()] == ["node"]
        assert end(process)[0] == 0


def test_check_and_print(home, tmp_path):
    checked = json.loads(run("node", "--config", home / "node.toml", "--check", "--json").stdout)
    assert checked["public_key"] == edgebus.load_keys(home / "server").public
    printed = tomllib.loads(run("node", "--print-config", environment={"EDGEBUS_NODE_NAME": "x"}).stdout)
    assert printed["name"] == "x"
    assert f"--config {home}/node.toml" in run("node", "--config", home / "node.toml", "--print-unit").stdout
    broken = tmp_path / "node.toml"
    broken.write_text('insecure = true\nbind = ["tcp://127.0.0.1:0"]\n[[services]]\nname = "a"\nmodule = "no_such:x"\n')
    assert "no_such:x cannot be imported" in run("node", "--config", broken, "--check", status=2).stderr
    broken.write_text('insecure = true\nbind = ["tcp://127.0.0.1:0"]\nmetrics = "nonsense"\n')
    assert "'nonsense' is not HOST:PORT" in run("node", "--config", broken, "--check", status=2).stderr
    broken.write_text("nmae = 1")
    assert "is name meant?" in run("node", "--config", broken, status=2).stderr
    assert "nothing to do" in run("node", "--insecure", status=2).stderr


@pytest.mark.net
def test_addresses_that_are_taken_are_one_line():
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        taken = f"127.0.0.1:{port}"
        common = ("node", "--insecure", "--bind")
        assert "cannot bind" in run(*common, f"tcp://{taken}", "--metrics", "off", status=1).stderr.splitlines()[-1]
        assert "metrics" in run(*common, "tcp://127.0.0.1:0", "--metrics", taken, status=1).stderr


# -- top, doctor, tap -----------------------------------------------------------------------------------


@pytest.mark.net
def test_top_shows_a_look_as_table_and_as_json(home, daemon, access):
    endpoint, _ = daemon
    table = run("top", endpoint, *access, "--once").stdout
    assert "'hall\\x1b'" in table
    assert "edgebus-top" in table
    assert "\x1b" not in table
    [look] = map(json.loads, run("top", endpoint, *access, "--once", "--json").stdout.splitlines())
    assert look["endpoint"] == endpoint
    assert look["peers"][0]["counters"]["messages_received"] > 0


@pytest.mark.net
def test_doctor_passes_a_daemon_and_fails_with_status_1(home, daemon, access):
    endpoint, _ = daemon
    good = json.loads(run("doctor", endpoint, *access, "--json").stdout)
    verdicts = {finding["step"]: finding["verdict"] for finding in good["looked_at"][0]["findings"]}
    assert good["ok"]
    assert set(verdicts.values()) == {"ok"}
    bad = run("doctor", endpoint, *access[:2], "--keys", home / "stranger", status=1)
    assert "fail keys and link: it does not allow our key" in bad.stdout
    assert "edgebus allow KEYDIR" in bad.stdout


def test_doctor_looks_at_settings(home, tmp_path):
    good = run("doctor", home / "node.toml").stdout
    assert "allow-list" in good
    missing = run("doctor", tmp_path / "none.toml", status=1).stdout
    assert "check the path; there is no" in missing
    assert "mend that line" not in missing
    assert "give the path of a file" in run("doctor", tmp_path, status=1).stdout
    text = (home / "node.toml").read_text().replace('keys = "server"', f'keys = "{home}/stranger"')
    broken = tmp_path / "node.toml"
    broken.write_text(text)
    assert "allowed_keys" in run("doctor", broken, status=1).stdout
    allowed = home / "stranger" / "allowed_keys"
    allowed.write_text("# nobody yet\n")
    assert "lets nobody in" in run("doctor", broken, status=1).stdout
    key = edgebus.load_keys(home / "device").public
    allowed.write_text(f"{key} device\nnonsense\n")
    assert "line 2 allows nobody" in run("doctor", broken).stdout


@pytest.mark.net
def test_tap_decodes_what_goes_by(home, daemon, access):
    endpoint, _ = daemon
    options = ("--service", "upp*", "--count", "2", "--json")
    with client(home, endpoint) as link, tapping("tap", endpoint, *access, *options) as process:
        link.request("count")
        link.request("upper", b"hall")
        request, reply = (json.loads(process.stdout.readline()) for _ in range(2))
        assert process.wait(20) == 0
    assert (request["kind"], request["direction"], request["header"]["service"]) == ("Request", "in", "upper")
    assert (reply["kind"], reply["direction"], reply["sizes"], reply["frames"]) == ("Reply", "out", [4], None)
    assert request["peer_key"] == edgebus.load_keys(home / "device").public


@contextlib.contextmanager
def tapping(*arguments):
    """A command that taps, once it sees everything."""
    with killed(start(*arguments)) as process:
        assert "Ctrl-C ends" in process.stderr.readline()
        yield process


# -- record, replay -------------------------------------------------------------------------------------


@pytest.mark.net
def test_what_was_recorded_is_replayed_and_compared(home, daemon, access, tmp_path):
    endpoint, _ = daemon
    file = tmp_path / "day.ebrec"
    big = np.arange(100_000, dtype=np.int64)  # goes in chunks
    with client(home, endpoint) as link, tapping("record", endpoint, file, *access, "--json") as process:
        assert link.request("upper", b"one").payload == b"ONE"
        assert link.request("total", arrays=[big]).arrays[0].tolist() == [int(big.sum())]
        with pytest.raises(edgebus.Refused):
            link.request("nosuch")
        link.request("count")
        until = time.monotonic() + 20
        while time.monotonic() < until and b"FILL" not in file.read_bytes().partition(b"count")[2]:
            # What is written is buffered: push it out, with few messages. Where a thousand go by at once some are left
            # out, and so many are replayed below.
            link.request("upper", b"fill" * 5000)
            time.sleep(0.02)
        status, output, _ = end(process, signal.SIGINT)
    assert status == 0
    assert json.loads(output)["messages"] > 8
    assert file.stat().st_mode & 0o777 == 0o600
    tally = json.loads(run("replay", file, endpoint, *access, "--speed", "max", "--json", status=1).stdout)
    assert (tally["different"], tally["skipped"]) == (1, {})
    assert tally["sent"] == tally["same"] + 1 + tally["uncompared"]
    assert tally["uncompared"] <= 1  # the recording ended between a request and its answer
    assert tally["sent"] >= 5
    assert tally["differences"][0].startswith("request 4 count: frame 0 differs")
    same = run("replay", file, endpoint, *access, "--speed", "100", "--service", "[!c]*").stdout
    assert f"requests sent: {tally['same']} answers as recorded, 0 different" in same
    torn = tmp_path / "torn.ebrec"
    torn.write_bytes(file.read_bytes()[:-5])
    assert "the recording ends early, at byte" in run("replay", torn, endpoint, *access, "--service", "upper").stdout


@pytest.mark.net
def test_recordings_are_not_overwritten_and_files_that_are_none_are_said(daemon, access, tmp_path):
    endpoint, _ = daemon
    file = tmp_path / "there.ebrec"
    file.write_bytes(b"hello")
    assert "is there already" in run("record", endpoint, file, *access, status=2).stderr
    assert "not a recording" in run("replay", file, endpoint, *access, status=2).stderr
    assert "no recording" in run("replay", tmp_path / "none", endpoint, *access, status=2).stderr


# -- what peers say is hostile --------------------------------------------------------------------------

EVIL = "\x1b[2J\x07\u202ename\n[red]"


def printed(renderable):
    console = Console(width=200, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_names_from_peers_cannot_drive_the_terminal():
    counters = {"messages_sent": float("inf"), "bytes_sent": 1e30, "round_trip_s": float("nan")}
    peer = PeerReport(EVIL, EVIL, EVIL, EVIL, counters)
    report = StatsReport(EVIL, EVIL, 1, 2, 0.0, 1e300, 1, (EVIL,), counters, counters, (peer,))
    text = printed(render([Shot("tcp://h:1", 1.0, report), Shot("tcp://h:2", 1.0, None, EVIL)], None))
    record = Traffic(1.0, "in", EVIL, "", EVIL, "control", b"\x93\x09\xa3\x1b[2\xa1\x07", (1,), (b"\x1b[2J",))
    text += printed(as_line(record))
    for char in "\x1b\x07\u202e":
        assert char not in text
    assert "[red]" in text  # no markup either
    assert safe("a" * 500, 10) == "aaaaaaaaa…"


@pytest.mark.parametrize(
    "arguments",
    [
        ("top",),
        ("top", "tcp://h:1"),
        (
            "top",
            "tcp://h:1",
            "tcp://h:2",
            "tcp://h:3",
            "--server-key",
            "a" * 40,
            "--server-key",
            "a" * 40,
            "--keys",
            "x",
        ),
        ("doctor", "tcp://h:1"),
        ("doctor", "tcp://h", "--insecure"),
        ("doctor", "node.toml", "--insecure"),
        ("tap", "tcp://h:1", "--insecure", "--keys", "x"),
        ("replay", "x", "tcp://h:1", "--insecure", "--speed", "fast"),
        ("replay", "x", "tcp://h:1", "--insecure", "--speed", "-1"),
        ("node", "--insecure", "--bind", "tcp://127.0.0.1:0", "--tap", "all"),
    ],
)
def test_usage_errors_exit_2_with_one_line(arguments):
    assert run(*arguments, status=2).stderr.startswith("edgebus: ")


def test_help_of_every_tool_has_an_example():
    for command in ("node", "ping", "top", "doctor", "tap", "record", "replay"):
        assert f"Example: edgebus {command}" in " ".join(run(command, "--help").stdout.split())


def test_a_recording_of_losses_is_told(tmp_path):
    file = tmp_path / "lost.ebrec"
    with file.open("wb") as stream:
        Writer(stream, Start("n", 0.0)).write(Lost(9))
    with edgebus.Node("n", insecure=True) as node:
        endpoint = node.bind("tcp://127.0.0.1:0")
        assert "lacks 9 messages" in run("replay", file, endpoint, "--insecure").stdout
