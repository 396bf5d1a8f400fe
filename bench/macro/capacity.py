"""How many devices one `sled serve` carries at a promised rate: `python -m bench.macro.capacity`, about 6 minutes.

A swarm of 1 to 64 devices of mixed boards (sled/swarm/profiles.toml) that draft, beside the same devices that leave
decoding to the server (centralised decoding with continuous batching), in float32 and bfloat16; and all-edge, which is
what the boards' own small models give without a server, answers of the small model and not the target's.
Centralised speculation (the draft model on the server) is not measured: `sled serve` drafts nothing itself.

`--only DTYPE:DEVICES[:SYSTEM]` measures some cells and keeps them beside those measured before; `--report` writes the
results of those that are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

import edgebus
from bench import others, record
from bench.macro.serving.worker import ROOT, Process
from edgebus.cli.demo import KeyRing
from sled.swarm.fleet import Fleet, Plan
from sled.swarm.profiles import Profile, chosen, dealt
from sled.swarm.prompts import questions

MODEL = "smollm2-135m"
BOARDS = "rpi5,jetson-orin-nano,rpi4b,laptop"
SYSTEMS = {"swarm": 4, "centralised": 0}  # and their windows
DTYPES = ("float32", "bfloat16")
DEVICES = (1, 8, 32, 64)
RATE = 3.0  # tokens per second promised
MAX_TOKENS = 32
NUM_PROMPTS = 32
SECONDS = {1: 4.0, 8: 6.0, 32: 8.0, 64: 10.0}
START_S, LEARN_S = 60.0, 40.0
COMMAND = "python -m bench.macro.capacity"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="DTYPE:DEVICES[:SYSTEM]")
    parser.add_argument("--report", action="store_true", help="only write the results of the cells that are kept")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "capacity")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    kept = arguments.folder / "cells.json"
    cells: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    wanted = [each.split(":") for each in arguments.only]
    if not arguments.report:
        for dtype in DTYPES:
            todo = [
                (count, system) for count in DEVICES for system in SYSTEMS if _is_wanted(wanted, dtype, count, system)
            ]
            if todo:
                for name, cell in _measure(dtype, todo, arguments.folder / f"answers-{dtype}.json"):
                    cells[name] = cell
                    kept.write_text(json.dumps(cells))
    if wanted:
        return
    results, figures = _results(cells)
    record.write("capacity", results, figures)
    print(_table(results["cells"]))


def _is_wanted(wanted: list[list[str]], dtype: str, count: int, system: str) -> bool:
    whole = [dtype, str(count), system]
    return not wanted or any(each == whole[: len(each)] for each in wanted)


def _measure(dtype: str, todo: list[tuple[int, str]], answers: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Cells of one dtype, beside one server, in turn."""
    with _server(dtype) as (endpoint, keys):
        for count, system in todo:
            window = SYSTEMS[system]
            plan = Plan(
                devices=count,
                profiles=tuple(chosen(BOARDS)),
                seconds=SECONDS[count],
                window=window,
                rate=RATE,
                max_tokens=MAX_TOKENS,
                think=0.0,
            )
            busy = others.busy_s()
            report = asyncio.run(_run(endpoint, keys, plan, answers))
            cell = msgspec.to_builtins(report) | {"cores_busy": round((others.busy_s() - busy) / report.seconds, 2)}
            whole = cell["all"]
            print(
                f"{dtype:9} {count:3} {system:12} {whole['tokens_per_s']:7.1f} tokens/s, {whole['served']} served, "
                f"first token p50 {whole['first_token_p50_s']:.2f} s, {report.different} different",
                file=sys.stderr,
                flush=True,
            )
            yield f"{dtype} {count} {system}", cell


@contextmanager
def _server(dtype: str) -> Iterator[tuple[str, KeyRing]]:
    with TemporaryDirectory(prefix="capacity-") as directory:
        keys = KeyRing.make(Path(directory), ["device"])
        command = [sys.executable, "-m", "sled.cli", "serve", "--model", MODEL, "--bind", "tcp://127.0.0.1:0"]
        command += ["--keys", str(keys.of("server")), "--dtype", dtype, "--threads", "2", "--json"]
        command += ["--share-prefixes", "none", "--max-sessions-per-device", "256"]  # no prompt is found in a cache
        with Process("sled serve", command, 2) as server:
            yield server.line(START_S)["endpoint"], keys


async def _run(endpoint: str, keys: KeyRing, plan: Plan, answers: Path) -> Any:
    key = edgebus.read_public_key(keys.server_key)
    options = {"server_key": key, "keys": [keys.of("device")], "num_links": min(4, plan.devices)}
    async with await Fleet.connect(endpoint, prompts=questions(NUM_PROMPTS), **options) as fleet:
        if answers.is_file():
            fleet.known |= {int(number): answer for number, answer in json.loads(answers.read_text()).items()}
        if len(fleet.known) < NUM_PROMPTS:
            await fleet.learn(plan, LEARN_S)
            answers.write_text(json.dumps(fleet.known))
        return await fleet.run(plan)


def _edge(profiles: list[Profile]) -> dict[str, float]:
    speeds = [profile.draft_tokens_per_s for profile in profiles]
    return {
        "tokens_per_s": round(sum(speeds), 1),
        "served": sum(speed >= RATE for speed in speeds),
        "slowest_tokens_per_s": min(speeds),
    }


def _results(cells: dict[str, Any]) -> tuple[dict[str, Any], dict[str, record.Figure]]:
    stamped = record.stamp()
    figures: dict[str, record.Figure] = {}
    for dtype in DTYPES:
        counts = [count for count in DEVICES if all(f"{dtype} {count} {system}" in cells for system in SYSTEMS)]
        if not counts:
            continue
        carried = {system: _capacity(cells, dtype, system) for system in SYSTEMS}
        peer = f"centralised decoding by the same server: {carried['centralised']}"
        figures[f"sled.capacity.{dtype}_sessions"] = record.figure(
            carried["swarm"],
            f"most devices of {counts} at {RATE:g} tokens/s with 95 % of their tokens on time",
            peer,
            COMMAND,
            stamped,
        )
        ratios = {
            count: cells[f"{dtype} {count} swarm"]["all"]["tokens_per_s"]
            / cells[f"{dtype} {count} centralised"]["all"]["tokens_per_s"]
            for count in counts
        }
        for count, ratio in ratios.items():
            figures[f"sled.capacity.{dtype}_wstgr_ratio_{count}"] = record.figure(
                round(ratio, 3),
                f"output tokens/s of {count} drafting devices over those of centralised decoding",
                "centralised decoding by the same server (window 0, streams)",
                COMMAND,
                stamped,
            )
    results = {
        "what": {
            "load": f"closed loop, no pauses, greedy, {MAX_TOKENS} tokens an answer or to its stop token; the load"
            " shares the cores with the server (two threads), and drafts cost nothing (replays, boards' errors)",
            "boards": "dealt in turn; paced by sled/swarm/profiles.toml, where every number has its source",
            "promised": f"{RATE:g} tokens per second to each device",
            "not measured": "centralised speculation: sled serve drafts nothing itself, no peer here does it on CPUs",
            "all-edge": "the boards' small models alone, without a server: another answer than the target's",
        },
        "profiles": {name: msgspec.to_builtins(each) for name, each in _boards().items()},
        "all_edge": {str(count): _edge(dealt(chosen(BOARDS), count)) for count in DEVICES},
        "cells": cells,
    }
    return results, figures


def _boards() -> dict[str, Profile]:
    return {profile.name: profile for profile in chosen(BOARDS)}


def _capacity(cells: dict[str, Any], dtype: str, system: str) -> int:
    """The most devices that were all served."""
    served = [
        count
        for count in DEVICES
        if (cell := cells.get(f"{dtype} {count} {system}")) is not None and cell["all"]["on_time"] >= 0.95
    ]
    return max(served, default=0)


def _table(cells: dict[str, Any]) -> str:
    lines = [
        "| cell | tokens/s | served | on time | first token p50 | bytes a token | different |",
        "|---|" + "---|" * 6,
    ]
    for name, cell in cells.items():
        whole = cell["all"]
        lines.append(
            f"| {name} | {whole['tokens_per_s']:.1f} | {whole['served']} | {whole['on_time']:.0%} | "
            f"{whole['first_token_p50_s']:.2f} s | {cell['bytes_per_token']:.0f} | {cell['different']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
