"""History, windows, messages, the n-gram drafter and the vocabulary cache."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebus.payloads import decode, encode
from sled.drafters.ngram import NgramDrafter
from sled.errors import ParameterError, ProtocolError
from sled.history import History
from sled.messages import Open, Verdict, Verify, Vocabulary
from sled.types import Sampling, Terms
from sled.vocabulary import VocabularyCache, vocabulary_hash
from sled.window import Window
from tests.sled.drafting import drafts

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=30)


GOLDEN_DIGESTS = ["5771b81f7cb9a149", "c0875e19c204ad38", "293723feac909bbb"]


def test_digest_golden():
    """Both sides, in any language, must come to these bytes (docs/spec/sled-protocol.md)."""
    history = History([1, 2, 70000])
    assert history.digest(0) == bytes(8)
    assert [history.digest(n).hex() for n in (1, 2, 3)] == GOLDEN_DIGESTS


@given(TOKENS, TOKENS)
def test_digest_tells_texts_apart(a, b):
    same = History(a).digest(len(a)) == History(b).digest(len(b))
    assert same == (a == b)


@given(TOKENS, TOKENS)
def test_digest_of_a_length_does_not_change(a, b):
    history = History(a)
    before = history.digest(len(a))
    history.extend(b)
    assert history.digest(len(a)) == before


@pytest.mark.parametrize(
    ("window", "server", "remaining", "limit"),
    [(4, 16, 100, 4), (8, 3, 100, 3), (4, 16, 3, 2), (4, 16, 1, 0), (0, 16, 9, 0), (4, 0, 9, 0)],
)
def test_window_limit_is_the_smallest_bound(window, server, remaining, limit):
    assert Window(window).limit(server_limit=server, remaining=remaining) == limit


def test_confidence_threshold_ends_a_draft():
    assert Window(4, 0.5).wants(0.5)
    assert not Window(4, 0.5).wants(0.49)
    assert Window(4).wants(0.0)


@pytest.mark.parametrize("values", [(-1, 0.0), (65, 0.0), (4, 1.5), (4, -0.1), (4, float("nan"))])
def test_bad_window_is_refused(values):
    with pytest.raises(ParameterError, match="give"):
        Window(*values)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": 1e-31},
        {"temperature": 101.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_bad_sampling_is_refused(values):
    with pytest.raises(ValueError, match="give"):
        Sampling(**values)


def test_messages_golden_and_by_a_second_implementation():
    message = Verify(b"12345678", 7, b"abcdefgh", [1, 300, 70000])
    raw = encode(message)
    assert raw.hex() == "95c408313233343536373807c408616263646566676893" + "01cd012cce00011170" + "c0"
    assert msgpack.unpackb(raw) == [b"12345678", 7, b"abcdefgh", [1, 300, 70000], None]
    assert decode(Verify, msgpack.packb(msgpack.unpackb(raw))) == message


@pytest.mark.parametrize(
    "value",
    [
        [b"1234567", 7, b"abcdefgh", []],  # session id too short
        [b"12345678", -1, b"abcdefgh", []],
        [b"12345678", 7, b"abcdefgh", [-1]],
        [b"12345678", 7, b"abcdefgh", [2**31]],
        [b"12345678", 7, b"abcdefgh", [0] * 65],  # window over the protocol's limit
        [b"12345678", 7, b"abcdefgh", ["1"]],
        [b"12345678", 7],
        {"session": b"12345678"},
        None,
    ],
)
def test_malformed_verify_is_refused(value):
    with pytest.raises(ValueError, match="not a valid Verify message"):
        decode(Verify, msgpack.packb(value))


@given(st.binary(max_size=200))
def test_random_bytes_never_do_more_than_raise_value_error(raw):
    for kind in (Open, Verify, Verdict):
        try:
            decode(kind, raw)
        except ValueError:
            continue


def test_sampling_is_checked_on_decode():
    raw = msgpack.packb([b"12345678", [-1.0, 0, 1.0, 0], "hi", False, []])
    with pytest.raises(ValueError, match="temperature"):
        decode(Open, raw)


def test_unknown_trailing_fields_are_ignored():
    """A newer peer may send more; an older one reads what it knows."""
    raw = msgpack.packb([b"12345678", 7, b"abcdefgh", [1], None, "new field"])
    assert decode(Verify, raw).draft == [1]


def test_messages_of_an_older_peer_are_read():
    """Fields that came later have defaults."""
    assert decode(Verify, msgpack.packb([b"12345678", 7, b"abcdefgh", [1]])).law is None
    opened = decode(Open, msgpack.packb([b"12345678", [0.5, 1, 0.9, 3], "hi", False, []]))
    assert (opened.sampling, opened.terms) == (Sampling(0.5, 1, 0.9, 3), Terms())


def test_ngram_copies_what_followed_the_longest_match():
    drafter = NgramDrafter()
    drafter.start(Sampling(), 0)
    text = [1, 2, 3, 4, 5, 9, 2, 3, 8, 0, 1, 2, 3]
    assert drafts(drafter, text, 4, Window(8)) == [
        4,
        5,
        9,
        2,
    ]  # the 3-gram (1 2 3) beats the later 2-gram (2 3)


def test_ngram_goes_on_past_the_end_of_a_repetition():
    drafter = NgramDrafter()
    drafter.start(Sampling(), 0)
    assert drafts(drafter, [1, 2, 1, 2], 5, Window(8)) == [1, 2, 1, 2, 1]


def test_ngram_without_a_match_drafts_nothing():
    drafter = NgramDrafter()
    drafter.start(Sampling(), 0)
    assert drafts(drafter, [1, 2, 3, 4], 4, Window(8)) == []
    assert drafts(drafter, [], 4, Window(8)) == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 8))
def test_ngram_index_grown_step_by_step_equals_index_made_at_once(text, limit):
    grown, fresh = NgramDrafter(), NgramDrafter()
    grown.start(Sampling(), 0)
    fresh.start(Sampling(), 0)
    for end in range(1, len(text)):
        drafts(grown, text[:end], limit, Window(8))
    assert drafts(grown, text, limit, Window(8)) == drafts(fresh, text, limit, Window(8))


def test_vocabulary_cache_keeps_and_checks(tmp_path):
    vocabulary = Vocabulary([b"a", b"bc"], [0])
    digest = vocabulary_hash(vocabulary)
    cache = VocabularyCache(tmp_path / "new")
    assert cache.load(digest) is None
    cache.save(digest, vocabulary)
    assert cache.load(digest) == vocabulary
    (file,) = (tmp_path / "new").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert cache.load(digest) is None


def test_vocabulary_file_under_another_name_is_ignored(tmp_path):
    cache = VocabularyCache(tmp_path)
    vocabulary, other = Vocabulary([b"a"], []), Vocabulary([b"b"], [])
    cache.save(vocabulary_hash(vocabulary), vocabulary)
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / file.name.replace(vocabulary_hash(vocabulary).hex(), vocabulary_hash(other).hex()))
    assert cache.load(vocabulary_hash(other)) is None


def test_vocabulary_with_another_hash_is_refused(tmp_path):
    with pytest.raises(ProtocolError):
        VocabularyCache(tmp_path).save(bytes(16), Vocabulary([b"a"], []))
    assert list(tmp_path.iterdir()) == []


def test_vocabulary_hash_depends_on_where_pieces_end():
    assert vocabulary_hash(Vocabulary([b"ab", b"c"], [])) != vocabulary_hash(Vocabulary([b"a", b"bc"], []))
