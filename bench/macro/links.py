"""One user on four links: tokens per second and bytes per token of each drafter, with every window and with auto.

`python -m bench.macro.links`, about 25 minutes alone on two cores for seven prompts; writes bench/results/links.json
and the figure `sled.device.auto_window_ratio_min`. SmolLM2-135M in float32 is served by `sled serve --windows fixed` in
a process of its own with one thread; the device has another process and another thread; links are made by the in-tree
proxy (delay, bandwidth, cuts) and CURVE is on. All windows of a prompt run one after the other, in an order that turns
from prompt to prompt, so that a slow minute of the machine hits all alike. Where there are three cores for each link,
`--side-by-side` measures the links at the same time, each on cores of its own. Beside them in the same run: the target
streaming its own tokens over the same link, and, without any link, transformers and llama.cpp (`_links_peers.py`).

The best of nine windows on a few answers is lucky as well as good, so the figure, auto over that best, is hard on auto.
`ratio_held_out` is without that luck: the window that was best on all other prompts, on each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from bench import record
from bench.macro._links_measured import AUTO, DRAFTERS, LINKS, PROMPTS, WINDOWS, Case, Link, Seen, measure, world
from bench.macro._links_peers import peer_rows
from bench.macro.serving.worker import ROOT

COMMAND = "python -m bench.macro.links"
CORES_PER_LINK = 3


def side_by_side(folder: Path, num_prompts: int, limit_s: float) -> Seen:
    """Every link measured at once, each on cores of its own; cores that are left go to the slowest links, in turn.

    What `folder` holds of an earlier call counts as well, and its prompts are not measured again.

    Raises:
        SystemExit: there are fewer than three cores for each link, or one was not measured.
    """
    cores = sorted(os.sched_getaffinity(0))
    places = len(cores) // CORES_PER_LINK
    if places < len(LINKS):
        sys.exit(f"--side-by-side wants {CORES_PER_LINK * len(LINKS)} cores, and there are {len(cores)}")
    slowest = sorted(LINKS, key=lambda link: -link.round_ms)
    taken = [*slowest, *(slowest[i % len(slowest)] for i in range(places - len(LINKS)))]
    folder.mkdir(parents=True, exist_ok=True)
    call = len(list(folder.glob("*.json")))
    seen = _seen_in(folder)
    done = {link: {each["number"] for each in seen.get(Case(link.name, "stream", AUTO), [])} for link in LINKS}
    with contextlib.ExitStack() as stack:
        children: list[tuple[str, subprocess.Popen[bytes]]] = []
        for place, link in enumerate(taken):
            same = [i for i, other in enumerate(taken) if other == link]
            numbers = sorted(set(range(num_prompts)) - done[link])[same.index(place) :: len(same)]
            if not numbers:
                continue
            own = cores[place * CORES_PER_LINK : (place + 1) * CORES_PER_LINK]
            command = [sys.executable, "-m", "bench.macro._links_measured", "--link", link.name]
            command += ["--numbers", ",".join(map(str, numbers)), "--cores", ",".join(map(str, own))]
            command += ["--limit-s", str(limit_s), "--keep", str(folder / f"{link.name}-{call}-{place}.json")]
            child = subprocess.Popen(command)
            stack.callback(child.wait)
            stack.callback(child.terminate)
            children.append((link.name, child))
        for name, child in children:
            if child.wait():
                sys.exit(f"the measurement of {name} has failed")
    return _seen_in(folder)


def _seen_in(folder: Path) -> Seen:
    found: Seen = {}
    for path in sorted(folder.glob("*.json")):
        for case, answers in json.loads(path.read_text()):
            found.setdefault(Case(*case), []).extend(answers)
    return {case: sorted(answers, key=lambda each: int(each["number"])) for case, answers in found.items()}


def row(case: Case, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """What a case came to; the rate is of tokens behind the first verdict, since opening is the same for all."""
    sums = answers[0].keys() - {"tokens", "prompt", "learned", "number"}
    total = {key: sum(answer[key] for answer in answers) for key in sums}
    tokens = sum(len(answer["tokens"]) for answer in answers)
    return {
        "link": case.link,
        "drafter": case.drafter,
        "window": "auto" if case.window == AUTO else case.window,
        "tokens_per_s": round(total["paced_tokens"] / total["paced_s"], 2),
        "tokens_per_s_with_opening": round(tokens / total["wall_s"], 2),
        "bytes_per_token": round(total["bytes"] / tokens),
        "mean_accepted_length": round(tokens / max(total["rounds"], 1), 2),
        "drafted": total["drafted"],
        "accepted": total["accepted"],
        "hoped_rounds": total["hoped"],
        "dead_rounds": total["dead"],
        "learned": answers[-1]["learned"] if case.window == AUTO else None,
        "prompts": [each["number"] for each in answers],
        "each": [[each["paced_tokens"], round(each["paced_s"], 4)] for each in answers],
    }


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Auto beside the best fixed window on the same prompts, for each link and drafter; 0 is a window like others."""
    found = []
    for link in dict.fromkeys(each["link"] for each in rows):
        for drafter in DRAFTERS:
            cell = {each["window"]: each["each"] for each in rows if (each["link"], each["drafter"]) == (link, drafter)}
            auto = cell.pop("auto")
            best = _best(cell)
            found.append(
                {
                    "link": link,
                    "drafter": drafter,
                    "auto": round(_rate(auto), 2),
                    "best_fixed": best,
                    "of_it": round(_rate(cell[best]), 2),
                    "ratio": round(_rate(auto) / _rate(cell[best]), 3),
                    "ratio_held_out": _held_out(auto, cell),
                }
            )
    return found


Answers: TypeAlias = list[tuple[int, float]]  # tokens, and the seconds they took


def _rate(answers: Answers) -> float:
    return sum(tokens for tokens, _ in answers) / sum(seconds for _, seconds in answers)


def _best(cell: dict[int, Answers]) -> int:
    return max(cell, key=lambda window: _rate(cell[window]))


def _held_out(auto: Answers, cell: dict[int, Answers]) -> float | None:
    """Auto over what was best on all prompts but the one it is held against; None with a single prompt."""
    if len(auto) == 1:
        return None
    chosen = [
        cell[_best({window: answers[:i] + answers[i + 1 :] for window, answers in cell.items()})][i]
        for i in range(len(auto))
    ]
    return round(_rate(auto) / _rate(chosen), 3)


def figure_of(held: list[dict[str, Any]], stamp: dict[str, Any]) -> record.Figure:
    """The least of all links and drafters."""
    least = min(held, key=lambda each: float(each["ratio"]))
    which = f"least of {len(held)} links and drafters ({least['link']}, {least['drafter']})"
    unit = f"tokens/s with auto over those with the best fixed window, {which}; goal: 0.95 at least"
    peer = f"the best of windows {', '.join(map(str, WINDOWS))} of that link and drafter, same run; 0 is a stream"
    return record.figure(least["ratio"], unit, peer, COMMAND, stamp)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="at most so many")
    parser.add_argument("--limit-s", type=float, default=1400.0, help="no further prompt is begun that would end later")
    parser.add_argument("--links", default=",".join(link.name for link in LINKS))
    parser.add_argument("--drafters", default=",".join(DRAFTERS))
    parser.add_argument("--tokens", type=int, default=0, help="of an answer; default as the link says")
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "serving-peers")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "serving")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-write", action="store_true", help="only print")
    parser.add_argument("--side-by-side", type=Path, metavar="FOLDER", help="all links at once; FOLDER keeps answers")
    given = parser.parse_args(arguments)
    whole = (",".join(link.name for link in LINKS), ",".join(DRAFTERS), 0)
    if (given.links, given.drafters, given.tokens) != whole and not given.no_write:
        parser.error("a part of it is not recorded as the whole; add --no-write")
    DRAFTERS[:] = given.drafters.split(",")
    stamp, began = record.stamp(), time.monotonic()
    links = tuple(
        Link(link.name, link.round_ms, link.mbit_s, link.cut_at_s, given.tokens or link.tokens)
        for link in LINKS
        if link.name in given.links.split(",")
    )
    if given.side_by_side:
        seen = side_by_side(given.side_by_side, given.prompts, given.limit_s)
    else:
        with world(links) as found:
            seen = measure(found, links, range(given.prompts), began + given.limit_s)
    rows = [row(case, answers) for case, answers in seen.items()]
    for each in rows:
        print({key: value for key, value in each.items() if key not in ("each", "prompts")})
    prompts = [answer["prompt"] for answer in next(iter(seen.values()))][:4]
    peers = [] if given.no_peers else peer_rows(prompts, links[0].tokens, given.peers, given.folder)
    for each in peers:
        print(each)
    held = ratios(rows)
    for each in held:
        print(each)
    results = {
        "links": [
            {
                "name": link.name,
                "round_ms": link.round_ms,
                "mbit_s": link.mbit_s,
                "tokens": link.tokens,
                "prompts": len(seen[Case(link.name, "stream", AUTO)]),
            }
            for link in links
        ],
        "side_by_side": bool(given.side_by_side),
        "rows": rows,
        "ratios": held,
        "peers": peers,
        "took_s": round(time.monotonic() - began),
    }
    figure = figure_of(held, stamp)
    print(figure["unit"], figure["value"], f"{time.monotonic() - began:.0f} s")
    if not given.no_write:
        record.write("links", results, {"sled.device.auto_window_ratio_min": figure}, stamp)


if __name__ == "__main__":
    main()
