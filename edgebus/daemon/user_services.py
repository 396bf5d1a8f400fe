"""Services of the user's own: functions named in the settings, each called on threads of its own."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edgebus import serving
from edgebus.errors import ConfigError
from edgebus.inbox import Inbox, Request
from edgebus.settings import ServiceSettings

Function = Callable[[Request], bytes | None]
_log = logging.getLogger("edgebus.node")


def find_function(module: str, beside: Path | None = None) -> Function:
    """The function that "package.module:function" names.

    Args:
        module: of the settings.
        beside: directory that is searched after everything else, that of the settings file.

    Raises:
        ConfigError: it cannot be imported or called.
    """
    name, _, attribute = module.partition(":")
    if beside is not None and str(beside) not in sys.path:
        sys.path.append(str(beside))  # last: a file there must not stand in for a library
    try:
        found = getattr(importlib.import_module(name), attribute)
    except Exception as error:  # a module may raise whatever it likes
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"services: {module} cannot be imported ({text}): check the name, or set PYTHONPATH"
        ) from None
    if not callable(found):
        raise ConfigError(f"services: {module} is a {type(found).__name__}, expected a function(request)")
    return found  # type: ignore[no-any-return]


class Workers:
    """The threads of one service. A function returns the answer as bytes, or answers the request itself."""

    def __init__(self, inbox: Inbox, settings: ServiceSettings, function: Function) -> None:
        self._inbox = inbox
        self._settings = settings
        self._function = function
        self._lock = threading.Lock()
        self._num_busy = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"edgebus-{settings.name}-{index}", daemon=True)
            for index in range(settings.threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_threads(self) -> int:
        """Requests that it works on at once."""
        return len(self._threads)

    @property
    def load(self) -> float:
        """The part of the threads that work on something now."""
        return self._num_busy / len(self._threads)

    def join(self, timeout_s: float) -> bool:
        """Wait for the threads, which end with the inbox; False if a function has not returned by then."""
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (request := self._inbox.get(None)) is not None:
            self._count(1)
            self._answer(request)
            self._count(-1)
            del request  # one that was not answered is refused now, not with the next one

    def _count(self, change: int) -> None:
        with self._lock:
            self._num_busy += change

    def _answer(self, request: Request) -> None:
        try:
            answer = self._function(request)
            if isinstance(answer, bytes | bytearray | memoryview):
                serving.reply(request, bytes(answer))
            elif answer is not None:
                raise TypeError(f"{self._settings.module} returned {type(answer).__name__}, expected bytes or None")
        except Exception as error:  # the next request may fare better
            _log.exception("service failed", extra={"service": self._settings.name, "peer": request.peer.name})
            serving.refuse(
                request, "failed", f"{self._settings.name} raised {type(error).__name__}: see the node's log"
            )
