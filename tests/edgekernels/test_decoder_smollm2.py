"""The native decoder on a real model, SmolLM2-135M as Q4_1, beside transformers on the same weights."""

import numpy as np
import pytest
from edgekernels.decoder import load_decoder

torch = pytest.importorskip("torch")

from sled.targets.catalog import find_model
from sled.targets.gguf_llama import load_gguf_llama

pytestmark = [pytest.mark.model, pytest.mark.native]
PROMPTS = (
    "Why is the sky blue?",
    "Write a Python function that adds two numbers.",
    "List three animals that live in the sea, 1 line each.",
)


@pytest.fixture(scope="module")
def path():
    return find_model("smollm2-135m").path


@pytest.fixture(scope="module")
def theirs(path):
    return load_gguf_llama(path, torch.float32)


@pytest.fixture(scope="module")
def prompts(theirs):
    return [theirs[1].encode(text, chat=True) for text in PROMPTS]


def logits_of(model, tokens):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens])).logits[0].numpy()


def continued(decoder, prompt, count):
    cache, feed, answer = decoder.new_cache(dtype="float32"), list(prompt), []
    for _ in range(count):
        feed = [int(decoder.forward(feed, cache).argmax())]
        answer += feed
    return answer


def test_float_activations_give_the_logits_of_transformers(path, theirs, prompts):
    decoder = load_decoder(path, activations="float")
    for prompt in prompts:
        wanted = logits_of(theirs[0], prompt)
        for dtype, tolerance in (("float32", 1e-3), ("float16", 0.2)):
            got = decoder.forward(prompt, decoder.new_cache(dtype=dtype), num_logits=len(prompt))
            assert np.abs(got - wanted).max() < tolerance


def test_float_activations_give_the_greedy_answer_of_transformers(path, theirs, prompts):
    decoder = load_decoder(path, activations="float")
    for prompt in prompts:
        answer = continued(decoder, prompt, 24)
        wanted = logits_of(theirs[0], prompt + answer)[len(prompt) - 1 : -1].argmax(axis=1)
        assert answer == wanted.tolist()


def test_int8_activations_predict_the_text_as_well(path, theirs, prompts):
    """Perplexity of the model's own answers within 3 %, and nearly always the same favourite."""
    decoder = load_decoder(path)
    losses, same = np.zeros(2), []
    for prompt in prompts:
        text = prompt + continued(decoder, prompt, 40)
        wanted = logits_of(theirs[0], text).astype(np.float64)
        got = decoder.forward(text, decoder.new_cache(), num_logits=len(text)).astype(np.float64)
        same += (got.argmax(axis=1) == wanted.argmax(axis=1)).tolist()
        for i, rows in enumerate((wanted, got)):
            chosen = rows[np.arange(len(text) - 1), text[1:]]
            losses[i] += np.mean(np.logaddexp.reduce(rows[:-1], axis=1) - chosen) / len(prompts)
    assert abs(losses[1] - losses[0]) < 0.03
    assert np.mean(same) > 0.9
