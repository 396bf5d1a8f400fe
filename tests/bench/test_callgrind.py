"""The recorded instruction counts cover every case, and growth is noticed."""

import json

from bench import callgrind
from bench._callgrind_cases import COUNTED, cases


def test_recorded_counts_cover_every_case():
    recorded = json.loads(callgrind.RECORDED.read_text())["instructions"]
    names = [name for name, _ in cases()]
    assert len(set(names)) == len(names)
    for level in callgrind.LEVELS:
        assert list(recorded[level]) == names
        assert all(count > 1000 for count in recorded[level].values())


def test_symbols_are_those_of_cython():
    assert "_bits" in COUNTED
    assert "__pyx_pw_11edgekernels_5_bits_*" in callgrind.symbols()


def test_growth_beyond_5_percent_is_named():
    known = {"base": {"pack": 1000, "unpack": 1000, "fit": 1000}}
    counts = {"base": {"pack": 1050, "unpack": 1051, "fit": 900, "new": 5000}, "avx2": {"pack": 9}}
    assert callgrind.grown(counts, known) == ["unpack at base: 1,051 instructions instead of 1,000 (+5.1%)"]


def test_a_dump_is_read_by_its_name(tmp_path):
    dump = tmp_path / "out.3"
    dump.write_text("version: 1\ndesc: Trigger: Client Request: pack b=3\nevents: Ir\nsummary: 1234\n")
    assert callgrind.named_total(dump) == ("pack b=3", 1234)
    dump.write_text("desc: Trigger: Program termination\nsummary: 5\n")
    assert callgrind.named_total(dump) is None
