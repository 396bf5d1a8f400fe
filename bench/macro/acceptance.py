"""Acceptance beside its peers and beside the machine's limit, in one run: `python -m bench.macro.acceptance`.

Writes bench/results/acceptance.json and the figures `kernels.accept*`. Peers run on as many threads as ours and are
checked before they are timed. The limit is the fastest way numpy has to read the same logits (their maximum), once
they lie in the cache as far as they fit: 20 MB for V=128,000 and B=8.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import edgekernels
import numpy as np
import torch

from bench import record
from bench.micro import _acceptance_peers as sampling
from bench.micro import _rejection_peers as rejection

WINDOW = sampling.WINDOW
COMMAND = "python -m bench.macro.acceptance"
HEADLINE = "rejection V=128000 B=8 all, 1 thread"
PATTERNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mixed": lambda b: (2 + b) % (WINDOW + 1),
    "all": lambda b: WINDOW + 0 * b,
}
SAMPLED = {
    "greedy": {"temperature": 0.0},
    "coupled": {"temperature": 0.8},
    "coupled top_k=50": {"temperature": 0.8, "top_k": 50},
    "coupled top_p=0.9": {"temperature": 0.8, "top_p": 0.9},
}


def typical_s(work: Callable[[], Any], budget_s: float = 0.15) -> float:
    """Seconds of a call: the lower quartile, which a neighbour on the machine disturbs less than the median."""
    work()
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 400):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.quantile(times, 0.25))


def read_limit(logits: np.ndarray, threads: int) -> float:
    """Bytes per second at which numpy reads the logits, by so many threads."""
    parts = np.array_split(logits.reshape(-1), threads)
    if threads == 1:
        return logits.nbytes / typical_s(logits.max)
    barrier = threading.Barrier(threads)
    spans: list[tuple[float, float]] = []

    def work(part: np.ndarray) -> None:
        part.max()
        for _ in range(20):
            barrier.wait()
            start = time.perf_counter()
            for _ in range(10):
                part.max()
            spans.append((start, time.perf_counter()))

    workers = [threading.Thread(target=work, args=(part,)) for part in parts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rounds = sorted(spans)
    took = [max(end for _, end in rounds[i : i + threads]) - rounds[i][0] for i in range(0, len(rounds), threads)]
    return 10 * logits.nbytes / float(np.quantile(took, 0.25))


def row_of(name: str, seconds_of: dict[str, float], logits: np.ndarray, rows: int, limit: float) -> dict[str, Any]:
    """One line of the table: times, share of the limit for the rows that had to be read, ratios."""
    ours = seconds_of["edgekernels"]
    num_bytes = rows * logits.shape[1] * logits.itemsize
    return {
        "case": name,
        "us": {peer: round(seconds * 1e6, 1) for peer, seconds in seconds_of.items()},
        "bytes_read": num_bytes,
        "limit_gb_per_s": round(limit / 1e9, 1),
        "share_of_limit": round(num_bytes / ours / limit, 3),
        "ratio": {peer: round(seconds / ours, 2) for peer, seconds in seconds_of.items() if peer != "edgekernels"},
    }


def rejection_row(vocab: int, batch: int, pattern: str, threads: int) -> dict[str, Any]:
    """Rejection with dense q, all peers."""
    case = rejection.RejectionCase.of(batch, vocab, PATTERNS[pattern](np.arange(batch)))
    torch.set_num_threads(threads)
    seconds_of = {}
    for name, make in rejection.PEERS.items():
        if threads > 1 and name == "numpy, lazy":
            continue
        peer = rejection.Edgekernels(case, threads) if name == "edgekernels" else make(case)
        accepted, following = peer()
        assert accepted == case.passing.tolist(), f"{name}: {accepted}"
        assert all(0 <= token < vocab for token in following)
        seconds_of[name] = typical_s(peer)
    rows = int(case.passing.sum()) + batch
    label = f"rejection V={vocab} B={batch} {pattern}, {threads} thread{'s' * (threads > 1)}"
    return row_of(label, seconds_of, case.logits, rows, read_limit(case.logits, threads))


def sampled_row(settings: str, vocab: int, batch: int) -> dict[str, Any]:
    """Greedy and coupled acceptance, all drafts accepted, one thread."""
    torch.set_num_threads(1)
    logits = sampling.peaked_logits(batch * (WINDOW + 1), vocab)
    case = sampling.Case(batch, vocab, SAMPLED[settings], np.full(batch, WINDOW), logits)
    seconds_of = {}
    for name in ("edgekernels", "numpy, lazy", "transformers"):
        peer = sampling.PEERS[name](case)
        assert peer()[0] == case.agreeing.tolist()
        seconds_of[name] = typical_s(peer)
    return row_of(
        f"{settings} V={vocab} B={batch} all, 1 thread", seconds_of, logits, len(logits), read_limit(logits, 1)
    )


def single_rows() -> dict[str, dict[str, float]]:
    """Worst cases of the filters, 16-bit logits and penalties, one row: microseconds beside numpy's bare selection."""
    rng = np.random.default_rng(0)
    wide, flat = (rng.normal(0, deviation, (1, 128_000)).astype(np.float32) for deviation in (1, 1e-3))
    small = wide[:, :32_000].copy()
    history = edgekernels.History(rng.integers(0, 128_000, 2000).astype(np.int32), np.array([0, 2000]))
    brain = (wide.view(np.uint32) >> 16).astype(np.uint16)

    def us(work: Callable[[], Any]) -> float:
        return round(typical_s(work) * 1e6, 1)

    def ours(logits: Any, **settings: Any) -> float:
        return us(lambda: edgekernels.sample(logits, **({"temperature": 1.0} | settings)))

    return {
        "top_p=0.99 V=128000, deviation 1": {"ours": ours(wide, top_p=0.99), "np.sort": us(lambda: np.sort(wide[0]))},
        "top_p=0.99 V=128000, flat": {"ours": ours(flat, top_p=0.99), "np.sort": us(lambda: np.sort(flat[0]))},
        "top_k=1000 V=32000": {
            "ours": ours(small, top_k=1000),
            "np.partition": us(lambda: np.partition(small[0], -1000)),
        },
        "greedy V=128000": {"ours": ours(wide, temperature=0), "np.argmax": us(wide[0].argmax)},
        "greedy V=128000 float16": {"ours": ours(wide.astype(np.float16), temperature=0)},
        "greedy V=128000 bfloat16": {"ours": ours(brain, temperature=0)},
        "greedy V=128000, 2000 tokens penalised": {
            "ours": ours(wide, temperature=0, history=history, repetition_penalty=1.2)
        },
    }


def two_python_threads() -> float:
    """How many times the work two Python threads do in the time of one; the best of seven."""
    logits = sampling.peaked_logits(40, 32_000)

    def took(count: int) -> float:
        def work() -> None:
            for _ in range(10):
                edgekernels.sample(logits, temperature=0.8, position=np.arange(40))

        workers = [threading.Thread(target=work) for _ in range(count)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return time.perf_counter() - start

    return round(max(2 * took(1) / took(2) for _ in range(7)), 2)


def first_call_ms() -> float:
    """Import and first call in a fresh interpreter which has numpy, milliseconds, the best of five."""
    script = (
        "import time, numpy as np; logits = np.zeros((2, 32000), np.float32); start = time.perf_counter(); "
        "import edgekernels; edgekernels.sample(logits, temperature=0.8, top_p=0.9); "
        "print((time.perf_counter() - start) * 1e3)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in range(5)
    ]
    return round(min(float(run.stdout) for run in runs), 1)


def figures(rows: list[dict[str, Any]], first_call: float, scaling: float, stamp: dict[str, Any]) -> dict[str, Any]:
    """The headline figures: full acceptance, V=128,000, B=8; rejection with dense q has the plain names."""
    by_name = {row["case"]: row for row in rows}
    what = "V=128,000, B=8, 4 drafts each, all accepted, 1 thread"
    cases = {"": (HEADLINE, "_speculative_sampling")}
    for rule in SAMPLED:
        key = "." + rule.replace(" ", ".").replace("=", "_").replace("0.9", "0_9")
        cases[key] = (f"{rule} V=128000 B=8 all, 1 thread", "processors, softmax, multinomial")

    def figure(value: float, unit: str, peer: str) -> record.Figure:
        return record.figure(value, unit, peer, COMMAND, stamp)

    found = {
        "kernels.accept_first_call_ms": figure(first_call, "ms, import and first call, numpy imported before", ""),
        "kernels.accept_two_threads": figure(scaling, "work of two Python threads over one's, best of 7", "one thread"),
    }
    for key, (case, theirs) in cases.items():
        row = by_name[case]
        rule = case.split(" V=")[0] + (" with dense q" if key == "" else "")
        share, ratio = row["share_of_limit"], row["ratio"]
        found[f"kernels.accept_share_l3{key}"] = figure(share, f"share, {rule}, {what}", "numpy max of the same logits")
        unit = f"their time / ours, {rule}, {what}"
        found[f"kernels.accept_ratio_hf{key}"] = figure(ratio["transformers"], unit, f"transformers: {theirs}")
        found[f"kernels.accept_ratio_lazy_numpy{key}"] = figure(ratio["numpy, lazy"], unit, "numpy, lazy")
    return found


def main() -> None:
    """Measure and write."""
    stamp = record.stamp()
    rows = [
        rejection_row(vocab, batch, pattern, 1)
        for vocab in (32_000, 128_000, 262_144)
        for batch in (1, 8)
        for pattern in PATTERNS
        if vocab * batch < 2_000_000
    ]
    rows += [rejection_row(128_000, batch, "all", 2) for batch in (1, 8)]
    rows += [
        sampled_row(settings, vocab, batch) for settings in SAMPLED for vocab, batch in ((32_000, 1), (128_000, 8))
    ]
    single, scaling, first_call = single_rows(), two_python_threads(), first_call_ms()
    results = {"rows": rows, "single_row_us": single, "two_python_threads": scaling, "first_call_ms": first_call}
    for row in rows:
        print(f"{row['case']:44} {row['us']['edgekernels']:8.0f} us  share {row['share_of_limit']:.2f}  {row['ratio']}")
    print(single, scaling, first_call)
    record.write("acceptance", results, figures(rows, first_call, scaling, stamp), stamp)


if __name__ == "__main__":
    main()
