"""The device machine, alone and with the server machine."""

from __future__ import annotations

import pytest

from sled.device import Committed, Generation, State
from sled.errors import ProtocolError
from sled.messages import Opened, Verdict
from sled.stats import summarise
from sled.types import Sampling
from sled.window import Window
from tests.sled.drafting import submit


def generation(max_tokens=10, window=4) -> Generation:
    machine = Generation(
        b"12345678", "hello", chat=True, sampling=Sampling(), max_tokens=max_tokens, window=Window(window)
    )
    machine.opened(Opened([5, 6, 7], 3, 16))
    return machine


def test_round_hand_worked():
    machine = generation()
    assert machine.draft_limit() == 4
    request = submit(machine, [1, 2, 3])
    assert (request.base, request.draft) == (3, [1, 2, 3])
    committed = machine.verdict(Verdict(3, [1, 9], 1, "", 16, 2))
    assert committed == [Committed(1, 3, True), Committed(9, 4, False)]
    assert (machine.counts.rounds, machine.counts.drafted, machine.counts.accepted) == (1, 3, 1)
    assert machine.state is State.DRAFTING


def test_rounds_told_again_are_in_no_batch():
    machine = generation()
    for base, batch in ((3, 2), (4, 0), (5, 1)):  # the second was decided before
        submit(machine, [])
        machine.verdict(Verdict(base, [1], 0, "", 16, batch))
    figures = summarise(
        machine.counts, bytes_sent=1, bytes_received=1, vocabulary_bytes=0, first_token_s=0.1, wall_s=1.0
    )
    assert (figures.rounds, figures.mean_verify_batch) == (3, 1.5)


def test_last_token_is_never_drafted():
    machine = generation(max_tokens=3)
    assert machine.draft_limit() == 2
    submit(machine, [1, 2])
    machine.verdict(Verdict(3, [1, 2, 8], 2, "", 16, 1))
    assert machine.state is State.DONE
    assert (machine.finish, machine.answer) == ("length", [1, 2, 8])


def test_server_limit_caps_the_window():
    machine = generation()
    submit(machine, [])
    machine.verdict(Verdict(3, [1], 0, "", 1, 1))
    assert machine.draft_limit() == 1


def test_stop_ends_the_answer():
    machine = generation()
    submit(machine, [])
    machine.verdict(Verdict(3, [0], 0, "stop", 16, 1))
    assert (machine.state, machine.finish) == (State.DONE, "stop")


def test_acceptance_is_counted_against_our_own_draft():
    """A repeated round may be answered with the verdict of an earlier draft."""
    machine = generation()
    submit(machine, [1, 5])
    committed = machine.verdict(Verdict(3, [1, 2, 3], 2, "", 16, 1))
    assert [c.drafted for c in committed] == [True, False, False]


def test_lost_session_is_opened_again_with_committed_text():
    machine = generation()
    submit(machine, [1])
    machine.verdict(Verdict(3, [1, 2], 1, "", 16, 1))
    submit(machine, [])
    assert machine.session_lost()
    request = machine.open_request()
    assert (request.prompt, request.answer, request.chat) == ([5, 6, 7], [1, 2], False)
    machine.opened(Opened([5, 6, 7], 5, 16))
    assert submit(machine, []).base == 5


def test_session_lost_again_and_again_gives_up():
    machine = generation()
    for _ in range(3):
        submit(machine, [])
        assert machine.session_lost()
        machine.opened(Opened([5, 6, 7], 3, 16))
    submit(machine, [])
    assert not machine.session_lost()


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(2, [1], 0, "", 16, 1),
        Verdict(4, [1], 0, "", 16, 1),
        Verdict(3, [], 0, "", 16, 1),
        Verdict(3, [1] * 66, 0, "", 16, 1),
    ],
)
def test_impossible_verdict_is_an_error(verdict):
    machine = generation()
    submit(machine, [1])
    with pytest.raises(ProtocolError, match=r"stand at 3"):
        machine.verdict(verdict)


def test_server_with_another_text_is_an_error():
    machine = generation()
    submit(machine, [])
    machine.session_lost()
    with pytest.raises(ProtocolError):
        machine.opened(Opened([5, 6, 8], 3, 16))


def test_draft_over_the_limit_is_cut():
    machine = generation(max_tokens=3)
    assert submit(machine, [1, 2, 3, 4]).draft == [1, 2]


def test_target_id_goes_with_the_opening():
    machine = Generation(
        b"12345678", [5], chat=False, sampling=Sampling(), max_tokens=3, window=Window(0), target_id=b"this one"
    )
    assert machine.open_request().target_id == b"this one"
