"""One user on four links: tokens per second and bytes per token of each drafter, with every window and with auto.

`python -m bench.macro.links`, about twelve minutes alone on two cores; writes bench/results/links.json and the figure
`sled.device.auto_window_ratio_min`. SmolLM2-135M in float32 is served by `sled serve --windows fixed` in a process of
its own with one thread; the device has another process and another thread; links are made by the in-tree proxy (delay,
bandwidth, cuts) and CURVE is on. All windows of a prompt run one after the other, in an order that turns from prompt to
prompt, so that a slow minute of the machine hits all alike. Beside them in the same run: the target streaming its own
tokens over the same link, and, without any link, transformers (assisted generation with the same drafter, prompt
lookup) and llama.cpp (speculation with the same drafter, which has to speak the target's whole vocabulary there, and
with n-grams) with the same weights in float32 in one process with both cores.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import record
from bench.macro.prompts import CHAT, CODE, COPYING, STORY
from bench.macro.serving.servers import _free_port, _until_healthy
from bench.macro.serving.worker import ROOT, Process, WorkerFailed
from edgebus.cli.demo import KeyRing
from edgebus.testing import Proxy

COMMAND = "python -m bench.macro.links"
MODEL = "smollm2-135m"
WINDOWS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
AUTO = -1
DRAFTERS = ["ngram", "smollm2-12m"]  # with every window
ONLY_AUTO = ("ngram+smollm2-12m",)
SELDOM, SELDOM_PROMPTS, SELDOM_SHARE = "ngram", 3, 2  # every third prompt, and half an answer: it takes longest by far
PROMPTS = (COPYING[3], CODE[0], CHAT[0], COPYING[1], STORY[0], CODE[1], CHAT[3], STORY[1])  # whose answers are long
WARM_UP = (CHAT[2], 64)
START_S, ANSWER_S = 120.0, 120.0


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


def cases(link: Link, number: int) -> list[tuple[Case, int]]:
    """What is measured on a link with the prompt of this number, and the length of each answer."""
    alone = [(Case(link.name, drafter, AUTO), link.tokens) for drafter in ("stream", *ONLY_AUTO)]
    drafting = []
    for drafter in DRAFTERS:
        if drafter != SELDOM:
            drafting += [(Case(link.name, drafter, window), link.tokens) for window in (AUTO, *WINDOWS)]
        elif number % SELDOM_PROMPTS == 0:
            tokens = link.tokens // SELDOM_SHARE
            drafting += [(Case(link.name, drafter, window), tokens) for window in (AUTO, *WINDOWS)]
    return [*alone, *drafting]


def measure(found: World, links: tuple[Link, ...], num_prompts: int, until: float) -> dict[Case, list[dict[str, Any]]]:
    """Every case on every prompt, or on as many as there is time for."""
    seen: dict[Case, list[dict[str, Any]]] = {}
    for link in links:
        for drafter in ("stream", *DRAFTERS, *ONLY_AUTO):
            found.answer(link, Case(link.name, drafter, AUTO), *WARM_UP)
    for number, prompt in enumerate(PROMPTS[:num_prompts]):
        begun = time.monotonic()
        for link in links:
            todo = cases(link, number)
            turn = number * 7 % len(todo)
            right: list[int] = []
            for case, tokens in todo[turn:] + todo[:turn]:
                got = found.answer(link, case, prompt, tokens)
                short, right = sorted([right or got["tokens"], got["tokens"]], key=len)
                assert right[: len(short)] == short, f"{case} gave another answer to {prompt!r}"
                seen.setdefault(case, []).append(got)
        took_s = time.monotonic() - begun
        print(f"prompt {number + 1}: {took_s:.0f} s", file=sys.stderr, flush=True)
        if time.monotonic() + took_s > until:
            break
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
        "each_tokens_per_s": [round(each["paced_tokens"] / each["paced_s"], 2) for each in answers],
    }


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Auto beside the best fixed window on the same prompts, for each link and drafter; 0 is a window like others."""
    found = []
    for link in dict.fromkeys(each["link"] for each in rows):
        for drafter in DRAFTERS:
            cell = {
                each["window"]: each["tokens_per_s"]
                for each in rows
                if (each["link"], each["drafter"]) == (link, drafter)
            }
            auto = cell.pop("auto")
            best = max(cell, key=cell.__getitem__)
            ratio = round(auto / cell[best], 3)
            found.append(
                {
                    "link": link,
                    "drafter": drafter,
                    "auto": auto,
                    "best_fixed": best,
                    "of_it": cell[best],
                    "ratio": ratio,
                }
            )
    return found


def figure_of(held: list[dict[str, Any]], stamp: dict[str, Any]) -> record.Figure:
    """The least of all links and drafters."""
    least = min(held, key=lambda each: float(each["ratio"]))
    which = f"least of {len(held)} links and drafters ({least['link']}, {least['drafter']})"
    unit = f"tokens/s with auto over those with the best fixed window, {which}; goal: 0.95 at least"
    peer = f"the best of windows {', '.join(map(str, WINDOWS))} of that link and drafter, same run; 0 is a stream"
    return record.figure(least["ratio"], unit, peer, COMMAND, stamp)


def packaged_drafter() -> Path:
    """The file of smollm2-12m."""
    import sled
    from sled.drafters.opening import PACKAGED

    return Path(sled.__file__).parent / "models" / PACKAGED["smollm2-12m"]


def transformers_rows(prompts: list[list[int]], tokens: int) -> list[dict[str, Any]]:
    """What transformers does in one process, both cores and no link."""
    drafter = packaged_drafter()
    rows = []
    with Process("transformers", [sys.executable, "-m", "bench.macro._links_hf"], 2) as peer:
        ways = peer.ask(START_S, do="connect", model=MODEL, drafter=str(drafter), threads=2)["ways"]
        for way in ways:
            peer.ask(ANSWER_S, do="answer", way=way, prompt=prompts[0], max_tokens=8)
        seen: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for prompt in prompts:
            for way in ways:
                seen[way].append(peer.ask(ANSWER_S, do="answer", way=way, prompt=prompt, max_tokens=tokens))
    for way, answers in seen.items():
        rate = sum(each["paced_tokens"] for each in answers) / sum(each["paced_s"] for each in answers)
        rows.append({"peer": f"transformers, {way}", "tokens_per_s": round(rate, 2)})
    return rows


def llamacpp_rows(prompts: list[list[int]], tokens: int, peers: Path, folder: Path) -> list[dict[str, Any]]:
    """What llama.cpp's server does with the same weights in float32: alone, with the same drafter, with n-grams."""
    from bench.macro._links_llamacpp import write_widened
    from bench.macro.serving.float_gguf import write_float32
    from sled.targets.catalog import find_model

    binary = peers / "bin" / "llama-server"
    if not binary.is_file():
        return [{"peer": "llama.cpp", "error": f"there is no {binary}; run sh scripts/serving_peers.sh"}]
    folder.mkdir(parents=True, exist_ok=True)
    source = find_model(MODEL).path
    model = write_float32(source, folder / f"{source.stem}.F32.gguf")
    drafter = write_widened(packaged_drafter(), source, folder / "smollm2-draft-12m.widened.gguf")
    rows = []
    drafts = ["--spec-type", "draft-simple", "--model-draft", str(drafter), "--threads-draft", "2"]
    ngram = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "8"]
    for way, options in (("plain", []), ("smollm2-12m drafts", drafts), ("ngram-simple 3, 8", ngram)):
        port = _free_port()
        command = [str(binary), "--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--parallel", "1"]
        command += [
            "--ctx-size",
            "1024",
            "--threads",
            "2",
            "--threads-batch",
            "2",
            "--no-webui",
            "--log-disable",
            *options,
        ]
        with Process(f"llama-server, {way}", command, 2) as server:
            _until_healthy(server, port)
            count, spent_ms, drafted, accepted = 0, 0.0, 0, 0
            for number, prompt in enumerate([prompts[0], *prompts]):
                timings = _completion(port, prompt, tokens)
                if number:  # the first one warms up
                    count, spent_ms = count + timings["predicted_n"] - 1, spent_ms + timings["predicted_ms"]
                    drafted, accepted = (
                        drafted + timings.get("draft_n", 0),
                        accepted + timings.get("draft_n_accepted", 0),
                    )
        rate = round(1e3 * count / spent_ms, 2)
        rows.append({"peer": f"llama.cpp, {way}", "tokens_per_s": rate, "drafted": drafted, "accepted": accepted})
    return rows


def _completion(port: int, prompt: list[int], tokens: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    with contextlib.closing(connection):
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "cache_prompt": False}
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        answer: dict[str, Any] = json.load(connection.getresponse())
    timings: dict[str, Any] = answer["timings"]
    return timings


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="at most so many")
    parser.add_argument("--limit-s", type=float, default=630.0, help="no further prompt is begun that would end later")
    parser.add_argument("--links", default=",".join(link.name for link in LINKS))
    parser.add_argument("--drafters", default=",".join(DRAFTERS))
    parser.add_argument("--tokens", type=int, default=0, help="of an answer; default as the link says")
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "serving-peers")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "serving")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-write", action="store_true", help="only print")
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
    with world(links) as found:
        seen = measure(found, links, given.prompts, began + given.limit_s)
    rows = [row(case, answers) for case, answers in seen.items()]
    for each in rows:
        print({key: value for key, value in each.items() if key != "each_tokens_per_s"})
    prompts = [answer["prompt"] for answer in next(iter(seen.values()))][:4]
    peers = [] if given.no_peers else peer_rows(prompts, links[0].tokens, given.peers, given.folder)
    for each in peers:
        print(each)
    held = ratios(rows)
    for each in held:
        print(each)
    results = {
        "links": [
            {"name": link.name, "round_ms": link.round_ms, "mbit_s": link.mbit_s, "tokens": link.tokens}
            for link in links
        ],
        "prompts": len(next(iter(seen.values()))),
        "rows": rows,
        "ratios": held,
        "peers": peers,
        "took_s": round(time.monotonic() - began),
    }
    figure = figure_of(held, stamp)
    print(figure["unit"], figure["value"], f"{time.monotonic() - began:.0f} s")
    if not given.no_write:
        record.write("links", results, {"sled.device.auto_window_ratio_min": figure}, stamp)


def peer_rows(prompts: list[list[int]], tokens: int, peers: Path, folder: Path) -> list[dict[str, Any]]:
    """Whoever is at hand."""
    found: list[dict[str, Any]] = []
    for rows in (transformers_rows, lambda *asked: llamacpp_rows(*asked, peers, folder)):
        try:
            found += rows(prompts, tokens)
        except WorkerFailed as error:
            found.append({"peer": "failed", "error": str(error)})
    return found


if __name__ == "__main__":
    main()
