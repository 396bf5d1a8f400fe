"""From cells to medians, ratios of turns that ran one after the other, headline figures and a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import record
from bench.macro.serving.cells import ACCEPTANCE, MAX_TOKENS, SYSTEMS, TURNS
from bench.peers.stats import ratio

COMMAND = "python -m bench.macro.serving"
OURS = {"sled-w4": "cpu_ratio", "sled-w0": "cpu_w0_ratio", "sled-auto": "cpu_auto_ratio"}
WINDOWS = {"cpu_ratio": "window 4", "cpu_w0_ratio": "window 0", "cpu_auto_ratio": "window 4 or what the server allows"}
PEERS = {"llamacpp": "llamacpp", "llamacpp-f32": "llamacpp_f32", "transformers": "hf"}
NAMES = {
    "llamacpp": "llama.cpp's server, Q4_1 with products of integers",
    "llamacpp-f32": "llama.cpp's server, the same weights in F32",
    "transformers": "transformers' continuous batching, float32",
}
MEDIANS = (
    "tokens_per_s",
    "first_token_p50_s",
    "first_token_p99_s",
    "first_token_of_burst_p50_s",
    "first_token_of_burst_p99_s",
    "rate_on_time",
    "server_cores",
    "load_cores",
    "others_cores",
    "acceptance",
    "drafts_a_round",
    "streamed_share",
    "rounds_a_forward",
)
Cells = dict[tuple[str, int], list[dict[str, Any]]]


def gather(lines: Sequence[Mapping[str, Any]]) -> Cells:
    """Turns by system and sessions, each with its error or its figures, in the order in which they ran."""
    cells: Cells = {}
    for line in lines:
        cells.setdefault((line["system"], line["sessions"]), []).append(dict(line))
    return cells


def row(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A cell's medians over its turns, undisturbed ones if there are any; only an error where every turn failed."""
    sound = [turn for turn in turns if "error" not in turn]
    if not sound:
        return {"error": turns[-1]["error"], "turns": 0}
    alone = [turn for turn in sound if not turn.get("disturbed")]
    found: dict[str, Any] = {"turns": len(sound), "disturbed": len(sound) - len(alone)}
    sound = alone or sound
    for key in MEDIANS:
        values = [turn[key] for turn in sound if turn.get(key) is not None]
        if values:
            found[key] = round(statistics.median(values), 4)
    found["tokens_per_s_of_turns"] = [turn["tokens_per_s"] for turn in sound]
    found["server_peak_mb"] = max(turn["server_memory"]["peak_mb"] for turn in sound)
    return found


def ratios(cells: Cells) -> dict[str, float]:
    """Our tokens per second over a peer's, the median over rounds, by figure."""
    found = {}
    for (ours, key), (peer, name) in ((o, p) for o in OURS.items() for p in PEERS.items()):
        for sessions in TURNS:
            mine, theirs = cells.get((ours, sessions), []), cells.get((peer, sessions), [])
            if rates := _rates_side_by_side(mine, theirs):
                found[f"sled.server.{key}_{name}_{sessions}"] = ratio(*zip(*rates, strict=True))
    return found


def _rates_side_by_side(mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Tokens per second of both in every round, in undisturbed ones if there are any; none where one failed."""
    if len(mine) != len(theirs) or any("error" in turn for turn in (*mine, *theirs)):
        return []
    pairs = list(zip(mine, theirs, strict=True))
    alone = [pair for pair in pairs if not any(turn.get("disturbed") for turn in pair)]
    return [(ours["tokens_per_s"], peers["tokens_per_s"]) for ours, peers in alone or pairs]


def figures(cells: Cells, stamped: dict[str, Any]) -> dict[str, record.Figure]:
    """Headline figures with their origin."""
    peers = {name: NAMES[peer] for peer, name in PEERS.items()}
    found = {}
    for key, value in ratios(cells).items():
        head, _, count = key.rpartition("_")
        peer = next(words for name, words in peers.items() if head.endswith(f"ratio_{name}"))
        window = next(words for kind, words in WINDOWS.items() if f".{kind}_" in key)
        unit = f"our tokens/s over theirs, {count} sessions, {window}, 2 cores, SmolLM2-135M"
        found[key] = record.figure(value, unit, peer, COMMAND, stamped)
    for system, kind in OURS.items():
        for sessions in TURNS:
            turns = cells.get((system, sessions), [])
            if system != "sled-w0" and turns and not any("error" in turn for turn in turns):
                unit = f"tokens/s of {sessions} sessions, {WINDOWS[kind]}, fp32, 2 cores, SmolLM2-135M"
                key = f"sled.server.{kind.removesuffix('ratio')}tokens_per_s_{sessions}"
                found[key] = record.figure(row(turns)["tokens_per_s"], unit, "-", COMMAND, stamped)
    if least := _least_over_best(found):
        unit = "our tokens/s over the best peer's, the server's limits on, least of 1, 4, 16 and 64 sessions"
        found["sled.server.cpu_auto_over_best_min"] = record.figure(
            least, unit, ", ".join(NAMES.values()), COMMAND, stamped
        )
    return found


def _least_over_best(found: Mapping[str, record.Figure]) -> float | None:
    """The least of all sessions, where all peers were measured at each."""
    keys = [[f"sled.server.cpu_auto_ratio_{name}_{sessions}" for name in PEERS.values()] for sessions in TURNS]
    if not all(key in found for own in keys for key in own):
        return None
    return min(float(found[key]["value"]) for own in keys for key in own)


def table(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Tokens per second by system and sessions, in Markdown."""
    heads = [str(sessions) for sessions in TURNS]
    lines = ["| tokens/s of so many sessions | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for name, system in SYSTEMS.items():
        found = [rows.get(name, {}).get(head, {}).get("tokens_per_s") for head in heads]
        if any(found):
            cells = " | ".join("-" if value is None else f"{value:.0f}" for value in found)
            lines.append(f"| {system.title} | {cells} |")
    return "\n".join(lines)


def results(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All that goes into the result file."""
    cells = gather(lines)
    rows: dict[str, dict[str, Any]] = {}
    for (system, sessions), turns in cells.items():
        rows.setdefault(system, {})[str(sessions)] = row(turns)
    return {
        "what": {
            "load": f"closed loop, greedy, {MAX_TOKENS} tokens an answer or to its stop token, no prompt twice, a "
            "process of its own on the same two cores (transformers: in its process, without a wire)",
            "window": "from the moment the last session has its first token, all sessions running, prefill included",
            "window_s": {str(sessions): turn.window_s for sessions, turn in TURNS.items()},
            "drafts": f"replayed answers, each position right with probability {ACCEPTANCE}: what smollm2-12m reaches "
            "per position at temperature 0; drafting costs nothing here",
            "rate_on_time": "tokens per second a session that could be promised with 95 % of its tokens on time",
            "weights": "SmolLM2-135M-Instruct, Q4_1 as packaged; sled computes so in float32, llama.cpp with its "
            "activations in int8; dequantised in float32 for all others, sled in torch among them",
        },
        "systems": {name: SYSTEMS[name].title for name in rows},
        "about": {line["system"]: line["about"] for line in lines if "about" in line},
        "rows": rows,
        "ratios": ratios(cells),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """Cells measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
