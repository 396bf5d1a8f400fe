from collections.abc import Iterable

from qpart.fronts import Floats, Ints

class Search:
    """Looks for the cheapest cuts of one network; one question at a time, with the interpreter's lock held.

    Args:
        psi: (tensors, 8) noise of each tensor with weights at each width.
        held: (tensors, 8) bytes that it takes on the device.
        pieces: (tensors, 8) bytes of the one piece that takes the width below to this one; see `qpart.tables.Tables`.
        row: (nodes,) which tensor a node has, -1 for none.
        prefix: (cuts,) how many tensors the device holds at a cut.
        first: (cuts + 1,) the first pair of each cut, and how many pairs there are; see `qpart.cuts.Pairs`.
        pair_psi, pair_up: (pairs,) noise and bytes of a request; of a cut, bytes ascend and noise descends.
        manifest, besides: (cuts,) bytes to load, and to hold, besides the tensors.
        hull_first: (cuts + 1,) likewise of corners.
        hull: pairs that are corners of the convex hulls of the cuts.
        front_bytes, front_psi, front_starts: the fronts of all prefixes where nothing is cached; see
            `qpart.fronts.Chain`.
    """

    @property
    def room(self) -> int:
        """For so many points is place: a question that takes more than 2^18 gives it back."""
    def __init__(
        self,
        psi: Floats,
        held: Ints,
        pieces: Ints,
        row: Ints,
        prefix: Ints,
        first: Ints,
        pair_psi: Floats,
        pair_up: Ints,
        manifest: Ints,
        besides: Ints,
        hull_first: Ints,
        hull: Ints,
        front_bytes: Ints,
        front_psi: Floats,
        front_starts: Ints,
    ) -> None: ...
    def run(
        self,
        cached: Iterable[tuple[int, int]],
        budgets: Floats,
        base: Floats,
        down: float,
        up: float,
        memory_bytes: int,
    ) -> list[tuple[int, int, int, int, float, bytes, bool]] | None:
        """The cheapest patterns of the cuts that may be the cheapest of all.

        Args:
            cached: (node, bits) of the pieces that need no loading; strange ones do not count.
            budgets: (cuts,) most noise.
            base: (cuts,) cost besides bytes; infinite where the cut does not count.
            down, up: cost of a byte to load and of one of a request, above 0.
            memory_bytes: what the device may hold.

        Returns:
            Of each such cut: the cut, the pair, bytes of its tensors to load and to hold, their noise, an index of a
            width for each tensor, and whether it fits. The pattern is the cheapest whatever it holds, but a cut with
            none that fits is not among them. None while another thread asks, or where noise has no limit in reason.
        """

    def loads(self, cached: Iterable[tuple[int, int]]) -> Ints:
        """(tensors, 8) bytes to load."""
