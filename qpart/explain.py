"""A plan in words and as a table for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qpart.plan import Plan
from qpart.rows import CutRow

MOVES = ("weights", "sent", "down", "up", "memory")
COSTS = ("device", "channel", "server", "energy", "price", "U")
HEADER = ["cut", "after", *MOVES, *COSTS, ""]
WHY_NOT = {"accuracy": "not accurate enough", "memory": "not enough memory", "raw_input_stays": "shows the input"}
MAX_WIDTHS_SHOWN = 12


def table(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Header and one row per cut, all short strings."""
    return list(HEADER), [_cells(row, row.cut == plan.pattern.cut) for row in plan.rows]


def _cells(row: CutRow, chosen: bool) -> list[str]:
    if not row.allowed:
        return [str(row.cut), row.after, *["-"] * (len(HEADER) - 3), WHY_NOT.get(row.why, row.why)]
    return [
        str(row.cut),
        row.after,
        widths(row.weight_bits),
        widths(row.live_bits),
        size(row.download_bytes),
        size(row.up_bytes),
        size(row.memory_bytes),
        seconds(row.device_time_s),
        seconds(row.channel_time_s),
        seconds(row.server_time_s),
        joules(row.energy_j),
        f"{row.price:.3g}",
        f"{row.objective:.4g}",
        "chosen" if chosen else "",
    ]


def reason(plan: Plan) -> str:
    """Which cut won, by how much over the runner-up, all-server and all-device, and which part of the cost decided."""
    won, last = plan.row(), plan.last_cut
    others = sorted((row for row in plan.rows if row.allowed and row.cut != won.cut), key=lambda row: row.objective)
    head = f"{_place(won, last)} wins with U = {won.objective:.4g}"
    if plan.table.only:
        return f"{head}: what the other cuts come to was not asked for."
    if not others:
        return f"{head}: no other cut is allowed."
    against = [f"{_less(won, others[0])} than the runner-up, {_place(others[0], last)}"]
    for row in (plan.row(0), plan.row(last)):
        if row.cut in (won.cut, others[0].cut):
            continue
        name = _place(row, last)
        against.append(
            f"{_less(won, row)} than {name}" if row.allowed else f"{name} is out ({WHY_NOT.get(row.why, row.why)})"
        )
    return f"{head}: {'; '.join(against)}. {_decided(plan, won, others[0])}"


def _place(row: CutRow, last: int) -> str:
    if row.cut in (0, last):
        return "all-server" if row.cut == 0 else "all-device"
    return f"cut {row.cut} (after {row.after})"


def _less(won: CutRow, other: CutRow) -> str:
    return f"{(1 - won.objective / other.objective if other.objective else 0.0):.1%} less"


def _decided(plan: Plan, won: CutRow, other: CutRow) -> str:
    """The part of the objective in which the winner gains most on the runner-up."""
    gains = {name: part - parts(plan, won)[name] for name, part in parts(plan, other).items()}
    name = max(gains, key=lambda key: gains[key])
    if gains[name] <= 0:
        return "The two cost the same; fewer bytes decide."
    return f"What decides against the runner-up is {name}: {gains[name]:.3g} of U."


def parts(plan: Plan, row: CutRow) -> dict[str, float]:
    """The objective of a row, part by part."""
    weights = plan.weights
    return {
        "device time": weights.time * row.device_time_s,
        "channel time": weights.time * row.channel_time_s,
        "server time": weights.time * row.server_time_s,
        "energy": weights.energy * row.energy_j,
        "price": weights.price * row.price,
    }


def widths(bits: Sequence[int]) -> str:
    """Widths in order while they are few, counted by width when they are many.

    >>> widths((4, 3, 16)), widths((4,) * 20 + (3,) * 5)
    ('4 3 16', '5x3 20x4')
    """
    if not bits:
        return "-"
    if len(bits) <= MAX_WIDTHS_SHOWN:
        return " ".join(map(str, bits))
    return " ".join(f"{count}x{width}" for width, count in sorted(Counter(bits).items()))


def size(num_bytes: int) -> str:
    """Bytes, shortened.

    >>> size(0), size(999), size(12_345), size(3_000_000)
    ('0 B', '999 B', '12.3 kB', '3 MB')
    """
    if num_bytes < 1000:
        return f"{num_bytes} B"
    return f"{num_bytes / 1e3:.3g} kB" if num_bytes < 999_500 else f"{num_bytes / 1e6:.3g} MB"


def seconds(time_s: float) -> str:
    """Seconds, shortened.

    >>> seconds(0.0), seconds(0.0000123), seconds(0.25), seconds(12.0)
    ('0 s', '12.3 us', '250 ms', '12 s')
    """
    return _with_prefix(time_s, "s")


def joules(energy_j: float) -> str:
    """Energy, shortened.

    >>> joules(0.0), joules(0.0000123), joules(0.25), joules(12.0)
    ('0 J', '12.3 uJ', '250 mJ', '12 J')
    """
    return _with_prefix(energy_j, "J")


def _with_prefix(number: float, unit: str) -> str:
    for factor, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "u")):
        if number >= factor or number == 0:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number / 1e-9:.3g} n{unit}"


def rate(bits_per_s: float) -> str:
    """A rate, shortened.

    >>> rate(800.0), rate(12_300.0), rate(5e6)
    ('800 bit/s', '12.3 kbit/s', '5 Mbit/s')
    """
    for factor, prefix in ((1e6, "M"), (1e3, "k")):
        if bits_per_s >= factor:
            return f"{bits_per_s / factor:.3g} {prefix}bit/s"
    return f"{bits_per_s:.3g} bit/s"
