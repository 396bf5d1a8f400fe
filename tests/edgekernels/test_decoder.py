"""The native decoder on tiny random models: worked by hand, every level against numpy, batches, rollback, bad input."""

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from edgekernels import PackedMatrix, _select
from edgekernels.decoder import Decoder, DecoderConfig, DecoderError, Layer, Linear, Weights, model, reduced
from edgekernels.decoder._reference import rotate
from edgekernels.decoder.config import frequencies
from edgekernels.decoder.weights import halves_order
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

relaxed = settings(
    deadline=None,
    max_examples=15,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def shape(heads=4, kv_heads=2, head_dim=16, turning=None, hidden=64, ffn=96, layers=2, vocab=75, positions=200):
    return DecoderConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        ffn_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_epsilon=1e-5,
        max_positions=positions,
        frequencies=frequencies(turning or head_dim, 10000.0),
    )


def floats(values, _part):
    return values


def packed(bits, group, *, symmetric=False, factors=np.float16):
    def pack(values, _part):
        return PackedMatrix.quantise(values, bits, group=group, symmetric=symmetric, factors=factors)

    return pack


def mixed(values, part):
    """Every matrix of another kind, as in files of mixed types."""
    kinds = {
        "query": packed(4, 32),
        "key": packed(6, 16, factors=np.float32),
        "value": floats,
        "gate": packed(8, 32, symmetric=True),
        "up": packed(4, 16),
        "down": packed(5, 32),
        "head": packed(6, 16),
    }
    return kinds.get(part, packed(8, 32))(values, part)


def random_weights(config, pack=floats, *, bias=False, norms=False, tied=True, seed=0):
    rng = np.random.default_rng(seed)

    def vector(size, spread=0.3):
        return (1 + rng.normal(0, spread, size)).astype(np.float32)

    def linear(part, rows, columns, has_bias=False):
        values = rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)
        return Linear(pack(values, part), vector(rows) - 1 if has_bias else None)

    hidden, d = config.hidden_size, config.head_dim
    layers = tuple(
        Layer(
            attention_norm=vector(hidden),
            query=linear("query", config.num_heads * d, hidden, bias),
            key=linear("key", config.num_kv_heads * d, hidden, bias),
            value=linear("value", config.num_kv_heads * d, hidden, bias),
            query_norm=vector(d) if norms else None,
            key_norm=vector(d) if norms else None,
            output=linear("output", hidden, config.num_heads * d, bias),
            ffn_norm=vector(hidden),
            gate=linear("gate", config.ffn_size, hidden, bias),
            up=linear("up", config.ffn_size, hidden, bias),
            down=linear("down", hidden, config.ffn_size, bias),
        )
        for _ in range(config.num_layers)
    )
    embedding = pack(rng.normal(0, 1, (config.vocab_size, hidden)).astype(np.float32), "embedding")
    head = Linear(embedding) if tied else linear("head", config.vocab_size, hidden, bias)
    return Weights(embedding, layers, vector(hidden), head)


def in_numpy(config, weights, tokens, *, activations, dtype):
    """Logits of all tokens by the reference."""
    before = _select.active
    from edgekernels import _reference

    _select.use(_reference)
    try:
        decoder = Decoder(config, weights, activations=activations)
        return decoder.forward(tokens, decoder.new_cache(dtype=dtype), num_logits=len(tokens))
    finally:
        _select.use(before)


def hand_made(values):
    """One layer, heads of 4 alone: no positions (frequency 0 turns nothing), queries of 0, no feed-forward part.

    Attention is the mean of the values, which are the normed vectors; logits are the normed sum.
    """
    eye, nothing = np.eye(4, dtype=np.float32), np.zeros((4, 4), np.float32)
    one = np.ones(4, np.float32)
    config = DecoderConfig(len(values), 4, 4, 1, 1, 1, 4, 1e-12, 32, np.zeros(2, np.float32))
    layer = Layer(
        one, Linear(nothing), Linear(eye), Linear(eye), None, None, Linear(eye), one,
        Linear(nothing), Linear(eye), Linear(eye),
    )  # fmt: skip
    embedding = np.array(values, np.float32)
    return Decoder(config, Weights(embedding, (layer,), one, Linear(eye)))


def test_a_model_by_hand(decode_engine):
    """Vectors (2,0,0,0) and (0,2,0,0), root mean square 1; the second token sees (1,1,0,0) as the mean."""
    decoder = hand_made([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]])
    logits = decoder.forward([0, 1], decoder.new_cache(), num_logits=2)
    np.testing.assert_allclose(logits[0], [2, 0, 0, 0], atol=1e-6)  # (2 + 2, 0, 0, 0) normed
    np.testing.assert_allclose(logits[1], np.array([1, 3, 0, 0]) / np.sqrt(10 / 4), atol=1e-5)


def test_rotation_by_hand():
    """A quarter turn of (1, 0) is (0, 1); pairs are half a head apart, what does not turn stays."""
    head = np.array([[[1, 2, 0, 0, 7]]], np.float32)
    turned = rotate(head, np.array([1]), np.array([np.pi / 2, np.pi], np.float32))
    np.testing.assert_allclose(turned[0, 0], [0, -2, 1, 0, 7], atol=1e-6)


def test_scaled_frequencies_by_hand():
    """llama3: wavelengths over 8192 are stretched by 8, those under 2048 stay, 4096 lies at 1/3 between."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    theta = (4096 / (2 * np.pi)) ** 2  # the second of two frequencies has a wavelength of 4096
    first, second = frequencies(4, theta, scaling)
    assert first == 1.0
    assert second == pytest.approx((2 / 3 / 8 + 1 / 3) * 2 * np.pi / 4096)
    assert frequencies(2, 1e4, {"rope_type": "linear", "factor": 4.0}).tolist() == [0.25]


def test_neighbours_become_halves():
    """ggml's order of two heads of 4: pairs (0, 1), (2, 3) become (0, 2), (1, 3) of the other layout."""
    assert halves_order(8, 2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


VARIANTS = {
    "floats": (shape(), {}),
    "packed": (shape(), {"pack": packed(4, 32)}),
    "mixed": (shape(), {"pack": mixed, "tied": False}),
    "qwen2": (shape(heads=6, kv_heads=3, head_dim=8, hidden=48), {"pack": packed(8, 16), "bias": True}),
    "qwen3": (shape(heads=3, kv_heads=1, head_dim=24, hidden=32), {"norms": True, "tied": False}),
    "wide": (shape(heads=10, kv_heads=2, head_dim=80, turning=32, hidden=32, ffn=40), {}),
    "odd": (shape(heads=7, kv_heads=7, head_dim=6, hidden=37, ffn=51, vocab=1, layers=1), {"bias": True}),
    "alone": (shape(heads=1, kv_heads=1, head_dim=64, hidden=16, ffn=16), {"pack": packed(3, 16)}),
}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_level_computes_what_numpy_does(decode_level, variant, dtype):
    config, kind = VARIANTS[variant]
    weights = random_weights(config, **kind)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 37)
    wanted = in_numpy(config, weights, tokens, activations="float", dtype=dtype)
    decoder = Decoder(config, weights, activations="float")
    got = decoder.forward(tokens, decoder.new_cache(dtype=dtype), num_logits=len(tokens))
    # a float16 may round to either side where sums differ in their last bit
    tolerance = (2e-5 if dtype == "float32" else 2e-3) * np.abs(wanted).max()
    np.testing.assert_allclose(got, wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("variant", ["packed", "mixed", "qwen2"])
def test_int8_activations_are_those_of_numpy(decode_level, variant):
    """One layer, because a code that falls to the other side of a half would grow through many."""
    config, kind = VARIANTS[variant]
    weights = random_weights(config, **kind)
    tokens = np.arange(9) % config.vocab_size
    wanted = in_numpy(config, weights, tokens, activations="int8", dtype="float32")
    decoder = Decoder(config, weights)
    got = decoder.forward(tokens, decoder.new_cache(dtype="float32"), num_logits=9)
    exact = in_numpy(config, weights, tokens, activations="float", dtype="float32")
    assert np.abs(got - wanted).max() < 0.2 * np.abs(exact - wanted).max()


def test_threads_are_no_more_than_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert model.processors() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert model.processors() == 1


@relaxed
@given(data=st.data())
def test_logits_do_not_depend_on_batches_threads_or_rollbacks(decode_level, data):
    """The same to the bit, so that a drafter which is rolled back drafts like a fresh one."""
    config, kind = VARIANTS[data.draw(st.sampled_from(["packed", "mixed", "qwen2", "odd"]))]
    decoder = Decoder(config, random_weights(config, **kind))
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, 70)
    whole = decoder.forward(tokens, decoder.new_cache(), num_logits=70)
    cache, got = decoder.new_cache(), np.zeros_like(whole)
    while len(cache) < 70:
        at, threads = len(cache), data.draw(st.sampled_from([1, 2, 3]))
        if at and data.draw(st.booleans()):
            at = data.draw(st.integers(max(0, at - 20), at))
            decoder.forward(tokens[::-1][:5], cache)  # wrong ones
            cache.truncate(at)
        count = data.draw(st.integers(1, 70 - at))
        wanted = data.draw(st.sampled_from([count, 1, 0]))
        rows = decoder.forward(tokens[at : at + count], cache, num_logits=wanted, num_threads=threads)
        got[at : at + count] = whole[at : at + count]
        got[at + count - wanted : at + count] = rows
    np.testing.assert_array_equal(got, whole)


def test_long_prompts_are_taken_in_pieces(decode_engine):
    config = shape(heads=1, kv_heads=1, head_dim=8, hidden=16, ffn=16, layers=1, vocab=11, positions=700)
    decoder = Decoder(config, random_weights(config))
    tokens = np.arange(600) % 11
    cache = decoder.new_cache()
    last = decoder.forward(tokens, cache, num_logits=100)
    assert len(cache) == 600
    cache.truncate(0)
    step = [decoder.forward(tokens[at : at + 50], cache, num_logits=50) for at in range(0, 600, 50)]
    # numpy's own sums depend on how many rows there are
    np.testing.assert_allclose(last, np.concatenate(step[-2:]), atol=1e-4)


@pytest.mark.native
def test_two_sequences_in_two_threads_do_not_disturb_each_other():
    config = shape(positions=400)
    decoder = Decoder(config, random_weights(config, packed(4, 32)))
    wanted, got = {}, {}

    def answer(seed, into):
        tokens = np.random.default_rng(seed).integers(0, config.vocab_size, 200)
        cache = decoder.new_cache()
        into[seed] = [decoder.forward(tokens[i : i + 1], cache, num_threads=1 + seed % 2)[0] for i in range(200)]

    for seed in range(4):
        answer(seed, wanted)
    threads = [threading.Thread(target=answer, args=(seed, got)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for seed in range(4):
        np.testing.assert_array_equal(got[seed], wanted[seed])


@pytest.mark.native
def test_more_threads_than_processors_come_to_an_end(monkeypatch):
    """Whoever waits sleeps after a while, so the one awaited gets a processor."""
    monkeypatch.setattr(model, "processors", lambda: 12)
    config = shape()
    decoder = Decoder(config, random_weights(config, packed(4, 32)))
    cache, alone = decoder.new_cache(), decoder.new_cache()
    for token in range(20):
        rows = decoder.forward([token], cache, num_threads=12)
        np.testing.assert_array_equal(rows, decoder.forward([token], alone))


def test_output_can_be_given(decode_engine):
    config = shape()
    decoder = Decoder(config, random_weights(config))
    out = np.zeros((2, config.vocab_size), np.float32)
    assert decoder.forward([1, 2, 3], decoder.new_cache(), num_logits=2, out=out) is out
    assert np.abs(out).min(axis=1).max() > 0


def test_saturated_keys_stay_finite(decode_level):
    """Float16 has no number above 65504; keys and values stop there instead of becoming infinite."""
    config = shape(layers=1)
    weights = random_weights(config)
    layer = weights.layers[0]
    for by in (layer.key, layer.value):
        by.matrix[...] *= 1e6
    tokens = np.arange(20)
    wanted = in_numpy(config, weights, tokens, activations="float", dtype="float16")
    decoder = Decoder(config, weights)
    got = decoder.forward(tokens, decoder.new_cache(), num_logits=20)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, wanted, atol=1e-2 * np.abs(wanted).max())


@pytest.fixture
def decoder():
    config = shape()
    return Decoder(config, random_weights(config))


@pytest.mark.parametrize("tokens", [[], [[1]], [75], [-1], [2**40]])
def test_bad_tokens_are_refused(decoder, tokens):
    cache = decoder.new_cache()
    with pytest.raises(ValueError, match="tokens"):
        decoder.forward(tokens, cache)
    assert len(cache) == 0


def test_bad_arguments_are_refused(decoder):
    cache = decoder.new_cache(4)
    with pytest.raises(ValueError, match="5 tokens do not fit the cache, which has 0 of 4; truncate it"):
        decoder.forward([1] * 5, cache)
    with pytest.raises(ValueError, match=r"num_logits is 3; pass 0 \.\. 2"):
        decoder.forward([1, 2], cache, num_logits=3)
    with pytest.raises(ValueError, match="num_threads is 0"):
        decoder.forward([1], cache, num_threads=0)
    with pytest.raises(ValueError, match=r"out has shape \(1, 74\)"):
        decoder.forward([1], cache, out=np.zeros((1, 74), np.float32))
    with pytest.raises(ValueError, match=r"length is 1; pass 0 \.\. 0"):
        cache.truncate(1)
    with pytest.raises(ValueError, match=r"positions is 201; pass 1 \.\. 200"):
        decoder.new_cache(201)
    with pytest.raises(ValueError, match="dtype is 'bfloat16'"):
        decoder.new_cache(dtype="bfloat16")
    with pytest.raises(ValueError, match="activations is 'int4'"):
        Decoder(decoder.config, decoder.weights, activations="int4")


def test_a_cache_of_another_decoder_is_refused(decoder):
    config = shape(layers=3)
    other = Decoder(config, random_weights(config))
    with pytest.raises(ValueError, match="another decoder's"):
        decoder.forward([1], other.new_cache())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"heads": 3}, "3 heads are no multiple of 2"),
        ({"layers": 0}, "num_layers is 0"),
        ({"hidden": 2**40}, "hidden_size is 1099511627776"),
        ({"turning": 32}, "do not fit heads of 16"),
        ({"turning": 3}, "an even number"),
    ],
)
def test_shapes_which_contradict_themselves_are_refused(change, what):
    with pytest.raises(DecoderError, match=what):
        shape(**change)


def changed_layer(**change):
    return lambda weights: replace(weights, layers=(weights.layers[0], replace(weights.layers[1], **change)))


LIES = {
    "layers": (lambda weights: replace(weights, layers=weights.layers[:1]), "weights of 1 layers; the config states 2"),
    "embedding": (lambda weights: replace(weights, embedding=np.zeros((74, 64), np.float32)), r"embedding.*\(74, 64\)"),
    "norm": (lambda weights: replace(weights, norm=np.ones(63, np.float32)), r"norm has shape \(63,\); \(64,\)"),
    "head": (lambda weights: replace(weights, head=Linear(np.zeros((75, 32), np.float32))), r"head.matrix.*\(75, 64\)"),
    "matrix": (
        changed_layer(key=Linear(np.zeros((16, 64), np.float32))),
        r"layers\[1\].key.matrix.*\(16, 64\); \(32, 64\)",
    ),
    "packed": (
        changed_layer(up=Linear(PackedMatrix.quantise(np.zeros((96, 32), np.float32), 4, group=32))),
        r"layers\[1\].up.matrix has shape \(96, 32\); \(96, 64\) is needed",
    ),
    "dtype": (changed_layer(gate=Linear(np.zeros((96, 64)))), r"gate.matrix is float64; float32 of shape \(96, 64\)"),
    "order": (changed_layer(gate=Linear(np.zeros((64, 96), np.float32).T)), "gate.matrix.*not C-contiguous"),
    "no linear": (changed_layer(down=np.zeros((64, 96), np.float32)), "down is ndarray; pass a Linear"),
    "bias": (
        changed_layer(query=Linear(np.zeros((64, 64), np.float32), np.zeros(1, np.float32))),
        r"query.bias.*\(64,\)",
    ),
    "layer's norm": (changed_layer(ffn_norm=np.ones(1, np.float32)), r"layers\[1\].ffn_norm has shape \(1,\)"),
    "one norm": (changed_layer(query_norm=np.ones(16, np.float32)), r"key_norm is NoneType; float32 of shape \(16,\)"),
    "head's norm": (
        changed_layer(query_norm=np.ones(8, np.float32), key_norm=np.ones(16, np.float32)),
        r"query_norm has shape \(8,\); \(16,\) is needed",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_weights_of_another_shape_are_refused(lie):
    """C takes the shapes as the config states them."""
    config, (change, what) = shape(), LIES[lie]
    with pytest.raises(DecoderError, match=what):
        Decoder(config, change(random_weights(config)))


def test_frequencies_of_another_type_are_refused():
    config = replace(shape(), frequencies=np.ones(8))
    with pytest.raises(DecoderError, match="frequencies is float64"):
        Decoder(config, random_weights(config))
    with pytest.raises(DecoderError, match="go up to inf; finite ones"):
        replace(config, frequencies=np.full(8, np.inf, np.float32))


@pytest.mark.parametrize(("theta", "factor"), [(1e-300, 1.0), (1e4, 1e-300), (10**400, 1.0), (1e4, 10**400)])
def test_frequencies_which_are_not_finite_are_refused(theta, factor):
    with pytest.raises(DecoderError, match=r"not finite|a positive number is needed"):
        frequencies(16, theta, {"rope_type": "linear", "factor": factor})


def test_a_reduced_copy_is_the_model_made_so():
    """Left out and narrowed by hand: the copy computes what a decoder of those weights does; the model is as it was."""
    config = shape(layers=3)
    decoder = Decoder(config, random_weights(config, packed(8, 32), bias=True), activations="float")
    tokens = np.arange(20) % 7
    before = decoder.forward(tokens, decoder.new_cache())
    copy, shares = reduced(decoder, skip=[1], bits=4, group=32, progress=(progress := []).append), progress

    def narrow(part):
        if not isinstance(part, Linear):
            return part
        values = PackedMatrix.quantise(part.matrix.dequantise(), 4, group=32, clip="mse")
        return Linear(values, part.bias)

    names = Layer.__dataclass_fields__
    layers = [
        Layer(**{name: narrow(getattr(layer, name)) for name in names})
        for layer in (decoder.weights.layers[0], decoder.weights.layers[2])
    ]
    by_hand = Decoder(
        replace(config, num_layers=2), replace(decoder.weights, layers=tuple(layers)), activations="float"
    )
    got, wanted = (one.forward(tokens, one.new_cache()) for one in (copy, by_hand))
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(decoder.forward(tokens, decoder.new_cache()), before)
    assert copy.weights.embedding is decoder.weights.embedding
    assert copy.nbytes < decoder.nbytes
    assert shares == [0.5, 1.0]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"skip": [2]}, "cannot skip layer 2: the model has layers 0 to 1"),
        ({"skip": [0, 1]}, "cannot skip all layers"),
        ({"bits": 9}, "bits"),
        ({"bits": 4, "group": 48}, "group is 48; pass one of 16, 32"),
    ],
)
def test_copies_that_cannot_be_are_refused(more, what):
    config = shape()
    with pytest.raises(ValueError, match=what):
        reduced(Decoder(config, random_weights(config)), **more)
