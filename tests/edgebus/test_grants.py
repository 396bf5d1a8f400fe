"""The text of an allow-list: what each line grants, and that nothing else grants anything."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebus.grants import (
    GUARDED,
    MAX_LINE_CHARS,
    OPTIONS,
    BadGrant,
    Grant,
    clean_name,
    format_line,
    make_grant,
    parse_line,
    parse_lines,
    parse_list,
)

KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
OTHER = "ABCDabcdefghijklmnopqrstuvwxyz0123456789"
HASH = "#" + KEY[1:]


def grant(rest):
    return parse_list(f"{KEY} {rest}\n").grants.get(KEY)


def test_lines_of_before_mean_what_they_meant():
    text = f"# devices\n\n{KEY} laptop # in the office\n{OTHER}\tmy phone\n{HASH}\n"
    assert parse_list(text).grants == {KEY: Grant("laptop"), OTHER: Grant("my phone"), HASH: Grant()}
    assert parse_list(text).problems == {}


def test_every_option_by_hand():
    line = (
        "phone services=sled.*,edgebus.ping deny=sled.admin requests_per_s=0.5 burst=100 bytes_per_s=10MB "
        "bytes_burst=1MiB max_links=4 until=2031-12-31"
    )
    assert grant(line) == Grant(
        "phone",
        ("sled.*", "edgebus.ping"),
        ("sled.admin",),
        0.5,
        100,
        10_000_000.0,
        1_048_576,
        4,
        datetime(2032, 1, 1, tzinfo=UTC).timestamp(),  # the day named is the last one
    )
    assert grant("until=2031-12-31T18:30Z").until == datetime(2031, 12, 31, 18, 30, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000000", 1e6), ("10MB", 1e7), ("1MiB", 2**20), ("1.5kB", 1500), ("2KB", 2000), ("3GiB", 3 * 2**30), ("7B", 7)],
)
def test_sizes(text, size):
    assert grant(f"bytes_per_s={text}").bytes_per_s == size


@pytest.mark.parametrize(
    "rest",
    [
        "x permitted=sled.*",
        "x services=",
        "x services=a,,b",
        "x services=a b",
        "x services=a=b",
        "x services=ä",
        "x services=" + "a" * 65,
        "x services=" + ",".join("ab" for _ in range(65)),
        "x requests_per_s=0",
        "x requests_per_s=-1",
        "x requests_per_s=nan",
        "x requests_per_s=1e9",
        "x requests_per_s=٣",
        "x burst=5",
        "x bytes_burst=5",
        "x requests_per_s=5 burst=0.5",
        "x bytes_per_s=10Mb",
        "x bytes_per_s=10 MB",
        "x bytes_per_s=0",
        "x max_links=0",
        "x max_links=many",
        "x until=2031-02-30",
        "x until=9999-12-31",
        "x until=soon",
        "x until=2031-12-31 until=2031-12-31",
        "x requests_per_s=5 requests_per_s=5",
        "x max_links=4 trailing",
        "n" * 65,
        "x\0",
        "x\u202ename",
        "x\u2028name",
        "x\u00a0max_links=4",
        "x\rmax_links=4",
        "x # " + "c" * MAX_LINE_CHARS,
    ],
)
def test_lines_that_cannot_be_understood_allow_nobody_and_are_not_quoted(rest):
    parsed = parse_list(f"{OTHER}\n{KEY} {rest}\n")
    assert parsed.grants == {OTHER: Grant()}
    assert list(parsed.problems) == [2]
    for word in rest.split()[1:]:
        option, _, value = word.partition("=")
        assert len(value) < 6 or value not in parsed.problems[2]
        assert option in OPTIONS or len(option) < 6 or option not in parsed.problems[2]


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\r", "\0"])
def test_only_a_line_feed_begins_a_line(separator):
    """An editor shows one line, a comment: what hides behind it must not be a second one."""
    assert parse_list(f"# old key{separator}{KEY} sneaky\n").grants == {}


def test_carriage_returns_of_windows_are_no_part_of_a_line():
    assert parse_list(f"{KEY} pc max_links=2\r\n{OTHER}\r\n").grants == {KEY: Grant("pc", max_links=2), OTHER: Grant()}


def test_key_given_twice_must_say_the_same():
    same = f"{KEY} a max_links=2\n{KEY} b max_links=2\n"
    assert parse_list(same).grants == {KEY: Grant("b", max_links=2)}
    looser = parse_list(f"{KEY} a max_links=2\n{OTHER}\n{KEY} a\n")
    assert looser.grants == {OTHER: Grant()}
    assert looser.problems == {3: "the key of line 1 again, with other permissions"}
    assert parse_list(f"{KEY} a\n{KEY} a max_lnks=2\n").grants == {}
    assert parse_list(f"{KEY} a max_lnks=2\n{KEY} a\n").grants == {}


def test_guarded_services_need_a_pattern_of_their_own():
    for service in GUARDED:
        assert not Grant().covers(service)
        assert not Grant(services=("*", "e*", "?dgebus.*")).covers(service)
        assert Grant(services=("edgebus.*",)).covers(service)
        assert not Grant(services=(service,), deny=("edgebus.[st]*",)).covers(service)
    assert Grant().covers("edgebus.ping")
    assert not Grant(services=("sled.*",)).covers("edgebus.ping")
    assert not Grant(services=("sled.*",)).covers("SLED.verify")


def test_known_lines_are_not_parsed_again_and_mean_the_same(monkeypatch):
    text = f"{KEY} a max_links=2\nnonsense\n"
    first = parse_list(text)
    monkeypatch.setattr("edgebus.grants.parse_line", lambda *_: pytest.fail("parsed again"))
    again = parse_list(text, first.lines)
    assert (again.grants, again.problems) == (first.grants, first.problems)


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_no_text_raises_or_grants_without_a_key(text):
    parsed = parse_list(text)
    assert all(len(key) == 40 for key in parsed.grants)
    assert parse_list(f"{KEY} ok\n{text}").grants.get(KEY, Grant("ok")).name in {"ok", "", *map(str, [text])}


@given(st.text(max_size=100))
def test_what_follows_a_key_never_raises_and_is_never_in_the_reason(rest):
    line = parse_line(f"{KEY} {rest}")
    assert line is None or line.grant is not None or not line.reason.count("\n")
    assert line is None or line.key in {KEY, None}


@given(
    st.text(max_size=80),
    st.dictionaries(st.sampled_from(OPTIONS), st.text(st.sampled_from("0123456789.*,abMB-"), min_size=1, max_size=8)),
)
def test_lines_written_read_back_the_same(name, options):
    name = clean_name(name)
    try:
        wanted = make_grant(name, options)
    except BadGrant:
        return
    [line] = parse_lines(format_line(KEY, name, options, "# comment"))
    assert (line.key, line.grant, line.options, line.comment) == (KEY, wanted, options, "# comment")


def test_default_is_everything_unlimited_for_ever():
    assert (Grant().is_limited, Grant().until) == (False, math.inf)
    assert Grant(bytes_per_s=1.0).is_limited
