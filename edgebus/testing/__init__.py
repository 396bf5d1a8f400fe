"""A virtual network for tests: the machines that run on sockets, on a virtual clock, from one seed.

Messages are lost, duplicated, delayed past each other, cut off; nodes restart. Nothing sleeps and nothing
is random but the seed: the same seed gives the same run, byte for byte, and a failing one is named.

>>> with SimNetwork(seed=7, loss=0.2, duplicate=0.2) as net:
...     server = net.node("server", lambda request: request.reply(request.payload.upper()))
...     link = net.connect(net.node("device"), server)
...     pending = link.send_request("shout", b"hello")
...     done = net.run_until(pending.done, limit_s=20)
...     pending.result().payload
b'HELLO'
"""

from edgebus.testing.clocks import FakeClock, NodeClock
from edgebus.testing.faults import (
    Fault,
    bandwidth,
    clock,
    corrupt,
    crash,
    delay,
    duplicate,
    freeze,
    half_open,
    heal,
    loss,
    partition,
    reorder,
    reset,
    restart,
)
from edgebus.testing.links import SimLink
from edgebus.testing.network import SimNetwork
from edgebus.testing.nodes import SimNode
from edgebus.testing.proxy import Proxy, ProxyStats
from edgebus.testing.replay import check_seeds, for_seeds
from edgebus.testing.script import Script, at, between

__all__ = [
    "FakeClock",
    "Fault",
    "NodeClock",
    "Proxy",
    "ProxyStats",
    "Script",
    "SimLink",
    "SimNetwork",
    "SimNode",
    "at",
    "bandwidth",
    "between",
    "check_seeds",
    "clock",
    "corrupt",
    "crash",
    "delay",
    "duplicate",
    "for_seeds",
    "freeze",
    "half_open",
    "heal",
    "loss",
    "partition",
    "reorder",
    "reset",
    "restart",
]
