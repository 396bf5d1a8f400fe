"""Answers of real processes: equal to transformers' generate, and the same whatever drafts."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("torch")

pytestmark = [pytest.mark.model, pytest.mark.net, pytest.mark.timeout(600)]

PROMPTS = (
    "Why is the sky blue?",
    "Repeat this twice: red, green, blue, red, green, blue.",
    "Write a poem about rain.",
)
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def reference():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from sled.reference import Reference
    from sled.targets.catalog import find_model

    return Reference(find_model("smollm2-135m"))


@pytest.mark.parametrize(
    ("drafter", "window"), [("none", "0"), ("ngram", "4"), ("smollm2-12m", "auto"), ("smollm2-12m", "8")]
)
def test_greedy_answers_equal_transformers_generate(generate, reference, drafter, window):
    """Three devices at once, so that their rounds share batches."""
    with ThreadPoolExecutor(3) as pool:
        ran = list(
            pool.map(
                lambda prompt: generate(prompt, "--json", drafter=drafter, window=window, max_tokens=NUM_TOKENS),
                PROMPTS,
            )
        )
    for result in ran:
        assert result.status == 0, result.err
        answer = result.json
        assert len(answer["tokens"]) <= NUM_TOKENS
        comparison = reference.compare(answer["prompt_tokens"], answer["tokens"], NUM_TOKENS)
        assert comparison.equal or comparison.tie, comparison


def test_sampled_answer_is_the_same_for_every_drafter_and_differs_by_seed(generate):
    options = {"temperature": "0.8", "top_p": "0.95", "max_tokens": str(NUM_TOKENS)}
    answers = {
        (drafter, seed): generate(PROMPTS[0], "--json", drafter=drafter, window="3", seed=seed, **options).json[
            "tokens"
        ]
        for drafter, seed in (("none", "1"), ("ngram", "1"), ("smollm2-12m", "1"), ("none", "2"))
    }
    assert answers["none", "1"] == answers["ngram", "1"] == answers["smollm2-12m", "1"]
    assert answers["none", "1"] != answers["none", "2"]


def test_json_has_what_scripts_need(generate):
    answer = generate("Say hi.", "--json", drafter="ngram").json
    names = {"text", "tokens", "prompt_tokens", "finish_reason", "stats", "logprobs", "unverified", "unverified_text"}
    assert set(answer) == names
    assert {
        "rounds",
        "drafted",
        "accepted",
        "mean_accepted_length",
        "bytes_sent",
        "bytes_received",
        "wall_s",
    } <= set(answer["stats"])
    assert answer["finish_reason"] in ("stop", "length")
    assert answer["stats"]["rounds"] > 0


def test_text_output_streams_the_answer(generate):
    plain = generate("Say hi.")
    assert plain.status == 0
    assert plain.out.strip() == generate("Say hi.", "--json").json["text"].strip()
    assert "tokens/s" in plain.err


def test_raw_prompt_skips_the_chat_template(generate):
    raw = generate("Once upon a time", "--raw", "--json").json
    chat = generate("Once upon a time", "--json").json
    assert len(raw["prompt_tokens"]) == 4
    assert len(chat["prompt_tokens"]) > 20
