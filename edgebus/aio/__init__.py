"""The bus for asyncio: the same nodes, links and errors, awaited. Works with any loop, several of them, and uvloop.

A node's own thread works the sockets and wakes the loop that waits. What a sync program would block in is awaited here;
cancelling a task that waits for an outcome cancels its request. Objects may be used from every loop and thread.

    async with aio.Node("device", keys=load_keys("device")) as node:
        link = await node.connect("tcp://192.168.1.20:7000", server_key=read_public_key("server.key"))
        reply = await link.request("shout", b"hello", timeout_s=2)
"""

from typing import TYPE_CHECKING

from edgebus.aio.calling import Link, Pending, Stream
from edgebus.aio.node import Node
from edgebus.aio.serving import Inbox, Request
from edgebus.aio.subscribing import Subscription, subscribe

if TYPE_CHECKING:
    from edgebus.aio.fetching import fetch_blob

__all__ = ["Inbox", "Link", "Node", "Pending", "Request", "Stream", "Subscription", "fetch_blob", "subscribe"]


def __getattr__(name: str) -> object:
    if name != "fetch_blob":
        raise AttributeError(f"module 'edgebus.aio' has no attribute {name!r}")
    from edgebus.aio.fetching import fetch_blob  # a store of blobs is loaded by who needs it

    return fetch_blob
