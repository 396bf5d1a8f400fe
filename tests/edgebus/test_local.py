"""Nodes of one process over inproc: who may connect, names, lives and ends, lent memory, forks."""

from __future__ import annotations

import gc
import os
import threading
import time

import numpy as np
import pytest

import edgebus
from edgebus import local
from edgebus.config import Limits
from edgebus.keyfiles import Keys
from edgebus.local import QUEUE_MESSAGES, Local

pytestmark = pytest.mark.net
HERE = "inproc://here"


def until(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "not within its time"
        threading.Event().wait(0.002)


@pytest.fixture(autouse=True)
def nothing_stays():
    """No name outlives its node."""
    yield
    assert local._listeners == {}
    assert local._waiting == {}


def node(name="node", **limits):
    return edgebus.Node(name, insecure=True, limits=edgebus.Limits(**limits))


# -- who may connect ------------------------------------------------------------------------------------


def test_a_listed_key_connects_and_is_known_by_it(ring):
    with ring.server() as server, ring.device() as device:
        inbox = server.serve("who")
        link = device.connect(server.bind(HERE), ring.public("server"))
        pending = link.send_request("who")
        request = inbox.get(5)
        assert request.peer.key == ring.public("device")
        request.reply()
        pending.result()
        inbox.close()


def test_keys_are_held_against_list_and_server_as_by_libzmq(ring):
    with ring.server() as server:
        server.bind(HERE)
        with ring.device("stranger") as stranger, pytest.raises(edgebus.KeyNotAllowed, match="refused our public key"):
            stranger.connect(HERE, ring.public("server"))
        with ring.device() as device, pytest.raises(edgebus.WrongServerKey, match="another key"):
            device.connect(HERE, ring.public("stranger"))
        with node() as plain, pytest.raises(edgebus.WrongServerKey, match="does not speak plaintext"):
            plain.connect(HERE)
        assert server.stats().rejected_handshakes == 3
        assert server.stats().peers == {}
        with ring.device() as device:
            link = device.connect(HERE, [ring.public("stranger"), ring.public("server")])
            assert link.request("edgebus.ping", b"x").payload == b"x"


def test_a_secure_device_does_not_talk_to_a_plaintext_server(ring):
    with node() as server, ring.device() as device:
        server.bind(HERE)
        with pytest.raises(edgebus.WrongServerKey, match="does not speak CURVE"):
            device.connect(HERE, ring.public("server"))


def test_binding_without_keys_has_to_be_said(ring):
    with edgebus.Node() as plain, pytest.raises(edgebus.InsecureError):
        plain.bind(HERE)
    with ring.device() as device, pytest.raises(edgebus.ConfigError, match="no allow-list"):
        device.bind(HERE)


def test_the_list_is_read_at_every_connection(ring, tmp_path):
    allow_file = tmp_path / "allowed_keys"
    allow_file.write_text("# nobody\n")
    with ring.server(allow=edgebus.AllowList.from_file(allow_file)) as server:
        server.bind(HERE)
        with ring.device() as device, pytest.raises(edgebus.KeyNotAllowed):
            device.connect(HERE, ring.public("server"))
        allow_file.write_text(f"{ring.public('device')} device\n")
        with ring.device() as device:
            device.connect(HERE, ring.public("server"))


# -- names ----------------------------------------------------------------------------------------------


def test_a_name_is_taken_once_and_free_after_its_node():
    with node() as first, node() as second:
        assert first.bind(HERE) == HERE
        with pytest.raises(edgebus.BindError, match="choose another"):
            second.bind(HERE)
        first.bind("inproc://also")
        first.close()
        second.bind(HERE)
        second.bind("inproc://also")


@pytest.mark.parametrize("name", ["", "x" * 257])
def test_what_is_no_name_is_refused(name):
    with node() as one:
        for use in (one.bind, one.connect):
            with pytest.raises(edgebus.ConfigError, match=r"1\.\.256 characters"):
                use(f"inproc://{name}")


def test_nobody_there_is_said_in_time():
    with node() as device:
        with pytest.raises(edgebus.PeerUnreachable, match="nobody listens at inproc://here"):
            device.connect(HERE, timeout_s=0.1)
        assert local._waiting == {}, "the socket of a link that was given up is closed"


def test_connect_waits_for_a_name_that_is_bound_later():
    with node("device") as device, node("server") as server:
        links = []
        thread = threading.Thread(target=lambda: links.append(device.connect(HERE, timeout_s=10)))
        thread.start()
        until(lambda: local._waiting)
        server.bind(HERE)
        thread.join(5)
        assert links[0].peer_name == "server"


def test_a_node_can_talk_to_itself():
    with node() as one:
        inbox = one.serve("echo")
        thread = threading.Thread(target=lambda: inbox.get(10).reply(b"me"))
        thread.start()
        assert one.connect(one.bind(HERE)).request("echo").payload == b"me"
        thread.join(5)
        inbox.close()


# -- lives and ends -------------------------------------------------------------------------------------


def test_a_link_follows_its_server_through_many_lives():
    with node("device") as device:
        link, states = None, []
        for life in range(10):
            with node(f"life {life}") as server:
                server.bind(HERE)
                link = link or device.connect(HERE)
                assert link.request("edgebus.ping", b"x", timeout_s=10).payload == b"x"
                states.append((link.peer_name, str(link.health)))
            until(lambda link=link: link.health == "down")
        assert states == [(f"life {life}", "up") for life in range(10)]
        assert link.stats().reconnects == 9


def test_a_server_learns_that_its_device_is_gone():
    with node("server") as server:
        server.bind(HERE)
        inbox = server.serve("x")
        with node("device") as device:
            pending = device.connect(HERE).send_request("x")
            request = inbox.get(5)
        with pytest.raises(edgebus.NodeClosed):
            pending.result()
        until(lambda: request.remaining_s() == 0)
        request.reply(b"to nobody")
        assert [peer.health for peer in server.stats().peers.values()] == ["down"]
        inbox.close()


def test_no_more_peers_than_allowed():
    with node("server", max_peers=2) as server, node("a") as first, node("b") as second, node("c") as third:
        server.bind(HERE)
        links = [first.connect(HERE), second.connect(HERE)]
        with pytest.raises(edgebus.PeerUnreachable):
            third.connect(HERE, timeout_s=0.2)
        links[0].close()
        third.connect(HERE, timeout_s=10)
        assert links[1].request("edgebus.ping").payload == b""


def test_a_server_that_ends_in_the_middle_leaves_one_outcome_each():
    for _ in range(15):
        with node("device") as device:
            server = node("server")
            inbox = server.serve("x")
            link = device.connect(server.bind(HERE))
            pendings, stop = [], threading.Event()

            def ask(link=link, pendings=pendings, stop=stop):
                while not stop.is_set():
                    pendings.append(link.send_request("x", bytes(100), timeout_s=1))

            def answer(inbox=inbox):
                while request := inbox.get(None):
                    request.reply()

            threads = [threading.Thread(target=ask) for _ in range(2)] + [threading.Thread(target=answer)]
            for thread in threads:
                thread.start()
            until(lambda link=link: link.stats().answered > 50)
            server.close()
            stop.set()
            for thread in threads:
                thread.join(5)
                assert not thread.is_alive()
            link.close()
            outcomes = [pending.outcome for pending in pendings if pending.wait(5)]
            assert len(outcomes) == len(pendings)
            stats = device.stats().total
            assert stats.started == len(pendings)
            assert stats.outstanding == 0


def test_two_nodes_that_ask_each_other_never_wait_for_each_others_locks():
    """Every thread sends under its own node's lock what lands in the other one."""
    with node("left") as left, node("right") as right:
        links = {left: left.connect(right.bind("inproc://right")), right: right.connect(left.bind("inproc://left"))}
        done = []
        for each in (left, right):
            each.handle("echo", lambda request: request.reply(request.payload))

        def ask(one, number):
            for turn in range(150):
                payload = b"%d %d" % (number, turn)
                assert links[one].request("echo", payload, timeout_s=20).payload == payload
            done.append(number)

        threads = [
            threading.Thread(target=ask, args=(one, number), daemon=True)
            for number in range(3)
            for one in (left, right)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(done) == [0, 0, 1, 1, 2, 2]


def test_a_forked_child_has_a_table_of_its_own():
    with node("parent") as server:
        server.bind(HERE)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with node("child") as one, node("other") as two:
                    try:
                        one.connect(HERE, timeout_s=0.1)
                    except edgebus.PeerUnreachable:
                        one.bind(HERE)
                        status = 0 if two.connect(HERE).request("edgebus.ping", b"x").payload == b"x" else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with node("device") as device:
            assert device.connect(HERE).peer_name == "parent"


# -- memory ---------------------------------------------------------------------------------------------


def test_lent_memory_is_read_only_until_the_receiver_lets_go():
    with node("server") as server, node("device") as device:
        inbox = server.serve("take")
        link = device.connect(server.bind(HERE))
        array = np.arange(100_000, dtype=np.float64)
        pending = link.send_request("take", b"", [array], copy=False)
        request = inbox.get(5)
        kept = request.arrays[0][10:20]
        request.reply()
        pending.result()
        del request, pending
        until(lambda: (gc.collect(), link.request("edgebus.ping"))[1] is not None)
        assert np.shares_memory(kept, array)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            kept[0] = 1
        del kept
        until(lambda: gc.collect() >= 0 and array.flags.writeable)
        array[0] = 1
        inbox.close()


def test_what_was_not_lent_may_be_overwritten_at_once():
    with node("server") as server, node("device") as device:
        inbox = server.serve("take")
        link = device.connect(server.bind(HERE))
        array = np.zeros(100_000, np.uint8)
        pending = link.send_request("take", b"", [array])
        array[:] = 1
        request = inbox.get(5)
        assert not request.arrays[0].any()
        request.reply()
        pending.result()
        inbox.close()


def test_nothing_is_cut_into_chunks_nor_put_into_shared_memory():
    with node("server") as server, node("device") as device:
        inbox = server.serve("take")
        link = device.connect(server.bind(HERE))
        kinds = []
        remove = server.tap(lambda event: kinds.append((event.direction, type(event.header).__name__, event.lane)))
        for _ in range(3):
            pending = link.send_request("take", bytes(100_000), [np.zeros(8 << 20, np.uint8)], copy=False)
            inbox.get(5).reply(b"", [np.zeros(8 << 20, np.uint8)], copy=False)
            pending.result()
        remove()
        assert [kind for kind in kinds if kind[1] not in ("Ping", "Pong")] == [
            ("in", "Request", "control"),
            ("out", "Reply", "control"),
        ] * 3
        inbox.close()


def test_the_runner_is_not_held_by_what_comes_as_fast_as_it_is_taken():
    with node() as one:
        runner, turns = one._engine.runner, []

        def again():
            turns.append(1)
            if len(turns) < 1_000_000:
                runner.defer(again)

        runner.defer(again)
        for _ in range(20):
            one.stats()  # a turn, which ends although there is more
        assert 0 < len(turns) < 500_000
        turns.extend([1] * 1_000_000)


def test_a_wake_up_reaches_the_thread_it_is_meant_for():
    """The node's own thread, on its way out of the poll, must not eat what would wake the one that drives now."""
    with node("server") as server, node("device") as device:
        link = device.connect(server.bind(HERE))
        for _ in range(100):
            inbox = server.serve("x")
            thread = threading.Thread(target=lambda inbox=inbox: [each.reply() for each in iter(inbox.get, None)])
            thread.start()
            link.request("x")
            inbox.close()
            thread.join(1)
            assert not thread.is_alive(), "it sleeps until the next timer"


# -- the transport alone --------------------------------------------------------------------------------


class FakeRunner:
    """Keeps what is deferred until `work`; notes what the transport says."""

    def __init__(self, limits=None):
        self.deferred, self.events, self.frames, self.closed = [], [], [], False
        self.local = Local(limits or Limits(), self)

    def defer(self, function, *args, if_closed=lambda: None):
        if self.closed:
            if_closed()
        else:
            self.deferred.append((function, args, if_closed))

    def work(self):
        deferred, self.deferred = self.deferred, []
        for function, args, _ in deferred:
            function(*args)
        return bool(deferred)

    def end(self):
        self.closed = True
        deferred, self.deferred = self.deferred, []
        for _, _, if_closed in deferred:
            if_closed()
        self.local.shut()

    def on_frames(self, route, frames, key):
        self.frames.append((route, frames, key))

    def on_monitor(self, socket_id, event, value):
        self.events.append((event, value))

    def on_zap(self, frames):
        raise AssertionError("insecure nodes ask nobody")


@pytest.fixture
def two():
    listener, dialler = FakeRunner(), FakeRunner(Limits(max_pending_bytes=16 << 20))
    yield listener, dialler
    for runner in (listener, dialler):
        runner.end()
    settle(listener, dialler)


def settle(*runners):
    for _ in range(20):
        if sum(runner.work() for runner in runners) == 0:
            return
    raise AssertionError("they do not come to rest")


def connected(listener, dialler):
    listener.local.bind(HERE, None)
    socket_id = dialler.local.dial(HERE, None, None)
    settle(listener, dialler)
    assert dialler.events[-2:] == [("CONNECTED", 0), ("HANDSHAKE_SUCCEEDED", 0)]
    route = (socket_id, b"")
    assert dialler.local.send(route, [b"hello"])
    settle(listener, dialler)
    return route, listener.frames.pop()[0]


def test_frames_are_the_same_objects_and_come_in_order(two):
    listener, dialler = two
    here, there = connected(listener, dialler)
    frames = [b"header", bytearray(10)]
    dialler.local.send(here, frames)
    dialler.local.send(here, [b"second"])
    listener.local.send(there, [b"back"])
    settle(listener, dialler)
    assert [each[1] for each in listener.frames] == [frames, [b"second"]]
    assert listener.frames[0][1][1] is frames[1]
    assert dialler.frames == [(here, [b"back"], None)]


def test_no_more_than_so_much_is_under_way(two):
    listener, dialler = two
    here, there = connected(listener, dialler)
    sent = [dialler.local.send(here, [b""]) for _ in range(QUEUE_MESSAGES + 1)]
    assert sent == [True] * QUEUE_MESSAGES + [False]
    settle(listener, dialler)
    assert len(listener.frames) == QUEUE_MESSAGES
    assert dialler.local.send(here, [b""])
    # towards the dialler at most what it lets wait, but one message always
    assert listener.local.send(there, [bytes(17 << 20)])
    assert listener.local.send(there, [b"x"]) is False
    settle(listener, dialler)
    assert listener.local.send(there, [bytes(9 << 20)])
    assert listener.local.send(there, [bytes(9 << 20)]) is False


def test_an_end_that_is_gone_is_no_route(two):
    listener, dialler = two
    here, there = connected(listener, dialler)
    dialler.local.send(here, [b"goodbye"])
    dialler.local.close(here[0])
    assert dialler.local.send(here, [b"x"]) is None
    assert listener.local.send(there, [b"x"]) is None
    settle(listener, dialler)
    assert listener.frames == [(there, [b"goodbye"], None)], "what was sent before arrives"
    assert listener.local.send(there, [b"x"]) is None
    assert ("DISCONNECTED", 0) not in dialler.events, "it closed the socket itself"


def test_a_dialler_that_leaves_while_it_is_let_in_leaves_nothing(two):
    listener, dialler = two
    listener.local.bind(HERE, None)
    for step in range(3):
        socket_id = dialler.local.dial(HERE, None, None)
        for runner in (dialler, listener)[:step]:
            runner.work()
        dialler.local.close(socket_id)
        settle(listener, dialler)
        assert listener.local._ends == dialler.local._ends == {}
        assert ("HANDSHAKE_SUCCEEDED", 0) not in dialler.events


def test_a_dialler_that_ends_while_it_is_let_in_leaves_nothing(two):
    listener, dialler = two
    listener.local.bind(HERE, None)
    dialler.local.dial(HERE, None, None)
    dialler.work()
    listener.work()  # its word is on the way
    dialler.end()
    settle(listener)
    assert listener.local._ends == {}


@pytest.mark.parametrize("told", [False, True])
def test_a_listener_that_ends_while_somebody_knocks_sends_it_to_the_next_one(two, told):
    listener, dialler = two
    listener.local.bind(HERE, None)
    dialler.local.dial(HERE, None, None)
    dialler.work()
    if not told:
        listener.deferred.clear()  # the knock came between its last look and its end
    listener.end()
    settle(dialler)
    assert dialler.events == [("CONNECTED", 0), ("CONNECT_DELAYED", 0)]
    successor = FakeRunner()
    successor.local.bind(HERE, None)
    settle(dialler, successor)
    assert dialler.events[-1] == ("HANDSHAKE_SUCCEEDED", 0)
    successor.end()
    settle(dialler)
    assert dialler.events[-2:] == [("DISCONNECTED", 0), ("CONNECT_DELAYED", 0)]


def test_one_that_was_turned_away_and_stays_waits_for_another_listener():
    """A key that was right once may be wrong for a while, during a restart: the node does not give up over it."""

    class Guarded(FakeRunner):
        def on_zap(self, frames):
            return [b"1.0", b"", b"200", b"OK", b"D" * 40, b""]

    dialler, ours = FakeRunner(), Keys("S" * 40, "")
    wrong, right = Guarded(), Guarded()
    wrong.local.bind(HERE, Keys("W" * 40, ""))
    dialler.local.dial(HERE, Keys("D" * 40, ""), ours.public)
    settle(dialler, wrong)
    assert dialler.events[1:] == [("HANDSHAKE_FAILED_NO_DETAIL", 32)] * 3
    assert wrong.events == [("HANDSHAKE_FAILED_NO_DETAIL", 32)]
    wrong.end()
    right.local.bind(HERE, ours)
    settle(dialler, right)
    assert dialler.events[-1] == ("HANDSHAKE_SUCCEEDED", 0)
    for runner in (dialler, right):
        runner.end()
    settle(dialler, right)
