"""The asyncio face: what a sync program waits for is awaited, and cancelled with its task; on any loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import edgebus
from edgebus import aio
from edgebus.aio import loops
from edgebus.aio.loops import FAIR, Bell, in_thread
from edgebus.aio.serving import RingingInbox
from edgebus.errors import StreamEnded
from tests.edgebus.interrupting import interrupted

pytestmark = pytest.mark.net
LOOPS = [asyncio.new_event_loop]
with contextlib.suppress(ImportError):
    import uvloop

    LOOPS.append(uvloop.new_event_loop)
    with asyncio.Runner(
        loop_factory=uvloop.new_event_loop
    ) as first:  # libuv keeps two descriptors from its first loop on
        first.run(asyncio.sleep(0))


@pytest.fixture(params=LOOPS, ids=lambda factory: factory.__module__.partition(".")[0])
def run(request):
    """Runs a coroutine for at most 30 s, and fails if it leaves a task behind."""

    def run(coroutine):
        async def main():
            result = await asyncio.wait_for(coroutine, 30)
            await asyncio.sleep(0)
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            assert left == []
            return result

        with asyncio.Runner(loop_factory=request.param, debug=False) as runner:
            return runner.run(main())

    return run


@contextlib.asynccontextmanager
async def joined(where="inproc://aio", **options):
    """A server, a device and the link between them."""
    limits = edgebus.Limits(**options)
    options = {"insecure": True, "limits": limits}
    async with aio.Node("server", **options) as server, aio.Node("device", **options) as device:
        yield server, device, await device.connect(server.bind(where))


@contextlib.asynccontextmanager
async def serving(server, service, answer):
    """A task that answers a service as a coroutine function says."""
    inbox = server.serve(service)

    async def serve():
        async for request in inbox:
            await answer(request)

    task = asyncio.create_task(serve())
    try:
        yield inbox
    finally:
        inbox.close()
        await task


async def echo(request):
    await request.reply(request.payload, request.arrays)


# -- requests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Node", "Link", "Subscription"])
def test_a_verb_takes_the_same_on_both_faces(name):
    plain, awaited = getattr(edgebus, name), getattr(aio, name)
    both = [verb for verb in dir(awaited) if verb[0] != "_" and callable(getattr(plain, verb, None))]
    assert len(both) > 1
    for verb in both:
        takes = [list(inspect.signature(getattr(face, verb)).parameters) for face in (plain, awaited)]
        assert takes[0] == takes[1], verb


@pytest.mark.parametrize("where", ["inproc://aio", "tcp://127.0.0.1:0"])
def test_requests_have_their_replies(run, where):
    async def main():
        array = np.arange(200_000, dtype=np.float32)
        async with joined(where) as (server, _, link), serving(server, "echo", echo):
            assert await link.request("echo", b"small") == (b"small", ())
            reply = await link.request("echo", b"large", [array], copy=False)
            assert np.array_equal(reply.arrays[0], array)
            many = await asyncio.gather(*(link.request("echo", b"%d" % number) for number in range(300)))
            assert [reply.payload for reply in many] == [b"%d" % number for number in range(300)]
            assert link.health == "up"
            assert (link.peer_name, server.name) == ("server", "server")
            assert link.stats().answered == server.stats().total.executed == 302

    run(main())


def test_refusals_and_deadlines_are_the_same_errors(run):
    async def main():
        async with joined() as (server, _, link):
            with pytest.raises(edgebus.Refused) as caught:
                await link.request("nowhere")
            assert caught.value.code == "unknown_service"
            inbox = server.serve("never")
            with pytest.raises(edgebus.DeadlineExceeded):
                await link.request("never", timeout_s=0.25)
            with pytest.raises(ValueError, match="timeout_s"):
                await link.request("never", timeout_s=0)
            late = await inbox.get(0)
            assert late is None or late.remaining_s() < 0.1  # nobody waits for it any more
            with pytest.raises(edgebus.ConfigError):
                server.serve("never")
            inbox.close()

    run(main())


def test_cancelling_a_task_cancels_its_request(run):
    async def main():
        async with joined() as (server, _, link), server.serve("slow") as inbox:
            task = asyncio.create_task(link.request("slow", timeout_s=30))
            request = await inbox.get(5)
            assert request.remaining_s() > 20
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await link.request("edgebus.ping")  # behind the cancellation
            assert request.remaining_s() == 0
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(link.request("slow", timeout_s=30), 0.05)
            stats = link.stats()
            assert (stats.cancelled, stats.outstanding) == (2, 0)

    run(main())


def test_a_pending_request_is_awaited_later_and_by_several(run):
    async def main():
        async with joined() as (server, _, link), server.serve("x") as inbox:
            pending = await link.send_request("x", b"1")
            both = asyncio.gather(pending, pending.result())
            request = await inbox.get(5)
            assert not pending.done()
            assert pending.outcome is None
            request.reply(b"2")  # plain, not awaited
            assert [reply.payload for reply in await both] == [b"2", b"2"]
            assert (await pending).payload == b"2"
            assert pending.outcome == "answered"
            given_up = await link.send_request("x")
            given_up.cancel()
            with pytest.raises(edgebus.RequestCancelled):
                await given_up

    run(main())


def test_one_way_messages_need_not_be_awaited(run):
    async def main():
        async with joined() as (server, _, link), server.serve("tell") as inbox:
            taken = await link.send("tell", b"1")
            await link.send("tell", b"2")
            requests = [await inbox.get(5), await inbox.get(5)]
            assert [request.payload for request in requests] == [b"1", b"2"]
            assert all(request.is_one_way for request in requests)
            await taken
            assert taken.outcome == "answered"

    run(main())


def test_keys_and_sequences_go_through(run):
    async def main():
        async with joined() as (server, _, link), server.serve("x") as inbox:
            first = await link.send_request("x", b"old", sequence=(1, 5))
            second = await link.send_request("x", b"new", sequence=(1, 6), key=b"k")
            with pytest.raises(edgebus.Refused, match="stale"):
                await first
            (await inbox.get(5)).reply(b"done")
            assert (await second).payload == b"done"
            assert (await link.request("x", b"again", key=b"k")).payload == b"done"

    run(main())


def test_tasks_wait_for_room_where_threads_would(run):
    async def main():
        limits = {"max_outstanding_bytes": 1000, "on_full": "wait"}
        async with joined(**limits) as (server, _, link), server.serve("x") as inbox:
            first = await link.send_request("x", bytes(900))
            waiting = asyncio.create_task(link.request("x", bytes(901)))
            with pytest.raises(edgebus.QueueFull):
                await link.send("x", bytes(902), timeout_s=0.05)
            request = await inbox.get(5)
            assert len(request.payload) == 900
            assert not waiting.done()
            request.reply()
            await first
            request = await inbox.get(5)
            assert len(request.payload) == 901
            request.reply(b"ok")
            assert (await waiting).payload == b"ok"

    run(main())


def test_without_waiting_too_much_is_queue_full_at_once(run):
    async def main():
        async with joined(max_outstanding_bytes=1000) as (server, _, link), server.serve("x"):
            await link.send_request("x", bytes(900))
            with pytest.raises(edgebus.QueueFull):
                await link.send_request("x", bytes(900))

    run(main())


# -- serving --------------------------------------------------------------------------------------------


def test_several_tasks_share_an_inbox(run):
    async def main():
        async with joined() as (server, _, link), server.serve("slow") as inbox:
            gate, num_open = asyncio.Event(), 0

            async def work():
                nonlocal num_open
                async for request in inbox:
                    num_open += 1
                    if num_open == 3:
                        gate.set()
                    await gate.wait()
                    request.reply()

            workers = [asyncio.create_task(work()) for _ in range(3)]
            await asyncio.gather(*(link.request("slow") for _ in range(3)))  # only if all three are at work at once
            inbox.close()
            await asyncio.gather(*workers)

    run(main())


def test_no_request_is_lost_when_waiting_tasks_are_cancelled(run):
    async def main():
        async with joined() as (server, _, link), server.serve("x") as inbox:
            for _ in range(100):
                tasks = [asyncio.create_task(inbox.get(10)) for _ in range(2)]
                await asyncio.sleep(0)
                pending = await link.send_request("x")
                tasks[0].cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
                requests = [each for each in done if isinstance(each, aio.Request)]
                assert len(requests) == 1
                requests[0].reply()
                await pending

    run(main())


def test_an_inbox_wait_ends_in_time_and_at_the_end(run):
    async def main():
        async with joined() as (server, _, _), server.serve("x") as inbox:
            began = time.monotonic()
            assert await inbox.get(0.05) is None
            assert 0.04 < time.monotonic() - began < 5
            assert await inbox.get(0) is None
            waiting = asyncio.create_task(inbox.get())
            await asyncio.sleep(0)
            inbox.close()
            assert await waiting is None
            assert inbox.closed

    run(main())


def test_a_dropped_request_is_refused(run):
    async def main():
        async with joined() as (server, _, link), server.serve("x") as inbox:
            pending = await link.send_request("x")
            assert await inbox.get(5) is not None  # and nothing keeps it
            gc.collect()
            with pytest.raises(edgebus.Refused) as caught:
                await pending
            assert caught.value.code == "dropped"

    run(main())


def test_a_flood_leaves_the_loop_its_turns(run):
    async def main():
        async with joined() as (server, _, link), server.serve("x", depth=10_000) as inbox:
            for number in range(3 * FAIR):
                await link.send("x", b"%d" % number)
            turns = 0

            async def count():
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            (await inbox.get(5)).close()
            await link.request("edgebus.ping")  # all of them are there
            counter = asyncio.create_task(count())
            for _ in range(3 * FAIR - 1):
                await inbox.get(0)
            counter.cancel()
            assert turns >= 2

    run(main())


# -- streams --------------------------------------------------------------------------------------------


def test_parts_come_in_order_and_wait_for_room(run):
    async def main():
        ahead = []
        taken = 4

        async def count(request):
            for number in range(request.from_pos, 200):
                assert await request.push(b"%d" % number, [np.full(100, number, np.int32)]) == number
                ahead.append(number - taken)
            await request.reply(b"end")

        async with joined() as (server, _, link), serving(server, "count", count):
            stream = link.stream("count", from_pos=5, window_bytes=4000)
            parts = []
            async for part in stream:
                parts.append(part)
                taken = part.pos
            assert [(part.pos, part.payload) for part in parts] == [(pos, b"%d" % pos) for pos in range(5, 200)]
            assert (await stream.result()).payload == b"end"
            assert stream.ended
            assert stream.position == 200
            assert 1 < max(ahead) <= 2 * 4000 // 400 + 2

    run(main())


def test_a_stream_that_is_refused_says_so(run):
    async def main():
        async def no(request):
            await request.push(b"one")
            await request.refuse("no", "not today")

        async with joined() as (server, _, link), serving(server, "x", no):
            stream = link.stream("x")
            assert (await anext(stream)).payload == b"one"
            with pytest.raises(edgebus.Refused, match="not today"):
                await anext(stream)

    run(main())


@pytest.mark.parametrize("how", ["leave", "cancel the task", "cancel()"])
def test_a_stream_nobody_wants_ends_for_its_server(run, how):
    async def main():
        ended = asyncio.Event()

        async def endless(request):
            try:
                while True:
                    await request.push(bytes(100))
            except StreamEnded:
                ended.set()
            request.sync.forget()

        async with joined() as (server, _, link), serving(server, "endless", endless):
            stream = link.stream("endless", window_bytes=500)
            assert (await stream.get(5)).pos == 0
            if how == "leave":
                async with stream:
                    pass
            elif how == "cancel()":
                stream.cancel()
            else:

                async def read():
                    async for _ in stream:
                        await asyncio.sleep(0)

                task = asyncio.create_task(read())
                await asyncio.sleep(0.02)
                while stream.position < 5:
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                stream.cancel()
            await asyncio.wait_for(ended.wait(), 5)
            with pytest.raises(edgebus.RequestCancelled):
                await stream.result()

    run(main())


def test_cancelling_who_waits_for_the_next_part_cancels_the_stream(run):
    async def main():
        async with joined() as (server, _, link), server.serve("quiet") as inbox:
            stream = link.stream("quiet")
            request = await inbox.get(5)
            task = asyncio.create_task(anext(stream))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(edgebus.RequestCancelled):
                await stream.result()
            await link.request("edgebus.ping")
            with pytest.raises(StreamEnded):
                await request.push(b"too late")

    run(main())


def test_a_push_without_room_ends_in_time(run):
    async def main():
        async with joined() as (server, _, link), server.serve("x") as inbox:
            stream = link.stream("x", window_bytes=100)
            request = await inbox.get(5)
            await request.push(bytes(100))
            with pytest.raises(edgebus.DeadlineExceeded):
                await request.push(bytes(100), timeout_s=0.05)
            assert (await stream.get(5)).pos == 0
            assert await request.push(bytes(100), timeout_s=5) == 1
            assert (await stream.get(5)).pos == 1
            assert await stream.get(0.01) is None
            assert not stream.ended
            stream.cancel()

    run(main())


# -- links and nodes ------------------------------------------------------------------------------------


def test_connect_says_what_is_wrong_and_does_not_hold_the_loop(run, ring):
    async def main():
        async with aio.Node("device", insecure=True) as device:
            turns = 0

            async def count():
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0.001)

            counter = asyncio.create_task(count())
            with pytest.raises(edgebus.PeerUnreachable):
                await device.connect("inproc://nobody", timeout_s=0.2)
            counter.cancel()
            assert turns > 10
            with pytest.raises(edgebus.ConfigError):
                await device.connect("udp://x")
        async with aio.Node("server", keys=ring.keys("server"), allow=ring.allow) as server:
            endpoint = server.bind("tcp://127.0.0.1:0")
            async with aio.Node("stranger", keys=ring.keys("stranger")) as stranger:
                with pytest.raises(edgebus.KeyNotAllowed):
                    await stranger.connect(endpoint, ring.public("server"))
            async with aio.Node("device", keys=ring.keys("device")) as device:
                async with await device.connect(endpoint, ring.public("server")) as link:
                    assert (await link.request("edgebus.ping", b"x")).payload == b"x"
                with pytest.raises(edgebus.NodeClosed):
                    await link.request("edgebus.ping")

    run(main())


def test_a_link_whose_connect_was_cancelled_is_closed(run):
    async def main():
        async with aio.Node("server", insecure=True) as server, aio.Node("device", insecure=True) as device:
            task = asyncio.create_task(device.connect("inproc://late", timeout_s=10))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            server.bind("inproc://late")
            while not server.stats().total.messages_received:
                await asyncio.sleep(0.001)
            while device.stats().peers:
                await asyncio.sleep(0.001)

    run(main())


def test_closing_ends_whoever_waits(run):
    async def main():
        async with joined() as (server, device, link):
            inbox = server.serve("x")
            waiting = asyncio.create_task(link.request("x", timeout_s=60))
            reading = asyncio.create_task(anext(link.stream("x")))
            held = [await inbox.get(5), await inbox.get(5)]
            serving = asyncio.create_task(inbox.get())
            await asyncio.sleep(0)
            await device.close()
            await server.close()
            for task in (waiting, reading):
                with pytest.raises((edgebus.NodeClosed, edgebus.Refused)):
                    await task
            assert await serving is None
            for request in held:
                request.reply(b"harmless")
            with pytest.raises(edgebus.NodeClosed):
                await link.request("x")
            with pytest.raises(edgebus.NodeClosed):
                server.serve("y")

    run(main())


def test_a_loop_that_ends_first_leaves_the_node_alone(caplog):
    with edgebus.Node("server", insecure=True) as server:
        inbox = server.serve("x")
        endpoint = server.bind("inproc://aio")
        with edgebus.Node("device", insecure=True) as sync:

            async def ask():
                link = await aio.Node(sync=sync).connect(endpoint)
                pending = await link.send_request("x", b"1")
                stream = link.stream("x")
                return link.sync, pending, stream

            link, _pending, _stream = asyncio.run(ask())
            for _ in range(2):
                inbox.get(5).reply(b"to nobody")
            pending = link.send_request("x", b"2")
            inbox.get(5).reply(b"to a thread")
            assert pending.result().payload == b"to a thread"
    assert caplog.records == []


def test_two_loops_in_two_threads_share_a_link():
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as sync:
        endpoint, seen = server.bind("inproc://aio"), []

        async def serve(inbox):
            async for request in inbox:
                seen.append(threading.get_ident())
                await request.reply(request.payload)
                await asyncio.sleep(0)

        inbox = aio.Node(sync=server).serve("echo")
        threads = [threading.Thread(target=asyncio.run, args=(serve(inbox),)) for _ in range(2)]
        link = asyncio.run(aio.Node(sync=sync).connect(endpoint))

        async def ask(number):
            for turn in range(100):
                payload = b"%d %d" % (number, turn)
                assert (await link.request("echo", payload)).payload == payload

        async def ask_all(number):
            await asyncio.gather(*(ask(number + turn) for turn in range(4)))

        askers = [threading.Thread(target=asyncio.run, args=(ask_all(number),)) for number in (10, 20)]
        for thread in (*threads, *askers):
            thread.start()
        for thread in askers:
            thread.join(30)
        inbox.close()
        for thread in threads:
            thread.join(5)
        assert len(seen) == 800
        assert len(set(seen)) == 2


def test_a_sync_node_that_waits_would_hold_the_loop():
    limits = edgebus.Limits(on_full="wait")
    with (
        edgebus.Node("x", insecure=True, limits=limits) as sync,
        pytest.raises(edgebus.ConfigError, match="hold the loop"),
    ):
        aio.Node(sync=sync)


# -- small state ----------------------------------------------------------------------------------------


def test_changes_of_a_topic_come_as_they_happen(run):
    async def main():
        async with joined() as (server, _, link):
            server.publish("weather", "wind", b"strong")
            async with await aio.subscribe(link, "weather", timeout_s=5) as weather:
                assert await weather.next(5) == edgebus.Changed("wind", b"strong", 1)
                server.publish("weather", "rain", b"none")
                server.unpublish("weather", "wind")
                changes = [await weather.next(5), await weather.next(5)]
                assert [change.key for change in changes] == ["rain", "wind"]
                assert isinstance(changes[1], edgebus.Removed)
                assert await weather.next(0.02) is None
                assert weather.sync.snapshot() == {"rain": b"none"}
                waiting = asyncio.create_task(anext(weather))
                await asyncio.sleep(0)
                weather.close()
                with pytest.raises(StopAsyncIteration):
                    await waiting

    run(main())


# -- the plumbing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("woken", [False, True])
def test_a_ring_wakes_one_and_is_passed_on(woken):
    async def main():
        bell, items = Bell(), []

        async def take():
            await bell.wait(lambda: bool(items))
            return items.pop()

        tasks = [asyncio.create_task(take()) for _ in range(3)]
        await asyncio.sleep(0)
        items.append(1)
        bell.ring()
        if woken:
            asyncio.get_running_loop().call_soon(tasks[0].cancel)  # after its future was set, before it goes on
        else:
            tasks[0].cancel()
        await asyncio.wait(tasks, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        for _ in range(5):
            await asyncio.sleep(0)
        assert [task.done() for task in tasks] == [True, True, False]
        assert tasks[1].result() == 1
        items.append(2)
        bell.ring()
        assert await asyncio.wait_for(tasks[2], 5) == 2
        assert not await bell.wait(lambda: False, 0.01)

    asyncio.run(main())


def test_what_a_thread_brings_too_late_is_given_back():
    unwanted = []

    async def main():
        go = threading.Event()

        def fetch():
            go.wait(5)
            return "thing"

        task = asyncio.create_task(in_thread(fetch, unwanted=unwanted.append))
        await asyncio.sleep(0)
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not unwanted:
            await asyncio.sleep(0.001)
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0)

    asyncio.run(main())
    assert unwanted == ["thing"]


def test_the_sync_face_does_not_load_asyncio():
    code = "import sys, edgebus; edgebus.Node; print('edgebus.aio' in sys.modules, 'asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split()[0] == "False"


def test_exception_of_a_signal_handler_in_the_middle_of_a_ring_leaves_nobody_waiting(monkeypatch):
    """The thread that sends calls back for others as well, and what it is to tell them is told once."""

    class Interrupt(BaseException):
        pass

    left = [1]

    def post(loop, function, *args):
        if left[0]:
            left[0] -= 1
            raise Interrupt
        return real(loop, function, *args)

    async def main():
        with edgebus.Node("s", insecure=True) as server:
            server.handle("echo", lambda request: request.reply(request.payload))
            async with aio.Node("d", insecure=True) as node:
                link = await node.connect(server.bind("tcp://127.0.0.1:0"))
                runner = node.sync._engine.runner
                runner._calling.acquire()  # nobody calls back before all is there
                pending = await link.send_request("echo", b"a")
                task = asyncio.ensure_future(pending.result())
                await asyncio.sleep(0)
                while not pending.done():
                    runner.look()
                monkeypatch.setattr(loops, "post", post)
                runner._calling.release()
                with pytest.raises(Interrupt):
                    runner.run_callbacks()
                runner.run_callbacks()
                assert (await asyncio.wait_for(task, 2)).payload == b"a"

    real = loops.post
    asyncio.run(main())
    assert left == [0]


def test_exception_of_a_signal_handler_at_any_line_of_a_put_leaves_no_task_waiting():
    """What was put is there, and whoever waits at the inbox has to hear of it."""

    async def main(request, at):
        ringing = RingingInbox(["echo"], 8, lambda inbox: None)
        tasks = [asyncio.ensure_future(aio.Inbox(ringing).get()) for _ in range(2)]
        await asyncio.sleep(0)
        going = interrupted(lambda: ringing.put(request), at, lambda name: name.startswith("edgebus.aio"))
        if ringing.ready:
            done, _ = await asyncio.wait(tasks, timeout=2, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result().payload for task in done] == [b"first"], f"at line {at}"
        for task in tasks:
            task.cancel()
        return going

    with edgebus.Node("s", insecure=True) as server, edgebus.Node("d", insecure=True) as device:
        inbox, at = server.serve("echo"), 1
        pending = device.connect(server.bind("inproc://lines")).send_request("echo", b"first")
        request = inbox.get(5)
        while asyncio.run(main(request, at)):
            at += 1
            assert at < 100
        assert at > 8
        request.reply(b"yes")
        assert pending.result().payload == b"yes"
