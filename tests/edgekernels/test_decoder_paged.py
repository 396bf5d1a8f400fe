"""The decoder over pages: many sequences in one call, each as if it were alone; bad input; no memory."""

import numpy as np
import pytest
from edgekernels import _reference, _select
from edgekernels.decoder import Decoder
from hypothesis import given
from hypothesis import strategies as st

from tests.edgekernels.scripts import linux_only, run
from tests.edgekernels.test_decoder import VARIANTS, hand_made, packed, random_weights, relaxed, shape


class Batch:
    """Sequences in pages of a decoder, taken in in any company.

    Args:
        decoder: the model.
        texts: their tokens.
        page_tokens: positions in a page.
        seed: of the order of their pages.
    """

    def __init__(self, decoder, texts, page_tokens, seed=0):
        counts = [-(-len(text) // page_tokens) for text in texts]
        numbers = np.random.default_rng(seed).permutation(sum(counts) + 1).astype(np.int32)
        self.own = np.split(numbers[:-1], np.cumsum(counts)[:-1])
        self.pages = decoder.new_pages(len(numbers), page_tokens=page_tokens)
        self.decoder, self.texts, self.done = decoder, texts, [0] * len(texts)

    def take(self, counts, rows=None, **more):
        """Take in the next `counts[s]` tokens of each sequence; logits of all of them, or of these rows."""
        parts = [text[at : at + n] for text, at, n in zip(self.texts, self.done, counts, strict=True)]
        starts = np.cumsum([0, *counts])
        rows = np.arange(starts[-1]) if rows is None else rows
        tables = np.concatenate(self.own), np.cumsum([0, *map(len, self.own)]), starts, np.array(self.done)
        found = self.decoder.forward_paged(np.concatenate(parts), self.pages, *tables, rows=rows, **more)
        self.done = [at + n for at, n in zip(self.done, counts, strict=True)]
        return found


def texts_of(config, lengths, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, config.vocab_size, n) for n in lengths]


def test_a_batch_by_hand(decode_engine):
    """Of (2,0,0,0) and then (0,2,0,0), beside (0,0,2,0): see `test_decoder.test_a_model_by_hand`."""
    decoder = hand_made([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]])
    batch = Batch(decoder, [np.array([0, 1]), np.array([2])], 1)
    logits = batch.take([2, 1], np.array([1, 2]))
    np.testing.assert_allclose(logits[0], np.array([1, 3, 0, 0]) / np.sqrt(10 / 4), atol=1e-5)
    np.testing.assert_allclose(logits[1], [0, 0, 2, 0], atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_level_computes_over_pages_what_numpy_does(decode_level, variant):
    config, kind = VARIANTS[variant]
    weights, texts = random_weights(config, **kind), texts_of(config, (37, 70, 1))

    def answers():
        batch = Batch(Decoder(config, weights, activations="float"), texts, 5)
        return batch.take([30, 69, 0], np.array([4, 98])), batch.take([7, 1, 1], num_threads=2), batch.pages

    *got, pages = answers()
    before = _select.active
    _select.use(_reference)
    *wanted, in_numpy = answers()
    _select.use(before)
    for a, b in zip((*got, pages.keys, pages.values), (*wanted, in_numpy.keys, in_numpy.values), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("variant", ["floats", "mixed", "qwen3"])
def test_pages_give_what_a_cache_of_ones_own_does(decode_engine, variant):
    """Up to the order of the sums in the attention."""
    config, kind = VARIANTS[variant]
    decoder = Decoder(config, random_weights(config, **kind), activations="float")
    texts = texts_of(config, (150, 3, 40))
    got = Batch(decoder, texts, 16).take([150, 3, 40], num_threads=2)
    caches = [decoder.new_cache(dtype="float32") for _ in texts]
    wanted = [decoder.forward(text, own, num_logits=len(text)) for text, own in zip(texts, caches, strict=True)]
    np.testing.assert_allclose(got, np.concatenate(wanted), atol=2e-5 * np.abs(got).max(), rtol=0)


@relaxed
@given(data=st.data())
def test_logits_do_not_depend_on_company_cuts_pages_or_threads(decode_level, data):
    """The same to the bit: a session's text is what it would be alone."""
    config, kind = VARIANTS[data.draw(st.sampled_from(["floats", "packed", "mixed", "qwen2", "odd"]))]
    activations = data.draw(st.sampled_from(["float", "int8"]))
    decoder = Decoder(config, random_weights(config, **kind), activations=activations)
    texts = texts_of(config, data.draw(st.lists(st.integers(1, 130), min_size=1, max_size=4)))
    wanted = [Batch(decoder, [text], 16).take([len(text)]) for text in texts]
    batch = Batch(decoder, texts, data.draw(st.sampled_from([1, 3, 16])), data.draw(st.integers(0, 9)))
    while any(left := [len(text) - at for text, at in zip(texts, batch.done, strict=True)]):
        counts = [data.draw(st.integers(0, n)) for n in left]
        counts = counts if any(counts) else left
        before = batch.done
        picked = np.flatnonzero([data.draw(st.booleans()) for _ in range(8)] * 80)
        picked = picked[picked < sum(counts)]
        got = batch.take(counts, picked, num_threads=data.draw(st.sampled_from([1, 2, 3])))
        of_all = [own[at : at + n] for own, at, n in zip(wanted, before, counts, strict=True)]
        np.testing.assert_array_equal(got, np.concatenate(of_all)[picked])


@pytest.mark.native
def test_long_texts_are_divided_among_threads_to_the_same_end(monkeypatch):
    """Attention over many segments by several threads, of which one takes what another began."""
    monkeypatch.setattr("edgekernels.decoder.model.processors", lambda: 3)
    config = shape(heads=3, kv_heads=1, positions=2000, layers=1)
    decoder = Decoder(config, random_weights(config))
    texts = texts_of(config, (1900, 5))
    one, three = Batch(decoder, texts, 16), Batch(decoder, texts, 16, 1)
    for counts in ([1800, 0], [1, 5], [99, 0]):
        np.testing.assert_array_equal(one.take(counts), three.take(counts, num_threads=3))


def test_what_was_rolled_back_leaves_nothing(decode_engine):
    """Wrong drafts are overwritten."""
    config = shape()
    decoder = Decoder(config, random_weights(config, packed(4, 32)), activations="float")
    (text,) = texts_of(config, [20])
    wanted = Batch(decoder, [text], 4).take([20])
    batch = Batch(decoder, [np.concatenate([text[:11], text[::-1][:9]])], 4)
    batch.take([20])
    batch.texts, batch.done = [text], [11]
    tolerance = 0 if decode_engine != "numpy" else 1e-5  # numpy's own sums depend on how many rows there are
    np.testing.assert_allclose(batch.take([9]), wanted[11:], atol=tolerance)


def test_an_output_may_be_given_and_no_rows_wanted(decode_engine):
    config = shape()
    batch = Batch(Decoder(config, random_weights(config)), texts_of(config, [9]), 4)
    assert batch.take([4], np.array([], np.int64)).shape == (0, 75)
    out = np.zeros((2, 75), np.float32)
    assert batch.take([5], np.array([0, 4]), out=out) is out
    assert np.abs(out).max(axis=1).min() > 0


GOOD = {
    "tokens": [1, 2, 3],
    "page_table": np.array([0, 1, 2], np.int32),
    "page_starts": np.array([0, 2, 3]),
    "token_starts": np.array([0, 1, 3]),
    "past": np.array([4, 0]),
    "rows": np.array([0, 2]),
}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"tokens": [1, 2, 75]}, r"tokens are 1 \.\. 75"),
        ({"tokens": [1, 2]}, "token_starts has 3 entries, 0 .. 3"),
        ({"page_table": np.array([0, 1, 3], np.int32)}, r"page_table names 0 \.\. 3; pass pages 0 \.\. 2"),
        ({"page_table": np.array([0, -1, 2], np.int32)}, r"page_table names -1 \.\. 2"),
        ({"page_table": np.zeros((3, 1), np.int32)}, r"page_table has shape \(3, 1\)"),
        ({"page_starts": np.array([0, 4, 3])}, r"page_starts\[1:3\] is \[4, 3\]"),
        ({"page_starts": np.array([0, 3])}, "page_starts has 2 entries"),
        ({"page_starts": np.array([0, 1, 3])}, "span 0 has 4 past and 1 new tokens, its pages hold 4; pass 2 pages"),
        ({"token_starts": np.array([0, -1, 3])}, r"token_starts\[0:2\]"),
        ({"past": np.array([-1, 0])}, "past is -1"),
        ({"past": np.array([2**63 - 1, 0])}, "span 0 has 9223372036854775807 past"),
        ({"past": np.array([4])}, "token_starts has 3 entries"),
        ({"past": np.array([], np.int64)}, "token_starts has 3 entries"),
        ({"rows": np.array([0, 3])}, r"rows are 0 \.\. 3; pass 0 \.\. 2"),
        ({"rows": np.array([-1, 0])}, r"rows are -1 \.\. 0"),
        ({"rows": np.array([2, 0])}, "rows do not rise"),
        ({"rows": np.array([0, 0])}, "rows do not rise"),
        ({"out": np.zeros((1, 75), np.float32)}, r"out has shape \(1, 75\)"),
        ({"num_threads": 0}, "num_threads is 0"),
    ],
)
def test_bad_arguments_are_refused(change, what):
    config = shape(layers=1)
    decoder = Decoder(config, random_weights(config))
    pages = decoder.new_pages(3, page_tokens=4)
    decoder.forward_paged(pages=pages, **GOOD)
    pages.keys[:] = 7
    with pytest.raises(ValueError, match=what):
        decoder.forward_paged(pages=pages, **(GOOD | change))
    assert (pages.keys == 7).all()


@pytest.mark.parametrize("name", ["page_starts", "token_starts", "past", "rows"])
def test_arrays_of_another_dtype_are_refused(name):
    config = shape(layers=1)
    decoder = Decoder(config, random_weights(config))
    with pytest.raises(TypeError, match=f"{name} is int32; pass numpy.asarray"):
        decoder.forward_paged(pages=decoder.new_pages(3, page_tokens=4), **(GOOD | {name: GOOD[name].astype(np.int32)}))


def test_pages_which_cannot_be_are_refused():
    config = shape(positions=6)
    decoder = Decoder(config, random_weights(config))
    with pytest.raises(ValueError, match=r"num_pages is 0; pass 1 \.\. "):
        decoder.new_pages(0)
    with pytest.raises(ValueError, match="page_tokens is 0"):
        decoder.new_pages(1, page_tokens=0)
    with pytest.raises(ValueError, match="no memory for 2147483647 pages of 65536 tokens; pass fewer"):
        decoder.new_pages(2**31 - 1, page_tokens=2**16)
    broad = shape(heads=1, kv_heads=1, head_dim=1026, layers=1)
    wide = Decoder(broad, random_weights(broad))
    with pytest.raises(ValueError, match="heads have 1026 dimensions; pages take 1024"):
        wide.new_pages(1)
    with pytest.raises(ValueError, match="span 0 ends at position 7; the model has 6"):
        decoder.forward_paged(pages=decoder.new_pages(3, page_tokens=4), **(GOOD | {"past": np.array([6, 0])}))
    with pytest.raises(ValueError, match="another decoder's"):
        decoder.forward_paged(pages=Decoder(shape(layers=1), random_weights(shape(layers=1))).new_pages(3), **GOOD)


NO_MEMORY = """
import re, resource
from edgekernels.decoder import Decoder
from tests.edgekernels.test_decoder import random_weights, shape
import edgekernels.decoder.model as model

model.processors = lambda: 2
config = shape(heads=3, kv_heads=1, head_dim=64, hidden=16, ffn=16, layers=1, vocab=5, positions=200000)
decoder = Decoder(config, random_weights(config))
pages = decoder.new_pages(12500)
table, starts = np.arange(12500, dtype=np.int32), np.array([0, 12500])

def call(past):
    decoder.forward_paged([1] * 64, pages, table, starts, np.array([0, 64]), np.array([past]), rows=np.array([63]),
                          num_threads=2)

call(0)
pages.keys[:], pages.values[:] = 0, 0
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20),) * 2)
try:
    call(199900)
except MemoryError as error:
    print(error)
call(0)
"""


@linux_only
def test_no_memory_for_the_attention_of_a_long_text_is_an_error_and_no_crash():
    result = run(NO_MEMORY, "", OMP_NUM_THREADS="2")
    assert (result.returncode, result.stdout) == (0, "no memory for the attention of 64 tokens\n"), result.stderr
