"""Inference in a row: while the server runs one tail, the device runs the next head."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

import edgebus
from qpart import messages
from qpart.drift import Seen
from qpart.errors import ProtocolError, RequestError
from qpart.inputs import as_float
from qpart.messages import Answered, ModelInfo
from qpart.quantiser import Floats
from qpart.run.line import FOR_GOOD, Line, Sent, ServerLost, decoded
from qpart.run.preparing import Prepared
from qpart.run.traffic import Meter, Traffic

log = logging.getLogger(__name__)

OnLoss = Literal["fail", "local", "wait"]
MAX_DEPTH = 64
_RETRY_S = 0.2


class Current(Protocol):
    """What streams ask of their device."""

    model: ModelInfo
    traffic: Traffic
    on_loss: OnLoss

    def current(self) -> Prepared:
        """The plan to use for the next input."""

    def answered(self, seen: Seen | None, *, samples: int, by_server: bool) -> None:
        """An input has its answer; `seen` where it says something about the channel."""


@dataclass(slots=True, eq=False)
class Flying:
    """An input whose answer is awaited.

    Attributes:
        prepared: the plan that it began with.
        inputs: kept, in case the device has to finish alone.
        sent: its request; None if the answer is here already.
        logits: then.
    """

    prepared: Prepared
    inputs: Floats
    head_s: float = 0.0
    sent_at: float = 0.0
    sent: Sent | None = None
    logits: Floats | None = None


class Runner:
    """Runs one input: the head here, the tail at the server, or all of it here where the server is lost."""

    def __init__(self, device: Current, line: Line, meter: Meter) -> None:
        self._device, self._line, self._meter, self._said = device, line, meter, ""

    def begin(self, inputs: npt.NDArray[Any]) -> Flying:
        """Run the head and send what crosses the cut."""
        device = self._device
        prepared = device.current()
        flying = Flying(prepared, as_float(inputs, device.model.input_shape, tokens=device.model.takes_tokens))
        if device.on_loss == "local" and np.may_share_memory(flying.inputs, inputs):
            flying.inputs = flying.inputs.copy()  # they may be needed when the caller has the next ones there
        if prepared.head.is_whole:
            began = time.perf_counter()
            flying.logits = prepared.head.answer(flying.inputs)
            flying.head_s = time.perf_counter() - began
        elif device.on_loss == "local" and self._line.is_down:
            flying.logits = self._alone(flying)
        else:
            began = time.perf_counter()
            arrays = prepared.head.run(flying.inputs)
            flying.head_s = time.perf_counter() - began
            flying.sent_at = time.monotonic()
            flying.sent = self._line.send(messages.INFER, prepared.payload, arrays)
            device.traffic.planned_up_bytes += prepared.up_bytes(len(flying.inputs))
        return flying

    def finish(self, flying: Flying, stop: threading.Event) -> Floats:
        """The logits of an input, when they are there.

        Raises:
            As Device.infer.
        """
        while flying.logits is None:
            sent = flying.sent
            assert sent is not None
            attempts = sent.attempts
            try:
                reply = self._line.finish(sent, give_up=lambda: self._device.on_loss == "local", stop=stop)
            except ServerLost as lost:
                self._lost(flying, lost, stop)
                continue
            except FOR_GOOD as error:
                if self._device.on_loss != "local":
                    raise
                self._lost(flying, ServerLost(error), stop)
                continue
            finally:
                self._device.traffic.asked_again += sent.attempts - attempts
            self._take(flying, reply)
        if flying.sent is None:
            self._device.answered(self._seen(flying, None), samples=len(flying.inputs), by_server=False)
        return flying.logits

    def _take(self, flying: Flying, reply: edgebus.Reply) -> None:
        device, batch = self._device, len(flying.inputs)
        counted, traffic = self._meter.take(), device.traffic
        num_classes = device.model.num_classes
        traffic.up_bytes += counted.sent
        traffic.planned_answer_bytes += messages.ANSWERED_BYTES + batch * 4 * num_classes
        traffic.answer_bytes += counted.received
        shape = (batch, num_classes)
        if len(reply.arrays) != 1 or reply.arrays[0].shape != shape or reply.arrays[0].dtype != np.float32:
            raise ProtocolError("the answer has another shape; check that device and server run the same version")
        flying.logits, self._said = reply.arrays[0], ""
        device.answered(self._seen(flying, decoded(Answered, reply.payload)), samples=batch, by_server=True)

    def _seen(self, flying: Flying, answered: Answered | None) -> Seen | None:
        if answered is None or flying.sent is None or flying.sent.attempts > 1:
            return None  # what was asked again says nothing about the channel
        return Seen(
            time.monotonic(),
            flying.sent_at,
            flying.prepared.up_bytes(len(flying.inputs)),
            len(flying.inputs),
            flying.head_s,
            answered.waited_s + answered.tail_s,
            flying.sent.link.stats().idle_round_trip_s,
        )

    def _lost(self, flying: Flying, lost: ServerLost, stop: threading.Event) -> None:
        """Finish alone, ask again, or give up, as was agreed.

        Raises:
            edgebus.EdgebusError: what the bus said; where it is to wait, why that would be for ever.
        """
        sent = flying.sent
        assert sent is not None
        if stop.is_set():
            raise edgebus.RequestCancelled("the stream was cancelled")
        match self._device.on_loss:
            case "local":
                flying.sent = None
                flying.logits = self._alone(flying)
            case "wait":
                stop.wait(_RETRY_S)
                self._line.check()
                self._device.traffic.asked_again += 1
                flying.sent = self._line.send(sent.service, sent.payload, sent.arrays)
                flying.sent.attempts = 2
            case _:
                raise lost.cause from None

    def _alone(self, flying: Flying) -> Floats:
        whole, why = flying.prepared.whole, self._line.turned_away()
        assert whole is not None
        if why is not None and str(why) != self._said:
            self._said = str(why)
            log.warning("this device finishes alone from now on: %s: %s", type(why).__name__, why)
        return whole.answer(flying.inputs)


class InferStream(Iterator[Floats]):
    """Logits (n, classes) for every input of an iterable, in order; made by `Device.infer_stream`.

    Args:
        runner: of the device.
        inputs: arrays as `Device.infer` takes them; taken from when there is room.
        depth: most requests that are on their way at once. Memory is bounded by so many inputs.

    Attributes:
        closed: it has ended, or was given up.

    Raises:
        RequestError: the depth is out of range.
    """

    def __init__(self, runner: Runner, inputs: Iterable[npt.NDArray[Any]], depth: int) -> None:
        if not 1 <= depth <= MAX_DEPTH:
            raise RequestError(f"depth is {depth}, give 1 to {MAX_DEPTH}")
        self._runner, self._inputs, self._depth = runner, iter(inputs), depth
        self._flying: deque[Flying] = deque()
        self._stop = threading.Event()
        self._failure: Exception | None = None  # of the input after those on their way: their answers come first
        self.closed = False

    def __next__(self) -> Floats:
        """The answer to the next input.

        Raises:
            As Device.infer; then the stream is over, and what was on its way is given up.
        """
        if self.closed:
            raise StopIteration
        try:
            while len(self._flying) < self._depth and not self._stop.is_set() and self._failure is None:
                try:
                    inputs = next(self._inputs)
                except StopIteration:
                    break
                except Exception as error:
                    self._failure = error
                else:
                    self._begin(inputs)
            if not self._flying or self._stop.is_set():
                self.close()
                raise self._failure or StopIteration
            logits = self._runner.finish(self._flying[0], self._stop)
            self._flying.popleft()
            return logits
        except edgebus.RequestCancelled:
            self.close()
            if self._stop.is_set():
                raise StopIteration from None
            raise
        except BaseException:
            self.close()
            raise

    def _begin(self, inputs: npt.NDArray[Any]) -> None:
        try:
            self._flying.append(self._runner.begin(inputs))
        except Exception as error:
            self._failure = error

    def cancel(self) -> None:
        """From any thread: no further answers; whoever waits for one is told at once that there are none."""
        self._stop.set()
        for flying in list(self._flying):
            if flying.sent is not None:
                flying.sent.pending.cancel()

    def close(self) -> None:
        """Give up what is on its way; closing twice is fine."""
        if not self.closed:
            self.closed = True
            for flying in self._flying:
                if flying.sent is not None:
                    flying.sent.pending.cancel()
            self._flying.clear()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.close()

    def __enter__(self) -> InferStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
