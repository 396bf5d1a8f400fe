"""Drafters of another vocabulary: encoding without a tokenizer, texts told piece by piece, drafts told back."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sled.drafters.encoder import PieceEncoder
from sled.drafters.identity import Identity
from sled.drafters.reencoding import ReencodingDrafter
from sled.drafters.retelling import Retelling, Writer, whole_characters
from sled.messages import Described, Vocabulary
from sled.proposal import SURE
from sled.types import Sampling
from sled.vocabulary import vocabulary_hash
from tests.sled.drafting import drafts, proposals

BYTES = [bytes([byte]) for byte in (*range(33, 127), *range(33), *range(127, 256))]  # printable ones first, as in GPT-2
WORDS = [
    b"th",
    b" a",
    b" th",
    b" the",
    b"ca",
    b"cat",
    b" cat",
    b"be",
    b" be",
    b"au",
    b" beau",
    b"ti",
    b"fu",
    b"ful",
    b"\n\n",
]


def byte_level(*merged, special=(b"<end>",)):
    return Vocabulary([*special, *BYTES, *merged], list(range(len(special))))


TARGET_WORDS = byte_level(*WORDS)
OWN_WORDS = byte_level(
    *(b" c", b" ca", b" cat", b" t", b" th", b" the", b" b", b" be", b"au", b"ti", b"fu", b"ful", b"tiful", b"autiful"),
    *(b" beautiful", b"s."),
    special=(b"<s>", b"<end>"),
)


@lru_cache
def encoder_of(number):
    return PieceEncoder((TARGET_WORDS, OWN_WORDS)[number])


def ids(vocabulary, text):
    known = vocabulary is TARGET_WORDS or vocabulary is OWN_WORDS
    encoder = encoder_of(int(vocabulary is OWN_WORDS)) if known else PieceEncoder(vocabulary)
    return encoder.encode(text if isinstance(text, bytes) else text.encode())


def pieces(vocabulary, tokens):
    return [vocabulary.pieces[token] for token in tokens]


def test_merges_by_hand():
    """The pair of the lowest id first: th before ' th', though ' t' is not there; ca + t before 'at'."""
    assert pieces(TARGET_WORDS, ids(TARGET_WORDS, "the cat beautiful")) == [
        b"th", b"e", b" cat", b" beau", b"ti", b"ful",
    ]  # fmt: skip
    assert ids(TARGET_WORDS, "") == []


def test_words_are_divided_as_the_tokens_say():
    """Digits and the space before them apart, as SmolLM2; groups of three and punctuation in front, as cl100k."""
    assert PieceEncoder(TARGET_WORDS)._divide("I'm 12\n\n  x_y") == ["I", "'m", " ", "1", "2", "\n\n ", " x", "_", "y"]
    other = PieceEncoder(byte_level(b".com", b"12", b"123"))
    assert other._divide("a.com 1234 (b)\n\nc") == ["a", ".com", " ", "123", "4", " (", "b", ")\n\n", "c"]


def test_characters_of_sentencepiece_fall_back_to_bytes():
    plain = [
        b"<s>",
        *(bytes([byte]) for byte in range(256)),
        *(bytes([byte]) for byte in b" aAbc\n"),
        "é".encode(),
        b" a",
    ]
    vocabulary = Vocabulary(plain, [0])
    assert pieces(vocabulary, found := ids(vocabulary, "é aü\n")) == ["é".encode(), b" a", b"\xc3", b"\xbc", b"\n"]
    assert found[0] > 256
    assert found[2:4] == [1 + 0xC3, 1 + 0xBC]
    assert found[4] > 256  # the character, not the byte it could fall back to


@given(st.text(max_size=40))
def test_what_is_encoded_spells_the_text(text):
    assert b"".join(pieces(TARGET_WORDS, ids(TARGET_WORDS, text))) == text.encode()


@given(st.binary(max_size=12))
def test_bytes_that_are_no_text_are_encoded_too(raw):
    assert b"".join(pieces(TARGET_WORDS, ids(TARGET_WORDS, raw))) == raw


@given(st.text(max_size=6), st.integers(0, 3))
def test_whole_characters_leave_out_the_last_unless_it_is_complete(text, cut):
    raw = text.encode()
    kept = whole_characters(raw[: len(raw) - cut])
    assert raw[: len(raw) - cut].decode(errors="ignore").encode() == kept


def retelling():
    return Retelling(TARGET_WORDS.pieces, encoder_of(1), {0: 1}, [0])


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from([b"the cat", b" the", b" ", b"\xc3", b"<end>", b"12 a", b" beau", b"tiful."]),
        ),
        max_size=12,
    )
)
def test_a_text_told_piece_by_piece_is_the_text_told_at_once(changes):
    text, told = [], retelling()
    for lost, more in changes:
        text = text[: max(0, len(text) - lost)] + ([0] if more == b"<end>" else ids(TARGET_WORDS, more))
        fresh = retelling()
        assert told.follow(text) == fresh.follow(text)
        spelled = b"".join(OWN_WORDS.pieces[token] for token in told.follow(text)[1:])
        assert spelled == b"".join(TARGET_WORDS.pieces[token] for token in text)


def test_only_the_last_word_is_told_again():
    told = Retelling(TARGET_WORDS.pieces, PieceEncoder(OWN_WORDS), {0: 1}, [0])
    calls = []
    told._encoder.encode, encode = (lambda raw: calls.append(raw) or encode(raw)), told._encoder.encode
    text = ids(TARGET_WORDS, "the cat sat" * 200)
    told.follow(text)
    calls.clear()
    told.follow([*text, *ids(TARGET_WORDS, " beau")])
    told.follow([*text, *ids(TARGET_WORDS, " beautiful the")])
    assert all(len(raw) < 30 for raw in calls)
    assert len(calls) < 8


def test_a_writer_tells_tokens_as_soon_as_they_are_there():
    writer = Writer(PieceEncoder(TARGET_WORDS), b"", [], TARGET_WORDS.pieces)
    first = writer.add(b" the c", 0.5)
    assert pieces(TARGET_WORDS, [one.token for one in first]) == [b" the", b" ", b"c"]
    assert [one.confidence for one in first] == [0.5, SURE, SURE]
    assert writer.add(b"at", 0.9) == []
    assert writer.contradicted  # " c" + "at" would have been " cat"


def test_a_writer_waits_for_whole_characters():
    writer = Writer(PieceEncoder(TARGET_WORDS), b"", [], TARGET_WORDS.pieces)
    assert writer.add("ü".encode()[:1], 0.5) == []
    done = writer.add("ü".encode()[1:], 0.8)
    assert pieces(TARGET_WORDS, [one.token for one in done]) == [b"\xc3", b"\xbc"]
    assert [one.confidence for one in done] == [0.5, 0.8]


class Phrase:
    """A model that goes on with a phrase in its own tokens wherever it stands in it, and looks again from the start."""

    max_positions = 200

    def __init__(self, vocabulary, text, end=b"<end>"):
        self.vocab_size = len(vocabulary.pieces)
        self.pieces = vocabulary.pieces
        self.tokens = [*ids(vocabulary, text), vocabulary.pieces.index(end)]
        self.seen, self.num_read = [], 0

    def read(self, new):
        self.seen += new.tolist()
        self.num_read += len(new)
        said = b"".join(self.pieces[token] for token in self.seen if token != 0)
        logits = np.zeros((1, self.vocab_size), np.float32)
        done = b""
        for token in self.tokens:
            if done == said:
                logits[0, token] = 9.0
                break
            done += self.pieces[token]
        return logits

    def forget(self, length):
        del self.seen[length:]


def drafter(text, vocabulary=OWN_WORDS):
    target = Described("t", "float32", len(TARGET_WORDS.pieces), vocabulary_hash(TARGET_WORDS), 256, 16, [0])
    own = Identity(vocabulary_hash(vocabulary), vocabulary, bos_id=0, stop_ids=(1,))
    made = ReencodingDrafter(Phrase(vocabulary, text), own, target, TARGET_WORDS, name="other")
    made.start(Sampling(), 1)
    return made


def test_drafts_of_another_vocabulary_by_hand():
    made = drafter("the cat is beautiful.")
    text = ids(TARGET_WORDS, "the")
    assert pieces(TARGET_WORDS, drafts(made, text, 5)) == [b" cat", b" ", b"i", b"s", b" beau"]
    assert pieces(TARGET_WORDS, drafts(made, text, 99)) == [
        b" cat", b" ", b"i", b"s", b" beau", b"ti", b"ful", b".", b"<end>",
    ]  # fmt: skip
    assert made.reencodes


def test_only_what_is_new_is_read():
    made = drafter("the cat is beautiful.")
    text = ids(TARGET_WORDS, "the")
    drafts(made, text, 4)
    before = made.model.num_read
    assert pieces(TARGET_WORDS, drafts(made, [*text, *ids(TARGET_WORDS, " cat is")], 1)) == [b" beau"]
    assert made.model.num_read - before <= 2


def test_a_word_that_the_target_divides_is_gone_on_with():
    """The target stands behind ' beau', which is the beginning of one token here: what was thought before it tells."""
    made = drafter("the cat is beautiful.")
    text = ids(TARGET_WORDS, "the cat is")
    assert pieces(TARGET_WORDS, drafts(made, text, 1)) == [b" beau"]
    found = proposals(made, [*text, TARGET_WORDS.pieces.index(b" beau")], 3)
    assert pieces(TARGET_WORDS, [one.token for one in found]) == [b"ti", b"ful", b"."]


def test_a_longer_word_takes_the_place_of_tokens_that_were_read_together():
    """' be' and 'x' were read in one go, 'x' became 'au': ' beautiful' takes the place of what is in the cache."""
    made = drafter("the cat is beautiful.")
    text = ids(TARGET_WORDS, "the cat is")
    assert pieces(TARGET_WORDS, drafts(made, text, 1)) == [b" beau"]
    drafts(made, [*text, *ids(TARGET_WORDS, " bex")], 1)
    assert pieces(TARGET_WORDS, drafts(made, [*text, *ids(TARGET_WORDS, " beau")], 3)) == [b"ti", b"ful", b"."]


def test_a_text_that_ends_within_a_character_gets_no_drafts():
    made = drafter("the ü cat")
    assert drafts(made, ids(TARGET_WORDS, b"the " + "ü".encode()[:1]), 4) == []
    assert pieces(TARGET_WORDS, drafts(made, ids(TARGET_WORDS, "the ü"), 4)) == [b" cat", b"<end>"]


@pytest.mark.parametrize("text", [[], [10**9], [-1], [0]])
def test_odd_texts_are_no_error(text):
    assert all(0 <= token < len(TARGET_WORDS.pieces) for token in drafts(drafter("the cat"), text, 4))


def test_the_same_noise_makes_the_same_choice():
    """Where both vocabularies have the same tokens, a re-encoded draft is the target's own sample."""
    import edgekernels

    rng = np.random.default_rng(0)
    rows = rng.normal(0, 2, (64, len(TARGET_WORDS.pieces))).astype(np.float32)
    made = drafter("the cat", TARGET_WORDS)
    made._sampling = Sampling(1.0, seed=3)
    equal = 0
    for position, row in enumerate(rows):
        row[0] = -99  # <end> begins with no token of the target's text
        token, confidence = made._choose(row, position)
        equal += token == edgekernels.sample(row[None], temperature=1.0, seed=3, position=position)[0]
        assert confidence == pytest.approx(np.exp(row[token]) / np.exp(row.astype(float)).sum(), rel=1e-4)
    assert (
        equal >= 48
    )  # of 64: the noise's favourite may lie outside of the 64 likeliest; alone it would be none or two


@pytest.mark.model
def test_encoding_from_pieces_is_that_of_smollm2():
    """Prose, code, lists and other scripts: over 99.9 % of the tokens are the tokenizer's own."""
    pytest.importorskip("tokenizers")
    from pathlib import Path

    from edgekernels.gguf import GgufFile

    from sled.targets.catalog import find_model
    from sled.targets.text import codec_from_gguf

    with GgufFile(find_model("smollm2-135m").path) as file:
        codec = codec_from_gguf(file.metadata)
    encoder, root = PieceEncoder(codec.vocabulary()), Path(__file__).parents[2]
    texts = [path.read_text() for path in sorted(root.glob("sled/d*/*.py")) + sorted(root.glob("docs/guide/*.md"))]
    texts += [
        "naïve café 你好 🙂 x² Straße Ωμέγα привет 日本語のテキスト",
        "tabs\tand\n\n  lines  \n\t\tx = 12,345.67",
        "don't I'LL",
    ]
    total = wrong = 0
    for text in texts:
        wanted, found = codec.tokenizer.encode(text, add_special_tokens=False).ids, encoder.encode(text.encode())
        total += len(wanted)
        wrong += len(wanted) if found != wanted else 0  # the whole text, to be strict
    assert total > 20_000
    assert wrong < total / 1000
