"""What is slower, larger or less accurate than a peer, out of the committed results, for bench/README.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.record import RESULTS

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- losses: written by bench/report.py -->", "<!-- end of losses -->"
OURS = "edgekernels"
_TOLERANCE = 0.02  # closer than this is a draw on a machine that others use


def _results(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def gemm_losses(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Products: each peer that is faster than ours in the same case, or has better weights for as many bits."""
    for bits, places in sorted(results.get("widths", {}).items()):
        weights: dict[str, dict[str, Any]] = {}
        for place, result in places.items():
            cases: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
            for row in result["cases"]:
                if "median_us" in row and not row.get("disturbed"):
                    cases.setdefault((row["m"], row["threads"]), {})[row["contender"]] = row
            for (m, threads), rows in cases.items():
                counts = f"{m} row{'s' * (m > 1)}, {threads} thread{'s' * (threads > 1)}"
                for name, us in _faster(rows):
                    found = f"{rows[OURS]['median_us']:.0f} us against {us:.0f} of {name}"
                    yield f"{bits} bits, {counts}, weights in {place}", found
                weights |= rows
        yield from _worse_weights(bits, weights)


def _faster(rows: dict[str, dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Peers that take less than ours by more than chance."""
    for name, row in rows.items():
        if _is_peer(name) and row["median_us"] < (1 - _TOLERANCE) * rows[OURS]["median_us"]:
            yield name, row["median_us"]


def _is_peer(name: str) -> bool:
    return not name.startswith(OURS) and name != "limit"


def _worse_weights(bits: str, rows: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Peers with no more bits for a weight and a smaller error of the weights (normal law) than ours."""
    for name, row in rows.items():
        ours = rows[OURS]
        repacked = name.endswith(", repacked")  # the same weights once more
        if not _is_peer(name) or repacked or row["bits_per_weight"] > ours["bits_per_weight"]:
            continue
        if row["weight_error"] < (1 - _TOLERANCE) * ours["weight_error"]:
            yield (
                f"{bits} bits, error of the weights",
                f"{ours['weight_error']:.4f} with {ours['bits_per_weight']} bits each "
                f"against {row['weight_error']:.4f} with {row['bits_per_weight']} of {name}",
            )


def decoder_losses(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The decoder: speed, start, memory and perplexity."""
    for name, result in results.get("files", {}).items():
        for way in ("decode", "prefill"):
            for threads, rates in result[f"{way}_tokens_per_s"].items():
                if rates["ratio"] < 1 - _TOLERANCE:
                    what = f"decoder, {name}, {way}, {threads} thread{'s' * (threads != '1')}"
                    yield what, f"{rates[OURS]} tokens per second against {rates['llama.cpp']} of llama.cpp"
        ours, theirs = result["start"][OURS], result["start"]["llama.cpp"]
        for key, what, unit, scale in (
            ("load_and_first_token_s", "import, load and first token", "s", 1),
            ("peak_rss_bytes", "most memory", "MB", 1e6),
        ):
            if ours[key] > (1 + _TOLERANCE) * theirs[key]:
                found = f"{ours[key] / scale:.3g} {unit} against {theirs[key] / scale:.3g} of llama.cpp"
                yield f"decoder, {name}, {what}", found
        ours, theirs = result["perplexity"][OURS], result["perplexity"]["llama.cpp"]
        if ours["perplexity"] > theirs["perplexity"]:
            found = f"{ours['perplexity']:.2f} against {theirs['perplexity']:.2f} of llama.cpp"
            yield f"decoder, {name}, perplexity", found


def acceptance_losses(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Acceptance on the host: each peer that is faster in the same case."""
    for row in results.get("rows", []):
        us = row["us"]
        for name, theirs in us.items():
            if _is_peer(name) and theirs < (1 - _TOLERANCE) * us[OURS]:
                yield f"acceptance, {row['case']}", f"{us[OURS]:.0f} us against {theirs:.0f} of {name}"


def cuda_losses(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Acceptance on a CUDA device: each peer that is faster in the same case."""
    for case, us in results.get("median_us", {}).items():
        ours = us[f"{OURS} on the device"]
        for name, theirs in us.items():
            if _is_peer(name) and theirs < (1 - _TOLERANCE) * ours:
                yield f"acceptance on {results['device']}, {case}", f"{ours:.0f} us against {theirs:.0f} of {name}"


def serving_losses(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Serving on the CPU: each peer that yields more tokens per second than the better of our windows."""
    rows = results.get("rows", {})
    ours = [system for system in rows if system.startswith("sled")]
    for system in (system for system in rows if system not in ours):
        for sessions, row in rows[system].items():
            mine = max((rows[name].get(sessions, {}).get("tokens_per_s", 0.0) for name in ours), default=0.0)
            theirs = row.get("tokens_per_s", 0.0)
            if mine < (1 - _TOLERANCE) * theirs:
                what = f"serving {sessions} session{'s' * (sessions != '1')} on the CPU"
                yield what, f"{mine} tokens per second against {theirs} of {results['systems'][system]}"


def attention_losses(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Paged attention: each peer that is faster in the same case."""
    cases: dict[str, dict[str, float]] = {}
    for row in results.get("benchmarks", []):
        cases.setdefault(row["group"], {})[row["peer"]] = row["median_s"] * 1e6
    for case, us in cases.items():
        for name, theirs in us.items():
            if _is_peer(name) and theirs < (1 - _TOLERANCE) * us[OURS]:
                yield case, f"{us[OURS]:.0f} us against {theirs:.0f} of {name}"


def table() -> str:
    """All losses as a Markdown table."""
    rows = [
        *acceptance_losses(_results("acceptance")),
        *cuda_losses(_results("accept_cuda")),
        *attention_losses(_results("attention")),
        *gemm_losses(_results("gemm")),
        *decoder_losses(_results("decoder")),
        *serving_losses(_results("serving")),
    ]
    return "\n".join(["| where | how much |", "|---|---|", *(f"| {what} | {found} |" for what, found in rows)])


def rendered(text: str) -> str:
    """The page with its losses replaced by those of the committed results."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"
