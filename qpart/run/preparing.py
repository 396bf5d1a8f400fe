"""A plan and everything that it needs, ready to run; asked for in the foreground, or in the background."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import replace

from edgebus.payloads import encode
from qpart import messages
from qpart.errors import Infeasible, ProtocolError
from qpart.executors.devices import ExecutorKind
from qpart.head import Head
from qpart.messages import Ask, Infer, ModelInfo, Planned
from qpart.profile import Channel, Request, Weights
from qpart.run.cache import PieceCache
from qpart.run.fetching import HeadFetcher
from qpart.run.line import Line
from qpart.run.traffic import Meter, Traffic

_NO_CHANNEL_S = 3600.0
_FASTEST = 1e18


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A plan that can run; it does not change, so answers under way keep the one that they began with.

    Attributes:
        request: what was asked for.
        planned: what the server decided.
        head: the device's part.
        whole: the whole network, for when the server is lost; None if that was not asked for.
        payload: of every inference request under this plan.
        traffic: what preparing has moved.
    """

    request: Request
    planned: Planned
    head: Head
    whole: Head | None
    payload: bytes
    traffic: Traffic = field(default_factory=Traffic)

    def up_bytes(self, batch: int) -> int:
        """Planned bytes of a request with so many samples."""
        return len(self.payload) + batch * (self.planned.plan.pattern.up_bytes - len(self.payload))


class Preparer:
    """Asks for plans over a line of its own choosing, and fetches what they need.

    Args:
        line: to the server; nothing else may use it meanwhile, or its bytes are counted here.
        cache: pieces that are here already.
        finish_locally: fetch the whole network too.
        publisher: public key of who must have signed what runs here; None for anybody.
        executor: what heads are computed with.
    """

    def __init__(
        self,
        line: Line,
        cache: PieceCache,
        *,
        finish_locally: bool,
        publisher: bytes | None = None,
        executor: ExecutorKind = "numpy",
    ) -> None:
        self._line, self._cache = line, cache
        self._finish_locally, self._publisher, self._executor = finish_locally, publisher, executor

    def prepare(self, model: ModelInfo, request: Request, *, explain: bool = False) -> Prepared:
        """A plan for a request, with its head; if it is to be explained, with the table of all cuts.

        Raises:
            Infeasible: there is no plan; or, where the device is to finish locally, none without a server.
            ProtocolError: the table of the plan is not the one that was asked for.
            SegmentRejected: what the server sent does not add up; nothing of it was run.
            UnknownModel: the server does not have this model any more.
        """
        traffic = Traffic()
        return self.fetch(model, request, self.ask(model, request, traffic, explain=explain), traffic)

    def ask(self, model: ModelInfo, request: Request, traffic: Traffic, *, explain: bool = False) -> Planned:
        """A plan alone; nothing is fetched yet.

        Args:
            model: that is run.
            request: what is asked.
            traffic: where what is moved is counted.
            explain: with the table of all cuts.
        """
        return self._ask(model, request, self._meter(traffic), traffic, explain)

    def fetch(self, model: ModelInfo, request: Request, planned: Planned, traffic: Traffic) -> Prepared:
        """Everything that a plan needs; `traffic` goes on counting, and stays with what is returned."""
        meter = self._meter(traffic)
        head = self._fetch(model, planned, request, meter, traffic)
        whole = None
        if self._finish_locally and not head.is_whole:
            alone = _alone(request, max(head.held_bytes, planned.plan.pattern.segment_bytes))
            planned_whole = self._ask(model, alone, meter, traffic)
            if planned_whole.plan.pattern.cut < model.num_nodes:
                table = self._ask(model, alone, meter, traffic, explain=True).plan.table
                why = table.row(table.last_cut).why or "memory"
                raise Infeasible(
                    f"the device cannot finish alone, for want of {why}: give more, or do without on_loss=local",
                    constraint=why,
                    nearest_accuracy=None,
                )
            whole = self._fetch(model, planned_whole, alone, meter, traffic)
        pattern = planned.plan.pattern
        payload = encode(Infer(model.model_id, pattern.cut, pattern.live_bits))
        return Prepared(request, planned, head, whole, payload, traffic)

    def _meter(self, traffic: Traffic) -> Meter:
        return Meter(self._line.stats, traffic, since=self._line.stats())

    def _ask(
        self, model: ModelInfo, request: Request, meter: Meter, traffic: Traffic, explain: bool = False
    ) -> Planned:
        ask = Ask(model.model_id, request, self._cache.marks(), explain)
        planned = self._line.call(messages.PLAN, encode(ask), Planned)
        traffic.control_bytes += sum(meter.take())
        table = planned.plan.table
        if table.last_cut != model.num_nodes or (explain and table.only):
            raise ProtocolError(
                f"the table of a plan is of {len(table.why)} of {table.last_cut + 1} cuts, the network has "
                f"{model.num_nodes + 1}{' and all were asked for' if explain else ''}; "
                "check that device and server run the same version"
            )
        return planned

    def _fetch(self, model: ModelInfo, planned: Planned, request: Request, meter: Meter, traffic: Traffic) -> Head:
        line = self._line
        fetcher = HeadFetcher(
            line.request,
            line,
            self._cache,
            timeout_s=line.timeout_s,
            publisher=self._publisher,
            executor=self._executor,
        )
        head = fetcher.fetch(model, planned, request)
        counted = meter.take()
        traffic.planned_download_bytes += planned.plan.pattern.download_bytes
        traffic.download_bytes += counted.received
        traffic.control_bytes += counted.sent
        return head


def _alone(request: Request, held_bytes: int) -> Request:
    """The request of a device whose channel is gone: no cut but the last is worth a round trip of an hour.

    Head and whole network are both held, so the memory that the head takes is not there for the other.
    """
    memory_bytes = max(1, request.device.memory_bytes - held_bytes)
    channel = Channel(up_bits_per_s=1.0, down_bits_per_s=request.channel.down_bits_per_s, round_trip_s=_NO_CHANNEL_S)
    return replace(
        request,
        device=replace(request.device, macs_per_s=_FASTEST, layer_s=(), memory_bytes=memory_bytes),
        channel=channel,
        weights=Weights(time=1.0),
    )
