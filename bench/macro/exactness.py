"""Is the answer always the target's? Drafters, windows 0 to 8, one and eight devices, greedy and sampled.

Real target, real sockets with CURVE. Greedy answers are held against transformers' own `generate`, sampled ones
against the answer of the same seed without drafts. `python -m bench.macro.exactness [--tokens N] [--prompts N]`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import edgebus
from bench import record
from bench.macro.prompts import PROMPTS
from sled import Device, Sampling, Window
from sled.drafters import Drafter
from sled.reference import Comparison, Reference, compare
from sled.targets.catalog import find_model
from sled.targets.engines import load_engine
from sled.testing import serving

MODEL = "smollm2-135m"
DRAFTERS = ("none", "ngram", "smollm2-12m", "junk")
WINDOWS = range(9)
SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(temperature=0.8, seed=11)}
GROUP = 8


class JunkDrafter:
    """A hostile device: random tokens, as many as it may."""

    name = "junk"

    def __init__(self, vocab_size: int, seed: int) -> None:
        self._vocab_size, self._rng = vocab_size, np.random.default_rng(seed)

    def start(self, sampling: Sampling, num_prompt: int) -> None:
        """Nothing to remember."""

    def draft(self, text: Any, limit: int) -> list[int]:
        """Noise."""
        return self._rng.integers(self._vocab_size, size=limit).tolist()


@dataclass
class Tally:
    """What came of the comparisons."""

    answers: int = 0
    equal: int = 0
    ties: list[dict[str, Any]] = field(default_factory=list)
    different: list[dict[str, Any]] = field(default_factory=list)

    def add(self, result: Comparison, **where: Any) -> None:
        self.answers += 1
        self.equal += result.equal
        if not result.equal:
            entry = {**where, "position": result.position, "margin": result.margin}
            (self.ties if result.tie else self.different).append(entry)

    def as_dict(self) -> dict[str, Any]:
        return {"answers": self.answers, "equal": self.equal, "ties": self.ties, "different": self.different}


class Bench:
    """A server on loopback and a device per thread."""

    def __init__(self, root: Path, num_tokens: int) -> None:
        self.root, self.num_tokens = root, num_tokens
        for name in ("server", "device"):
            edgebus.generate_keys(root / name)
        self.target = load_engine(find_model(MODEL))

    @contextmanager
    def serving(self) -> Iterator[str]:
        keys = edgebus.load_keys(self.root / "server")
        with edgebus.Node(name="server", keys=keys, allow=edgebus.AllowList.any()) as node:
            endpoint = node.bind("tcp://127.0.0.1:0")
            with serving(node, self.target):
                yield endpoint

    def device(self, endpoint: str, drafter: str, number: int = 0) -> Device:
        chosen: str | Drafter = JunkDrafter(self.target.shape.vocab_size, number) if drafter == "junk" else drafter
        return Device(
            endpoint,
            server_key=self.root / "server" / "node.key",
            keys=self.root / "device",
            drafter=chosen,
            cache_dir=self.root / "cache",
            timeout_s=300,
        )

    def answer(self, device: Device, prompt: str, sampling: Sampling, window: int) -> tuple[list[int], list[int]]:
        answer = device.generate(prompt, max_tokens=self.num_tokens, sampling=sampling, window=Window(window)).answer()
        return answer.prompt_tokens, answer.tokens


def configurations() -> list[tuple[str, int]]:
    """Every drafter with every window; junk, which is never right, with three of them."""
    models = [(drafter, window) for drafter in ("ngram", "smollm2-12m") for window in WINDOWS]
    return [("none", 0), *models, *(("junk", window) for window in (1, 4, 8))]


def run_alone(
    bench: Bench, endpoint: str, prompts: list[str], sampling: Sampling
) -> Iterator[tuple[str, int, int, list[int]]]:
    """One device at a time."""
    devices = {name: bench.device(endpoint, name) for name in DRAFTERS}
    for drafter, window in configurations():
        for number, prompt in enumerate(prompts):
            yield drafter, window, number, bench.answer(devices[drafter], prompt, sampling, window)[1]
    for device in devices.values():
        device.close()


def run_group(
    bench: Bench, endpoint: str, prompts: list[str], sampling: Sampling
) -> Iterator[tuple[str, int, int, list[int]]]:
    """Eight devices at once, each with its own drafter, window and order of prompts, all batches mixed."""
    jobs = [(d, w, n) for d, w in configurations() for n in range(len(prompts))]
    np.random.default_rng(0).shuffle(jobs)
    done: list[tuple[str, int, int, list[int]]] = []
    lock = threading.Lock()

    def work(index: int) -> None:
        devices = {name: bench.device(endpoint, name, index) for name in DRAFTERS}
        for drafter, window, number in jobs[index::GROUP]:
            tokens = bench.answer(devices[str(drafter)], prompts[int(number)], sampling, int(window))[1]
            with lock:
                done.append((str(drafter), int(window), int(number), tokens))
        for device in devices.values():
            device.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(GROUP)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == len(jobs), "a device thread failed"
    yield from done


def expected_answers(
    bench: Bench, reference: Reference, endpoint: str, prompts: list[str]
) -> dict[str, list[tuple[list[int], list[float]]]]:
    """The reference's greedy answers with margins; for sampling, the plain answer of the seed (no margins)."""
    expected: dict[str, list[tuple[list[int], list[float]]]] = {"greedy": [], "sampled": []}
    with bench.device(endpoint, "none") as device:
        for prompt in prompts:
            ids, plain = bench.answer(device, prompt, SAMPLINGS["sampled"], 0)
            expected["sampled"].append((plain, [float("inf")] * bench.num_tokens))
            expected["greedy"].append(reference.answer(ids, bench.num_tokens))
    return expected


def main() -> int:
    """Run the grid and write the results; 1 if anything differs beyond a numerical tie."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    options = parser.parse_args()
    started_at, stamped = time.monotonic(), record.stamp()
    prompts = list(PROMPTS[:: max(1, len(PROMPTS) // options.prompts)][: options.prompts])
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), options.tokens)
        reference = Reference(find_model(MODEL))
        with bench.serving() as endpoint:
            expected = expected_answers(bench, reference, endpoint, prompts)
            for (mode, sampling), (crowd, run) in [
                (m, r) for m in SAMPLINGS.items() for r in (("1", run_alone), (str(GROUP), run_group))
            ]:
                tally = tallies[f"{mode}_{crowd}_devices"] = Tally()
                for drafter, window, number, tokens in run(bench, endpoint, prompts, sampling):
                    result = compare(tokens, *expected[mode][number])
                    tally.add(result, drafter=drafter, window=window, prompt=number)
                    if not result.equal:
                        print(
                            f"{mode} {crowd} devices, {drafter} window {window}, prompt {number}: {result}",
                            flush=True,
                        )
                print(f"{mode}, {crowd} devices: {tally.equal} of {tally.answers} equal", flush=True)
    different = sum(len(t.different) for t in tallies.values())
    record.write(
        "exactness",
        {
            "model": MODEL,
            "tokens": options.tokens,
            "prompts": prompts,
            "drafters": DRAFTERS,
            "windows": list(WINDOWS),
            "engine": bench.target.engine,
            "target_threads": bench.target.num_threads,
            "wall_s": round(time.monotonic() - started_at, 1),
            **{name: tally.as_dict() for name, tally in tallies.items()},
        },
        {
            "sled.exactness.answers": sum(t.answers for t in tallies.values()),
            "sled.exactness.equal": sum(t.equal for t in tallies.values()),
            "sled.exactness.ties": sum(len(t.ties) for t in tallies.values()),
            "sled.exactness.different": different,
        },
        stamped,
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
