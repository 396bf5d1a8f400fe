"""What one inference costs at a cut: one formula, for one cut as numbers or for all of them as arrays.

Pure. Seconds come from measured times of every node where a profile has them, from multiply-accumulates where not.

Source: design section 2, arXiv 2506.23934.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import numpy as np

from qpart.errors import RequestError
from qpart.fronts import Floats
from qpart.network import Network
from qpart.profile import Request, ServerProfile
from qpart.tables import Tables

Number = TypeVar("Number", float, Floats)


class Compute(NamedTuple):
    """(cuts,) each: multiply-accumulates and seconds of the device's part, seconds of the server's."""

    device_macs: Floats
    device_s: Floats
    server_s: Floats


class CutCosts(NamedTuple, Generic[Number]):
    """One inference: seconds of device, channel and server, the device's joules, money, and their weighted sum."""

    device_s: Number
    channel_s: Number
    server_s: Number
    energy_j: Number
    price: Number
    objective: Number


class Fixed:
    """What is the same for all requests: (cuts,) each, multiply-accumulates of both parts, bytes, round trips."""

    def __init__(self, tables: Tables) -> None:
        network = tables.network
        macs = np.array(network.macs, np.float64)
        self.network = network
        self.device_macs: Floats = np.concatenate([[0.0], np.cumsum(macs)])
        self.server_macs: Floats = np.concatenate([np.cumsum(macs[::-1])[::-1], [0.0]])
        self.answer_bytes: Floats = np.array(tables.answer_bytes, np.float64)
        self.round_trips: Floats = np.array([*(1.0 for _ in network.nodes), 0.0])
        self.after = tuple(network.name_of(cut) for cut in range(network.num_nodes + 1))
        self.level_budgets = tuple(tables.budget.budget(level) for level in tables.levels)
        self.shows_input = np.array([network.shows_input(cut) for cut in range(network.num_nodes + 1)])

    def without_bytes(self, request: Request, server: ServerProfile, compute: Compute) -> Floats:
        """(cuts,) the objective of `costs`, to rounding, if nothing were loaded and nothing sent but the answers."""
        channel, device, weights = request.channel, request.device, request.weights
        down = 8 * (weights.time + weights.energy * channel.rx_watts) / channel.down_bits_per_s
        total = weights.energy * device.joules_per_mac * compute.device_macs
        total += (weights.time + weights.energy * device.watts) * compute.device_s
        total += (weights.time + weights.price * server.price_per_s) * compute.server_s
        total += down * self.answer_bytes
        total += weights.time * channel.round_trip_s * self.round_trips
        return total

    def compute(self, request: Request, server: ServerProfile) -> Compute:
        """Work of both parts at every cut.

        Raises:
            RequestError: a profile was measured with another network.
        """
        device_s = self.device_macs / request.device.macs_per_s
        server_s = self.server_macs / server.macs_per_s
        if request.device.layer_s:
            device_s = np.concatenate([[0.0], np.cumsum(_layers(request.device.layer_s, self.network, "device"))])
        if server.layer_s:
            layers = _layers(server.layer_s, self.network, "server")
            server_s = np.concatenate([np.cumsum(layers[::-1])[::-1], [0.0]])
        return Compute(self.device_macs, device_s, server_s)


def costs(
    request: Request,
    server: ServerProfile,
    *,
    device_macs: Number,
    device_s: Number,
    server_s: Number,
    download_bytes: Number,
    up_bytes: Number,
    answer_bytes: Number,
    round_trips: Number,
) -> CutCosts[Number]:
    """T, E, C and U of one inference; the download is spread over the inferences.

    Args:
        request: rates, powers, weights, number of inferences.
        server: its price.
        device_macs, device_s, server_s: see `Compute`.
        download_bytes, up_bytes, answer_bytes: what is loaded once, sent, and answered.
        round_trips: 0 where nothing is asked, else 1.
    """
    channel, device, weights = request.channel, request.device, request.weights
    up_s = 8 * up_bytes / channel.up_bits_per_s
    down_s = 8 * download_bytes / (request.inferences * channel.down_bits_per_s)
    down_s = down_s + 8 * answer_bytes / channel.down_bits_per_s
    channel_s = up_s + down_s + channel.round_trip_s * round_trips
    energy = device.joules_per_mac * device_macs + device.watts * device_s
    energy = energy + (channel.tx_watts * up_s + channel.rx_watts * down_s)
    price = server.price_per_s * server_s
    total = weights.time * (device_s + channel_s + server_s) + weights.energy * energy + weights.price * price
    return CutCosts(device_s, channel_s, server_s, energy, price, total)


def _layers(layer_s: tuple[float, ...], network: Network, whose: str) -> Floats:
    if len(layer_s) != network.num_nodes:
        raise RequestError(
            f"the profile of the {whose} has times of {len(layer_s)} nodes, the network has {network.num_nodes}; "
            "measure it with this network (qpart profile), or leave layer_s out"
        )
    return np.array(layer_s)
