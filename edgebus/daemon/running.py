"""Runs a daemon in the main thread: signals, systemd, watchdog."""

from __future__ import annotations

import contextlib
import logging
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from edgebus.daemon.daemon import NodeDaemon
from edgebus.daemon.logs import set_level
from edgebus.daemon.sdnotify import Notifier
from edgebus.errors import ConfigError
from edgebus.settings import NodeSettings

_log = logging.getLogger("edgebus.node")


def run_daemon(
    settings: NodeSettings,
    *,
    environment: Mapping[str, str],
    beside: Path | None = None,
    reload: Callable[[], NodeSettings] | None = None,
    on_ready: Callable[[NodeDaemon], None] = lambda daemon: None,
) -> None:
    """Run a node until SIGTERM or SIGINT.

    Args:
        settings: of the node.
        environment: where systemd says how it wants to be told.
        beside: directory of the settings file.
        reload: reads the settings again at SIGHUP; the log level is taken over, the rest needs a restart.
        on_ready: called once it listens.

    Raises:
        EdgebusError: it could not start.
    """
    notifier = Notifier(environment)
    with _Signals() as signals, NodeDaemon(settings, beside) as daemon:
        notifier.send("READY=1", f"STATUS=listening at {', '.join(daemon.endpoints) or 'no address, dialling'}")
        on_ready(daemon)
        while not signals.stop:
            signals.wait(notifier.watchdog_s)
            if signals.hangup:
                signals.hangup = False
                notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
                settings = _reloaded(settings, reload)
                notifier.send("READY=1")
            # A node whose thread is stuck is not well: systemd then ends it and starts another.
            if notifier.watchdog_s is not None and daemon.is_well():
                notifier.send("WATCHDOG=1")
        notifier.send("STOPPING=1")
        _log.info("node is stopping")
    _log.info("node has stopped")


def _reloaded(settings: NodeSettings, reload: Callable[[], NodeSettings] | None) -> NodeSettings:
    if reload is None:
        return settings
    try:
        new = reload()
    except ConfigError as error:
        _log.error(f"settings are kept as they were: {error}")
        return settings
    set_level(new.log.level)
    changed = [
        name for name in new.__struct_fields__ if name != "log" and getattr(new, name) != getattr(settings, name)
    ]
    if changed:
        _log.warning("these settings need a restart", extra={"settings": changed})
    _log.info("settings were read again", extra={"level": new.log.level})
    return new


class _Signals:
    """SIGTERM, SIGINT and SIGHUP as flags that wait() wakes up for; what was there before is put back.

    A handler runs in the middle of whatever the main thread does, so it only sets a flag: the lock of a
    threading.Event might be held there. The byte that wakes wait() is written by the interpreter itself.
    """

    def __init__(self) -> None:
        self.stop = False
        self.hangup = False

    def wait(self, timeout_s: float | None) -> None:
        """Until a signal or the timeout."""
        select.select([self._read], [], [], timeout_s)
        with contextlib.suppress(BlockingIOError):
            self._read.recv(4096)

    def __enter__(self) -> _Signals:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._read.close()
        self._write.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.hangup = True
        else:
            self.stop = True
