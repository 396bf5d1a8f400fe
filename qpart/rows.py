"""The table of a plan: every cut with its best pattern and what one inference costs there.

It is kept and sent column by column. A row is made when somebody looks at it: few of hundreds ever are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec

from qpart.network import MAX_NODES
from qpart.tables import WIDTHS, BitList

Why = Literal["", "accuracy", "memory", "raw_input_stays"]
WHY: tuple[Why, ...] = get_args(Why)
MAX_CUTS = MAX_NODES + 1
_KNOWN_WHY, _KNOWN_WIDTHS = bytes(range(len(WHY))), bytes(WIDTHS)

Names = Annotated[tuple[Annotated[str, msgspec.Meta(max_length=64)], ...], msgspec.Meta(max_length=MAX_CUTS)]
Widths = Annotated[tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_NODES)], ...], msgspec.Meta(max_length=MAX_CUTS)]
Whole = Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_CUTS)]
Cut = Annotated[int, msgspec.Meta(ge=0, le=MAX_NODES)]
Real = Annotated[tuple[float, ...], msgspec.Meta(max_length=MAX_CUTS)]


class CutRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One cut of a plan: its best pattern and what one inference costs.

    Attributes:
        cut: the device runs nodes[:cut].
        after: name of the last of them, or "input".
        allowed: whether the request can be served here; where not, all numbers are 0.
        why: the constraint that forbids it, or empty.
        memory_bytes: what the device holds at most, for one sample: its part of the network, activations, scratch, a
            dequantised layer. The interpreter and its objects come on top.
        channel_time_s: request, answer, round trip, and the download divided by the inferences.
    """

    cut: int
    after: str
    allowed: bool
    why: Why = ""
    weight_bits: BitList = ()
    live_bits: BitList = ()
    download_bytes: int = 0
    up_bytes: int = 0
    device_time_s: float = 0.0
    channel_time_s: float = 0.0
    server_time_s: float = 0.0
    energy_j: float = 0.0
    price: float = 0.0
    objective: float = 0.0
    memory_bytes: int = 0

    @property
    def time_s(self) -> float:
        """Seconds of one inference."""
        return self.device_time_s + self.channel_time_s + self.server_time_s


class CutTable(msgspec.Struct, frozen=True, array_like=True):
    """`CutRow` of cuts 0 .. L, column by column, or of one of them alone; all columns are as long.

    Attributes:
        why: one byte for each cut, 0 where it is allowed, else the position in `WHY` of what forbids it.
        weight_bits, live_bits: one byte for each width.
        only: of a table of one cut: which, and L; None where all are there.

    Raises:
        ValueError: columns of other lengths, a width that is none, an unknown constraint, a cut beyond the last.
    """

    after: Names
    why: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_CUTS)]
    weight_bits: Widths
    live_bits: Widths
    download_bytes: Whole
    up_bytes: Whole
    device_time_s: Real
    channel_time_s: Real
    server_time_s: Real
    energy_j: Real
    price: Real
    objective: Real
    memory_bytes: Whole
    only: tuple[Cut, Cut] | None = None

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in self.__struct_fields__ if name != "only"}
        if len(lengths) > 1:
            raise ValueError(f"the columns of a plan's table are as long as there are cuts, got {sorted(lengths)}")
        if self.why.translate(None, _KNOWN_WHY):
            raise ValueError(f"what forbids a cut is one of {WHY[1:]}, by its position from 1; got {max(self.why)}")
        if b"".join(self.weight_bits + self.live_bits).translate(None, _KNOWN_WIDTHS):
            raise ValueError(f"a width in a plan's table is none of {WIDTHS}")
        if self.only and (len(self.why) != 1 or self.only[0] > self.only[1]):
            raise ValueError(f"a table of cut {self.only[0]} of {self.only[1]} alone has {len(self.why)} rows")

    @property
    def last_cut(self) -> int:
        """L."""
        return self.only[1] if self.only else len(self.why) - 1

    @classmethod
    def of(cls, rows: Sequence[CutRow], *, last_cut: int | None = None) -> CutTable:
        """The table with these rows, which are of cuts 0, 1, 2 and so on; with a last cut, of one of so many."""
        names = [name for name in cls.__struct_fields__ if name != "only"]
        columns: dict[str, Any] = {name: tuple(getattr(row, name) for row in rows) for name in names}
        if last_cut is not None:
            columns["only"] = rows[0].cut, last_cut
        for name in ("weight_bits", "live_bits"):
            columns[name] = tuple(map(bytes, columns[name]))
        return cls(**columns | {"why": bytes(map(WHY.index, columns["why"]))})

    def row(self, cut: int) -> CutRow:
        """One cut, 0 .. L; below 0 from the end.

        Raises:
            IndexError: there is no such cut, or the table is of another one alone.
        """
        cut = range(self.last_cut + 1)[cut]
        if self.only and cut != self.only[0]:
            raise IndexError(f"the table is of cut {self.only[0]} alone, not of {cut}; ask for it with explain=True")
        at = 0 if self.only else cut
        if self.why[at]:
            return CutRow(cut=cut, after=self.after[at], allowed=False, why=WHY[self.why[at]])
        return CutRow(
            cut=cut,
            after=self.after[at],
            allowed=True,
            weight_bits=tuple(self.weight_bits[at]),
            live_bits=tuple(self.live_bits[at]),
            download_bytes=self.download_bytes[at],
            up_bytes=self.up_bytes[at],
            device_time_s=self.device_time_s[at],
            channel_time_s=self.channel_time_s[at],
            server_time_s=self.server_time_s[at],
            energy_j=self.energy_j[at],
            price=self.price[at],
            objective=self.objective[at],
            memory_bytes=self.memory_bytes[at],
        )

    def rows(self) -> tuple[CutRow, ...]:
        """All that are there."""
        return tuple(map(self.row, self.only[:1] if self.only else range(len(self.why))))
