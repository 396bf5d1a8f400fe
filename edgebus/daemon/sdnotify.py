"""Tells systemd how the daemon does, over the socket that NOTIFY_SOCKET names. Without one, nothing happens."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends states such as READY=1.

    Args:
        environment: with NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID as systemd sets them.

    Source: sd_notify(3), sd_watchdog_enabled(3).
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environment)

    def send(self, *states: str) -> bool:
        """Send states in one datagram; False if nobody listens. Never raises: a daemon works without systemd too."""
        if not self._address.startswith(("/", "@")):
            return False
        # An abstract address starts with a zero byte, written as @ in the environment.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.settimeout(1.0)
            sock.sendto("\n".join(states).encode(), address)
            return True
        return False


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """How often WATCHDOG=1 has to come, None if nobody asks for it: half of what systemd allows."""
    micros, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not micros.isdecimal() or int(micros) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(micros) / 2e6
