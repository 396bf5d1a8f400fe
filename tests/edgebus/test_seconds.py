"""Times that an application gives: every public entry takes what it can and says what is wrong with the rest."""

from __future__ import annotations

import asyncio
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import edgebus
import edgebus.blobs
from edgebus import aio
from edgebus.requests import ttl_of

pytestmark = pytest.mark.net
NO_NUMBERS = [None, "3", True, [1], Decimal(3), 1j]
NO_DEADLINES = [0, -1, math.inf, -math.inf, math.nan, 1e300, 10**400, 86_400.5]
NUMBERS = [5, 5.0, np.float32(5), np.int64(5), Fraction(5)]


@pytest.fixture
def world():
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        server.handle("echo", lambda request: request.reply(request.payload, request.arrays))
        server.handle("count", lambda request: (request.push(b"1"), request.reply(b"")))
        server.publish("topic", "key", b"value")
        endpoint = server.bind("tcp://127.0.0.1:0")
        link = device.connect(endpoint)
        with edgebus.Pool(device, [(endpoint, None)]) as pool:
            yield link, pool, device, endpoint


def on_asyncio(call):
    """What a coroutine gives that gets a link."""

    async def main(endpoint, seconds):
        async with aio.Node("device", insecure=True) as node, await node.connect(endpoint) as link:
            return await call(link, seconds)

    return lambda world, seconds: asyncio.run(main(world[3], seconds))


def with_inbox(world, seconds):
    with edgebus.Node("inbox", insecure=True) as server:
        inbox = server.serve("work")
        with edgebus.Node("asks", insecure=True) as device:
            pending = device.connect(server.bind("tcp://127.0.0.1:0")).send_request("work", b"x")
            request = inbox.get(seconds)
            if request is not None:
                request.reply(b"")
                pending.result()


async def with_aio_inbox(world, seconds):
    async with aio.Node("inbox", insecure=True) as server, aio.Node("asks", insecure=True) as device:
        inbox = server.serve("work")
        link = await device.connect(server.bind("tcp://127.0.0.1:0"))
        pending = await link.send_request("work", b"x")
        request = await inbox.get(seconds)
        if request is not None:
            request.reply(b"")
            await pending


def with_topic(world, act):
    with edgebus.subscribe(world[0], "topic", 5) as topic:
        return act(topic)


LARGE = [np.zeros(100_000, np.uint8)]
DEADLINES = {
    "request": lambda world, seconds: world[0].request("echo", b"x", timeout_s=seconds),
    "request with arrays": lambda world, seconds: world[0].request("echo", b"x", LARGE, timeout_s=seconds),
    "request with a key": lambda world, seconds: world[0].request("echo", b"x", timeout_s=seconds, key=b"k"),
    "send_request": lambda world, seconds: world[0].send_request("echo", b"x", timeout_s=seconds).result(),
    "send": lambda world, seconds: world[0].send("echo", b"x", timeout_s=seconds).result(),
    "stream": lambda world, seconds: world[0].stream("count", timeout_s=seconds).result(),
    "pool.request": lambda world, seconds: world[1].request("echo", b"x", timeout_s=seconds),
    "fetch_blob": lambda world, seconds: fetched(edgebus.fetch_blob, world, "0" * 64, seconds),
    "have_blobs": lambda world, seconds: fetched(edgebus.blobs.have_blobs, world, ["0" * 64], seconds),
    "fetch_blobs": lambda world, seconds: fetched(edgebus.blobs.fetch_blobs, world, ["0" * 64], seconds),
    "aio.request": on_asyncio(lambda link, seconds: link.request("echo", b"x", timeout_s=seconds)),
}
WAITS = {
    "Pending.wait": lambda world, seconds: world[0].send_request("echo", b"x").wait(seconds),
    "Stream.get": lambda world, seconds: world[0].stream("count").get(seconds),
    "Inbox.get": with_inbox,
    "Subscription.next": lambda world, seconds: with_topic(world, lambda topic: topic.next(seconds)),
    "aio.Stream.get": on_asyncio(lambda link, seconds: link.stream("count").get(seconds)),
    "aio.Inbox.get": lambda world, seconds: asyncio.run(with_aio_inbox(world, seconds)),
}
READY = {
    "Subscription.wait_synced": lambda world, seconds: with_topic(world, lambda topic: topic.wait_synced(seconds)),
    "subscribe": lambda world, seconds: edgebus.subscribe(world[0], "topic", seconds).close(),
    "pool.link": lambda world, seconds: world[1].link(seconds),
    "pool.wait_ready": lambda world, seconds: world[1].wait_ready(seconds),
}


def fetched(function, world, what, seconds):
    try:
        return function(world[0], what, timeout_s=seconds)
    except (edgebus.Refused, edgebus.blobs.BlobNotFound):
        return None


@pytest.mark.parametrize("entry", [*DEADLINES, "connect", "busy"])
def test_what_is_no_deadline_is_refused_in_words(world, entry):
    entries = DEADLINES | {
        "connect": lambda world, seconds: world[2].connect(world[3], timeout_s=seconds).close(),
        "busy": lambda world, seconds: world[2].busy(seconds),
    }
    name, call = "seconds" if entry == "busy" else "timeout_s", entries[entry]
    for wrong in NO_NUMBERS:
        with pytest.raises(TypeError, match=rf"{name} must be a number of seconds, .*got "):
            call(world, wrong)
    for wrong in NO_DEADLINES:
        if entry in ("connect", "busy") and wrong == 0:
            continue
        with pytest.raises(ValueError, match=rf"{name} must be in [(\[]0, 86400\] seconds, got .*ask"):
            call(world, wrong)
    for right in NUMBERS:
        call(world, right)
    world[2].busy(0)


@pytest.mark.parametrize("entry", [*WAITS, *READY])
def test_waits_take_any_number_but_nan(world, entry):
    call = (WAITS | READY)[entry]
    for wrong in NO_NUMBERS:
        if wrong is None:
            continue
        with pytest.raises(TypeError, match=r"timeout_s must be a number of seconds, .*got "):
            call(world, wrong)
    with pytest.raises(ValueError, match=r"timeout_s must be a number of seconds, .*got nan"):
        call(world, math.nan)
    for right in [*NUMBERS, None, math.inf, 1e300, 10**400]:
        call(world, right)
    if entry in WAITS:
        for once in (0, -1, -math.inf):
            call(world, once)


@pytest.mark.parametrize("wrong", [*NO_NUMBERS[1:], math.nan])
def test_node_is_not_closed_by_what_is_no_time(wrong):
    with edgebus.Node("node", insecure=True) as node:
        with pytest.raises((TypeError, ValueError), match="linger_s must be a number of seconds"):
            node.close(wrong)
        assert node.services()


def test_node_that_has_nothing_to_wait_for_closes_at_once_for_whatever_time():
    for seconds in (0, -1, None, 1e300, math.inf):
        node = edgebus.Node("node", insecure=True)
        node.close(seconds)
        assert node._engine.runner.join(5)


def test_time_to_live_does_not_wrap():
    assert [ttl_of(left_s) for left_s in (math.inf, 1e300, 1e9, 86_400.0)] == [86_400_000] * 4
    assert [ttl_of(left_s) for left_s in (0.0, -1e300, -math.inf, math.nan)] == [0] * 4
    assert [ttl_of(left_s) for left_s in (0.0005, 1.0, 1.0001)] == [1, 1000, 1001]
