from qpart.fronts import Floats, Ints

class Search:
    """Looks for the cheapest cuts of one network; one question at a time, with the interpreter's lock held.

    Args:
        psi: (tensors, 8) noise of each tensor with weights at each width.
        held: (tensors, 8) bytes that it takes on the device.
        prefix: (cuts,) how many tensors the device holds at a cut.
        first: (cuts + 1,) the first pair of each cut, and how many pairs there are; see `qpart.cuts.Pairs`.
        pair_psi, pair_up: (pairs,) noise and bytes of a request; of a cut, bytes ascend and noise descends.
        manifest, besides: (cuts,) bytes to load, and to hold, besides the tensors.
        hull_first: (cuts + 1,) likewise of corners.
        hull: pairs that are corners of the convex hulls of the cuts.
    """

    def __init__(
        self,
        psi: Floats,
        held: Ints,
        prefix: Ints,
        first: Ints,
        pair_psi: Floats,
        pair_up: Ints,
        manifest: Ints,
        besides: Ints,
        hull_first: Ints,
        hull: Ints,
    ) -> None: ...
    def run(
        self, load: Ints, budgets: Floats, base: Floats, upper: Floats, down: float, up: float, most_held: int
    ) -> list[tuple[int, int, int, int, bytes, bool]] | None:
        """The cheapest patterns of the cuts that may be the cheapest of all.

        Args:
            load: (tensors, 8) bytes to load.
            budgets: (cuts,) most noise.
            base: (cuts,) cost besides bytes.
            upper: (cuts,) bytes of some pattern within budget and memory, a byte of a request counting as up / down;
                infinite where there is none or the cut does not count.
            down, up: cost of a byte to load and of one of a request, above 0.
            most_held: bytes of memory.

        Returns:
            Of each such cut: the cut, the pair, bytes of its tensors to load and to hold, an index of a width for each
            tensor, and whether it fits. Memory counts for `upper` only: the pattern is the cheapest that there is.
            None while another thread asks.
        """
