"""A crowd around the real machine changes nobody's answer: with the toy target, and with a real model in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.macro._crowd import Crowd, Guest, alone
from bench.macro.prompts import hundred
from sled.testing import ToyTarget
from sled.types import Sampling

KINDS = (Sampling(), Sampling(0.8, seed=3, top_p=0.9), Sampling(1.1, seed=4, min_p=0.02))


@pytest.mark.parametrize("seed", range(3))
def test_toy_answers_are_those_of_devices_alone(seed):
    target = ToyTarget(200)
    target.shape = replace(target.shape, num_pages=20, page_tokens=16)
    prompts = [[*range(2, 30), *range(30 + number, 30 + 5 * number)] for number in range(12)]
    guests = [Guest(i, prompt, KINDS[i % 3], 12) for i, prompt in enumerate(prompts)]
    for guest in guests:
        guest.right = target.plain_answer(guest.prompt, guest.sampling, 12)
    crowd = Crowd(target, size=6, seed=seed)
    crowd.run(guests)
    assert [guest.answer for guest in guests] == [list(guest.right) for guest in guests]
    happened = crowd.totals()
    assert happened["accepted"] < happened["drafted"]
    assert happened["most_rounds"] > 1


@pytest.mark.model
def test_real_answers_are_those_of_generate_and_of_devices_alone():
    """Six prompts, greedy and sampled, in so few pages that sessions are evicted meanwhile; by either engine."""
    torch = pytest.importorskip("torch")
    from sled.targets.catalog import find_model
    from sled.targets.causal_lm import CausalLMTarget
    from sled.targets.loading import load_model
    from sled.targets.native import load_native

    model, codec = load_model(find_model("smollm2-135m"))
    prompts = [codec.encode(text, chat=True) for text in hundred()[:6]]
    rows = []
    for prompt in prompts[::2]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        rows.append(out[0, len(prompt) :].tolist())
    room = {"kv_bytes": 8 * 16 * 46080}
    for target in (
        CausalLMTarget(model, codec, name="target", **room),
        load_native(find_model("smollm2-135m"), **room),
    ):
        assert target.shape.num_pages == 8
        guests = [Guest(i, p, Sampling() if i % 2 == 0 else Sampling(0.9, seed=i), 12) for i, p in enumerate(prompts)]
        for guest in guests:
            guest.right = rows[guest.number // 2] if guest.number % 2 == 0 else alone(target, guest)
        crowd = Crowd(target, size=6, seed=11)
        crowd.run(guests)
        assert [guest.answer for guest in guests] == [list(guest.right) for guest in guests]
        assert crowd.totals()["evictions"] > 0
