import numpy as np
from numpy.typing import NDArray

from qpart.fronts import Floats, Ints

def extended(
    num_bytes: Ints,
    psi: Floats,
    steps: Ints,
    sizes: list[int],
    more_bytes: Ints,
    more_psi: Floats,
    widths: Ints,
    num_widths: Ints,
    most_psi: float,
    most_bytes: Ints,
) -> tuple[Ints, Floats, Ints, list[int]]:
    """The fronts that are there, and behind them one for each further tensor.

    Args:
        num_bytes, psi, steps: (points,) of the fronts that are there, end to end; see `qpart.fronts.Chain`.
        sizes: of these fronts.
        more_bytes, more_psi: (tensors, 8) of each width that is of use, in ascending bytes; then anything.
        widths: (tensors, 8) which widths they are.
        num_widths: (tensors,) how many of the eight count.
        most_psi, most_bytes: points with more are left out, but for the quietest of each front; bytes for each tensor.

    Returns:
        (points,) bytes, noise and steps of all fronts, and their sizes.
    """

def summed(steps: Ints, starts: Ints, values: Ints) -> Ints:
    """(points,) the sum of a (tensors, 8) table over every point's pattern; see `qpart.fronts.Chain`."""

def first_within(
    psi: Floats, starts: Ints, ends: Ints, extra: Floats, cut: Ints, budgets: Floats
) -> tuple[Ints, NDArray[np.bool_]]:
    """For every pair the first point of its front with noise within the budget; see `qpart.cuts.Joined.positions`.

    Args:
        psi: (points,) noise of all fronts, end to end; within a front it descends.
        starts, ends: (pairs,) where the front of each pair begins and ends; none is empty.
        extra: (pairs,) noise that comes on top.
        cut: (pairs,) whose budget counts.
        budgets: (cuts,) most noise.

    Returns:
        (pairs,) points, of the front's last where none is within; (pairs,) whether one is.
    """

def cheapest(
    num_bytes: Ints,
    psi: Floats,
    points: Ints,
    exist: NDArray[np.uint8],
    first: Ints,
    manifest: Ints,
    held: Ints,
    up: Ints,
    extra: Floats,
    down_weight: float,
    up_weight: float,
    most_held: int,
) -> tuple[NDArray[np.bool_], Ints, Ints]:
    """The best pair of every cut; see `qpart.cuts.Joined.cheapest`.

    Args:
        num_bytes, psi: (points,) of all fronts, end to end.
        points, exist: (pairs,) the point that each would take, and whether there is one.
        first: (cuts,) the first pair of each cut; every cut has one.
        manifest, held, up, extra: (pairs,) see `qpart.cuts.Pairs`; `extra` is their noise.
        down_weight, up_weight: cost of a byte.
        most_held: most bytes that the device may hold, `held` among them.

    Returns:
        (cuts,) each: whether there is any, which pair (else the first), and its point.
    """

def widths_back(
    steps: Ints, points: Ints, prefix: Ints, most: int, widths: NDArray[np.uint8], held: Ints | None
) -> tuple[NDArray[np.uint8], Ints]:
    """Widths of every tensor at some points, and what they hold together.

    Args:
        steps: of all fronts, end to end.
        points: (n,) any of them.
        prefix: (n,) of how many tensors a point's front is, `most` at most.
        most: tensors.
        widths: (8,) width of an index.
        held: (tensors, 8) bytes of each tensor at each width; None if nobody asks.

    Returns:
        (n, most) widths, the last tensor's last, 0 before the first; (n,) sums, 0 without `held`.
    """
