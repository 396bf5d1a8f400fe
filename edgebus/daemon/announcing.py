"""Tells peers which services the daemon has, where, and how loaded they are, in the directory of services."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgebus.errors import ConfigError, EdgebusError
from edgebus.services import Announcement, announce

if TYPE_CHECKING:
    from edgebus.daemon.user_services import Workers
    from edgebus.node import Node

LOOK_EVERY_S = 1.0
_WORTH_TELLING = 0.1
_NOWHERE = ("tcp://0.0.0.0:", "tcp://*:", "tcp://[::]:", "ipc://")
_log = logging.getLogger("edgebus.node")


def reachable(announced: Sequence[str], bound: Sequence[str]) -> list[str]:
    """Where peers can reach a node: what the settings say, else what it is bound to and others can dial."""
    if announced:
        return list(announced)
    return [endpoint for endpoint in bound if not endpoint.startswith(_NOWHERE)]


class Announcer:
    """Announces services, and their load when it has moved by a tenth.

    Args:
        node: that has them.
        services: by name, with the threads that serve them.
        endpoints: where peers reach the node.
        state: directory that survives a restart, for the epoch.

    Raises:
        ConfigError: an endpoint that cannot be announced, or a state directory that cannot be written.
    """

    def __init__(
        self, node: Node, services: Mapping[str, Workers], endpoints: Sequence[str], state: Path | None = None
    ) -> None:
        self._services = services
        self._stopping = threading.Event()
        self._announced: dict[str, Announcement] = {}
        try:
            for name, workers in services.items():
                file = None if state is None else state / "epoch"
                self._announced[name] = announce(node, name, endpoints, capacity=workers.num_threads, epoch_file=file)
        except (ValueError, OSError) as error:
            raise ConfigError(f"services cannot be announced: {error}") from None
        self._thread = threading.Thread(target=self._run, name="edgebus-announce", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Withdraw everything, while the node can still say so."""
        self._stopping.set()
        self._thread.join(LOOK_EVERY_S + 1.0)
        for announcement in self._announced.values():
            try:
                announcement.withdraw()
            except EdgebusError as error:  # the node is closed: its peers see that
                _log.debug("not withdrawn: %s", error)

    def look(self) -> None:
        """Tell what has changed."""
        for name, workers in self._services.items():
            announcement = self._announced[name]
            if abs(workers.load - announcement.record.load) >= _WORTH_TELLING:
                announcement.update(load=workers.load)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                self.look()
            except EdgebusError as error:
                _log.warning("load is not announced: %s", error)
