"""Results on the way: whatever byte a process was killed at, what was whole before it is there afterwards."""

import pytest

from qpart.errors import RequestError
from qpart.journal import Journal

KEY = b"k" * 16


def written(path):
    with Journal(path, KEY) as journal:
        journal.keep("one", 1.5)
        journal.keep("pair", (2, 3))
        journal.keep("last", "text")
    return path.read_bytes()


def test_results_come_back_to_the_same_question_only(tmp_path):
    path = tmp_path / "out.partial"
    written(path)
    with Journal(path, KEY) as journal:
        assert journal.resumed == 3
        assert journal.recall("one", float) == 1.5
        assert journal.recall("pair", tuple[int, int]) == (2, 3)
        assert journal.recall("none", int) is None
    with Journal(path, b"other") as journal:
        assert journal.resumed == 0
        assert journal.recall("one", float) is None
    with Journal(path, KEY) as journal:
        assert journal.resumed == 0, "another question begins anew"


def test_records_that_are_no_results_begin_the_journal_anew(tmp_path):
    """Their checksums are right: something else wrote them."""
    path = tmp_path / "out.partial"
    for record in (b"\x07", b"no msgpack", b"\x92\xa3one\x01", b"\x92\xa1\xff\xc4\x00"):
        written(path)
        with path.open("ab") as file:
            Journal._append(file, record)
        with Journal(path, KEY) as journal:
            assert journal.resumed == 0
            journal.keep("one", 2.5)
        with Journal(path, KEY) as journal:
            assert journal.recall("one", float) == 2.5


def test_a_result_of_another_kind_is_none(tmp_path):
    path = tmp_path / "out.partial"
    written(path)
    with Journal(path, KEY) as journal:
        assert journal.recall("one", str) is None
        assert journal.recall("pair", tuple[str, str]) is None
        assert journal.recall("last", str) == "text"


def test_a_file_cut_at_any_byte_gives_whole_results_or_none(tmp_path):
    path = tmp_path / "out.partial"
    whole = written(path)
    seen = set()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with Journal(path, KEY) as journal:
            seen.add(journal.resumed)
            assert journal.recall("one", float) in (None, 1.5)
            journal.keep("more", length)
        with Journal(path, KEY) as journal:
            assert journal.recall("more", int) == length
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("position", [5, 12, 40])
def test_damage_costs_what_stands_behind_it(tmp_path, position):
    path = tmp_path / "out.partial"
    content = bytearray(written(path))
    content[position] ^= 0xFF
    path.write_bytes(content)
    with Journal(path, KEY) as journal:
        assert journal.resumed < 3


def test_two_processes_do_not_write_at_once(tmp_path):
    path = tmp_path / "out.partial"
    with Journal(path, KEY), pytest.raises(RequestError, match="another process"):
        Journal(path, KEY)
    with Journal(path, KEY) as journal:
        assert journal.resumed == 0


def test_without_a_file_nothing_is_kept():
    with Journal(None, KEY) as journal:
        journal.keep("one", 1)
        assert journal.recall("one", int) is None
