"""Zeroconf as a hint: nodes say on the local network where they are, others try these addresses with keys they have.

Nobody is believed: an announcement carries a fingerprint, which only picks one of the keys a pool knows already; who
lies about it wastes one handshake. Needs the extra `discovery`. Wire: docs/spec/bus-directory.md, section 5.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgebus.directory import fingerprint, identity
from edgebus.errors import ConfigError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from zeroconf import Zeroconf

    from edgebus.node import Node

SERVICE_TYPE = "_edgebus._tcp.local."
_MOST_INSTANCES = 256
_MOST_ADDRESSES = 4
_PRINT_LENGTH = 16
_MOST_QUESTIONS = 64  # instances that are asked about at once; an announcement as it should be needs no question
_RESOLVE_MS = 2000
_HEX = frozenset("0123456789abcdef")
_log = logging.getLogger("edgebus")


class Advertisement:
    """A node's address on the local network; made by advertise()."""

    def __init__(self, zeroconf: Zeroconf, info: Any, owned: bool) -> None:
        self._zeroconf, self._info, self._owned = zeroconf, info, owned
        self._closed = False
        # Not asked whether the name is free: it is the key's, and whoever took it must not keep us from speaking.
        zeroconf.register_service(info, cooperating_responders=True)

    def close(self) -> None:
        """Take it back. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._zeroconf.unregister_service(self._info)
            if self._owned:
                self._zeroconf.close()

    def __enter__(self) -> Advertisement:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Browser:
    """Addresses that nodes on the local network gave; made by browse()."""

    def __init__(self, zeroconf: Zeroconf, owned: bool) -> None:
        self._zeroconf, self._owned = zeroconf, owned
        self._found: OrderedDict[str, list[tuple[str, str]]] = OrderedDict()
        self._asked: dict[str, Future[bool]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self.num_ignored = 0
        self._listener = _Listener(self)
        self._zeroconf.add_service_listener(SERVICE_TYPE, self._listener)

    def hints(self) -> list[tuple[str, str]]:
        """(fingerprint, endpoint) pairs as of now, at most 1024: what a Pool takes as `hints`."""
        with self._lock:
            return [hint for hints in self._found.values() for hint in hints]

    def close(self) -> None:
        """Stop listening. Closing twice is fine."""
        with self._lock:
            asked, self._asked, closed, self._closed = self._asked, {}, self._closed, True
        if closed:
            return
        for question in asked.values():
            question.cancel()
        if self._owned:
            self._zeroconf.close()
        else:
            self._zeroconf.remove_service_listener(self._listener)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def note(self, name: str, info: Any) -> None:
        """What is known of an instance; None if nothing could be learned (zeroconf's threads)."""
        hints = [] if info is None else _hints_in(info)
        with self._lock:
            self._found.pop(name, None)
            if not hints:
                self.num_ignored += 1
                return
            self._found[name] = hints
            if len(self._found) > _MOST_INSTANCES:
                self._found.popitem(last=False)

    def look_up(self, name: str) -> None:
        """An instance was found or has changed. Never waits: a name that does not answer may be one of thousands."""
        info = _package().ServiceInfo(SERVICE_TYPE, name)
        if info.load_from_cache(self._zeroconf):
            self.note(name, info)
            return
        with self._lock:
            if self._closed or name in self._asked or len(self._asked) >= _MOST_QUESTIONS:
                self.num_ignored += 1
                return
            loop = self._zeroconf.loop
            assert loop is not None
            asking = info.async_request(self._zeroconf, _RESOLVE_MS)
            self._asked[name] = question = asyncio.run_coroutine_threadsafe(asking, loop)
        question.add_done_callback(lambda done: self._answered(name, info, done))

    def forget(self, name: str) -> None:
        """An instance is gone (zeroconf's thread)."""
        with self._lock:
            self._found.pop(name, None)
            question = self._asked.pop(name, None)
        if question is not None:
            question.cancel()

    def _answered(self, name: str, info: Any, done: Future[bool]) -> None:
        with self._lock:
            if self._asked.get(name) is not done:
                return
            del self._asked[name]
        _guard(lambda: self.note(name, info if done.result() else None))


class _Listener:
    """What zeroconf's thread calls. Anybody on the network chose the names: no exception may end that thread."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser

    def add_service(self, zeroconf: Zeroconf, kind: str, name: str) -> None:
        if not _guard(lambda: self._browser.look_up(name)):
            self._browser.num_ignored += 1

    def update_service(self, zeroconf: Zeroconf, kind: str, name: str) -> None:
        self.add_service(zeroconf, kind, name)

    def remove_service(self, zeroconf: Zeroconf, kind: str, name: str) -> None:
        self._browser.forget(name)


def _guard(call: Callable[[], None]) -> bool:
    """False if it raised: a name or a record that zeroconf itself does not take."""
    try:
        call()
    except Exception as error:
        _log.debug("edgebus: an announcement on the local network is not usable: %r", error)
        return False
    return True


def advertise(
    node: Node, endpoint: str, *, interfaces: Sequence[str] | None = None, zeroconf: Zeroconf | None = None
) -> Advertisement:
    """Say on the local network where a node is.

    Args:
        node: whose key (or name, in plaintext) the fingerprint is of.
        endpoint: tcp://ADDRESS:PORT as peers reach it; a number, not a name.
        interfaces: addresses of the interfaces to speak on; all of them unless given.
        zeroconf: use this one, and leave it open.

    Raises:
        ConfigError: zeroconf is not installed.
        ValueError: an endpoint that cannot be announced.
    """
    address, port = _address_of(endpoint)
    package = _package()
    mark = fingerprint(identity(node.key, node.name))
    info = package.ServiceInfo(
        SERVICE_TYPE,
        f"{mark}-{port}.{SERVICE_TYPE}",
        port=port,
        addresses=[address.packed],
        properties={"v": "1", "id": mark},
        server=f"edgebus-{mark}.local.",
    )
    return Advertisement(zeroconf or _open(package, interfaces), info, owned=zeroconf is None)


def browse(*, interfaces: Sequence[str] | None = None, zeroconf: Zeroconf | None = None) -> Browser:
    """Listen for nodes on the local network; give the browser's `hints` to a Pool.

    Args:
        interfaces: addresses of the interfaces to listen on; all of them unless given.
        zeroconf: use this one, and leave it open.

    Raises:
        ConfigError: zeroconf is not installed.
    """
    package = _package()
    return Browser(zeroconf or _open(package, interfaces), owned=zeroconf is None)


def _package() -> Any:
    try:
        import zeroconf
    except ImportError:
        raise ConfigError(
            "discovery on the local network needs zeroconf: pip install 'edgebus[discovery]', or give static endpoints"
        ) from None
    return zeroconf


def _open(package: Any, interfaces: Sequence[str] | None) -> Zeroconf:
    opened: Zeroconf = package.Zeroconf() if interfaces is None else package.Zeroconf(interfaces=list(interfaces))
    return opened


def _address_of(endpoint: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        if not endpoint.startswith("tcp://") or address.is_unspecified or not 0 < int(port) < 65_536:
            raise ValueError("unusable")
    except ValueError:
        raise ValueError(
            f"endpoint {endpoint!r} is not tcp://ADDRESS:PORT with the address that peers reach this node by"
        ) from None
    return address, int(port)


def _hints_in(info: Any) -> list[tuple[str, str]]:
    """What an announcement is worth; anybody on the network may have written it."""
    raw = info.properties.get(b"id") or b""
    mark = raw.decode("ascii", "replace")
    if len(mark) != _PRINT_LENGTH or not _HEX.issuperset(mark) or not info.port:
        return []
    hints = []
    for packed in list(info.addresses_by_version(_all_versions()))[:_MOST_ADDRESSES]:
        address = ipaddress.ip_address(packed)
        if not address.is_unspecified and not address.is_multicast:
            host = f"[{address}]" if address.version == 6 else str(address)
            hints.append((mark, f"tcp://{host}:{info.port}"))
    return hints


def _all_versions() -> Any:
    return _package().IPVersion.All
