"""The links of the link benchmark and what is measured on each; by itself it measures one link on cores of its own."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bench.macro._links_peers import ANSWER_S, MODEL, START_S
from bench.macro.prompts import CHAT, CODE, COPYING, STORY
from bench.macro.serving.worker import Process
from edgebus.cli.demo import KeyRing
from edgebus.testing import Proxy

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


Seen: TypeAlias = dict[Case, list[dict[str, Any]]]


def _nothing(_: Seen) -> None:
    """Keep nothing."""


def cases(link: Link) -> list[Case]:
    """What is measured on a link with each prompt."""
    alone = [Case(link.name, drafter, AUTO) for drafter in ("stream", *ONLY_AUTO)]
    return [*alone, *(Case(link.name, drafter, window) for drafter in DRAFTERS for window in (AUTO, *WINDOWS))]


def measure(
    found: World, links: tuple[Link, ...], numbers: Sequence[int], until: float, kept: Callable[[Seen], None] = _nothing
) -> Seen:
    """Every case on each prompt of these numbers, or on as many as there is time for; `kept` is told after each."""
    seen: Seen = {}
    for link in links:
        for drafter in ("stream", *DRAFTERS, *ONLY_AUTO):
            found.answer(link, Case(link.name, drafter, AUTO), *WARM_UP)
    for number in numbers:
        prompt, begun = PROMPTS[number], time.monotonic()
        for link in links:
            todo = cases(link)
            turn = number * 7 % len(todo)
            right: list[int] = []
            for case in todo[turn:] + todo[:turn]:
                got = found.answer(link, case, prompt, link.tokens)
                right = right or got["tokens"]
                assert right == got["tokens"], f"{case} gave another answer to {prompt!r}"
                seen.setdefault(case, []).append({**got, "number": number})
        kept(seen)
        took_s, names = time.monotonic() - begun, ",".join(link.name for link in links)
        print(f"{names}, prompt {number + 1}: {took_s:.0f} s", file=sys.stderr, flush=True)
        if time.monotonic() + took_s > until:
            break
    return seen


def main() -> None:
    """Measure one link and write what was seen after each prompt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link", required=True, choices=[link.name for link in LINKS])
    parser.add_argument("--numbers", required=True, help="of the prompts, 0,2,4 say")
    parser.add_argument("--cores", required=True, help="to run on, 0,1,2 say")
    parser.add_argument("--limit-s", type=float, required=True, help="no further prompt is begun that would end later")
    parser.add_argument("--keep", type=Path, required=True, help="the file to write")
    given = parser.parse_args()
    began = time.monotonic()
    os.sched_setaffinity(0, set(map(int, given.cores.split(","))))
    links = tuple(link for link in LINKS if link.name == given.link)

    def kept(seen: Seen) -> None:
        given.keep.write_text(json.dumps([(dataclasses.astuple(case), answers) for case, answers in seen.items()]))

    with world(links) as found:
        measure(found, links, list(map(int, given.numbers.split(","))), began + given.limit_s, kept)


if __name__ == "__main__":
    main()
