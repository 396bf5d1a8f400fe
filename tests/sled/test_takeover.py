"""What a device does after a failure: here again, elsewhere, or not at all; and for how long."""

from __future__ import annotations

import contextlib
import random

import pytest

import edgebus
from edgebus.payloads import encode
from sled.device import Committed, Generation, State
from sled.errors import ProtocolError, ServerBusy, SessionUnknown, TargetChanged
from sled.messages import Later, Opened, Verdict
from sled.run.refusals import as_error, later
from sled.run.servers import Servers
from sled.takeover import MAX_TRIES, Next, Patience, after_failure
from sled.types import Sampling
from sled.window import Window
from tests.sled.drafting import submit


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (SessionUnknown("?"), "here"),
        (edgebus.LinkLost("?"), "elsewhere"),
        (edgebus.PeerUnreachable("?"), "elsewhere"),
        (edgebus.Refused("closing", ""), "elsewhere"),
        (edgebus.Refused("draining", ""), "elsewhere"),
        (edgebus.Refused("out_of_memory", ""), "elsewhere"),
        (ServerBusy("?"), "elsewhere"),
        (edgebus.DeadlineExceeded("?"), "elsewhere only"),
        (TargetChanged("?"), "elsewhere only"),
        (edgebus.Refused("target_failed", ""), "elsewhere only"),
        (edgebus.Refused("prefix_mismatch", ""), "nowhere"),
        (edgebus.Refused("invalid", ""), "nowhere"),
        (edgebus.KeyNotAllowed("?"), "nowhere"),
        (ProtocolError("?"), "nowhere"),
    ],
)
def test_each_failure_has_its_way_on(error, where):
    assert after_failure(error) is Next(where)


def test_patience_counts_tries_without_a_token_in_between():
    patience = Patience(10.0, random.Random(0))
    assert all(patience.allows(5, now=float(i) / 10) for i in range(MAX_TRIES))
    assert not patience.allows(5, now=1.5)
    assert patience.allows(6, now=1.6)
    assert not patience.allows(6, now=11.7)


def test_pauses_grow_keep_to_what_was_asked_and_end_with_the_patience():
    patience = Patience(10.0, random.Random(0))
    patience.allows(5, now=0.0)
    pauses = [patience.pause_s(0.0, now=0.0) for _ in range(50)]
    assert 0.05 <= pauses[0] <= 0.2
    assert max(pauses) > 1.0
    assert patience.pause_s(7.0, now=0.0) == 7.0
    assert patience.pause_s(7.0, now=9.0) == 1.0
    assert patience.left_s(now=20.0) == 0.0


def test_refusal_says_when_and_whom_to_ask():
    info = encode(Later(2.5, [("tcp://10.0.0.6:5555", "")]))
    busy = as_error(edgebus.Refused("busy", "full", info))
    assert isinstance(busy, ServerBusy)
    assert (busy.retry_after_s, busy.servers) == (2.5, [("tcp://10.0.0.6:5555", "")])
    assert later(edgebus.Refused("closing", "", info)).servers == [("tcp://10.0.0.6:5555", "")]
    assert later(edgebus.Refused("closing", "", b"\xc1")) == later(edgebus.LinkLost("?")) == Later(0.0)
    assert as_error(edgebus.Refused("stale_base", "", b"\x07")).committed == 7
    assert as_error(edgebus.Refused("stale_base", "", b"\xc1")).committed == 0


def streaming(max_tokens=6) -> Generation:
    machine = Generation(
        b"12345678", [5, 6, 7], chat=False, sampling=Sampling(), max_tokens=max_tokens, window=Window(4)
    )
    machine.opened(Opened([5, 6, 7], 3, 0))
    return machine


def test_limit_of_zero_asks_for_a_stream_hand_worked():
    machine = streaming()
    assert machine.server_decodes
    request = machine.decode_request()
    assert (request.base, request.max_tokens) == (3, 6)
    assert machine.streamed(Verdict(3, [9], 0, "", 0, 1)) == [Committed(9, 3, False)]
    assert machine.streamed(Verdict(4, [8, 7], 0, "", 0, 1)) == [Committed(8, 4, False), Committed(7, 5, False)]
    assert machine.streamed(Verdict(6, [], 0, "", 5, 1)) == []
    assert (machine.state, machine.draft_limit()) == (State.DRAFTING, 2)
    submit(machine, [1, 2])
    machine.verdict(Verdict(6, [1, 2, 3], 2, "", 0, 1))
    assert (machine.state, machine.finish, machine.answer) == (State.DONE, "length", [9, 8, 7, 1, 2, 3])


def test_stream_ends_with_the_answer():
    machine = streaming()
    machine.decode_request()
    machine.streamed(Verdict(3, [0], 0, "stop", 0, 1))
    assert (machine.state, machine.finish) == (State.DONE, "stop")
    machine = streaming(max_tokens=2)
    machine.decode_request()
    machine.streamed(Verdict(3, [4, 5, 6], 0, "", 0, 1))
    assert (machine.state, machine.answer) == (State.DONE, [4, 5])


def test_stream_that_just_ends_is_asked_for_again():
    machine = streaming()
    machine.decode_request()
    machine.stream_ended()
    assert machine.server_decodes


@pytest.mark.parametrize(
    "verdict", [Verdict(4, [1], 0, "", 0, 1), Verdict(3, [1] * 66, 0, "", 0, 1), Verdict(2, [], 0, "", 4, 1)]
)
def test_impossible_part_of_a_stream_is_an_error(verdict):
    machine = streaming()
    machine.decode_request()
    with pytest.raises(ProtocolError):
        machine.streamed(verdict)


def test_answer_moves_with_its_text_under_a_new_id():
    machine = streaming()
    machine.decode_request()
    machine.streamed(Verdict(3, [9], 0, "", 0, 1))
    machine.move(b"87654321")
    request = machine.open_request()
    assert (request.session, request.prompt, request.answer) == (b"87654321", [5, 6, 7], [9])
    machine.opened(Opened([5, 6, 7], 4, 4))
    assert submit(machine, [1]).base == 4


@pytest.mark.net
@pytest.mark.parametrize("named", [("10.0.0.6:5555", None), ("tcp://10.0.0.6:99999", None), ("", None)])
def test_address_nobody_can_dial_that_a_server_names_is_passed_over(named):
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        own = [(server.bind("tcp://127.0.0.1:0"), None), (server.bind("tcp://127.0.0.1:0"), None)]
        for known in (own[:1], own):
            with contextlib.closing(Servers(device, known, service="sled", directory=False, timeout_s=5)) as servers:
                assert servers.leave(1.0, [named]) is (len(known) > 1)
                assert named not in servers._endpoints
