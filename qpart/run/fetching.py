"""A head over the bus: its segment and the pieces it needs, from the cache or from the server."""

from __future__ import annotations

from collections.abc import Callable

import edgebus
from edgebus.blobs import BlobStoreFull
from edgebus.blobs.fetch import AskLink
from edgebus.payloads import decode, encode
from qpart import messages
from qpart.errors import SegmentRejected
from qpart.executors.devices import ExecutorKind
from qpart.head import Head
from qpart.messages import Chosen, ModelInfo, Planned, Segment, segment_id
from qpart.profile import Request
from qpart.run.cache import PieceCache
from qpart.segment import inspect
from qpart.signing import verify


class HeadFetcher:
    """Fetches what a plan needs, and checks it before any of it may run.

    Args:
        request: one request to the server, service and payload; its refusals come as our errors.
        link: where pieces are asked for.
        cache: pieces that are here already, and where those fetched are kept.
        timeout_s: for all pieces together.
        publisher: public key of who must have signed the segment; None asks for no signature.
        executor: what heads are computed with.
    """

    def __init__(
        self,
        request: Callable[[str, bytes], edgebus.Reply],
        link: AskLink,
        cache: PieceCache,
        *,
        timeout_s: float,
        publisher: bytes | None = None,
        executor: ExecutorKind = "numpy",
    ) -> None:
        self._request, self._link, self._cache = request, link, cache
        self._timeout_s, self._publisher, self._executor = timeout_s, publisher, executor

    def fetch(self, model: ModelInfo, planned: Planned, request: Request) -> Head:
        """The head of this plan.

        Raises:
            SegmentRejected: what the server sent does not add up, or is not the publisher's; nothing of it was run.
            edgebus.EdgebusError: the server is gone, late, or refuses.
        """
        if self._publisher is not None:
            verify(self._publisher, planned.segment_id, planned.signature)
        pattern = planned.plan.pattern
        chosen = Chosen(model.model_id, pattern.cut, pattern.weight_bits, pattern.live_bits)
        raw = bytes(self._request(messages.SEGMENT, encode(chosen)).payload)
        if segment_id(raw) != planned.segment_id:
            raise SegmentRejected("the segment does not match the hash in the plan; ask for a plan again")
        segment = _segment(raw)
        sizes = inspect(segment, chosen, model, request)
        try:
            pieces = self._cache.fetch(self._link, sizes, self._timeout_s)
        except BlobStoreFull as error:
            raise SegmentRejected(f"the pieces are larger than their layers: {error}; ask for a plan again") from None
        for address, content in pieces.items():
            if len(content) != sizes[address]:
                raise SegmentRejected(
                    f"piece {address.hex()} has {len(content)} bytes, its layer takes {sizes[address]}; "
                    "ask for a plan again"
                )
        return Head(segment, pieces, self._executor)


def _segment(raw: bytes) -> Segment:
    try:
        return decode(Segment, raw)
    except ValueError as error:  # an operation outside the closed list, or a number out of its bounds
        raise SegmentRejected(f"the segment holds what this device does not run: {error}") from None
