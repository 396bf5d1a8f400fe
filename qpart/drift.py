"""When channel and device are no longer what a plan was made for: when to ask for another, and when to take it.

Pure: time is an argument. What is measured is averaged, so that one slow request means nothing; a plan is asked for
only when the objective of the cut in use has been off by a margin for a while; and what comes is taken only if it gains
a margin after its download. So under noise nothing flaps, and a lasting change is followed within seconds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from msgspec.structs import replace

from qpart.errors import RequestError
from qpart.plan import Plan
from qpart.profile import MAX_LAYER_S, DeviceProfile, Request
from qpart.rows import CutRow

_MOST_CHANGE = 1e4
"""Measured numbers count for at most so many times what was planned, and at least for that part of it."""


class Seen(NamedTuple):
    """One answered request, as its device saw it.

    Attributes:
        at: when its answer was there, seconds.
        sent_at: when it was given to the bus.
        up_bytes: of the request.
        samples: in it.
        head_s: the device computed so long.
        server_s: between arrival over there and the end of the forward, as the server says.
        round_trip_s: of an empty message that waits behind nothing; not a number if that is unknown.
    """

    at: float
    sent_at: float
    up_bytes: int
    samples: int
    head_s: float
    server_s: float
    round_trip_s: float


class Averages:
    """What lately was, the older the less it counts: it halves every `half_life_s`.

    Requests may overlap. One begins to travel when it is sent or when the one before has arrived, whichever is later,
    and has arrived half a round trip and the server's time before its answer is there.
    """

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._at = -math.inf
        self._arrived_at = -math.inf
        self._bytes = self._travel_s = self._head_s = self._samples = self._round_trip_s = self._weight = 0.0

    def add(self, seen: Seen) -> None:
        """Take in a request."""
        fading = 0.0 if self._at == -math.inf else 0.5 ** (max(0.0, seen.at - self._at) / self._half_life_s)
        self._at = max(self._at, seen.at)
        half_s = 0.0 if math.isnan(seen.round_trip_s) else seen.round_trip_s / 2
        arrived_at = seen.at - seen.server_s - half_s
        began = max(seen.sent_at + half_s, self._arrived_at)
        travel_s = max(1e-9, arrived_at - began)
        self._arrived_at = max(self._arrived_at, arrived_at)
        self._bytes = fading * self._bytes + seen.up_bytes
        self._travel_s = fading * self._travel_s + travel_s
        self._head_s = fading * self._head_s + seen.head_s
        self._samples = fading * self._samples + seen.samples
        if not math.isnan(seen.round_trip_s):
            self._round_trip_s = fading * self._round_trip_s + seen.round_trip_s
            self._weight = fading * self._weight + 1.0

    def forget_head(self) -> None:
        """Another head is run from now on."""
        self._head_s = self._samples = 0.0

    @property
    def up_bits_per_s(self) -> float | None:
        """The uplink's rate; None before the first request."""
        return 8 * self._bytes / self._travel_s if self._travel_s else None

    @property
    def head_s(self) -> float | None:
        """Seconds of the head for one sample; None before the first."""
        return self._head_s / self._samples if self._samples else None

    @property
    def round_trip_s(self) -> float | None:
        """The round trip; None if it was never measured."""
        return self._round_trip_s / self._weight if self._weight else None


class DriftLimits(NamedTuple):
    """How sure to be before anything is done.

    Attributes:
        margin: the objective must be off by more than this share, either way, before another plan is asked for.
        hold_s: and be so for this long.
        gain: another plan must be better by more than this share, its download included, to be taken.
        pause_s: between two questions; doubles, up to 16 times this, while the answers are not taken.
        half_life_s: of the averages.
        requests: answered since the last question, before there is another.
    """

    margin: float = 0.25
    hold_s: float = 3.0
    gain: float = 0.1
    pause_s: float = 5.0
    half_life_s: float = 2.0
    requests: int = 8


class Drift:
    """Watches one device.

    Args:
        request: what the plan in use was asked with.
        plan: that plan.
        limits: see there.

    Raises:
        RequestError: a limit is out of range.
    """

    def __init__(self, request: Request, plan: Plan, limits: DriftLimits | None = None) -> None:
        self.limits = limits or DriftLimits()
        for name, value in self.limits._asdict().items():
            if not 0 <= value < math.inf or (name in ("half_life_s", "margin") and not value):
                raise RequestError(f"{name} is {value}, give a number above 0")
        self._averages = Averages(self.limits.half_life_s)
        self._declined = 0
        self._not_before, self._off_since = -math.inf, math.inf
        self._use(request, plan)

    def see(self, seen: Seen) -> None:
        """A request under the plan in use was answered."""
        self._averages.add(seen)
        self._answers += seen.samples
        self._since += 1
        difference = abs(predicted(self._row, self._request, self.measured()) - self._expected)
        off = difference > self.limits.margin * self._expected
        self._off_since = min(self._off_since, seen.at) if off else math.inf

    def wants_plan(self, *, now: float) -> bool:
        """Whether it is time to ask for another plan, with `measured`."""
        held = now - self._off_since >= self.limits.hold_s
        return held and self._since >= self.limits.requests and now >= self._not_before

    def measured(self) -> Request:
        """The request of the plan in use with the numbers as they are now, and the inferences that are left."""
        request, averages = self._request, self._averages
        channel, device = request.channel, request.device
        if averages.up_bits_per_s is not None:
            up = _within(averages.up_bits_per_s, channel.up_bits_per_s)
            channel = replace(channel, up_bits_per_s=min(1e15, max(1.0, up)))
        if averages.round_trip_s is not None:
            channel = replace(channel, round_trip_s=min(3600.0, averages.round_trip_s))
        if averages.head_s and self._row.device_time_s:
            device = slowed(device, _within(averages.head_s / self._row.device_time_s, 1.0))
        return replace(request, channel=channel, device=device, inferences=max(1, request.inferences - self._answers))

    def worth(self, request: Request, plan: Plan) -> bool:
        """Whether another plan, made for what `measured` gave, is worth its download; changes nothing."""
        pattern = plan.pattern
        other = (pattern.cut, pattern.weight_bits, pattern.live_bits) != self._widths
        stay = predicted(self._row, self._request, request)
        return other and plan.cost.objective < stay * (1 - self.limits.gain)

    def take(self, request: Request, plan: Plan, *, now: float) -> None:
        """That plan is in use from now on."""
        self._declined = 0
        self._not_before = now + self.limits.pause_s
        self._averages.forget_head()
        self._use(request, plan)

    def decline(self, request: Request, *, now: float) -> None:
        """It was not worth it: what was measured is expected from now on, and nothing is asked before that changes."""
        self._expected = predicted(self._row, self._request, request)
        self._postpone(now)

    def failed(self, *, now: float) -> None:
        """The question was not answered; the next one comes later."""
        self._postpone(now)

    def _postpone(self, now: float) -> None:
        self._not_before = now + self.limits.pause_s * 2 ** min(self._declined, 4)
        self._declined += 1
        self._since, self._off_since = 0, math.inf

    def _use(self, request: Request, plan: Plan) -> None:
        pattern = plan.pattern
        self._request, self._row = request, plan.row()
        self._widths = pattern.cut, pattern.weight_bits, pattern.live_bits
        self._expected = predicted(self._row, request, request)
        self._answers = self._since = 0
        self._off_since = math.inf


def predicted(row: CutRow, planned: Request, now: Request) -> float:
    """The objective of a cut whose download is paid, as things are now.

    Args:
        row: of the cut, in the plan for `planned`.
        planned: what that plan was made with.
        now: the same with other numbers for channel and device.
    """
    before, after, weights = planned.channel, now.channel, planned.weights
    load_s = 8 * row.download_bytes / (planned.inferences * before.down_bits_per_s)
    more_up_s = 8 * row.up_bytes * (1 / after.up_bits_per_s - 1 / before.up_bits_per_s)
    more_round_s = after.round_trip_s - before.round_trip_s if row.up_bytes else 0.0
    slower = planned.device.macs_per_s / now.device.macs_per_s
    channel_s = row.channel_time_s - load_s + more_up_s + more_round_s
    time_s = row.device_time_s * slower + channel_s + row.server_time_s
    energy_j = row.energy_j - before.rx_watts * load_s + before.tx_watts * more_up_s
    energy_j += planned.device.watts * row.device_time_s * (slower - 1)
    return max(0.0, weights.time * time_s + weights.energy * energy_j + weights.price * row.price)


def slowed(device: DeviceProfile, factor: float) -> DeviceProfile:
    """The same device, so many times slower."""
    macs_per_s = min(1e18, max(1.0, device.macs_per_s / factor))
    layer_s = tuple(min(MAX_LAYER_S, seconds * factor) for seconds in device.layer_s)
    return replace(device, macs_per_s=macs_per_s, layer_s=layer_s)


def _within(value: float, planned: float) -> float:
    """A measured number, in reason."""
    return min(planned * _MOST_CHANGE, max(planned / _MOST_CHANGE, value))
