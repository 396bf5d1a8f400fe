"""Does a crowd change anybody's answer? A hundred prompts through the real machine and target, in float32.

Devices join, leave, vanish, come back, draft well and badly; pages are few, so sessions are evicted and computed again,
and texts that begin alike share pages. Greedy answers are held against transformers' own `generate`, sampled ones
against the same seeds alone.
`python -m bench.macro.server_exactness [--prompts N] [--tokens N] [--crowd N] [--engine native]`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench import record
from bench.macro._crowd import Crowd, Guest, alone
from bench.macro.exactness import Tally
from bench.macro.prompts import hundred
from sled.reference import Reference, compare
from sled.targets.catalog import find_model
from sled.targets.engines import Engine, load_engine
from sled.types import Sampling

MODEL = "smollm2-135m"
POOL_TOKENS = 1536  # a third of what the crowd would hold


def make_target(pool_tokens: int, engine: Engine) -> Any:
    """The model with so few pages that sessions are evicted."""
    config = {"layers": 30, "kv_heads": 3, "head_dim": 64}
    token_bytes = 2 * 4 * config["layers"] * config["kv_heads"] * config["head_dim"]
    return load_engine(find_model(MODEL), engine=engine, kv_bytes=pool_tokens * token_bytes)


def sampled(number: int) -> Sampling:
    """Of every kind, by number."""
    more: tuple[dict[str, Any], ...] = (
        {},
        {"top_k": 40, "top_p": 0.9},
        {"min_p": 0.05, "presence_penalty": 0.5},
        {"repetition_penalty": 1.1, "bias": ((2, -5.0),)},
    )
    return Sampling(temperature=0.7 + 0.1 * (number % 4), seed=1000 + number, **more[number % len(more)])


def in_crowd(target: Any, guests: Sequence[Guest], size: int, seed: int) -> dict[str, Any]:
    """Run the guests; what happened meanwhile."""
    crowd = Crowd(target, size=size, seed=seed)
    crowd.run(guests)
    return crowd.totals()


def greedy_part(target: Any, prompts: Sequence[list[int]], num_tokens: int, size: int) -> dict[str, Any]:
    """Greedy answers of the crowd beside transformers' generate."""
    reference = Reference(find_model(MODEL))
    expected = [reference.answer(prompt, num_tokens) for prompt in prompts]
    print(f"transformers' generate has answered {len(expected)} prompts", flush=True)
    guests = [
        Guest(i, prompt, Sampling(), num_tokens, right)
        for i, (prompt, (right, _)) in enumerate(zip(prompts, expected, strict=True))
    ]
    happened = in_crowd(target, guests, size, seed=1)
    tally = Tally()
    for guest, (right, margins) in zip(guests, expected, strict=True):
        tally.add(compare(guest.answer, right, margins), prompt=guest.number)
    print(f"greedy: {tally.equal} of {tally.answers} equal to transformers' generate, {happened}", flush=True)
    return {**tally.as_dict(), "happened": happened}


def sampled_part(target: Any, prompts: Sequence[list[int]], num_tokens: int, size: int) -> dict[str, Any]:
    """Sampled answers of the crowd beside the same seeds alone."""
    guests = [Guest(i, prompt, sampled(i), num_tokens) for i, prompt in enumerate(prompts)]
    for guest in guests:
        guest.right = alone(target, guest)
    print(f"{len(guests)} sampled answers alone are there", flush=True)
    happened = in_crowd(target, guests, size, seed=2)
    tally = Tally()
    for guest in guests:
        tally.add(compare(guest.answer, guest.right, [float("inf")] * num_tokens), prompt=guest.number)
    print(f"sampled: {tally.equal} of {tally.answers} equal to the same seeds alone, {happened}", flush=True)
    return {**tally.as_dict(), "happened": happened}


def main() -> int:
    """Run both parts and write the results; 1 if any answer is not equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--crowd", type=int, default=32)
    parser.add_argument("--engine", choices=["native", "torch"], default="native")
    options = parser.parse_args()
    started_at, stamped = time.monotonic(), record.stamp()
    texts = hundred()[:: max(1, 100 // options.prompts)][: options.prompts]
    target = make_target(POOL_TOKENS, options.engine)
    prompts = [target.codec.encode(text, chat=True) for text in texts]
    sampled_run = sampled_part(target, prompts, options.tokens, options.crowd)
    greedy_run = greedy_part(target, prompts, options.tokens, options.crowd)
    equal = min(greedy_run["equal"], sampled_run["equal"])
    unit = f"prompts of {options.prompts} whose greedy answer equals; of sampled answers and these, the fewer"
    if options.prompts < 100:
        print(f"{equal} of {options.prompts} equal; nothing is written for fewer than 100")
        return 0 if equal == options.prompts else 1
    figure = record.figure(
        equal, unit, "transformers generate, fp32", "python -m bench.macro.server_exactness", stamped
    )
    record.write(
        "server_exactness",
        {
            "model": MODEL,
            "tokens": options.tokens,
            "crowd": options.crowd,
            "pool_tokens": POOL_TOKENS,
            "engine": target.engine,
            "target_threads": target.num_threads,
            "wall_s": round(time.monotonic() - started_at, 1),
            "greedy": greedy_run,
            "sampled": sampled_run,
        },
        {"sled.server.exact_prompts": figure},
        stamped,
    )
    return 0 if equal == options.prompts else 1


if __name__ == "__main__":
    sys.exit(main())
