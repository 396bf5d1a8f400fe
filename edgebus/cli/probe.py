"""Gathers facts for the doctor: one attempt at each layer, each within a bound. What they mean stands in doctor.py."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from dataclasses import replace
from pathlib import Path

import edgebus
from edgebus import messages
from edgebus.config import Limits
from edgebus.daemon.reports import StatsReport, ask_stats
from edgebus.doctor_facts import Facts, KeyFacts, Reach, Session
from edgebus.errors import EdgebusError, KeyFileError, Refused, WrongServerKey
from edgebus.keys import PUBLIC_FILE, SECRET_FILE
from edgebus.plain import exchange, host_port_path, open_plain
from edgebus.zmtp import SIGNATURE, Greeting, parse_greeting

_PINGS = 10
_BURST = 64
_BURST_PAYLOAD = 1000
_REACHED = {
    errno.ECONNREFUSED: Reach.REFUSED,
    errno.ETIMEDOUT: Reach.TIMEOUT,
    errno.EHOSTUNREACH: Reach.UNREACHABLE,
    errno.ENETUNREACH: Reach.UNREACHABLE,
    errno.EADDRNOTAVAIL: Reach.UNREACHABLE,
    errno.ECONNRESET: Reach.RESET,
    errno.ENOENT: Reach.MISSING,
    errno.EACCES: Reach.DENIED,
    errno.EPERM: Reach.DENIED,
}


def probe(
    endpoint: str, *, keys: Path | None, server_keys: tuple[str, ...], insecure: bool, timeout_s: float = 3.0
) -> Facts:
    """Everything that can be found out about an endpoint from here, in a few times timeout_s.

    Raises:
        ConfigError: not an endpoint.
    """
    facts = Facts(
        endpoint=endpoint,
        insecure=insecure,
        server_keys=server_keys,
        keys=None if keys is None else key_facts(keys),
        our_protocol=(messages.VERSION_MIN, messages.VERSION_MAX),
        our_max_frame_bytes=Limits().max_frame_bytes,
        **_parts(endpoint),  # type: ignore[arg-type]
    )
    facts = _reach(_resolve(facts), timeout_s)
    if facts.reach is not Reach.CONNECTED:
        return facts
    greeting = _greet(facts, timeout_s)
    facts = replace(facts, greeting=greeting)
    if greeting.mechanism != ("NULL" if insecure else "CURVE") or (facts.keys is not None and facts.keys.error):
        return facts
    return replace(facts, session=_session(facts, keys, timeout_s))


def key_facts(directory: Path) -> KeyFacts:
    """What a key directory looks like."""
    where = str(directory)
    try:
        own = edgebus.load_keys(directory)
        info, secret = directory.stat(), (directory / SECRET_FILE).stat()
    except (KeyFileError, OSError) as error:
        return KeyFacts(directory=where, error=str(error))
    public_file = None
    with contextlib.suppress(KeyFileError):
        public_file = edgebus.read_public_key(directory / PUBLIC_FILE)
    return KeyFacts(
        directory=where,
        public=own.public,
        public_file=public_file,
        directory_mode=stat.S_IMODE(info.st_mode),
        owner_uid=secret.st_uid,
        our_uid=os.getuid(),
    )


def _parts(endpoint: str) -> dict[str, object]:
    host, port, path = host_port_path(endpoint)
    return {"path": path} if path else {"host": host, "port": port}


def _resolve(facts: Facts) -> Facts:
    if facts.path:
        return facts
    try:
        found = socket.getaddrinfo(facts.host, facts.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return replace(facts, resolve_error=getattr(error, "strerror", None) or str(error))
    return replace(facts, addresses=tuple(dict.fromkeys(str(item[4][0]) for item in found)))


def _reach(facts: Facts, timeout_s: float) -> Facts:
    if facts.resolve_error:
        return facts
    start = time.perf_counter()
    try:
        with open_plain(facts.host, facts.port, facts.path, timeout_s) as sock:
            took_s = time.perf_counter() - start
            mss = None if facts.path else int(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
            return replace(facts, reach=Reach.CONNECTED, connect_s=took_s, mss_bytes=mss)
    except TimeoutError as error:
        return replace(facts, reach=Reach.TIMEOUT, reach_error=str(error))
    except OSError as error:
        reach = _REACHED.get(error.errno or 0, Reach.FAILED)
        return replace(facts, reach=reach, reach_error=error.strerror or str(error))


def _greet(facts: Facts, timeout_s: float) -> Greeting:
    """Say how a ZMTP 3.1 greeting begins and look at what comes back; ask a silent listener as a browser would."""
    where = facts.host, facts.port, facts.path
    seen = parse_greeting(*exchange(*where, SIGNATURE, timeout_s))
    if seen.kind in ("silent", "closed"):
        other = parse_greeting(*exchange(*where, b"GET / HTTP/1.0\r\n\r\n", timeout_s))
        if other.kind == "http":
            return other
    return seen


def _session(facts: Facts, keys: Path | None, timeout_s: float) -> Session:
    own = None if facts.insecure or keys is None else edgebus.load_keys(keys)
    session = Session(outcome="ConfigError", detail="no server key: give --server-key FILE")
    for key in (None,) if facts.insecure else facts.server_keys:
        try:
            with edgebus.Node("edgebus-doctor", keys=own, insecure=facts.insecure) as node:
                # Three handshakes cut in a row are what shows a wrong server key.
                return _measure(node.connect(facts.endpoint, key, max(timeout_s, 3.0)), timeout_s)
        except EdgebusError as error:
            session = Session(outcome=type(error).__name__, detail=str(error))
            if not isinstance(error, WrongServerKey):
                break
    return session


def _measure(link: edgebus.Link, timeout_s: float) -> Session:
    session = Session(outcome="ok", peer_name=link.peer_name)
    times_s: list[float] = []
    try:
        for _ in range(_PINGS):
            start = time.perf_counter()
            link.request("edgebus.ping", b"", timeout_s=timeout_s)
            times_s.append(time.perf_counter() - start)
    except Refused as error:
        session = replace(session, ping_refused=f"{error.code}, {error.detail}")
    except EdgebusError:
        pass  # fewer measurements, or none, which says it
    if times_s:
        session = replace(
            session,
            round_trips_s=tuple(times_s),
            burst_bytes=_BURST * _BURST_PAYLOAD,
            burst_s=_burst_s(link, timeout_s),
        )
    elif not session.ping_refused:
        return session
    start = time.time()
    try:
        report = ask_stats(link, timeout_s)
    except Refused as error:
        return replace(session, stats_refused=error.code)
    except EdgebusError as error:
        return replace(session, stats_refused=type(error).__name__)
    return _compared(session, report, start, time.time())


def _burst_s(link: edgebus.Link, timeout_s: float) -> float | None:
    """How long many full packets at once take, None if not all of them were answered."""
    start = time.perf_counter()
    pending = [
        link.send_request("edgebus.ping", bytes(_BURST_PAYLOAD), timeout_s=max(timeout_s, 5.0)) for _ in range(_BURST)
    ]
    try:
        for each in pending:
            each.result()
    except Refused:  # a limit on requests per second, say: nothing to learn about the path
        return 0.0
    except EdgebusError:
        return None
    return time.perf_counter() - start


def _compared(session: Session, report: StatsReport, asked_at: float, answered_at: float) -> Session:
    return replace(
        session,
        version=report.version[:64],
        protocol=(report.protocol_min, report.protocol_max),
        clock_skew_s=report.wall_time - (asked_at + answered_at) / 2,
        clock_error_s=(answered_at - asked_at) / 2,
        max_frame_bytes=report.max_frame_bytes,
    )
