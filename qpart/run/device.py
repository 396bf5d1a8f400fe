"""The device's shell: ask for a plan, fetch the head, run it, send what crosses the cut."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import numpy.typing as npt

import edgebus
from edgebus.files import cache_dir as default_cache_dir
from qpart import messages
from qpart.drift import DriftLimits, Seen
from qpart.errors import RequestError, UnknownModel
from qpart.executors.devices import ExecutorKind, check_kind
from qpart.head import Head
from qpart.messages import Described, ModelInfo, Planned
from qpart.profile import Request
from qpart.quantiser import Floats
from qpart.run.adapting import Adapter
from qpart.run.cache import PieceCache
from qpart.run.line import Line, Where
from qpart.run.preparing import Prepared, Preparer
from qpart.run.stream import InferStream, OnLoss, Runner
from qpart.run.traffic import Meter, Traffic
from qpart.signing import read_publisher

__all__ = ["Device", "Traffic"]


class Device:
    """A device that runs the head of a network and has a server run the tail.

    Args:
        server: endpoint, e.g. "tcp://10.0.0.5:5555"; or several, of servers with the same artefact: when the one in
            use is lost, another one that lives goes on.
        model: name of the model; may be left out where the server has one only.
        server_key: the server's public key, a file or the 40 characters, or one for each server; None only with
            `insecure`.
        keys: directory with this device's keys (`edgebus keygen`); None only with `insecure`.
        insecure: no encryption and no authentication, said explicitly.
        timeout_s: how long to wait for the server, for the connection and for each answer.
        cache: where pieces are kept, a directory or a `PieceCache`; default `~/.cache/edgebus/pieces`.
        publisher: public key of who must have signed what runs here, a file or 64 hexadecimal digits; None for anybody.
        on_loss: what to do when no server lives or answers any more: "fail" with an error; finish "local", for which
            `prepare` fetches the whole network too; or "wait" for as long as it takes, unless every server has turned
            this device away for good: another key over there, ours not allowed, another version.
        adapt: watch channel and device, and change to another plan when that is worth it.
        drift: how sure to be for that.
        executor: what to compute with, "numpy" or "torch"; weights stay packed with either.

    Attributes:
        model: what the server says of it.
        planned: the plan in use; None before `prepare`.
        traffic: what was moved.
        server_answers, local_answers: samples answered with a server's tail, and by this device alone.

    Raises:
        edgebus.EdgebusError: the server cannot be reached, or a key is wrong.
        UnknownModel: the server has no such model.

    Use it as a context manager: `prepare` a request, then `infer`. One thread uses it; `cancel` is for others.
    """

    def __init__(
        self,
        server: str | Sequence[str],
        *,
        model: str | None = None,
        server_key: str | Path | Sequence[str | Path] | None = None,
        keys: str | Path | None = None,
        insecure: bool = False,
        timeout_s: float = 30.0,
        cache: PieceCache | str | Path | None = None,
        publisher: str | Path | None = None,
        on_loss: OnLoss = "fail",
        adapt: bool = False,
        drift: DriftLimits | None = None,
        executor: ExecutorKind = "numpy",
    ) -> None:
        if not insecure and (server_key is None or keys is None):
            raise RequestError("give the key of the server and our own (--server-key and --keys), or say insecure")
        if not 0 < timeout_s <= 86_400:
            raise RequestError(f"timeout is {timeout_s} s, give more than 0 and at most 86400")
        if on_loss not in get_args(OnLoss):
            raise RequestError(f"on_loss is {on_loss!r}, give one of {', '.join(get_args(OnLoss))}")
        check_kind(executor)
        signer = None if publisher is None else read_publisher(publisher)
        servers = _servers(server, None if insecure else server_key)
        if not isinstance(cache, PieceCache):
            cache = PieceCache(default_cache_dir() / "pieces" if cache is None else Path(cache))
        self._cache = cache
        self.on_loss: OnLoss = on_loss
        self.traffic = Traffic()
        self.server_answers = self.local_answers = 0
        self._prepared: Prepared | None = None
        self._adapter: Adapter | None = None
        self._streams: list[weakref.ref[InferStream]] = []  # one that is forgotten ends
        self._stop = threading.Event()
        own = None if insecure or keys is None else edgebus.load_keys(keys)
        self._node = edgebus.Node(name="qpart-device", keys=own, insecure=insecure)
        self._lines: list[Line] = []
        try:
            self._line = self._open(servers, timeout_s)
            self._meter = Meter(self._line.stats, self.traffic)
            described = self._line.call(messages.DESCRIBE, b"", Described)
            self.traffic.control_bytes += sum(self._meter.take())
            self.model = _select(described, model)

            def preparer(line: Line) -> Preparer:
                local = on_loss == "local"
                return Preparer(line, self._cache, finish_locally=local, publisher=signer, executor=executor)

            self._preparer = preparer(self._line)
            self._runner = Runner(self, self._line, self._meter)
            if adapt:
                self._adapter = Adapter(preparer(self._open(servers, timeout_s)), self.model, drift)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is on its way and close the links; bounded in time."""
        self.cancel()
        self._close()

    @property
    def server(self) -> str:
        """Endpoint of the server in use."""
        return self._line.link.endpoint

    @property
    def planned(self) -> Planned | None:
        """The plan in use."""
        return None if self._prepared is None else self._prepared.planned

    @property
    def head(self) -> Head | None:
        """What this device runs; None before `prepare`."""
        return None if self._prepared is None else self._prepared.head

    @property
    def turned_away(self) -> edgebus.EdgebusError | None:
        """Why no server will ever answer this device, as far as is known: what `on_loss="local"` does not raise."""
        return self._line.turned_away()

    @property
    def switches(self) -> int:
        """How often `adapt` has changed the plan."""
        return 0 if self._adapter is None else self._adapter.switches

    def prepare(self, request: Request, *, explain: bool = False) -> Planned:
        """Get a plan for this request, and everything the device needs for it.

        Args:
            request: what is asked.
            explain: with the table of all cuts (`Plan.rows`, `qpart.explain`), some 100 bytes for each.

        Raises:
            Infeasible: no plan satisfies the request; says which constraint binds, and what would do.
            ProtocolError: the answer is no plan, or its table is not the one that was asked for.
            SegmentRejected: what the server sent does not add up; nothing of it was run.
            UnknownModel: the server does not have this model any more.
            RequestError: a stream is open.
            edgebus.DeadlineExceeded: no answer in time; or, with `adapt`, another plan is being prepared in the
                background, for longer than `timeout_s`: the plan in use stays.
            edgebus.EdgebusError: the server is gone, late, or refuses.
        """
        if self._open_streams():
            raise RequestError("a stream is open, close it first: its inputs belong to the plan in use")
        if self._adapter is not None:
            self._adapter.forget(self.traffic, self._line.timeout_s)  # it was for the plan before
        self._prepared = None
        self.traffic.up_bytes += self._meter.take().sent  # of what was given up
        prepared = self._preparer.prepare(self.model, request, explain=explain)
        self._meter.skip()
        self.traffic.add(prepared.traffic)
        self._prepared = prepared
        if self._adapter is not None:
            self._adapter.start(prepared)
        return prepared.planned

    def infer(self, inputs: npt.NDArray[Any]) -> Floats:
        """Logits (n, classes) for inputs (n, *input_shape), all in one request.

        A request lost with its link is sent once more: the server keeps nothing, so asking again is harmless.

        Args:
            inputs: float32, or uint8 pixels, which are divided by 255.

        Raises:
            ShapeMismatch: inputs of another shape.
            ArtefactError: inputs of another dtype, or not finite.
            RequestError: nothing was prepared.
            UnknownModel: the server that is there now has another artefact: ask for a plan again.
            edgebus.WrongServerKey, KeyNotAllowed, VersionMismatch: the server has turned us away for good.
            edgebus.EdgebusError: the server is gone, late, or refuses.
        """
        self._stop.clear()
        flying = self._runner.begin(inputs)
        try:
            return self._runner.finish(flying, self._stop)
        except BaseException:
            if flying.sent is not None:
                flying.sent.pending.cancel()
            raise

    def infer_stream(self, inputs: Iterable[npt.NDArray[Any]], depth: int = 2) -> InferStream:
        """Logits for every input of an iterable, in order, the next head running while a tail is away.

        Args:
            inputs: each (n, *input_shape), as for `infer`. One is taken ahead of the answers, at least: where inputs
                come at times of their own (a camera), depth 1 gives each answer before the next input is waited for.
            depth: most requests on their way at once; memory is bounded by so many inputs.

        Raises:
            RequestError: nothing was prepared, or the depth is out of range.
        """
        self.current()
        stream = InferStream(self._runner, inputs, depth)
        self._streams = [weakref.ref(each) for each in (*self._open_streams(), stream)]
        return stream

    def cancel(self) -> None:
        """From any thread: give up what is on its way; whoever waits for it gets RequestCancelled, a stream ends."""
        self._stop.set()
        for stream in self._open_streams():
            stream.cancel()

    def current(self) -> Prepared:
        """The plan to use for the next input; a better one is taken here.

        Raises:
            RequestError: nothing was prepared.
        """
        if self._prepared is None:
            raise RequestError("there is no plan yet; call prepare first")
        if self._adapter is not None:
            self._prepared = self._adapter.take(self.traffic) or self._prepared
        return self._prepared

    def answered(self, seen: Seen | None, *, samples: int, by_server: bool) -> None:
        """An input has its answer."""
        if by_server:
            self.server_answers += samples
        else:
            self.local_answers += samples
        if seen is not None and self._adapter is not None:
            self._adapter.see(seen)

    def _open_streams(self) -> list[InferStream]:
        found = (each() for each in self._streams)
        return [stream for stream in found if stream is not None and not stream.closed]

    def _open(self, servers: Sequence[Where], timeout_s: float) -> Line:
        self._lines.append(Line(self._node, servers, timeout_s))
        return self._lines[-1]

    def _close(self) -> None:
        for line in self._lines:
            with contextlib.suppress(edgebus.EdgebusError):
                line.close()
        self._node.close()
        for line in self._lines:
            line.join(5.0)
        if self._adapter is not None:
            self._adapter.wait(5.0)


def _servers(server: str | Sequence[str], key: str | Path | Sequence[str | Path] | None) -> list[Where]:
    """Endpoints with their keys, read; one with several, of a server that changes its key, comes with each."""
    endpoints = [server] if isinstance(server, str) else list(server)
    given = [key] if key is None or isinstance(key, str | Path) else list(key)
    keys = [(None,) if each is None else edgebus.read_public_keys(each) for each in given]
    if not endpoints or len(keys) not in (1, len(endpoints)):
        raise RequestError(f"{len(keys)} keys are given for {len(endpoints)} servers; give one, or one for each")
    each_own = zip(endpoints, keys * len(endpoints) if len(keys) == 1 else keys, strict=True)
    return [(endpoint, one) for endpoint, own in each_own for one in own]


def _select(described: Described, name: str | None) -> ModelInfo:
    names = ", ".join(model.name for model in described.models) or "none"
    if name is None and len(described.models) != 1:
        raise UnknownModel(f"the server has the models {names}; say which (--model)")
    for model in described.models:
        if name in (None, model.name):
            return model
    raise UnknownModel(f"the server has no model {name!r}; it has {names}")
