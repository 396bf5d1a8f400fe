"""Arrays that are lent: read-only while anything of them is on its way, and never longer."""

import gc
import os
import time
import weakref

import numpy as np
import pytest
import zmq

from edgebus import Limits, Node
from edgebus.arrays import _plain_lend, lend
from edgebus.port import open_port, take_back

LIMITS = Limits(share_bytes=0)
PATIENCE_S = 10.0


@pytest.fixture(params=[lend, _plain_lend], ids=["best", "plain"])
def lending(request):
    return request.param


def test_lent_array_is_read_only_until_the_last_piece_is_gone(lending):
    array = np.arange(6, dtype=np.float32)
    view = lending(array)
    piece = view[4:8]
    assert view.readonly
    assert view.nbytes == 24
    del view
    assert not array.flags.writeable, "a piece of it is still there"
    assert np.frombuffer(piece, np.float32)[0] == 1.0
    del piece
    assert array.flags.writeable


def test_array_lent_twice_is_read_only_until_both_are_gone(lending):
    array = np.zeros(3)
    first, second = lending(array), lending(array)
    del first
    assert not array.flags.writeable, "the second is still on its way"
    del second
    assert array.flags.writeable


def test_array_that_was_read_only_stays_so(lending):
    array = np.zeros(3)
    array.flags.writeable = False
    views = [lending(array), lending(array)]
    del views
    assert not array.flags.writeable


@pytest.mark.parametrize("first", ["part", "whole"])
def test_part_of_an_array_that_is_lent_as_well_is_writeable_with_it_and_not_before(lending, first):
    whole = np.zeros(30)
    part = whole[10:20]
    views = {
        name: lending({"part": part, "whole": whole}[name]) for name in sorted(["part", "whole"], key=first.__ne__)
    }
    del views["part"]
    assert not part.flags.writeable, "its memory is still on its way with the whole"
    again = lending(part)
    del views["whole"]
    assert whole.flags.writeable
    assert not part.flags.writeable, "it is on its way itself"
    del again
    assert part.flags.writeable
    gone = weakref.ref(part)
    del part
    assert gone() is None


def test_part_of_an_array_that_was_made_read_only_meanwhile_stays_so_and_is_not_kept(lending):
    whole = np.zeros(30)
    part = whole[10:20]
    view = lending(part)
    whole.flags.writeable = False
    del view
    assert not part.flags.writeable
    gone = weakref.ref(part)
    del part
    assert gone() is None


def test_what_is_not_contiguous_is_not_lent(lending):
    array = np.arange(6).reshape(2, 3).T
    with pytest.raises((ValueError, BufferError)):
        np.frombuffer(lending(array), np.int64)[:] = lending(array)
    assert array.flags.writeable


@pytest.mark.net
@pytest.mark.parametrize("num_bytes", [100_000, 200_000, 3_000_000])
def test_arrays_are_writeable_again_once_they_were_answered(num_bytes):
    with Node("server", insecure=True, limits=LIMITS) as server, Node("device", insecure=True, limits=LIMITS) as device:
        server.handle("sum", lambda request: request.reply(b"%d" % request.arrays[0].sum(dtype=np.int64)))
        link = device.connect(server.bind("tcp://127.0.0.1:0"), timeout_s=PATIENCE_S)
        arrays = [np.full(num_bytes, value, np.uint8) for value in range(1, 5)]
        for _ in range(3):
            waiting = [link.send_request("sum", arrays=[array], copy=False) for array in arrays]
            assert [int(each.result().payload) for each in waiting] == [num_bytes * value for value in range(1, 5)]
        del waiting
        wait_for(lambda: all(array.flags.writeable for array in arrays))
        assert not take_back()


@pytest.mark.net
def test_array_is_writeable_again_although_the_peer_never_took_it():
    with Node("device", insecure=True, limits=LIMITS) as device:
        with Node("server", insecure=True, limits=LIMITS) as server:
            inbox = server.serve("never")
            link = device.connect(server.bind("tcp://127.0.0.1:0"), timeout_s=PATIENCE_S)
            array = np.ones(1_000_000)
            pending = link.send_request("never", arrays=[array], copy=False)
            assert not array.flags.writeable
            assert inbox.get(PATIENCE_S) is not None
        pending.cancel()
        del pending
        wait_for(lambda: array.flags.writeable)


@pytest.mark.net
def test_forked_child_does_not_wait_for_what_its_parent_has_lent():
    """It would look for it ten times a second, for ever: the threads that have it are not there."""
    context = zmq.Context()
    sock = context.socket(zmq.PUSH)
    sock.setsockopt(zmq.LINGER, 0)
    sock.connect("tcp://127.0.0.1:9")  # where nobody is
    array = np.zeros(1_000_000, np.uint8)
    port = open_port(sock, False, False)
    port.send_all(b"", [lend(array)])
    before = take_back()
    pid = os.fork()
    if not pid:
        os._exit(take_back())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert take_back() == before
    port.close()
    sock.close()
    context.term()
    wait_for(lambda: take_back() == 0 and array.flags.writeable)


def wait_for(what):
    until = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until
        gc.collect()
        time.sleep(0.001)
