"""One model of a server: its plans, its segments, its pieces and its tail."""

from __future__ import annotations

from msgspec.structs import replace

from edgebus.payloads import encode
from qpart.artefact import Artefact
from qpart.errors import ArtefactError, Infeasible, RequestError, ShapeMismatch
from qpart.executors import Executor
from qpart.limits import factor
from qpart.messages import Chosen, Live, ModelInfo, Planned, segment_of
from qpart.pieces import content_id, encode_piece
from qpart.plan import Plan, plan
from qpart.profile import Request, ServerProfile
from qpart.solve import Solver
from qpart.tables import WIDTHS
from qpart.tail import Tail
from qpart.verify import SHRINK, Measure, Verifier

MAX_RUNS = 64
"""Patterns that one request may have run as a whole; each holds up everybody else."""
_MAX_REFUSALS = 8
_LEAST_FACTOR = 1e-3


class ServedModel:
    """Answers everything about one model; the same artefact gives the same answers on any server.

    Args:
        artefact: the model, read from its file.
        executor: of the whole network in full precision.
        measure: runs a pattern on the calibration inputs.
        profile: the server's speed and price.
    """

    def __init__(self, artefact: Artefact, executor: Executor, measure: Measure, profile: ServerProfile) -> None:
        self.artefact = artefact
        self.tail = Tail(artefact, executor)
        self._solver = Solver(artefact.tables)
        self._verifier = Verifier(artefact.tables, measure)
        self._profile = profile
        self._known = {
            address: (node, bits)
            for node, row in artefact.piece_ids.items()
            for bits, address in zip(WIDTHS, row, strict=True)
        }
        self._pieces: dict[bytes, bytes] = {}

    @property
    def info(self) -> ModelInfo:
        """What devices are told about the model."""
        a = self.artefact
        return ModelInfo(a.name, a.model_id, a.network.input_shape, a.num_classes, a.network.num_nodes, a.tables.levels)

    def plan(self, request: Request, cached: tuple[bytes, ...] = ()) -> Planned:
        """The best plan that holds when it is run as a whole.

        Args:
            request: what the device asks.
            cached: addresses of pieces which the device has; unknown ones do not matter.

        Raises:
            Infeasible: there is none.
        """
        have = frozenset(self._known[address] for address in cached if address in self._known)
        asked = replace(request, cached=have)
        try:
            found = self._settle(asked)
        except Infeasible as refusal:
            raise self._tried(asked, refusal) from None
        return Planned(found, content_id(self.segment(_choice(self.artefact.model_id, found))))

    def _settle(self, asked: Request) -> Plan:
        """The best plan that holds; budgets shrink for this request alone, so earlier ones do not matter."""
        shrink = dict(self.artefact.shrink)
        for _ in range(MAX_RUNS):
            found = plan(self._solver, asked, self._profile, shrink=shrink)
            if self._verifier.holds(found.pattern, found.level):
                return found
            key = found.pattern.cut, found.level_index
            left = factor(shrink, *key) * SHRINK
            shrink[key] = left if left > _LEAST_FACTOR else 0.0
        raise RequestError(f"{MAX_RUNS} plans were run as a whole and none held; ask for a larger accuracy drop")

    def _tried(self, asked: Request, refusal: Infeasible) -> Infeasible:
        """The refusal with a nearest accuracy at which a plan does hold as a whole."""
        first = refusal
        for _ in range(_MAX_REFUSALS):
            if refusal.nearest_accuracy is None:
                break
            try:
                self._settle(replace(asked, accuracy=refusal.nearest_accuracy))
            except Infeasible as again:
                refusal = again
            else:
                break
        if refusal is first or refusal.nearest_accuracy is None:
            return refusal
        text = str(first).replace(repr(first.nearest_accuracy), repr(refusal.nearest_accuracy))
        return Infeasible(text, constraint=first.constraint, nearest_accuracy=refusal.nearest_accuracy)

    def segment(self, chosen: Chosen) -> bytes:
        """The segment of a choice, encoded.

        Raises:
            ShapeMismatch: the choice does not fit the model.
        """
        artefact, network, cut = self.artefact, self.artefact.network, chosen.cut
        nodes = [i for i in network.parametric if i < cut]
        values = network.live[cut] if cut <= network.num_nodes else ()
        fits = len(chosen.weight_bits) == len(nodes) and len(chosen.live_bits) == len(values)
        if cut > network.num_nodes or not fits or {*chosen.weight_bits, *chosen.live_bits} - {*WIDTHS}:
            raise ShapeMismatch(
                f"cut {cut} with {len(chosen.weight_bits)} and {len(chosen.live_bits)} widths does not fit the model; "
                "ask for a plan"
            )
        pieces = tuple(
            artefact.piece_ids[node][WIDTHS.index(bits)] for node, bits in zip(nodes, chosen.weight_bits, strict=True)
        )
        live = tuple(
            Live(value, bits, *artefact.ranges[value][WIDTHS.index(bits)])
            for value, bits in zip(values, chosen.live_bits, strict=True)
        )
        return encode(segment_of(network, artefact.model_id, cut, pieces, live))

    def piece(self, address: bytes) -> bytes:
        """The piece with this address; quantised when it is first asked for.

        Raises:
            ShapeMismatch: the model has no such piece.
            ArtefactError: this version quantises otherwise than the one that calibrated the model.
        """
        if address not in self._pieces:
            if address not in self._known:
                raise ShapeMismatch(f"the model has no piece {address.hex()}; ask for a plan again")
            node, bits = self._known[address]
            content = encode_piece(self.artefact.parameters[node], bits)
            if content_id(content) != address:
                raise ArtefactError(f"{self.artefact.name} was calibrated with another quantiser; calibrate it again")
            self._pieces[address] = content
        return self._pieces[address]


def _choice(model_id: bytes, found: Plan) -> Chosen:
    pattern = found.pattern
    return Chosen(model_id, pattern.cut, pattern.weight_bits, pattern.live_bits)
