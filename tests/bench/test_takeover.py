"""The takeover benchmark: as many answers as promised are disturbed, however many end before their server dies."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from bench.macro import takeover


class Fake:
    """Five answers a turn, `disturbed` of them in the middle when the server dies."""

    def __init__(self, disturbed: int) -> None:
        self.disturbed, self.turns = disturbed, list[int]()

    def part(self, part: str, turns: range, right: dict[str, list[int]]) -> list[dict[str, Any]]:
        self.turns += turns
        return [{"disturbed": number < self.disturbed} for _ in turns for number in range(5)]


@pytest.mark.parametrize(("disturbed", "turns"), [(5, 5), (4, 7), (3, 9)])
def test_turns_go_on_until_so_many_answers_are_disturbed(disturbed, turns):
    fake = Fake(disturbed)
    rows = takeover.with_enough(fake, "rounds-greedy", range(5), {})
    assert sum(each["disturbed"] for each in rows) >= takeover.DISTURBED == 25
    assert fake.turns == list(range(turns))


def test_they_end_where_no_answer_is_ever_disturbed():
    fake = Fake(0)
    takeover.with_enough(fake, "rounds-greedy", range(5), {})
    assert len(fake.turns) == 5 * takeover.MOST_TIMES


def test_frozen_servers_have_their_own_number_of_turns():
    fake = Fake(1)
    takeover.with_enough(fake, "frozen", range(2), {})
    assert fake.turns == [0, 1]


def test_parts_with_kills_make_a_hundred():
    assert takeover.DISTURBED * sum(how == "kill" for _, _, how in takeover.PARTS.values()) == 100
