"""Prompt lookup in long texts: time for each call beside transformers' candidate generator, in one run.

    python -m bench.micro.lookup

Texts are bench/macro/text.txt over and over, so that there is always something to find; after each call the text grows
by one token, three in ten of which are others than it would go on with. Both are asked for 4 tokens.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from edgekernels.gguf import GgufFile
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from bench import record
from sled.drafters.ngram import NgramDrafter
from sled.targets.catalog import find_model
from sled.targets.text import codec_from_gguf
from sled.types import Sampling

COMMAND = "python -m bench.micro.lookup"
LENGTHS = (512, 4096, 32_768)
CALLS, LIMIT, VOCAB = 300, 4, 49_152


def growing(text: list[int], length: int) -> list[int]:
    """What is appended, token by token."""
    rng = random.Random(0)
    return [text[length + i] if rng.random() < 0.7 else rng.randrange(VOCAB) for i in range(CALLS)]


def timed(work: Callable[[Any], Any], prepare: Callable[[], Any], more: list[int], append: Any) -> dict[str, float]:
    """The first call, and the median and 99th percentile of those behind it."""
    text = prepare()
    start = time.perf_counter()
    work(text)
    first, times = time.perf_counter() - start, []
    for token in more:
        text = append(text, token)
        start = time.perf_counter()
        work(text)
        times.append(time.perf_counter() - start)
    times.sort()
    return {
        "first_ms": round(first * 1e3, 3),
        "median_us": round(times[len(times) // 2] * 1e6, 1),
        "p99_us": round(times[len(times) * 99 // 100] * 1e6, 1),
    }


def append_to_list(text: list[int], token: int) -> list[int]:
    text.append(token)
    return text


def append_to_tensor(text: torch.Tensor, token: int) -> torch.Tensor:
    return torch.cat([text, torch.tensor([[token]])], dim=1)


def row(text: list[int], length: int) -> dict[str, Any]:
    """Ours and theirs at one length."""
    drafter = NgramDrafter()
    drafter.start(Sampling(), length)
    more = growing(text, length)
    ours = timed(
        lambda text: list(islice(drafter.draft(text, LIMIT), LIMIT)), lambda: text[:length], more, append_to_list
    )
    peer = PromptLookupCandidateGenerator(
        num_output_tokens=LIMIT, max_matching_ngram_size=4, max_length=1 << 20, eos_token_id=torch.tensor([2])
    )
    theirs = timed(peer.get_candidates, lambda: torch.tensor([text[:length]]), more, append_to_tensor)
    return {"length": length, "sled": ours, "transformers": theirs}


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    stamp = record.stamp()
    with GgufFile(find_model("smollm2-135m").path) as file:
        codec = codec_from_gguf(file.metadata)
    once = codec.encode((Path(__file__).parents[1] / "macro" / "text.txt").read_text(), chat=False)
    text = once * (max(LENGTHS) // len(once) + 2)
    rows = [row(text, length) for length in LENGTHS]
    for each in rows:
        print(each)
    last = rows[-1]
    unit = "us for a draft of 4 in a text of 32,768 tokens, median"
    peer = f"transformers' prompt lookup: {last['transformers']['median_us']} us"
    figure = record.figure(last["sled"]["median_us"], unit, peer, COMMAND, stamp)
    ratio = round(last["transformers"]["median_us"] / last["sled"]["median_us"], 1)
    record.write(
        "lookup",
        {"rows": rows},
        {
            "sled.drafters.ngram.call_us_32k": figure,
            "sled.drafters.ngram.call_ratio_hf_32k": record.figure(
                ratio, "their time / ours, draft of 4 in a text of 32,768 tokens", "transformers", COMMAND, stamp
            ),
        },
        stamp,
    )


if __name__ == "__main__":
    main()
