"""Devices that answer requests: each on a thread of its own, one answer at a time."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import edgebus
from sled.api.asks import Wanted
from sled.api.errors import ApiError, ShuttingDown, unavailable
from sled.api.outbox import Outbox
from sled.api.turns import Turns
from sled.errors import ParameterError, PromptTooLong, ServerBusy
from sled.events import Event
from sled.run.device import Answer, Device, Stream

log = logging.getLogger("sled.api")

_FOR_THE_NEXT_S = 2.0  # a worker that ends is given so long before its device is closed under it


class Ended(NamedTuple):
    """The end of an answer."""

    answer: Answer


class Failed(NamedTuple):
    """An answer was broken off."""

    error: BaseException


Told: TypeAlias = tuple[int, Event | Ended | Failed]


class Job:
    """One answer that is wanted, and where its events go."""

    def __init__(self, wanted: Wanted, outbox: Outbox[Told]) -> None:
        self.wanted, self._outbox = wanted, outbox
        self._broken_off = False
        self._stream: Stream | None = None

    @property
    def unwanted(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._broken_off or self._outbox.closed

    def give(self, stream: Stream) -> None:
        """Tell everything that happens to the answer, on the thread of its device."""
        self._stream = stream
        with contextlib.closing(stream):
            if self.unwanted:  # `cancel` may have come before the stream did
                return
            for event in stream.events():
                if not self._tell(event):
                    return
            if not self.unwanted:
                self._tell(Ended(stream.answer()))

    def fail(self, error: BaseException) -> None:
        """Break it off and say why, from any thread."""
        if not self._broken_off:
            self._broken_off = True
            self._outbox.put_last((self.wanted.index, Failed(error)))
        self.cancel()

    def cancel(self) -> None:
        """Break it off, from any thread; its device is free at once."""
        if self._stream is not None:
            self._stream.cancel()

    def _tell(self, event: Event | Ended) -> bool:
        """False if the answer should end here."""
        return not self.unwanted and self._outbox.put((self.wanted.index, event))


class Pool:
    """Devices and the requests that wait for them.

    Args:
        open_device: makes one; called on the thread that will use it, again when a device is of no use any more.
        parallel: devices.
        queue: requests that may wait.
    """

    def __init__(self, open_device: Callable[[], Device], *, parallel: int = 1, queue: int = 16) -> None:
        self._open = open_device
        self._turns: Turns[Job] = Turns(queue)
        self._changed = threading.Condition()
        self._devices: dict[int, Device] = {}
        self._newest: Device | None = None
        self._running: dict[int, Job] = {}
        self._last_error: BaseException | None = None
        self._draining = self._closing = False
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"sled-api-{number}", daemon=True)
            for number in range(parallel)
        ]

    def start(self) -> None:
        """Open all devices.

        Raises:
            EdgebusError: a device could not be opened.
        """
        for thread in self._threads:
            thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._last_error or len(self._devices) == len(self._threads))
            error = self._last_error
        if error is not None:
            self.close()
            raise error

    @property
    def newest(self) -> Device:
        """The device that was opened last: what it knows of the target holds now."""
        assert self._newest is not None, "started before"
        return self._newest

    @property
    def busy(self) -> int:
        """Answers that are being given."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._turns)

    @property
    def draining(self) -> bool:
        """Whether no new requests are taken."""
        return self._draining

    def submit(self, jobs: Sequence[Job]) -> int:
        """Queue a request; returns how many wait before it.

        Raises:
            ApiError: 429, too many wait; or 503, this process ends.
        """
        with self._changed:
            if self._draining:
                raise unavailable("this server is going away; ask again later", "shutting_down")
            self._turns.drop(lambda job: job.unwanted)
            ahead = len(self._turns)
            free = len(self._threads) - len(self._running)
            if not self._turns.add(jobs, now=ahead < free):
                raise ApiError(
                    429,
                    f"{ahead} requests wait for {len(self._threads)} device(s) already; ask again later",
                    kind="rate_limit_error",
                    code="queue_full",
                    retry_after_s=2.0,
                )
            self._changed.notify_all()
            return ahead

    def drain(self) -> None:
        """Take no more requests, and none of those that wait; what runs goes on."""
        with self._changed:
            self._draining = True
            waiting = self._turns.clear()
        for job in waiting:
            job.fail(ShuttingDown("this server is going away; ask again later"))

    def cut(self) -> None:
        """Break off what runs."""
        self.drain()
        for job in list(self._running.values()):
            job.fail(ShuttingDown("this server was stopped in the middle of the answer; ask again later"))

    def close(self) -> None:
        """Break everything off and close the devices; bounded in time."""
        self.cut()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        until = time.monotonic() + _FOR_THE_NEXT_S
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        for device in list(self._devices.values()):
            device.close()  # a worker that waits in it is told so
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_FOR_THE_NEXT_S)

    def _work(self, number: int) -> None:
        device = self._device(number)
        while (job := self._next(number)) is not None:
            try:
                device = device or self._device(number)
                if device is None:
                    raise self._last_error or unavailable("no device", "server_unreachable")
                job.give(_start(device, job.wanted))
            except Exception as error:  # whatever it is, the next request is answered
                if not isinstance(error, edgebus.EdgebusError | ApiError):
                    log.exception("an answer failed")
                job.fail(error)
                if device is not None and not _is_callers(error):
                    self._devices.pop(number, None)
                    device.close()
                    device = None
            finally:
                with self._changed:
                    self._running.pop(number, None)
        if device is not None:
            device.close()
        self._devices.pop(number, None)

    def _device(self, number: int) -> Device | None:
        """A new device, or None and the reason in `_last_error`."""
        try:
            device = self._open()
        except Exception as error:  # a drafter of the user's own may raise anything
            with self._changed:
                self._last_error = error
                self._changed.notify_all()
            return None
        with self._changed:
            self._devices[number] = self._newest = device
            self._changed.notify_all()
        return device

    def _next(self, number: int) -> Job | None:
        """The next job; None when there is to be no more."""
        with self._changed:
            while not self._closing:
                job = self._turns.take()
                if job is None:
                    self._changed.wait()
                elif not job.unwanted:
                    self._running[number] = job
                    return job
        return None


def _start(device: Device, wanted: Wanted) -> Stream:
    return device.generate(
        wanted.prompt,
        chat=False,  # a conversation goes through the template all the same
        max_tokens=wanted.max_tokens,
        sampling=wanted.sampling,
        stop=wanted.stop,
        logprobs=wanted.logprobs,
    )


def _is_callers(error: BaseException) -> bool:
    """Whether the device is as good as before: the request was at fault, or there was no room."""
    return isinstance(error, ParameterError | PromptTooLong | ServerBusy) or (
        isinstance(error, edgebus.Refused) and error.code == "invalid"
    )
