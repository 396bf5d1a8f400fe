"""The device's shell: ask for a plan, fetch the head, run it, send what crosses the cut."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

import edgebus
from edgebus.arrays import Array
from edgebus.files import cache_dir as default_cache_dir
from edgebus.payloads import Payload, decode, encode
from qpart import messages
from qpart.errors import Infeasible, ProtocolError, RequestError, SegmentRejected, UnknownModel
from qpart.head import Head
from qpart.inputs import as_float
from qpart.messages import (
    Ask,
    Chosen,
    Described,
    Fetch,
    InfeasibleInfo,
    Infer,
    ModelInfo,
    Planned,
    Segment,
)
from qpart.pieces import content_id
from qpart.profile import Request
from qpart.quantiser import Floats
from qpart.run.cache import PieceCache
from qpart.segment import inspect

_P = TypeVar("_P", bound=Payload)
_PIECES_AT_ONCE = 8


@dataclass(slots=True)
class Traffic:
    """Bytes of payloads and arrays, the bus's headers apart.

    Attributes:
        planned_download_bytes, download_bytes: the segment's description and its missing pieces: as planned, and as
            the link counted them.
        planned_up_bytes, up_bytes: inference requests.
        planned_answer_bytes, answer_bytes: their answers.
        control_bytes: describing, planning and asking, both ways.
        wire_bytes: everything on this link, headers of the bus included, both ways.
        resends: requests that the bus sent again because no answer came for a while; they count as sent.
    """

    planned_download_bytes: int = 0
    download_bytes: int = 0
    planned_up_bytes: int = 0
    up_bytes: int = 0
    planned_answer_bytes: int = 0
    answer_bytes: int = 0
    control_bytes: int = 0
    wire_bytes: int = 0
    resends: int = 0


@dataclass(frozen=True, slots=True)
class Counted:
    """What one exchange moved."""

    sent: int
    received: int


class Device:
    """A device that runs the head of a network and has a server run the tail.

    Args:
        server: endpoint, e.g. "tcp://10.0.0.5:5555".
        model: name of the model; may be left out where the server has one only.
        server_key: the server's public key, a file or the 40 characters; None only with `insecure`.
        keys: directory with this device's keys (`edgebus keygen`); None only with `insecure`.
        insecure: no encryption and no authentication, said explicitly.
        timeout_s: how long to wait for the server, for the connection and for each answer.
        cache: where pieces are kept; default `~/.cache/edgebus/pieces`.

    Raises:
        edgebus.EdgebusError: the server cannot be reached, or a key is wrong.
        UnknownModel: the server has no such model.

    Use it as a context manager: `prepare` a request, then `infer`.
    """

    def __init__(
        self,
        server: str,
        *,
        model: str | None = None,
        server_key: str | Path | None = None,
        keys: str | Path | None = None,
        insecure: bool = False,
        timeout_s: float = 30.0,
        cache: PieceCache | None = None,
    ) -> None:
        if not insecure and (server_key is None or keys is None):
            raise RequestError("give the key of the server and our own (--server-key and --keys), or say insecure")
        if not 0 < timeout_s <= 86_400:
            raise RequestError(f"timeout is {timeout_s} s, give more than 0 and at most 86400")
        self._timeout_s = timeout_s
        self._cache = cache or PieceCache(default_cache_dir() / "pieces")
        self.traffic = Traffic()
        self.planned: Planned | None = None
        self._head: Head | None = None
        own = None if insecure or keys is None else edgebus.load_keys(keys)
        key = None if insecure or server_key is None else edgebus.read_public_key(server_key)
        self._node = edgebus.Node(name="qpart-device", keys=own, insecure=insecure)
        try:
            self._link = self._node.connect(server, server_key=key, timeout_s=timeout_s)
            with self._control():
                described = self._call(messages.DESCRIBE, b"", Described)
            self.model = _select(described, model)
        except BaseException:
            self._node.close()
            raise

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the link; bounded in time."""
        self._node.close()

    def prepare(self, request: Request) -> Planned:
        """Get a plan for this request, and everything the device needs for it.

        Raises:
            Infeasible: no plan satisfies the request; says which constraint binds, and what would do.
            SegmentRejected: what the server sent does not add up; nothing of it was run.
            UnknownModel: the server does not have this model any more.
        """
        with self._control():
            ask = Ask(self.model.model_id, request, self._cache.addresses())
            planned = self._call(messages.PLAN, encode(ask), Planned)
        self._head = self._fetch_head(planned, request)
        self.planned = planned
        return planned

    def infer(self, inputs: npt.NDArray[Any]) -> Floats:
        """Logits (n, classes) for inputs (n, *input_shape), all in one request.

        A request lost with its link is sent once more: the server keeps nothing, so asking again is harmless.

        Args:
            inputs: float32, or uint8 pixels, which are divided by 255.

        Raises:
            ShapeMismatch: inputs of another shape.
            ArtefactError: inputs of another dtype, or not finite.
            RequestError: nothing was prepared.
            edgebus.EdgebusError: the server is gone, late, or refuses.
        """
        if self._head is None or self.planned is None:
            raise RequestError("there is no plan yet; call prepare first")
        inputs = as_float(inputs, self.model.input_shape)
        if self._head.is_whole:
            return self._head.answer(inputs)
        plan, arrays = self.planned.plan, self._head.run(inputs)
        payload = encode(Infer(self.model.model_id, plan.pattern.cut, plan.pattern.live_bits))
        with self._counting() as counted:
            reply = self._request_again(payload, arrays)
        self._count_inference(counted[0], len(inputs), len(payload))
        shape = (len(inputs), self.model.num_classes)
        if len(reply.arrays) != 1 or reply.arrays[0].shape != shape or reply.arrays[0].dtype != np.float32:
            raise ProtocolError("the answer has another shape; check that device and server run the same version")
        return reply.arrays[0]

    def _request_again(self, payload: bytes, arrays: list[Array]) -> edgebus.Reply:
        until = time.monotonic() + self._timeout_s
        try:
            return self._request(messages.INFER, payload, arrays)
        except edgebus.LinkLost as lost:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise
            try:
                return self._request(messages.INFER, payload, arrays, timeout_s=left_s)
            except edgebus.DeadlineExceeded:
                raise lost from None  # the server that was there is gone: that is what the caller has to know

    def _count_inference(self, counted: Counted, batch: int, payload_bytes: int) -> None:
        assert self.planned is not None
        pattern, traffic = self.planned.plan.pattern, self.traffic
        traffic.planned_up_bytes += payload_bytes + batch * (pattern.up_bytes - payload_bytes)
        traffic.up_bytes += counted.sent
        traffic.planned_answer_bytes += batch * 4 * self.model.num_classes
        traffic.answer_bytes += counted.received

    def _fetch_head(self, planned: Planned, request: Request) -> Head:
        pattern, traffic = planned.plan.pattern, self.traffic
        chosen = Chosen(self.model.model_id, pattern.cut, pattern.weight_bits, pattern.live_bits)
        with self._counting() as counted:
            raw = self._request(messages.SEGMENT, encode(chosen)).payload
            if content_id(raw) != planned.segment_id:
                raise SegmentRejected("the segment does not match the hash in the plan; ask for a plan again")
            segment = _segment(raw)
            head = Head(segment, self._fetch_pieces(inspect(segment, chosen, self.model, request)))
        traffic.planned_download_bytes += pattern.download_bytes
        traffic.download_bytes += counted[0].received
        traffic.control_bytes += counted[0].sent
        if head.weight_bits != pattern.weight_bits:
            raise SegmentRejected("the pieces are not what the plan says; ask for a plan again")
        return head

    def _fetch_pieces(self, sizes: dict[bytes, int]) -> dict[bytes, bytes]:
        """Pieces of these sizes, from the cache or from the server; each is what its address says."""
        found = {address: self._cache.get(address) for address in sizes}
        pieces = {address: content for address, content in found.items() if content is not None}
        missing = [address for address in sizes if address not in pieces]
        small = [address for address in missing if sizes[address] <= messages.CHUNK_BYTES]
        for start in range(0, len(small), _PIECES_AT_ONCE):
            wanted = small[start : start + _PIECES_AT_ONCE]
            pieces |= dict(zip(wanted, self._fetch(wanted, 0), strict=True))
        for address in missing:
            if address not in pieces:
                parts = [self._fetch([address], at)[0] for at in range(0, sizes[address], messages.CHUNK_BYTES)]
                pieces[address] = b"".join(parts)
        for address in missing:
            if content_id(pieces[address]) != address:
                raise SegmentRejected(f"piece {address.hex()} does not match its hash; fetch it again")
            self._cache.put(address, pieces[address])
        return pieces

    def _fetch(self, wanted: list[bytes], offset: int) -> list[bytes]:
        fetch = Fetch(self.model.model_id, tuple(wanted), offset)
        arrays = self._request(messages.PIECES, encode(fetch)).arrays
        if len(arrays) != len(wanted):
            raise ProtocolError(f"{len(arrays)} of {len(wanted)} pieces came; check the server's version")
        return [array.tobytes() for array in arrays]

    def _request(
        self, service: str, payload: bytes, arrays: list[Array] | None = None, timeout_s: float | None = None
    ) -> edgebus.Reply:
        """One request, its refusals turned into our errors."""
        try:
            return self._link.request(service, payload, arrays or [], timeout_s=timeout_s or self._timeout_s)
        except edgebus.Refused as refused:
            raise _error(refused) from None

    def _call(self, service: str, payload: bytes, kind: type[_P]) -> _P:
        return _decoded(kind, self._request(service, payload).payload)

    @contextmanager
    def _counting(self) -> Iterator[list[Counted]]:
        """Count what the link moves meanwhile; there is one entry when the block is over."""
        before, counted = self._link.stats(), list[Counted]()
        yield counted
        after = self._link.stats()
        counted.append(
            Counted(
                after.content_bytes_sent - before.content_bytes_sent,
                after.content_bytes_received - before.content_bytes_received,
            )
        )
        self.traffic.wire_bytes = after.bytes_sent + after.bytes_received
        self.traffic.resends = after.retries

    @contextmanager
    def _control(self) -> Iterator[None]:
        with self._counting() as counted:
            yield
        self.traffic.control_bytes += counted[0].sent + counted[0].received


def _select(described: Described, name: str | None) -> ModelInfo:
    names = ", ".join(model.name for model in described.models) or "none"
    if name is None and len(described.models) != 1:
        raise UnknownModel(f"the server has the models {names}; say which (--model)")
    for model in described.models:
        if name in (None, model.name):
            return model
    raise UnknownModel(f"the server has no model {name!r}; it has {names}")


def _segment(raw: bytes) -> Segment:
    try:
        return decode(Segment, raw)
    except ValueError as error:  # an operation outside the closed list, or a number out of its bounds
        raise SegmentRejected(f"the segment holds what this device does not run: {error}") from None


def _decoded(kind: type[_P], payload: bytes) -> _P:
    try:
        return decode(kind, payload)
    except (ValueError, edgebus.LocalError) as error:
        raise ProtocolError(f"{error}; check that device and server run the same version") from None


def _error(refused: edgebus.Refused) -> edgebus.EdgebusError:
    match refused.code:
        case "infeasible":
            try:
                info = decode(InfeasibleInfo, refused.info)
            except ValueError:
                return refused
            return Infeasible(refused.detail, constraint=info.constraint, nearest_accuracy=info.nearest_accuracy)
        case "unknown_model":
            return UnknownModel(refused.detail)
        case _:
            return refused
