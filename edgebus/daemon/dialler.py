"""Keeps links to static peers: dials until each is up, and again when one has failed for good."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import edgebus
from edgebus.errors import EdgebusError, NodeClosed
from edgebus.keyfiles import read_public_keys
from edgebus.settings import PeerSettings

if TYPE_CHECKING:
    from edgebus.links import Link
    from edgebus.node import Node

CONNECT_WITHIN_S = 5.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
LOOK_EVERY_S = 30.0
_FOR_GOOD = (edgebus.KeyNotAllowed, edgebus.WrongServerKey, edgebus.VersionMismatch, edgebus.NodeClosed)
_log = logging.getLogger("edgebus.node")


def connect_any(node: Node, endpoint: str, server_key: str | None, timeout_s: float) -> Link:
    """Dial a node whose key is one of several: while it changes its key, clients hold the old and the new one.

    Args:
        node: ours.
        endpoint: of the other.
        server_key: a key, or a file with one or several; None in plaintext.
        timeout_s: for all of them together.

    Raises:
        As Node.connect; WrongServerKey if none of the keys fits.
    """
    return node.connect(endpoint, None if server_key is None else read_public_keys(server_key), timeout_s)


class Dialler:
    """A thread per peer; a peer that is away is dialled again after a pause that doubles, with jitter, up to 30 s."""

    def __init__(self, node: Node, peers: Sequence[PeerSettings]) -> None:
        self._node = node
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, args=(peer,), name=f"edgebus-dial-{index}", daemon=True)
            for index, peer in enumerate(peers)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Dial no more."""
        self._stopping.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads; the node has to be closed for those that dial right now."""
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _keep(self, peer: PeerSettings) -> None:
        pause_s, told = FIRST_PAUSE_S, ""
        while not self._stopping.is_set():
            try:
                with connect_any(self._node, peer.endpoint, peer.server_key, CONNECT_WITHIN_S) as link:
                    _log.info("peer is up", extra={"endpoint": peer.endpoint, "peer": link.peer_name})
                    pause_s, told = FIRST_PAUSE_S, ""
                    self._watch(link)
            except EdgebusError as error:
                if self._stopping.is_set():
                    return
                if str(error) != told:  # the same reason again and again says nothing new
                    _log.warning("peer is away", extra={"endpoint": peer.endpoint, "reason": str(error)})
                told = str(error)
            self._stopping.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _watch(self, link: Link) -> None:
        """Return or raise once the link has failed for good; anything less the link mends itself."""
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                link.request("edgebus.ping", timeout_s=CONNECT_WITHIN_S)
            except _FOR_GOOD:
                raise
            except EdgebusError:
                continue
        raise NodeClosed("stopping")
