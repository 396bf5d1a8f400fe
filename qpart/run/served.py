"""One model of a server: its plans, what it ships, and its tail."""

from __future__ import annotations

from msgspec.structs import replace

from qpart.artefact import Artefact
from qpart.errors import Infeasible, RequestError
from qpart.executors import Executor
from qpart.limits import factor
from qpart.messages import Chosen, ModelInfo, Planned, segment_id
from qpart.plan import Plan, plan
from qpart.profile import Request, ServerProfile
from qpart.run.published import Published, Sign
from qpart.solve import Solver
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
        sign: signs the id of a segment; None where nothing is signed.
    """

    def __init__(
        self,
        artefact: Artefact,
        executor: Executor,
        measure: Measure,
        profile: ServerProfile,
        sign: Sign | None = None,
    ) -> None:
        self.artefact = artefact
        self.tail = Tail(artefact, executor)
        self._solver = Solver(artefact.tables)
        self._verifier = Verifier(artefact.tables, measure, artefact.known())
        self._profile = profile
        self.published, self._sign = Published(artefact), sign

    @property
    def info(self) -> ModelInfo:
        """What devices are told about the model."""
        a = self.artefact
        network = a.network
        return ModelInfo(
            a.name, a.model_id, network.input_shape, a.num_classes, network.num_nodes, a.tables.levels,
            network.takes_tokens,
        )  # fmt: skip

    def plan(self, request: Request, cached: bytes = b"", *, explain: bool = True) -> Planned:
        """The best plan that holds when it is run as a whole.

        Args:
            request: what the device asks.
            cached: marks of the pieces which the device has, joined; unknown ones do not matter.
            explain: with the table of all cuts.

        Raises:
            Infeasible: there is none.
        """
        asked = replace(request, cached=self.published.places(cached))
        try:
            found = self._settle(asked, explain)
        except Infeasible as refusal:
            raise self._tried(asked, refusal) from None
        shipped = segment_id(self.segment(_choice(self.artefact.model_id, found)))
        return Planned(found, shipped, b"" if self._sign is None else self._sign(shipped))

    def _settle(self, asked: Request, explain: bool = False) -> Plan:
        """The best plan that holds; budgets shrink for this request alone, so earlier ones do not matter."""
        shrink = dict(self.artefact.shrink)
        for _ in range(MAX_RUNS):
            found = plan(self._solver, asked, self._profile, shrink=shrink, explain=explain)
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
        return self.published.segment(chosen)


def _choice(model_id: bytes, found: Plan) -> Chosen:
    pattern = found.pattern
    return Chosen(model_id, pattern.cut, pattern.weight_bits, pattern.live_bits)
