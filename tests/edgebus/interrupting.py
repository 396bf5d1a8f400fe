"""What a signal handler does that raises: an exception at any line of Python, or at the time of an alarm."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager


class Interrupt(BaseException):
    """What a signal handler raises."""


def raising(*_):
    """What it is called in, if that is Python."""
    raise Interrupt


@contextmanager
def alarms(handler, every_s=0.002, *, once=False):
    """A signal handler that is called every so often, or once after so long."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, every_s, 0 if once else every_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Thing:
    """What a thread waits for."""

    def __init__(self):
        self.ready, self._event = False, threading.Event()

    def follow(self, wait_s):
        self._event.wait(wait_s)

    def come(self):
        self.ready = True
        self._event.set()


def interrupted(function, at, is_ours, handle=None):
    """Call a function and raise at its at-th line in a module whose name is ours; True if it has so many.

    Args:
        handle: done there instead, by a handler that comes back.
    """
    left, raised = [at], [False]

    def trace(frame, event, _):
        # What is raised in a finalizer is only told of.
        if frame.f_code.co_name == "__del__" or not is_ours(frame.f_globals.get("__name__", "")):
            return None
        left[0] -= event == "line"
        if event == "line" and left[0] == 0:
            sys.settrace(None)
            raised[0] = True
            if handle is None:
                raise Interrupt
            handle()
            return None
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except Interrupt:
        pass
    finally:
        sys.settrace(before)
    return raised[0]
