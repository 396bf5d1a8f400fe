"""The servers a device may ask: the one in use, and the choice of another one when it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import edgebus
from edgebus import PeerUnreachable
from sled.errors import ParameterError

if TYPE_CHECKING:
    from edgebus import Link, Node, Pool

Where = tuple[str, str | None]
"""Endpoint and public key, None in plaintext."""

MAX_SERVERS = 64
_LOOK_S = 0.1  # how often whoever waits for a server is asked whether it is still wanted


class Servers:
    """One server, or several of the same target of which the less loaded one is taken.

    Args:
        node: that dials.
        endpoints: servers, or nodes whose directory names servers; one comes once for each key that it may have.
        service: what servers announce themselves as in the directory; only with several endpoints, or `directory`.
        directory: the endpoints may name further servers.
        timeout_s: how long to wait for the first.
        clock: seconds.

    Raises:
        edgebus.EdgebusError: none can be reached.
    """

    def __init__(
        self,
        node: Node,
        endpoints: Sequence[Where],
        *,
        service: str,
        directory: bool,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._node, self._service = node, service
        self._endpoints = list(endpoints)
        self._trusted = [key for _, key in endpoints if key] if directory else []
        self._avoided: dict[str, float] = {}
        self._used: list[Link] = []
        self._pool: Pool | None = None
        if len({endpoint for endpoint, _ in endpoints}) == 1 and not directory:
            own = [key for _, key in endpoints if key] or None
            self.link = node.connect(endpoints[0][0], server_key=own, timeout_s=timeout_s)
        else:
            self._pool = self._make_pool()
            self.link = self._pool.link(timeout_s)
        self._use(self.link)

    @property
    def several(self) -> bool:
        """Whether there may be another server."""
        return self._pool is not None

    def choose(self, timeout_s: float, unwanted: Callable[[], bool] = lambda: False) -> Link:
        """The link to ask for the next answer.

        Args:
            timeout_s: how long to wait for a server that lives.
            unwanted: asked while waiting; then the link is whichever there was.

        Raises:
            PeerUnreachable: no server lives.
        """
        if self._pool is None or self._take_other(0.0):
            return self.link
        until = self._clock() + timeout_s
        while not unwanted():
            left_s = until - self._clock()
            try:
                self._use(self._pool.link(max(0.0, min(_LOOK_S, left_s))))
                break
            except PeerUnreachable as error:
                if left_s <= _LOOK_S:
                    why = str(error).partition(": ")[2]
                    raise PeerUnreachable(f"no server lived within {timeout_s:.3g} s: {why}") from None
        return self.link

    def leave(self, avoid_s: float, others: Sequence[Where] = ()) -> bool:
        """Leave the server in use alone for a while; True if another one is in use now.

        Args:
            avoid_s: for how long.
            others: servers that the one in use has named; one that is authenticated is believed.
        """
        self._avoided[self.link.endpoint] = self._clock() + avoid_s
        for endpoint, key in others:
            self._add(endpoint, key)
        return self._pool is not None and self._take_other(1.0 if others else 0.0)

    def lost(self, link: Link) -> bool:
        """Whether there is no use in waiting for a link any longer: its server is gone, and another one lives."""
        return link.health == "down" and self.elsewhere

    @property
    def elsewhere(self) -> bool:
        """Whether another server lives."""
        return self._pool is not None and self._other(0.0) is not None

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received over all links that were used."""
        stats = [link.stats() for link in self._used]
        return sum(each.bytes_sent for each in stats), sum(each.bytes_received for each in stats)

    def close(self) -> None:
        """Close what it has opened; the node is the caller's."""
        if self._pool is not None:
            self._pool.close()

    def _take_other(self, timeout_s: float) -> bool:
        link = self._other(timeout_s)
        if link is not None:
            self._use(link)
        return link is not None

    def _other(self, timeout_s: float) -> Link | None:
        assert self._pool is not None
        now = self._clock()
        self._avoided = {endpoint: until for endpoint, until in self._avoided.items() if until > now}
        try:
            return self._pool.link(timeout_s, but=lambda link: link.endpoint in self._avoided)
        except PeerUnreachable:
            return None

    def _use(self, link: Link) -> None:
        self.link = link
        if not any(link is each for each in self._used):
            self._used.append(link)

    def _add(self, endpoint: str, key: str | None) -> None:
        if any(endpoint == known for known, _ in self._endpoints) or len(self._endpoints) >= MAX_SERVERS:
            return
        if (key is None) != (self._node.key is None):
            return  # never from a secured server to plaintext
        self._endpoints.append((endpoint, key))
        try:
            if self._pool is None:
                self._pool = self._make_pool()
            else:
                self._pool.add(endpoint, key)
        except edgebus.ConfigError:  # a server may name what nobody can dial
            self._endpoints.pop()

    def _make_pool(self) -> Pool:
        return edgebus.Pool(self._node, self._endpoints, self._service, trusted=self._trusted)


def read_endpoints(
    server: str | Sequence[str], server_key: str | Path | Sequence[str | Path] | None, *, insecure: bool
) -> list[Where]:
    """Endpoints with their keys: one for each, or one for all, which are addresses of one server then.

    A file with several keys, of a server that changes its key, gives its endpoint once with each.

    Raises:
        ParameterError: no endpoint, too many, or keys that do not go with them.
        KeyFileError: a key cannot be read.
    """
    endpoints = [server] if isinstance(server, str) else list(server)
    if not 1 <= len(endpoints) <= MAX_SERVERS:
        raise ParameterError(f"{len(endpoints)} servers, give 1 to {MAX_SERVERS}")
    if insecure or server_key is None:
        return [(endpoint, None) for endpoint in endpoints]
    given = [server_key] if isinstance(server_key, str | Path) else list(server_key)
    if len(given) not in (1, len(endpoints)):
        raise ParameterError(f"{len(given)} server keys for {len(endpoints)} servers: give one for each")
    keys = [edgebus.read_public_keys(key) for key in given]
    each_own = zip(endpoints, keys * len(endpoints) if len(keys) == 1 else keys, strict=True)
    return [(endpoint, key) for endpoint, own in each_own for key in own]
