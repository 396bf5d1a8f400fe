"""The closed loop: sessions that ask, read to the end and ask again, until the turn is over."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bench.macro.serving.cells import asks
from sled.swarm.account import Arrival, Asked, Record

Arrived = Callable[[int], None]
# (session, prompt, wanted, arrived) -> when the answer is complete; calls arrived(tokens) whenever some came.
Answer = Callable[[int, int, int, Arrived], Awaitable[Any]]


async def drive(answer: Answer, *, sessions: int, window_s: float, limit_s: float, num_prompts: int) -> Record:
    """One turn.

    Args:
        answer: gets one answer.
        sessions: that run at once.
        window_s: how long to go on once every session has a token.
        limit_s: the turn is over by then, whatever came.
        num_prompts: prompts are numbered 0 .. num_prompts - 1.

    Raises:
        Exception: what an answer raised; the turn is void.
    """
    record = Record(sessions, [], [], 0.0)
    began, waiting, all_running = time.perf_counter(), set(range(sessions)), asyncio.Event()

    async def session(number: int) -> None:
        for count, (prompt, wanted) in enumerate(asks(number, sessions, num_prompts)):

            def arrived(tokens: int, count: int = count) -> None:
                record.arrivals.append(Arrival(number, count, time.perf_counter() - began, tokens))
                waiting.discard(number)
                if not waiting:
                    all_running.set()

            record.asked.append(Asked(number, count, time.perf_counter() - began))
            await answer(number, prompt, wanted, arrived)

    async def until_over() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await all_running.wait()
                await asyncio.sleep(window_s)
        record.end_s = time.perf_counter() - began

    tasks = [asyncio.create_task(session(number)) for number in range(sessions)]
    over = asyncio.create_task(until_over())
    done, _ = await asyncio.wait([over, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in (over, *tasks):
        task.cancel()
    await asyncio.gather(over, *tasks, return_exceptions=True)
    for task in done:
        task.result()
    return record
