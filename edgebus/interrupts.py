"""Exceptions of signal handlers, told from faults: Python raises them at any line of whatever the main thread is at.

What they interrupt is left as it was and done once more; what is a fault is given up, or it would come again for ever.
By its type KeyboardInterrupt or SystemExit can be told, but not the TimeoutError that many a handler of SIGALRM raises.
That one's traceback ends in a function that was called with the frame which it interrupts, or in an installed handler.
"""

from __future__ import annotations

# Its getsignal makes no enumerations, and takes a thirtieth of the time: whoever sends what is malformed costs one.
import _signal  # type: ignore[import-not-found]
import functools
import signal
import threading
from collections.abc import Iterator
from types import CodeType, FrameType, TracebackType

_VARARGS = 0x04  # inspect.CO_VARARGS, without its import


def is_of_signal(error: BaseException) -> bool:
    """True for an exception that a signal handler has raised on this thread.

    That is the main thread's alone. What is no Exception (sys.exit(), Ctrl-C) is a fault of whoever raised it on
    another one (a handler, say, that calls result() of a task that was cancelled): it would end the node's own.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    if not isinstance(error, Exception):
        return True
    installed = _installed()
    return any(frame.f_code in installed or _is_handler(frame) for frame in _frames(error.__traceback__))


def is_of_type(error: BaseException) -> bool:
    """Likewise by its type alone: of an exception out of the application's own function, which a handler that raises
    an Exception may have been meant for."""
    return not isinstance(error, Exception) and threading.current_thread() is threading.main_thread()


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _is_handler(frame: FrameType) -> bool:
    """True for a function one of whose arguments is the frame it was called from, as a signal handler's is."""
    below, code = frame.f_back, frame.f_code
    if below is None:
        return False
    num_arguments = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & _VARARGS)
    for value in map(frame.f_locals.get, code.co_varnames[:num_arguments]):
        if value is below or (type(value) is tuple and any(each is below for each in value)):
            return True
    return False


def _installed() -> set[CodeType]:
    """What the handlers that are installed now run: one may have let go of its arguments before it raises."""
    codes = set()
    for number in range(1, signal.NSIG):
        handler = _signal.getsignal(number)
        if not callable(handler):
            continue
        while isinstance(handler, functools.partial):
            handler = handler.func
        code = getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)
        if isinstance(code, CodeType):
            codes.add(code)
    return codes
