"""The device for asyncio: the same answers, cancelled tasks, back pressure, threads that end."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading

import pytest

import sled
from sled.errors import AnswerIncomplete, ParameterError, PromptTooLong
from sled.events import Finished, Opened, RoundEnded
from sled.run.pump import Pump, Worker
from sled.testing import ToyDrafter, ToyTarget
from sled.types import Token
from sled.window import Window

pytestmark = pytest.mark.net

PROMPT = [5, 6, 7, 8, 5, 6]


def opening(served, endpoint, drafter="none"):
    return sled.AsyncDevice.open(
        endpoint,
        server_key=served.directory / "server" / "node.key",
        keys=served.directory / "device",
        drafter=drafter,
        timeout_s=10.0,
        cache_dir=served.directory / "cache",
    )


def device_threads():
    return [thread for thread in threading.enumerate() if thread.name == "sled-device"]


async def until(condition, what):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{what}: not within 10 s")


def test_tokens_events_and_answer_are_those_of_the_sync_device(served):
    async def main(endpoint):
        async with await opening(served, endpoint, ToyDrafter(served.target, error=0.3)) as device:
            tokens = [token async for token in device.generate(PROMPT, max_tokens=30, window=Window(4))]
            stream = device.generate(PROMPT, max_tokens=30, window=Window(4))
            events = [event async for event in stream.events()]
            answer = await device.generate(PROMPT, max_tokens=30).answer()
            chat = await device.chat([{"role": "user", "content": "abc"}], max_tokens=5).answer()
            assert device.target.name == "toy"
            assert (device.server, device.drafter.name) == (endpoint, "toy")
            return tokens, events, answer, chat, await stream.answer()

    with served.serving() as endpoint:
        tokens, events, answer, chat, again = asyncio.run(main(endpoint))
    expected = served.target.plain_answer(PROMPT, sled.Sampling(), 30)
    assert [token.id for token in tokens] == answer.tokens == again.tokens == expected
    assert [(each.id, each.pos, each.text) for each in events if isinstance(each, Token)] == [
        (each.id, each.pos, each.text) for each in tokens
    ]
    assert isinstance(events[0], Opened)
    assert isinstance(events[-1], Finished)
    assert any(isinstance(event, RoundEnded) for event in events)
    assert chat.tokens == served.target.plain_answer(
        [1, *served.target.codec.encode("abc", chat=False)], sled.Sampling(), 5
    )
    assert not device_threads()


def test_a_cancelled_task_frees_the_device_at_once_and_closes_the_session(served):
    async def main(endpoint):
        async with await opening(served, endpoint) as device:
            begun = asyncio.Event()

            async def read():
                async for _ in device.generate(PROMPT, max_tokens=4000, stop="no such text"):
                    begun.set()

            task = asyncio.create_task(read())
            await asyncio.wait_for(begun.wait(), 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            answer = await device.generate(PROMPT, max_tokens=6).answer()
            assert answer.tokens == served.target.plain_answer(PROMPT, sled.Sampling(), 6)
            await until(lambda: not served.server._machine.sessions, "both sessions are closed")

    with served.serving() as endpoint:
        asyncio.run(main(endpoint))
    assert not device_threads()


class Stuck(ToyTarget):
    """Computes the first round, and the others when it is let go."""

    let_go, rounds = threading.Event(), 0

    def verify(self, chunks, rounds):
        self.rounds += bool(rounds)
        if self.rounds > 1:
            self.let_go.wait(20)
        return super().verify(chunks, rounds)


def test_an_answer_whose_verdict_does_not_come_ends_without_it(served):
    """The pump is over while the server still computes: nobody waits for the round's timeout."""
    target = Stuck()

    async def main(endpoint):
        async with await opening(served, endpoint, ToyDrafter(target)) as device:
            stream = device.generate(PROMPT, max_tokens=40, window=Window(2))
            reading = asyncio.create_task(stream.answer())
            await until(lambda: target.rounds > 1, "the second round is there")
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await until(lambda: not device.sync._streaming, "the device is free")
            assert not target.let_go.is_set()
            target.let_go.set()

    with served.serving(target=target) as endpoint:
        asyncio.run(main(endpoint))


class Deaf(ToyDrafter):
    """Never finishes its first draft until it is let go."""

    def __init__(self, target) -> None:
        super().__init__(target)
        self.asked, self.let_go = threading.Event(), threading.Event()

    def draft(self, text, limit):
        self.asked.set()
        self.let_go.wait(10)
        return super().draft(text, limit)


def test_a_timeout_ends_an_answer_that_hangs_and_the_next_one_runs(served):
    drafter = Deaf(served.target)

    async def main(endpoint):
        async with await opening(served, endpoint, drafter) as device:
            stream = device.generate(PROMPT, max_tokens=8, window=Window(4))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await stream.answer()
            drafter.let_go.set()
            answer = await device.generate(PROMPT, max_tokens=8, window=Window(4)).answer()
            assert answer.tokens == served.target.plain_answer(PROMPT, sled.Sampling(), 8)
            with pytest.raises(AnswerIncomplete):
                await stream.answer()

    with served.serving() as endpoint:
        asyncio.run(main(endpoint))
    assert drafter.asked.is_set()


def test_errors_are_those_of_the_sync_device(served):
    async def main(endpoint):
        async with await opening(served, endpoint) as device:
            with pytest.raises(ParameterError, match="max_tokens"):
                device.generate(PROMPT, max_tokens=0)
            with pytest.raises(PromptTooLong):
                await device.generate([5] * 5000).answer()
            first = device.generate(PROMPT, max_tokens=50)
            assert (await anext(aiter(first))).pos == len(PROMPT)
            with pytest.raises(ParameterError, match="busy with another answer"):
                await device.generate(PROMPT).answer()
            await first.close()
            assert (await device.generate(PROMPT, max_tokens=2).answer()).tokens
        with pytest.raises(ParameterError, match="closed"):
            await device.generate(PROMPT).answer()
        await device.close()

    with served.serving() as endpoint:
        asyncio.run(main(endpoint))
    with pytest.raises(sled.UnknownModel), served.serving() as endpoint:
        asyncio.run(opening(served, endpoint, "no such drafter"))
    assert not device_threads()


def test_a_stream_or_device_that_is_forgotten_ends(served):
    async def main(endpoint):
        device = await opening(served, endpoint)
        async for _ in device.generate(PROMPT, max_tokens=4000):
            break
        gc.collect()
        assert (await device.generate(PROMPT, max_tokens=3).answer()).tokens
        async with device.generate(PROMPT, max_tokens=4000) as stream:
            async for _ in stream:
                break
        (thread,) = device_threads()
        del device, stream, _
        gc.collect()
        await until(lambda: not thread.is_alive(), "the thread of a forgotten device ends")

    with served.serving() as endpoint:
        asyncio.run(main(endpoint))


def test_a_stream_refused_by_a_busy_device_closes_and_can_be_read_later(served):
    async def main(endpoint):
        async with await opening(served, endpoint) as device:
            async with device.generate(PROMPT, max_tokens=4000, stop="no such text") as first:
                await anext(aiter(first))
                second = device.generate(PROMPT, max_tokens=6)
                with pytest.raises(ParameterError, match="busy"):
                    aiter(second)
                async with asyncio.timeout(10):
                    await second.close()
            async with asyncio.timeout(10):
                return [token.id async for token in second]

    with served.serving() as endpoint:
        assert asyncio.run(main(endpoint)) == served.target.plain_answer(PROMPT, sled.Sampling(), 6)


def test_whoever_asks_a_device_that_is_closed_is_told_so(served):
    async def main(endpoint):
        sampling = sled.Sampling(bias=((0, -100.0),))
        async with await opening(served, endpoint) as device:
            stream = device.generate(PROMPT, max_tokens=4000, sampling=sampling)
            tokens = aiter(stream)
            await anext(tokens)
        async with asyncio.timeout(10):
            assert len([token async for token in tokens]) < 100  # of what had come
            with pytest.raises(AnswerIncomplete, match="broken off"):
                await stream.answer()
            with pytest.raises(ParameterError, match="closed"):
                await device.generate(PROMPT).answer()
            await stream.close()

    with served.serving() as endpoint:
        asyncio.run(main(endpoint))


def test_a_task_cancelled_while_connecting_leaves_no_thread_and_no_link(served):
    held = threading.Event()

    def progress(share):
        held.wait(10)

    async def main(endpoint):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sled.run.device.open_drafter", lambda *a, **k: (held.wait(10), ToyDrafter(served.target))[1])
            task = asyncio.create_task(opening(served, endpoint))
            await until(device_threads, "it connects")
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            held.set()
            await until(lambda: not device_threads(), "its thread ends")

    with served.serving() as endpoint:
        asyncio.run(main(endpoint))


class Endless:
    """A stream of numbers that counts how far it got."""

    def __init__(self, error=None) -> None:
        self.made, self.closed, self.cancelled, self.error = 0, False, threading.Event(), error

    def items(self):
        while self.error is None or self.made < 3:
            self.made += 1
            yield self.made
        raise self.error

    def cancel(self):
        self.cancelled.set()

    def close(self):
        self.closed = True


def test_a_pump_is_no_further_ahead_than_it_may_be():
    stream, worker = Endless(), Worker("pump")
    pump = Pump(stream, stream.items, ahead=4)
    worker.do(pump.run)
    assert [pump.take(10) for _ in range(10)] == list(range(1, 11))
    assert stream.made <= 10 + 4 + 1
    pump.cancel()
    assert pump.wait(10)
    assert stream.cancelled.is_set()
    assert stream.closed
    assert pump.take(0) is None
    worker.end()
    assert worker.join(10)


def test_a_pump_gives_the_error_after_the_last_item_and_once():
    stream, worker = Endless(RuntimeError("broken")), Worker("pump")
    pump = Pump(stream, stream.items)
    worker.do(pump.run)
    assert pump.wait(10)
    assert [pump.take(0) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(RuntimeError, match="broken"):
        pump.take(0)
    assert pump.take(0) is None
    worker.end()
    assert worker.join(10)


def test_a_pump_cancelled_before_it_runs_starts_nothing():
    stream = Endless()
    pump = Pump(stream, stream.items)
    pump.cancel()
    pump.run()
    assert (stream.made, stream.closed, pump.over) == (0, True, True)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sled", {"asyncio", "numpy", "zmq", "torch", "typer", "rich"}),
        ("import sled; sled.Device", {"asyncio", "zmq", "torch", "typer", "rich"}),
        ("import sled; sled.AsyncDevice", {"torch", "transformers", "typer", "rich"}),
    ],
)
def test_importing_brings_only_what_is_used(statement, absent):
    code = f"{statement}; import sys; print(*sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert not absent & set(out.split())


def test_every_public_name_exists():
    for name in sled.__all__:
        assert getattr(sled, name) is not None
    assert set(sled.__all__) <= set(dir(sled))
    with pytest.raises(AttributeError, match="Devise"):
        sled.Devise  # noqa: B018
