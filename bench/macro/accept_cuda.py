"""Acceptance on a CUDA device: equal to the kernels on the host, and timed beside what others do with torch.

`python -m bench.macro.accept_cuda [--out FOLDER]`, under three minutes; prints one JSON and writes it to
FOLDER/accept_cuda.json (FOLDER is $OUT by default). Needs torch with CUDA; Triton is used where it is installed. The
host's answers come from whichever backend there is, numpy included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import edgekernels
import numpy as np
import torch
from edgekernels import torch_backend

BATCH, WINDOW, VOCAB = 8, 4, 128_000
ROUNDS = 50
STARTS = np.arange(BATCH + 1) * (WINDOW + 1)
OF_DRAFT = np.setdiff1d(np.arange(BATCH * (WINDOW + 1)), STARTS[1:] - 1)
FILTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "top_p=0.9": {"top_p": 0.9},
    "top_k=50": {"top_k": 50},
    "top_k=50 top_p=0.9 min_p=0.02": {"top_k": 50, "top_p": 0.9, "min_p": 0.02},
}


def peaked(vocab: int, seed: int) -> torch.Tensor:
    """Logits (40, vocab) with a wide bulk and a head, as language models have."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((BATCH * (WINDOW + 1), vocab), np.float32) * np.float32(2.5)
    for row in logits:
        row[rng.choice(vocab, 64, replace=False)] = 16 - 1.6 * np.log(np.arange(1, 65))
    return torch.from_numpy(logits)


def on_host(logits: torch.Tensor) -> Any:
    """A CPU tensor as edgekernels.accept takes it."""
    return logits.view(torch.int16).numpy().view(np.uint16) if logits.dtype == torch.bfloat16 else logits.numpy()


def problems(vocab: int) -> Iterator[tuple[str, torch.Tensor, np.ndarray, dict[str, Any], torch.Tensor | None]]:
    """Name, logits, drafts, parameters and q of every case whose answers must be equal."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in ("peaked", "flat"):
            logits = (peaked(vocab, 3) if shape == "peaked" else torch.zeros(BATCH * (WINDOW + 1), vocab)).to(dtype)
            q = torch.softmax(logits.float()[OF_DRAFT] * 0.6, dim=1)
            drafts = torch.multinomial(q, 1, generator=torch.Generator().manual_seed(1))[:, 0].to(torch.int32).numpy()
            for name, filters in FILTERS.items():
                for rule in ("greedy", "coupled", "rejection"):
                    parameters = {
                        "temperature": 0.8,
                        "rule": rule,
                        "seed": np.arange(BATCH),
                        "position": 1000,
                        **filters,
                    }
                    yield (
                        f"{shape} {dtype} {rule} {name}",
                        logits,
                        drafts,
                        parameters,
                        q if rule == "rejection" else None,
                    )
    history = edgekernels.History(np.arange(64, dtype=np.int32) * 3, np.arange(BATCH + 1) * 8, 2)
    penalties = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25, "history": history}
    yield "penalties", peaked(vocab, 3), drafts, {"temperature": 0.8, **penalties}, None


def check(vocab: int) -> int:
    """Compare all cases; returns how many there were.

    Raises:
        SystemExit: an answer differs.
    """
    ids = torch.arange(5, 3000)
    words = torch_backend.noise_words([7, 2**64 - 1], [9, 2**40], ids.cuda()).cpu().numpy()
    expected = [edgekernels.noise_bits(s, p, ids.numpy()) for s, p in ((7, 9), (2**64 - 1, 2**40))]
    if not (words == np.stack(expected)).all():
        sys.exit("noise words differ")
    count = 0
    for name, logits, drafts, parameters, q in problems(vocab):
        host_q = None if q is None else q.numpy()
        host = edgekernels.accept(on_host(logits), drafts, STARTS, q=host_q, **parameters)
        device_q = None if q is None else q.cuda()
        device = torch_backend.accept(logits.cuda(), torch.from_numpy(drafts).cuda(), STARTS, q=device_q, **parameters)
        same = (
            device.accepted.tolist() == host.accepted.tolist()
            and device.next_token.tolist() == host.next_token.tolist()
        )
        if not same:
            sys.exit(f"{name}: {device} on the device, {host} on the host")
        count += 1
    return count


def median_us(work: Callable[[], Any]) -> float:
    """Median time of a call, from start to the end of its work on the device, microseconds."""
    for _ in range(3):
        work()
    times = []
    for _ in range(ROUNDS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return round(float(np.median(times)), 1)


def processed(logits: torch.Tensor, filters: dict[str, Any]) -> torch.Tensor:
    """Probabilities after temperature, top-k and top-p, written as transformers does it."""
    scores = logits.float() / 0.8
    if "top_k" in filters:
        scores = scores.masked_fill(scores < torch.topk(scores, filters["top_k"]).values[:, -1:], -torch.inf)
    if "top_p" in filters:
        ascending, order = torch.sort(scores)
        remove = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - filters["top_p"]
        remove[:, -1:] = False
        scores = scores.masked_fill(remove.scatter(1, order, remove), -torch.inf)
    return scores.softmax(dim=-1)


def like_transformers(
    logits: torch.Tensor, drafts: torch.Tensor, q: torch.Tensor | None, filters: dict[str, Any]
) -> Any:
    """Speculative sampling of a batch in torch operations; without q: sample every row and count the matches."""
    p = processed(logits, filters)
    rows = torch.arange(BATCH, device=p.device)
    if q is None:
        chosen = torch.multinomial(p, 1).view(BATCH, WINDOW + 1)
        matches = (chosen[:, :-1] == drafts.view(BATCH, WINDOW)).long().cumprod(dim=1).sum(dim=1)
        return matches, chosen[rows, matches]
    table, laws = p.view(BATCH, WINDOW + 1, -1), q.view(BATCH, WINDOW, -1)
    token = drafts.view(BATCH, WINDOW, 1).long()
    ratio = table[:, :-1].gather(2, token) / laws.gather(2, token)
    matches = (torch.rand_like(ratio) < ratio)[:, :, 0].long().cumprod(dim=1).sum(dim=1)
    laws = torch.cat([laws, torch.zeros_like(laws[:, :1])], dim=1)
    rest = (table[rows, matches] - laws[rows, matches]).clamp_min(0)
    return matches, torch.multinomial(rest / rest.sum(dim=1, keepdim=True), 1)[:, 0]


def time_case(logits: torch.Tensor, q: torch.Tensor, rule: str, filters: dict[str, Any]) -> dict[str, float]:
    """Microseconds of ours and of others for one batch whose drafts are the likeliest of q."""
    likely = q.argmax(dim=1).to(torch.int32)
    law = q if rule == "rejection" else None
    host_law = None if law is None else law.cpu().numpy()
    parameters = {"temperature": 0.8, "rule": rule, "seed": 7, **filters}

    def ours() -> Any:
        return torch_backend.accept(logits, likely, STARTS, q=law, **parameters)

    def copied() -> Any:
        return edgekernels.accept(on_host(logits.cpu()), likely.cpu().numpy(), STARTS, q=host_law, **parameters)

    case = {"edgekernels on the device": median_us(ours)}
    if rule == "coupled" and torch_backend._has_triton():
        has_triton, torch_backend._has_triton = torch_backend._has_triton, lambda: False
        case["edgekernels on the device, without Triton"] = median_us(ours)
        torch_backend._has_triton = has_triton
    case["torch, as transformers"] = median_us(lambda: like_transformers(logits, likely, law, filters))
    if edgekernels.backend() == "cython":
        case["logits copied, kernels on the host"] = median_us(copied)
    return case


def timings() -> dict[str, dict[str, float]]:
    """Microseconds of ours and of others, by case."""
    table = {}
    for dtype in (torch.float32, torch.bfloat16):
        logits = peaked(VOCAB, 0).to(dtype).cuda()
        for name, filters in FILTERS.items():
            if "min_p" in filters:
                continue
            q = processed(logits[OF_DRAFT], filters)
            for rule in ("coupled", "rejection"):
                label = f"{str(dtype).removeprefix('torch.')} {rule} {name}"
                table[label] = time_case(logits, q, rule, filters)
    return table


def main() -> None:
    """Check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    out = parser.parse_args().out
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": torch_backend._has_triton(),
        "host_backend": edgekernels.backend(),
        "batch": BATCH,
        "window": WINDOW,
        "vocab": VOCAB,
        "cases_equal_to_the_host": check(20_011),
        "median_us": timings(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    (out / "accept_cuda.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
