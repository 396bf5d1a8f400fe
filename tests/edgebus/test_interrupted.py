"""Exceptions of a signal handler every few milliseconds: who was not interrupted has his answer, and the books balance.

With real nodes, real signals and the compiled modules; test_interrupts.py goes through the lines of the plain ones.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from contextlib import contextmanager

import numpy as np
import pytest

import edgebus
from edgebus import aio, shm
from edgebus.shm import segments
from tests.edgebus.interrupting import Interrupt, alarms
from tests.edgebus.test_interrupts import PLAIN
from tests.edgebus.test_sharing import child, eventually, pool_of, warm

pytestmark = [
    pytest.mark.net,
    pytest.mark.timeout(120, method="thread"),  # the other one has the timer that is used here
    pytest.mark.skipif(not shm.available(), reason="no shared memory here"),
    pytest.mark.skipif(
        PLAIN, reason="plain Python runs a signal handler between any two steps: some outcomes are the deadline's there"
    ),
]
EVERY_S, NUM_ROUNDS, ENOUGH = 0.0037, 200, 5


@contextmanager
def interrupts():
    """Have a signal handler raise every few milliseconds while what it gives is True."""
    armed = [False]

    def interrupt(*_):
        if armed[0]:
            armed[0] = False
            raise Interrupt

    # What hypothesis has the garbage collector call is Python as well, and what is raised there is only told of.
    called, gc.callbacks[:] = gc.callbacks[:], []
    try:
        with alarms(interrupt, EVERY_S):
            yield armed
    finally:
        gc.callbacks[:] = called


def rounds(count, interrupted):
    """Numbers up to `count`, and on until there were interrupts enough: on a fast machine few come."""
    number = 0
    while number < count or (len(interrupted) < ENOUGH and number < 50 * count):
        yield number
        number += 1


def contents(source, sizes, counts):
    return [np.full(source.randrange(*sizes), source.randrange(256), np.uint8) for _ in range(source.choice(counts))]


def check(reply, tag, arrays):
    assert reply.payload == tag
    assert len(reply.arrays) == len(arrays)
    assert all(np.array_equal(got, sent) for got, sent in zip(reply.arrays, arrays, strict=True))


def balance(node, link):
    """Nothing is left of requests that have their outcome."""
    caller, sharing = link._link.caller, node._engine.sharing
    pool = pool_of(node)
    small = np.zeros(100_000, np.uint8)

    def balanced():
        link.request("echo", b"", [small])
        sent = node._engine.sharing._names(link._attached)
        leases = 0 if pool is None else pool.stats().leases
        return (caller.outstanding_bytes, link._link.sender.in_flight_bytes, len(sharing._postponed)) == (0, 0, 0) and (
            leases <= 2 and len(sent) <= 2
        )

    eventually(balanced, 15.0, "that the books balance")
    assert not sharing._unsent_loans | sharing._sent_loans
    assert not link._link.receiver.held_bytes


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("share_bytes", "sizes", "counts"),
    [
        (256 << 20, (70_000, 300_000), [1, 1, 2]),
        (256 << 20, (70_000, 300_000), [9]),
        (0, (70_000, 300_000), [1, 2, 9]),
        (0, (1, 2000), [0]),
    ],
    ids=["near", "many", "whole", "small"],
)
def test_interrupts_cost_those_whom_they_interrupt_and_nobody_else(share_bytes, sizes, counts, seed):
    source, interrupted = random.Random(seed), []
    limits = edgebus.Limits(share_bytes=share_bytes)
    with child() as (process, endpoint), edgebus.Node("d", insecure=True, limits=limits) as node:
        link = node.connect(endpoint)
        if share_bytes:
            warm(link)
        num_open = len(os.listdir("/proc/self/fd"))
        with interrupts() as armed:
            for number in rounds(NUM_ROUNDS, interrupted):
                asked = [(b"%d.%d" % (number, each), contents(source, sizes, counts)) for each in range(3)]
                pendings = []
                for index, (tag, arrays) in enumerate(asked):
                    try:
                        armed[0] = index == 1
                        pendings.append((link.send_request("echo", tag, arrays), tag, arrays))
                    except Interrupt:
                        interrupted.append(number)
                    armed[0] = False
                for index, (pending, tag, arrays) in enumerate(pendings):
                    try:
                        armed[0] = index < 2
                        reply = pending.result()
                        armed[0] = False
                    except Interrupt:
                        interrupted.append(number)
                        reply = pending.result()
                    check(reply, tag, arrays)
                pendings = pending = reply = None
        assert len(interrupted) >= ENOUGH
        balance(node, link)
        assert len(os.listdir("/proc/self/fd")) <= num_open + 8
        assert process.poll() is None


def test_loans_that_are_interrupted_come_back():
    with child() as (_, endpoint), edgebus.Node("d", insecure=True) as node:
        link = node.connect(endpoint)
        warm(link)
        interrupted = []
        with interrupts() as armed:
            for number in rounds(3 * NUM_ROUNDS, interrupted):
                try:
                    armed[0] = True
                    loan = link.loan((200_000,), "uint8")
                    loan[:] = number % 256
                    reply = link.request("echo", b"%d" % number, [loan])
                    armed[0] = False
                    check(reply, b"%d" % number, [loan])
                except Interrupt:
                    interrupted.append(number)
                armed[0] = False
                loan = reply = None
        assert len(interrupted) >= ENOUGH
        balance(node, link)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the standard library's weak sets
@pytest.mark.parametrize("what", ["segment made", "segment mapped", "pipes"])
def test_interrupts_leave_no_descriptor_open(what):
    """Between a file and the line that keeps it: one now and then was never closed."""
    kept, interrupted = segments.Segment(1 << 13), []

    def pipes():
        made, names = shm.make_pipes()
        found = shm.find_pipes(os.getpid(), names)
        made.close()
        found.close()

    work = {
        "segment made": lambda: segments.Segment(1 << 20).close(),
        "segment mapped": lambda: segments.open_segment(kept.info).close(),
        "pipes": pipes,
    }[what]
    gc.collect()
    num_open = len(os.listdir("/proc/self/fd"))
    with interrupts() as armed:
        while len(interrupted) < 80:
            try:
                armed[0] = True
                for _ in range(1000):
                    work()
            except Interrupt:
                interrupted.append(what)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == num_open
    kept.close()


def test_interrupts_while_a_coroutine_asks_cost_no_answer_of_another():
    """In the loop itself an exception may cost anything: it comes while the bus is asked to send."""
    source, interrupted = random.Random(3), []

    async def ask(link, armed, number):
        arrays, tag = contents(source, (70_000, 200_000), [0, 1]), b"%d" % number
        try:
            armed[0] = True
            pending = await link.send_request("echo", tag, arrays)
            armed[0] = False
        except Interrupt:
            interrupted.append(number)
            return
        check(await pending, tag, arrays)

    async def main(endpoint, armed):
        async with aio.Node("d", insecure=True) as node:
            link = await node.connect(endpoint)
            for number in rounds(NUM_ROUNDS, interrupted):
                await asyncio.gather(*[ask(link, armed, 3 * number + each) for each in range(3)])
            await asyncio.to_thread(balance, node.sync, link.sync)

    with child() as (_, endpoint), interrupts() as armed:
        asyncio.run(main(endpoint, armed))
    assert len(interrupted) >= ENOUGH
