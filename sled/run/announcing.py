"""A server in the directory of services: where it is and how loaded, until it drains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from edgebus import EdgebusError, Node
from edgebus.errors import ConfigError
from edgebus.services import Announcement, announce

log = logging.getLogger("sled.server")

_WORTH_TELLING = 0.1  # of what was told before


class Presence:
    """The announcement of one server; its load is the sessions held, of those it may hold.

    Args:
        node: of the server.
        name: of the service in the directory.
        endpoints: where devices reach it.
        max_sessions: its capacity.
        target_id: of its target, told along.

    Raises:
        ConfigError: something that cannot be announced.
    """

    def __init__(self, node: Node, name: str, endpoints: Sequence[str], *, max_sessions: int, target_id: bytes) -> None:
        self._capacity = float(max_sessions)
        self._sessions = 0
        self._withdrawn = False
        try:
            self._announcement: Announcement = announce(
                node, name, endpoints, capacity=self._capacity, meta={"target": target_id.hex()}
            )
        except (ValueError, OSError) as error:
            raise ConfigError(f"the server cannot be announced: {error}") from None

    def look(self, sessions: int) -> None:
        """Tell how many sessions there are, if that has moved by a tenth."""
        moved = abs(sessions - self._sessions)
        if self._withdrawn or moved == 0 or moved < _WORTH_TELLING * self._sessions:
            return
        self._sessions = sessions
        self._guarded(lambda: self._announcement.update(load=sessions / self._capacity))

    def withdraw(self) -> None:
        """New devices are to go elsewhere from now on; twice is fine."""
        if not self._withdrawn:
            self._withdrawn = True
            self._guarded(self._announcement.withdraw)

    @staticmethod
    def _guarded(tell: Callable[[], None]) -> None:
        try:
            tell()
        except EdgebusError as error:
            log.warning("the directory is not told: %s", error)
