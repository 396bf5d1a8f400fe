"""One user on four links: tokens per second and bytes per token of each drafter, with every window and with auto.

`python -m bench.macro.links`, about 25 minutes alone on two cores for seven prompts; writes bench/results/links.json
and the figure `sled.device.auto_window_ratio_min`. SmolLM2-135M in float32 is served by `sled serve --windows fixed` in
a process of its own with one thread; the device has another process and another thread; links are made by the in-tree
proxy (delay, bandwidth, cuts) and CURVE is on. All windows of a prompt run one after the other, in an order that turns
from prompt to prompt, so that a slow minute of the machine hits all alike. Where there are four cores for each link,
`--side-by-side` measures the links at the same time, each on cores of its own. Beside them in the same run: the target
streaming its own tokens over the same link, and, without any link, transformers and llama.cpp (`_links_peers.py`).

The best of nine windows on a few answers is lucky as well as good, so the figure, auto over that best, is hard on auto.
`ratio_held_out` is without that luck: the window that was best on all other prompts, on each.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bench import record
from bench.macro._links_peers import ANSWER_S, MODEL, START_S, peer_rows
from bench.macro.prompts import CHAT, CODE, COPYING, STORY
from bench.macro.serving.worker import ROOT, Process
from edgebus.cli.demo import KeyRing
from edgebus.testing import Proxy

COMMAND = "python -m bench.macro.links"
WINDOWS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
AUTO = -1
DRAFTERS = ["ngram", "smollm2-12m"]  # with every window
ONLY_AUTO = ("ngram+smollm2-12m",)
PROMPTS = (  # whose answers are long
    COPYING[3],
    CODE[0],
    CHAT[0],
    COPYING[1],
    STORY[0],
    CODE[1],
    CHAT[3],
    STORY[1],
    CODE[2],
    CHAT[4],
    STORY[3],
    COPYING[0],
    CODE[4],
    CHAT[1],
    STORY[4],
    CODE[3],
)
WARM_UP = (CHAT[2], 64)
CORES_PER_LINK = 4


@dataclass(frozen=True)
class Link:
    """A link profile.

    Args:
        name: of the profile.
        round_ms: there and back; the proxy keeps bytes half of it each way.
        mbit_s: each way.
        cut_at_s: every answer's connection is cut so long after it began.
        tokens: of an answer.
    """

    name: str
    round_ms: float
    mbit_s: float
    cut_at_s: float = math.inf
    tokens: int = 40


LINKS = (
    Link("lan", 1.0, 1000.0),
    Link("wifi", 5.0, 100.0),
    Link("lte", 40.0, 10.0),
    Link("bad", 150.0, 1.0, cut_at_s=1.2),
)


@dataclass(frozen=True)
class Case:
    """What one answer is measured with: `window` AUTO, or a number; drafter "stream" is the target alone."""

    link: str
    drafter: str
    window: int


class World:
    """The servers, a proxy for each link, and the device."""

    def __init__(self, device: Process) -> None:
        self.device = device
        self._proxies: dict[str, Proxy] = {}

    def connect(self, link: Link, drafter: str, proxy: Proxy, ring: KeyRing) -> None:
        """A device behind this link."""
        proxy.delay_s = link.round_ms / 2e3
        proxy.bytes_per_s = link.mbit_s * 1e6 / 8
        self._proxies[f"{link.name} {drafter}"] = proxy
        self.device.ask(
            START_S,
            do="connect",
            name=f"{link.name} {drafter}",
            endpoint=proxy.endpoint,
            server_key=str(ring.server_key),
            keys=str(ring.of("device")),
            drafter="none" if drafter == "stream" else drafter,
        )

    def answer(self, link: Link, case: Case, prompt: str, tokens: int) -> dict[str, Any]:
        """One answer over a link, cut as the link is."""
        name = f"{link.name} {case.drafter}"
        timer = threading.Timer(min(link.cut_at_s, 1e6), self._proxies[name].cut)
        timer.daemon = True
        if link.cut_at_s < math.inf:
            timer.start()
        try:
            return self.device.ask(
                ANSWER_S, do="answer", name=name, prompt=prompt, max_tokens=tokens, window=case.window
            )
        finally:
            timer.cancel()


@contextlib.contextmanager
def world(links: tuple[Link, ...]) -> Iterator[World]:
    """Everything running: one server that verifies, one that only streams (its window is 0), and the device."""
    with contextlib.ExitStack() as stack:
        ring = KeyRing.make(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="links-"))), ["device"])
        endpoints = {}
        for name, window in (("verify", 16), ("stream", 0)):
            command = [sys.executable, "-m", "sled.cli", "serve", "--model", MODEL, "--bind", "tcp://127.0.0.1:0"]
            command += ["--keys", str(ring.of("server")), "--threads", "1", "--windows", "fixed", "--json"]
            command += ["--max-window", str(window)]
            server = stack.enter_context(Process(f"sled serve ({name})", command, 1))
            endpoints[name] = server.line(START_S)["endpoint"]
        command = [sys.executable, "-m", "bench.macro._links_device"]
        found = World(stack.enter_context(Process("device", command, 1)))
        for link in links:
            for drafter in ("stream", *DRAFTERS, *ONLY_AUTO):
                proxy = stack.enter_context(Proxy(endpoints["stream" if drafter == "stream" else "verify"]))
                found.connect(link, drafter, proxy, ring)
        yield found


def cases(link: Link) -> list[Case]:
    """What is measured on a link with each prompt."""
    alone = [Case(link.name, drafter, AUTO) for drafter in ("stream", *ONLY_AUTO)]
    return [*alone, *(Case(link.name, drafter, window) for drafter in DRAFTERS for window in (AUTO, *WINDOWS))]


def measure(found: World, links: tuple[Link, ...], num_prompts: int, until: float) -> dict[Case, list[dict[str, Any]]]:
    """Every case on every prompt, or on as many as there is time for."""
    seen: dict[Case, list[dict[str, Any]]] = {}
    for link in links:
        for drafter in ("stream", *DRAFTERS, *ONLY_AUTO):
            found.answer(link, Case(link.name, drafter, AUTO), *WARM_UP)
    for number, prompt in enumerate(PROMPTS[:num_prompts]):
        begun = time.monotonic()
        for link in links:
            todo = cases(link)
            turn = number * 7 % len(todo)
            right: list[int] = []
            for case in todo[turn:] + todo[:turn]:
                got = found.answer(link, case, prompt, link.tokens)
                right = right or got["tokens"]
                assert right == got["tokens"], f"{case} gave another answer to {prompt!r}"
                seen.setdefault(case, []).append(got)
        took_s = time.monotonic() - begun
        print(
            f"{','.join(link.name for link in links)}, prompt {number + 1}: {took_s:.0f} s", file=sys.stderr, flush=True
        )
        if time.monotonic() + took_s > until:
            break
    return seen


def side_by_side(links: tuple[Link, ...], num_prompts: int, limit_s: float) -> dict[Case, list[dict[str, Any]]]:
    """`measure` of every link at once, each in a process with cores of its own; as many prompts as each has time for.

    Raises:
        SystemExit: there are fewer than four cores for each link, or one was not measured.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < CORES_PER_LINK * len(links):
        sys.exit(f"--side-by-side wants {CORES_PER_LINK * len(links)} cores, and there are {len(cores)}")
    seen: dict[Case, list[dict[str, Any]]] = {}
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="links-") as folder, contextlib.ExitStack() as stack:
        for number, link in enumerate(links):
            own = cores[number * CORES_PER_LINK : (number + 1) * CORES_PER_LINK]
            command = [sys.executable, "-m", "bench.macro.links", "--links", link.name, "--no-peers"]
            command += ["--tokens", str(link.tokens), "--prompts", str(num_prompts), "--limit-s", str(limit_s)]
            command += ["--drafters", ",".join(DRAFTERS), "--cores", ",".join(map(str, own))]
            child = subprocess.Popen([*command, "--keep", f"{folder}/{link.name}"], stdout=subprocess.DEVNULL)
            stack.callback(child.wait)
            stack.callback(child.terminate)
            children.append(child)
        for link, child in zip(links, children, strict=True):
            if child.wait():
                sys.exit(f"the measurement of {link.name} has failed")
        for link in links:
            kept = json.loads(Path(folder, link.name).read_text())
            seen |= {Case(*case): answers for case, answers in kept}
    return seen


def row(case: Case, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """What a case came to; the rate is of tokens behind the first verdict, since opening is the same for all."""
    total = {
        key: sum(answer[key] for answer in answers) for key in answers[0] if key not in ("tokens", "prompt", "learned")
    }
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
    parser.add_argument("--side-by-side", action="store_true", help="all links at once, each on four cores")
    parser.add_argument("--cores", help="run on these, 0,1,2,3 say")
    parser.add_argument("--keep", type=Path, help="only measure, and write the answers there")
    given = parser.parse_args(arguments)
    whole = (",".join(link.name for link in LINKS), ",".join(DRAFTERS), 0)
    if (given.links, given.drafters, given.tokens) != whole and not (given.no_write or given.keep):
        parser.error("a part of it is not recorded as the whole; add --no-write")
    DRAFTERS[:] = given.drafters.split(",")
    stamp, began = record.stamp(), time.monotonic()
    links = tuple(
        Link(link.name, link.round_ms, link.mbit_s, link.cut_at_s, given.tokens or link.tokens)
        for link in LINKS
        if link.name in given.links.split(",")
    )
    if given.cores:
        os.sched_setaffinity(0, set(map(int, given.cores.split(","))))
    if given.side_by_side:
        seen = side_by_side(links, given.prompts, given.limit_s)
    else:
        with world(links) as found:
            seen = measure(found, links, given.prompts, began + given.limit_s)
    if given.keep:
        given.keep.write_text(json.dumps([(dataclasses.astuple(case), answers) for case, answers in seen.items()]))
        return
    rows = [row(case, answers) for case, answers in seen.items()]
    for each in rows:
        print({key: value for key, value in each.items() if key != "each"})
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
        "side_by_side": given.side_by_side,
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
