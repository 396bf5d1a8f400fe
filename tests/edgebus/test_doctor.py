"""The doctor: every broken set-up gets its cause and its cure, from facts alone and against real listeners."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from dataclasses import replace

import msgspec
import pytest

import edgebus
from edgebus import messages as m
from edgebus.cli.probe import key_facts, probe
from edgebus.doctor import Verdict, check_keys, diagnose
from edgebus.doctor_facts import Facts, KeyFacts, Reach, Session
from edgebus.errors import ConfigError
from edgebus.rotation import activate_rotation, start_rotation
from edgebus.zmtp import Greeting, parse_greeting

KEY = "]" * 40
OTHER = "[" * 40
WELL = Facts(
    endpoint="tcp://server:7000",
    host="server",
    port=7000,
    server_keys=(OTHER,),
    keys=KeyFacts(directory="/keys", public=KEY, public_file=KEY, owner_uid=1000, our_uid=1000),
    addresses=("10.0.0.1",),
    reach=Reach.CONNECTED,
    mss_bytes=1448,
    greeting=Greeting("zmtp", (3, 1), "CURVE"),
    session=Session(
        outcome="ok",
        peer_name="hall",
        round_trips_s=(0.001, 0.002, 0.003),
        burst_bytes=64_000,
        burst_s=0.005,
        version="1.0",
        protocol=(1, 2),
        clock_skew_s=0.5,
        clock_error_s=0.001,
        max_frame_bytes=16 << 20,
    ),
    our_protocol=(1, 2),
    our_max_frame_bytes=16 << 20,
)


def session(**changes):
    return replace(WELL, session=replace(WELL.session, **changes))


def keys(**changes):
    return replace(WELL, keys=replace(WELL.keys, **changes))


def of(facts, step):
    return next(finding for finding in diagnose(facts) if finding.step == step)


def test_a_healthy_link_is_ok_at_every_step():
    findings = diagnose(WELL)
    assert [finding.step for finding in findings] == [
        "our keys", "address", "reachability", "protocol", "keys and link", "versions", "round trip", "clock",
        "limits", "path",
    ]  # fmt: skip
    assert {finding.verdict for finding in findings} == {Verdict.OK}


CURE = {
    "resolve": (replace(WELL, resolve_error="Name or service not known"), "address", "getent hosts server"),
    "refused": (replace(WELL, reach=Reach.REFUSED), "reachability", "bind tcp://0.0.0.0:7000"),
    "timeout": (replace(WELL, reach=Reach.TIMEOUT), "reachability", "ufw allow 7000/tcp"),
    "no route": (replace(WELL, reach=Reach.UNREACHABLE), "reachability", "ip route get 10.0.0.1"),
    "rejected": (replace(WELL, reach=Reach.UNREACHABLE), "reachability", "ufw allow 7000/tcp"),
    "reset": (replace(WELL, reach=Reach.RESET), "reachability", "ulimit -n"),
    "no socket": (replace(WELL, path="/run/x", reach=Reach.MISSING), "reachability", "start the node"),
    "no rights": (replace(WELL, path="/run/x", reach=Reach.DENIED), "reachability", "ls -ld /run/x"),
    "other error": (replace(WELL, reach=Reach.FAILED, reach_error="odd"), "reachability", "check host and port"),
    "silent": (replace(WELL, greeting=Greeting("silent")), "protocol", "ss -ltnp | grep 7000"),
    "closed": (replace(WELL, greeting=Greeting("closed")), "protocol", "ss -ltnp | grep 7000"),
    "web": (replace(WELL, greeting=Greeting("http", shown="HTTP/1.0 400")), "protocol", "check the endpoint"),
    "old zmtp": (replace(WELL, greeting=Greeting("zmtp", (2, 0))), "protocol", "update libzmq"),
    "plaintext there": (replace(WELL, greeting=Greeting("zmtp", (3, 1), "NULL")), "protocol", "edgebus keygen"),
    "curve there": (replace(WELL, insecure=True), "protocol", "drop --insecure"),
    "other mechanism": (replace(WELL, greeting=Greeting("zmtp", (3, 1), "GSSAPI")), "protocol", "check the endpoint"),
    "not allowed": (session(outcome="KeyNotAllowed"), "keys and link", f"edgebus allow KEYDIR '{KEY}'"),
    "expired": (session(outcome="KeyNotAllowed"), "keys and link", "--until none"),
    "wrong key": (session(outcome="WrongServerKey"), "keys and link", "copy node.key"),
    "version": (session(outcome="VersionMismatch", detail="speaks 9..9"), "keys and link", "pip install -U edgebus"),
    "no edgebus": (session(outcome="PeerUnreachable", detail="mute"), "keys and link", "journalctl -u edgebus-node"),
    "other failure": (session(outcome="ConfigError", detail="bad: do this"), "keys and link", "do this"),
    "no ping": (session(round_trips_s=()), "round trip", "systemctl restart"),
    "black hole": (session(burst_s=None), "path", "mtu 1280"),
    "broken keys": (keys(error="cannot read /keys: run edgebus keygen /keys"), "our keys", "run edgebus keygen /keys"),
    "other public": (keys(public_file=OTHER), "our keys", "edgebus rotate /keys --activate"),
    "open directory": (keys(directory_mode=0o777), "our keys", "chmod 700 /keys"),
}  # fmt: skip


@pytest.mark.parametrize("case", CURE)
def test_every_failure_names_its_cure(case):
    facts, step, cure = CURE[case]
    findings = diagnose(facts)
    assert [finding.step for finding in findings if finding.verdict is Verdict.FAIL] == [step]
    assert cure in of(facts, step).remedy
    assert "\n" not in of(facts, step).text + of(facts, step).remedy


HINT = {
    "owner": (keys(our_uid=1001), "our keys", "chown 1001"),
    "ping not granted": (session(ping_refused="forbidden, ask", round_trips_s=()), "round trip", "edgebus allow"),
    "older here": (session(protocol=(1, 3)), "versions", "edgebus, here"),
    "older there": (session(protocol=(1, 1)), "versions", "edgebus, there"),
    "clock": (session(clock_skew_s=-90.0), "clock", "timedatectl"),
    "limits": (session(max_frame_bytes=1 << 20), "limits", f"max_frame_bytes = {16 << 20}"),
    "tunnel": (replace(WELL, mss_bytes=500), "path", "MTU"),
    "queue": (session(burst_s=0.9), "path", "fq_codel"),
}


@pytest.mark.parametrize("case", HINT)
def test_what_is_odd_but_works_is_a_hint(case):
    facts, step, cure = HINT[case]
    findings = diagnose(facts)
    assert [finding.step for finding in findings if finding.verdict is Verdict.HINT] == [step]
    assert not [finding for finding in findings if finding.verdict is Verdict.FAIL]
    assert cure in of(facts, step).remedy


def test_a_clock_within_its_error_is_no_hint():
    assert of(session(clock_skew_s=31.0, clock_error_s=2.0), "clock").verdict is Verdict.OK


def test_steps_without_ground_name_the_failure_behind_them():
    findings = diagnose(replace(WELL, reach=Reach.REFUSED, greeting=None, session=None))
    later = [finding for finding in findings if finding.verdict is Verdict.SKIP]
    assert later[0].step == "protocol"
    assert {finding.text for finding in later} == {"not tried, because of 'reachability'"}
    assert len(later) == 7


def test_broken_keys_do_not_hide_what_the_network_says():
    findings = diagnose(replace(keys(error="none: make some"), session=None))
    assert [finding.verdict for finding in findings][:4] == [Verdict.FAIL, Verdict.OK, Verdict.OK, Verdict.OK]
    assert findings[4].text == "not tried, because of 'our keys'"


def test_without_stats_clock_and_limits_are_skipped_not_failed():
    facts = session(clock_skew_s=None, max_frame_bytes=None, protocol=None, stats_refused="unknown_service")
    assert of(facts, "clock").verdict is of(facts, "limits").verdict is Verdict.SKIP
    assert "not `edgebus node`" in of(facts, "clock").text


GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01CURVE" + bytes(15) + b"\x01" + bytes(31)


@pytest.mark.parametrize(
    ("content", "closed", "expected"),
    [
        (GREETING, False, Greeting("zmtp", (3, 1), "CURVE")),
        (GREETING[:10], False, Greeting("zmtp", (0, 0), "")),
        (b"\xff" + bytes(8) + b"\x7f\x01\x00", True, Greeting("zmtp", (1, 0), "")),
        (b"", False, Greeting("silent")),
        (b"", True, Greeting("closed")),
        (b"HTTP/1.1 400 Bad", True, Greeting("http")),
        (b"SSH-2.0-x\r\n", False, Greeting("ssh")),
        (b"\x15\x03\x01\x00\x02", True, Greeting("tls")),
        (b"220 mail \x1b[2J", False, Greeting("other")),
        (b"\xff\xff", False, Greeting("zmtp", (0, 0), "")),
    ],
)
def test_first_bytes_say_what_listens(content, closed, expected):
    seen = parse_greeting(content, closed)
    assert seen[:3] == expected[:3]
    assert seen.shown.isascii()
    assert seen.shown.isprintable()


# -- real listeners -------------------------------------------------------------------------------------


def failing(endpoint, ring=None, device="device", server="server", insecure=False, timeout_s=1.0):
    facts = probe(
        endpoint,
        keys=None if insecure else ring.directory / device,
        server_keys=() if insecure else (ring.public(server),),
        insecure=insecure,
        timeout_s=timeout_s,
    )
    return [(finding.step, finding.text) for finding in diagnose(facts) if finding.verdict is Verdict.FAIL]


@contextlib.contextmanager
def listener(serve=None):
    """A tcp listener and a thread that gives every connection to `serve`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def run():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    held.append(connection)
                    if serve is not None:
                        serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for connection in held:
            connection.close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.net
def test_a_healthy_node_passes(ring):
    with ring.server() as server:
        assert failing(server.bind("tcp://127.0.0.1:0"), ring) == []


@pytest.mark.net
def test_nothing_listening(ring):
    [(step, text)] = failing(f"tcp://127.0.0.1:{free_port()}", ring)
    assert (step, "nobody listens" in text) == ("reachability", True)


@pytest.mark.net
def test_a_listener_that_takes_no_connection_looks_like_a_firewall():
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):  # its queue is full with these: the next one gets no answer at all
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        [(step, text)] = failing(f"tcp://127.0.0.1:{server.getsockname()[1]}", insecure=True, timeout_s=0.3)
    assert (step, "firewall" in text) == ("reachability", True)


@pytest.mark.net
def test_a_web_server():
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            [(step, text)] = failing(f"tcp://127.0.0.1:{server.server_port}", insecure=True, timeout_s=0.5)
        finally:
            server.shutdown()
            thread.join(5)
    assert (step, "web server" in text) == ("protocol", True)


@pytest.mark.net
def test_a_listener_that_never_speaks():
    with listener() as endpoint:
        [(step, text)] = failing(endpoint, insecure=True, timeout_s=0.3)
    assert (step, "says nothing" in text) == ("protocol", True)


@pytest.mark.net
def test_a_listener_that_closes_at_once():
    with listener(lambda connection: connection.close()) as endpoint:
        [(step, text)] = failing(endpoint, insecure=True, timeout_s=0.5)
    assert (step, "closes at once" in text) == ("protocol", True)


@pytest.mark.net
def test_plaintext_against_keys_and_keys_against_plaintext(ring):
    with edgebus.Node("plain", insecure=True) as plain, ring.server() as secured:
        [(step, text)] = failing(plain.bind("tcp://127.0.0.1:0"), ring)
        assert (step, "it is in plaintext" in text) == ("protocol", True)
        [(step, text)] = failing(secured.bind("tcp://127.0.0.1:0"), insecure=True)
        assert (step, "it is secured" in text) == ("protocol", True)


@pytest.mark.net
def test_wrong_server_key_and_key_not_allowed(ring):
    with ring.server() as server:
        endpoint = server.bind("tcp://127.0.0.1:0")
        [(step, text)] = failing(endpoint, ring, server="stranger")
        assert (step, "holds another key" in text) == ("keys and link", True)
        [(step, text)] = failing(endpoint, ring, device="stranger")
        assert (step, text) == ("keys and link", "it does not allow our key")


@pytest.mark.net
def test_any_of_several_server_keys_will_do(ring):
    with ring.server() as server:
        endpoint = server.bind("tcp://127.0.0.1:0")
        keys = (ring.public("stranger"), ring.public("server"))
        facts = probe(endpoint, keys=ring.directory / "device", server_keys=keys, insecure=False, timeout_s=1.0)
    assert of(facts, "keys and link").verdict is Verdict.OK


@pytest.mark.net
def test_a_node_of_another_version():
    """A ROUTER that answers every hello as a node of protocol 9 does."""
    import zmq

    context = zmq.Context()
    sock = context.socket(zmq.ROUTER)
    sock.setsockopt(zmq.LINGER, 0)
    port = sock.bind_to_random_port("tcp://127.0.0.1")
    stop = threading.Event()

    def serve():
        while not stop.is_set():
            if sock.poll(50):
                route, *_ = sock.recv_multipart()
                goodbye = m.Goodbye("version", "this node speaks 9..9, the peer 1..2: upgrade the older one")
                sock.send_multipart([route, msgspec.msgpack.encode(goodbye)])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        [(step, text)] = failing(f"tcp://127.0.0.1:{port}", insecure=True)
    finally:
        stop.set()
        thread.join(5)
        sock.close()
        context.term()
    assert (step, "9..9" in text) == ("keys and link", True)


@pytest.mark.net
def test_a_zmq_socket_that_is_no_node():
    import zmq

    context = zmq.Context()
    sock = context.socket(zmq.ROUTER)
    port = sock.bind_to_random_port("tcp://127.0.0.1")
    try:
        [(step, text)] = failing(f"tcp://127.0.0.1:{port}", insecure=True, timeout_s=0.5)
    finally:
        sock.close(linger=0)
        context.term()
    assert (step, "does not greet as an edgebus node" in text) == ("keys and link", True)


@pytest.mark.net
def test_ipc_paths(tmp_path):
    [(step, text)] = failing(f"ipc://{tmp_path}/none", insecure=True)
    assert (step, "there is no socket" in text) == ("reachability", True)
    with edgebus.Node("plain", insecure=True) as plain:
        assert failing(plain.bind(f"ipc://{tmp_path}/node"), insecure=True) == []


def test_keys_on_disk(tmp_path):
    assert "edgebus keygen" in key_facts(tmp_path / "none").error
    made = edgebus.generate_keys(tmp_path / "own")
    facts = key_facts(tmp_path / "own")
    assert (facts.public, facts.public_file, facts.directory_mode) == (made.public, made.public, 0o700)
    (tmp_path / "own" / "node.key_secret").chmod(0o644)
    assert "chmod 600" in key_facts(tmp_path / "own").error


@pytest.mark.parametrize("endpoint", ["tcp://h", "tcp://:1", "tcp://h:0", "tcp://h:99999", "http://h:1", "ipc://"])
def test_what_is_no_endpoint_is_a_usage_error(endpoint):
    with pytest.raises(ConfigError, match="is not tcp://HOST:PORT"):
        probe(endpoint, keys=None, server_keys=(), insecure=True)


def test_change_of_key_that_was_interrupted_is_finished_by_what_doctor_says(tmp_path):
    """The key is the next one already, and node.key still says the last one: keygen --force would have lost both."""
    edgebus.generate_keys(tmp_path)
    waiting = start_rotation(tmp_path).waiting
    (tmp_path / "node.key_secret.new").replace(tmp_path / "node.key_secret")
    seen = check_keys(key_facts(tmp_path))
    assert seen.remedy.startswith(f"edgebus rotate {tmp_path} --activate")
    assert activate_rotation(tmp_path).current == waiting
    assert check_keys(key_facts(tmp_path)).verdict is Verdict.OK
