"""What is wrong between this node and another: facts to findings, each with its cause and its cure. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from enum import StrEnum
from statistics import median
from typing import NamedTuple

from edgebus.doctor_facts import Facts, KeyFacts, Reach, Session
from edgebus.keyfiles import shell_key
from edgebus.zmtp import Greeting

CLOCK_HINT_S = 30.0
SMALL_MSS_BYTES = 1200
QUEUE_HINT_S = 0.2


class Verdict(StrEnum):
    """How a step went; only `fail` makes the whole diagnosis one."""

    OK = "ok"
    HINT = "hint"
    FAIL = "fail"
    SKIP = "skip"


class Seen(NamedTuple):
    """How a step went, what was seen, and the command or change that mends it."""

    verdict: Verdict
    text: str
    remedy: str = ""


class Finding(NamedTuple):
    """A step by name, and what came of it."""

    step: str
    verdict: Verdict
    text: str
    remedy: str = ""


def diagnose(facts: Facts) -> list[Finding]:
    """All steps in order; one whose ground is missing is `skip` and names what failed."""
    findings: list[Finding] = []
    roots: dict[str, str] = {}  # by step that failed or was skipped: the failure behind it
    for title, needs, step in _STEPS:
        root = next((roots[need] for need in needs if need in roots), None)
        seen = step(facts) if root is None else _skip(f"not tried, because of {root!r}")
        if root is not None or seen.verdict is Verdict.FAIL:
            roots[title] = root or title
        findings.append(Finding(title, *seen))
    return findings


def check_keys(keys: KeyFacts) -> Seen:
    """Whether a key directory can be used and is ours alone."""
    where = keys.directory
    quoted = shlex.quote(where)
    if keys.error:
        return _fail(keys.error, _remedy_in(keys.error))
    if keys.public_file is not None and keys.public_file != keys.public:
        text = f"{where}/node.key holds another key than node.key_secret: peers that were given it allow the wrong one"
        anew = f"edgebus keygen {quoted} --force, then give its node.key out anew"
        return _fail(text, f"edgebus rotate {quoted} --activate, if a change of key was interrupted; else {anew}")
    if keys.directory_mode & 0o022:
        text = f"{where} has mode {keys.directory_mode:04o}: others can put their own keys and allow-list there"
        return _fail(text, f"chmod 700 {quoted}")
    if keys.our_uid not in (keys.owner_uid, 0):
        text = f"{where}/node.key_secret belongs to user {keys.owner_uid}, we are {keys.our_uid}"
        return _hint(text, f"sudo chown {keys.our_uid} {quoted}/node.key*")
    return _ok(f"{where}: public key {keys.public}")


def _keys(facts: Facts) -> Seen:
    if facts.insecure:
        return _ok("plaintext was asked for: no keys are used")
    assert facts.keys is not None
    return check_keys(facts.keys)


def _address(facts: Facts) -> Seen:
    if facts.path:
        return _ok(f"socket file {facts.path}")
    if facts.resolve_error:
        text = f"the name {facts.host!a} does not resolve: {facts.resolve_error}"
        return _fail(text, f"getent hosts {shlex.quote(facts.host)}; or give the address in numbers")
    shown = ", ".join(facts.addresses[:4])
    return _ok(shown if shown == facts.host else f"{facts.host} is {shown}")


def _reachability(facts: Facts) -> Seen:
    where = facts.path or f"{facts.host} port {facts.port}"
    if facts.reach is Reach.CONNECTED:
        return _ok(f"connected to {where} in {facts.connect_s * 1e3:.1f} ms")
    start = "start the node there: edgebus node --config node.toml"
    if not (facts.path or facts.host in ("127.0.0.1", "localhost", "::1")):
        start += f"; if it runs, it may listen on 127.0.0.1 only: bind tcp://0.0.0.0:{facts.port}"
    first = facts.addresses[0] if facts.addresses else facts.host
    firewall = f"on the server: sudo ufw allow {facts.port}/tcp (nft, firewalld likewise); from here: ping {first}"
    causes = {
        Reach.REFUSED: (f"{where} refused: the host is there, but nobody listens, or a firewall says so", start),
        Reach.TIMEOUT: (
            f"no answer from {where}: a firewall drops the packets, the host is off, or it has another address",
            firewall,
        ),
        # firewalld and others reject so by default: it looks as if there were no route.
        Reach.UNREACHABLE: (
            f"there is no way to {where}, or a firewall rejects: {facts.reach_error}",
            f"ip route get {first}; if there is a route, {firewall}",
        ),
        Reach.RESET: (
            f"{where} reset the connection: a firewall that rejects, or a server out of descriptors",
            "on the server: ulimit -n, and the firewall's reject rules",
        ),
        Reach.MISSING: (f"there is no socket {where}", "start the node that binds it, or check the path"),
        Reach.DENIED: (
            f"this user may not connect to {where}: {facts.reach_error}",
            f"ls -ld {shlex.quote(where)}, and run as its owner",
        ),
    }
    assert facts.reach is not None
    return _fail(*causes.get(facts.reach, (f"cannot connect to {where}: {facts.reach_error}", "check host and port")))


def _protocol(facts: Facts) -> Seen:
    seen = facts.greeting
    assert seen is not None
    who = f"ss -xlp | grep {shlex.quote(facts.path)}" if facts.path else f"ss -ltnp | grep {facts.port}"
    look = f"check the endpoint; on the server: {who}"
    foreign = {
        "silent": "it accepts and says nothing: another service, a stopped process, or one that is stuck",
        "closed": "it accepts and closes at once: another service, or a proxy without a target",
        "http": f"that is a web server ({seen.shown})",
        "ssh": f"that is an SSH server ({seen.shown})",
        "tls": f"that is a TLS server ({seen.shown})",
        "other": f"it does not speak ZMTP, its first bytes are {seen.shown}",
    }
    if seen.kind in foreign:
        return _fail(foreign[seen.kind], look)
    spoken = f"ZMTP {seen.version[0]}.{seen.version[1]}"
    if seen.version[0] < 3:
        return _fail(f"it speaks {spoken}, edgebus needs 3.0", "update libzmq there")
    if seen.mechanism == ("NULL" if facts.insecure else "CURVE"):
        return _ok(f"{spoken}, {'plaintext' if facts.insecure else 'CURVE'} on both sides")
    return _fail(*_other_mechanism(seen, look))


def _other_mechanism(seen: Greeting, look: str) -> tuple[str, str]:
    if seen.mechanism == "CURVE":
        return "it is secured (CURVE), we came in plaintext", "drop --insecure, give --keys DIR and --server-key FILE"
    if seen.mechanism == "NULL":
        cure = "give the server keys: edgebus keygen DIR, then edgebus node --keys DIR; or both sides --insecure"
        return "it is in plaintext (NULL), we came with keys", cure
    return f"its mechanism is {seen.mechanism!a}, edgebus has CURVE and NULL", look


def _link(facts: Facts) -> Seen:
    session = _session(facts)
    ours = shell_key(facts.keys.public) if facts.keys is not None and facts.keys.public else "NODE_KEY"
    match session.outcome:
        case "ok":
            return _ok(f"the node calls itself {session.peer_name!a}")
        case "KeyNotAllowed":
            cure = f"on the server: edgebus allow KEYDIR {ours}; if it has expired, with --until none before it"
            return _fail("it does not allow our key", cure)
        case "WrongServerKey":
            text = f"it holds another key than the server key given, {' and '.join(facts.server_keys)}"
            return _fail(text, "copy node.key from the server's key directory anew, by a way you trust")
        case "VersionMismatch":
            return _fail(session.detail, "pip install -U edgebus, on the older side")
        case "PeerUnreachable" | "LinkLost":
            text = f"it speaks ZMTP but does not greet as an edgebus node: {session.detail}"
            return _fail(text, "see that it is edgebus, and not stuck: journalctl -u edgebus-node")
    return _fail(session.detail, _remedy_in(session.detail))


def _versions(facts: Facts) -> Seen:
    session = _session(facts)
    if session.protocol is None:
        return _ok("a protocol version in common")
    ours, theirs = facts.our_protocol, session.protocol
    text = f"protocol {theirs[0]}..{theirs[1]} there (edgebus {session.version}), {ours[0]}..{ours[1]} here"
    if ours[1] == theirs[1]:
        return _ok(text)
    where = "here" if ours[1] < theirs[1] else "there"
    return _hint(f"{text}: {min(ours[1], theirs[1])} is spoken", f"pip install -U edgebus, {where}")


def _round_trip(facts: Facts) -> Seen:
    session = _session(facts)
    times_s = session.round_trips_s
    if session.ping_refused:
        cure = "on the server: edgebus keys KEYDIR shows what our key may do, edgebus allow changes it"
        return _hint(f"the link is up, but edgebus.ping is refused: {session.ping_refused}", cure)
    if not times_s:
        text = "the link is up, but edgebus.ping is not answered: the node is stuck, or packets get lost"
        return _fail(text, "see the node's log, and restart it if it is stuck: systemctl restart edgebus-node")
    return _ok(f"{median(times_s) * 1e3:.2f} ms in the middle of {len(times_s)}, {max(times_s) * 1e3:.2f} ms at worst")


def _clock(facts: Facts) -> Seen:
    session = _session(facts)
    if session.clock_skew_s is None:
        return _skip(_no_stats(session))
    skew_s, error_s = session.clock_skew_s, session.clock_error_s
    text = f"its clock is {abs(skew_s):.1f} s {'ahead' if skew_s >= 0 else 'behind'}, give or take {error_s:.1g} s"
    if abs(skew_s) - error_s <= CLOCK_HINT_S:
        return _ok(text)
    text += "; deadlines do not mind, but keys that are allowed until= some time end at the wrong moment"
    return _hint(text, "sudo timedatectl set-ntp true, on the side that is wrong")


def _limits(facts: Facts) -> Seen:
    session = _session(facts)
    if session.max_frame_bytes is None:
        return _skip(_no_stats(session))
    theirs, ours = session.max_frame_bytes, facts.our_max_frame_bytes
    if theirs == ours:
        return _ok(f"frames of up to {theirs} B both ways")
    text = f"it accepts frames of {theirs} B, we of {ours} B: larger ones are refused before they are sent"
    return _hint(text, f"max_frame_bytes = {max(theirs, ours)} under [limits] on both sides")


def _path(facts: Facts) -> Seen:
    session = _session(facts)
    if session.burst_bytes and session.burst_s is None:
        text = f"single small messages pass, {session.burst_bytes} B at once do not: full packets get lost (MTU)"
        return _fail(text, "sudo ip link set dev INTERFACE mtu 1280, on either side")
    if facts.mss_bytes is not None and facts.mss_bytes < SMALL_MSS_BYTES:
        text = f"a packet carries {facts.mss_bytes} B only: a tunnel or VPN with a small MTU is on the way"
        return _hint(text, "ip link show; raise the tunnel's MTU if the path allows it")
    if not session.round_trips_s:
        return _skip("not tried, because edgebus.ping is refused")
    idle_s = median(session.round_trips_s)
    if session.burst_s is not None and session.burst_s > max(10 * idle_s, QUEUE_HINT_S):
        rate = session.burst_bytes / session.burst_s / 1e6
        text = (
            f"{session.burst_bytes} B take {session.burst_s * 1e3:.0f} ms where a small message takes "
            f"{idle_s * 1e3:.1f} ms: about {rate:.2g} MB/s, small messages wait behind large ones"
        )
        return _hint(text, "tc qdisc replace dev INTERFACE root fq_codel, at the narrow place (bufferbloat)")
    return _ok("neither small packets nor long queues")


_LINKED = ("keys and link",)
_STEPS: tuple[tuple[str, tuple[str, ...], Callable[[Facts], Seen]], ...] = (
    ("our keys", (), _keys),
    ("address", (), _address),
    ("reachability", ("address",), _reachability),
    ("protocol", ("reachability",), _protocol),
    ("keys and link", ("our keys", "protocol"), _link),
    ("versions", _LINKED, _versions),
    ("round trip", _LINKED, _round_trip),
    ("clock", _LINKED, _clock),
    ("limits", _LINKED, _limits),
    ("path", ("round trip",), _path),
)
"""Title, what must not have failed, and the step."""


def _session(facts: Facts) -> Session:
    assert facts.session is not None, "steps behind the link come after it"
    return facts.session


def _no_stats(session: Session) -> str:
    if session.stats_refused == "unknown_service":
        return "the node has no edgebus.stats (a program of its own, not `edgebus node`): nothing to compare with"
    return f"the node does not show its edgebus.stats ({session.stats_refused or 'no answer'}): nothing to compare with"


def _ok(text: str) -> Seen:
    return Seen(Verdict.OK, text)


def _hint(text: str, remedy: str) -> Seen:
    return Seen(Verdict.HINT, text, remedy)


def _fail(text: str, remedy: str) -> Seen:
    return Seen(Verdict.FAIL, text, remedy)


def _skip(text: str) -> Seen:
    return Seen(Verdict.SKIP, text)


def _remedy_in(text: str) -> str:
    """Our errors end with their remedy, after the last colon."""
    return text.rpartition(": ")[2] if ": " in text else ""
