"""Is a server's death seen in the answers? kill -9 in the middle of them, with a second server up.

`python -m bench.macro.takeover`, about eight minutes on two cores, or part by part with `--part` (and `--add`); writes
bench/results/takeover.json and the figures `sled.takeover.answers_equal` and `sled.takeover.resume_ms_p99`. Real
`sled serve` processes with SmolLM2 in float32 and CURVE on loopback, several devices at a time; servers take turns in
being killed, and come back on their port. Frozen ones (SIGSTOP) say nothing and keep their connections: only silence
gives them away. The peer is llama.cpp's server with plain HTTP clients that ask the other server, for the whole answer
anew or with what they have as a longer prompt, under the same schedule (greedy; `scripts/serving_peers.sh` makes it).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import record
from bench.macro._takeover_world import (
    MODEL,
    Fleet,
    Others,
    Seen,
    http_answers,
    two_llamacpp,
    two_sled,
    until_begun,
    until_done,
    until_healthy,
)
from bench.macro.prompts import CHAT, CODE, STORY
from sled import Sampling, Window

COMMAND = "python -m bench.macro.takeover"
DRAFTERS = ("ngram", "smollm2-12m", "ngram", "smollm2-12m", "ngram")
PROMPTS = (*CHAT[:2], *CODE[:2], *STORY[:3], *CHAT[3:], CODE[3])
NUM_TOKENS = 32
LEAST, MOST = 5, 12  # tokens that an answer has before the kill
DISTURBED, MOST_TIMES = 25, 3  # in each part that kills; of the turns at most, if answers end before their server
THREADS = 2  # of each server; while both live, one of them rests
GOAL_MS = 1000.0
ALLOWED_CORES = 0.15  # other processes' time in a turn that counts
SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(temperature=0.8, top_p=0.95, seed=11)}
PARTS = {
    "rounds-greedy": ("rounds", "greedy", "kill"),
    "rounds-sampled": ("rounds", "sampled", "kill"),
    "frozen": ("rounds", "sampled", "freeze"),
    "streams-greedy": ("streams", "greedy", "kill"),
    "streams-sampled": ("streams", "sampled", "kill"),
}
UNDISTURBED = {f"undisturbed-{name}": name for name in SAMPLINGS}
TURNS = {**dict.fromkeys(PARTS, 5), "frozen": 2, "llamacpp-anew": 4, "llamacpp-keeps": 4}
PEERS_SAY = {
    "llamacpp-anew": "llama.cpp's server (Q4_1), plain HTTP client asks anew",
    "llamacpp-keeps": "... sends what it has as a longer prompt",
}
PEERS = {"llamacpp-anew": False, "llamacpp-keeps": True}


def of_turn(turn: int) -> list[tuple[int, str]]:
    """The prompts of a turn."""
    return [
        ((turn * len(DRAFTERS) + n) % len(PROMPTS), PROMPTS[(turn * len(DRAFTERS) + n) % len(PROMPTS)])
        for n in range(len(DRAFTERS))
    ]


class Sled:
    """Our servers and devices, started once for all parts of a mode; use as a context manager."""

    def __init__(self) -> None:
        self._stack, self._mode = contextlib.ExitStack(), ""

    def __enter__(self) -> Sled:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def turn_to(self, mode: str) -> None:
        """Have servers of this mode, and devices that know them."""
        if mode != self._mode:
            self._stack.close()
            root, self.servers = self._stack.enter_context(two_sled(mode, THREADS))
            self.fleet = Fleet(root, self.servers, DRAFTERS)
            self._stack.callback(self.fleet.close)
            self._mode = mode

    def part(self, part: str, turns: range, right: dict[str, list[int]]) -> list[dict[str, Any]]:
        """One part: a death in every turn.

        Args:
            part: of PARTS.
            turns: numbers of the turns, which have other prompts and kill the servers by turns.
            right: the undisturbed answers by prompt.
        """
        mode, sampled, how = PARTS[part]
        chance, rows = random.Random(f"{part}{turns}"), list[dict[str, Any]]()
        self.turn_to(mode)
        for turn in turns:
            first, other = self.servers[turn % 2], self.servers[1 - turn % 2]
            self.fleet.meet(first)
            seen, threads = self.fleet.answer(of_turn(turn), SAMPLINGS[sampled], NUM_TOKENS, Window.auto())
            until_begun(seen, [chance.randint(LEAST, MOST) for _ in seen])
            self.fleet.let_go()
            watch = Others([other.pid])
            died_at = first.kill() if how == "kill" else first.signal(signal.SIGSTOP)
            until_done(threads)
            rows += [row(each, right[str(each.prompt)], died_at, watch.cores()) for each in seen]
            if how == "freeze":
                first.signal(signal.SIGCONT)
            else:
                first.start()
                first.wait_ready()
        return rows

    def undisturbed(self, sampling: Sampling) -> dict[str, list[int]]:
        """The answers as they must be, by prompt: no drafts, and nothing happens."""
        self.turn_to("rounds")
        right: dict[str, list[int]] = {}
        for turn in range(-(-len(PROMPTS) // len(DRAFTERS))):
            self.fleet.meet(self.servers[turn % 2])
            seen, threads = self.fleet.answer(of_turn(turn), sampling, NUM_TOKENS, Window(0))
            until_done(threads)
            assert not any(each.error for each in seen), [each.error for each in seen]
            right |= {str(each.prompt): each.ids for each in seen}
        return right


def with_enough(ours: Sled, part: str, turns: range, right: dict[str, list[int]]) -> list[dict[str, Any]]:
    """A part with these turns, and with more where too many answers ended before their server did; see Sled.part."""
    rows = ours.part(part, turns, right)
    if PARTS[part][2] != "kill":
        return rows
    for turn in range(turns.stop, turns.start + MOST_TIMES * len(turns)):
        if sum(each["disturbed"] for each in rows) >= DISTURBED:
            break
        rows += ours.part(part, range(turn, turn + 1), right)
    return rows


def peers(name: str, turns: range, binary: Path) -> list[dict[str, Any]]:
    """The same with llama.cpp's servers and plain clients, whose undisturbed answers are their own."""
    from edgekernels.gguf import GgufFile

    from sled.targets.catalog import find_model
    from sled.targets.text import codec_from_gguf

    keep, chance, rows = PEERS[name], random.Random(f"{name}{turns}"), list[dict[str, Any]]()
    path = find_model(MODEL).path
    with GgufFile(path) as file:
        codec = codec_from_gguf(file.metadata)
    ids = [codec.encode(text, chat=True) for text in PROMPTS]
    with two_llamacpp(binary, path, THREADS, len(DRAFTERS)) as servers:
        right: dict[int, list[int]] = {}
        for turn in range(-(-len(PROMPTS) // len(DRAFTERS))):
            seen, threads = http_answers(servers, [(n, ids[n]) for n, _ in of_turn(turn)], NUM_TOKENS, keep=keep)
            until_done(threads)
            right |= {each.prompt: each.ids for each in seen}
        for turn in turns:
            order = [servers[turn % 2], servers[1 - turn % 2]]
            seen, threads = http_answers(order, [(n, ids[n]) for n, _ in of_turn(turn)], NUM_TOKENS, keep=keep)
            until_begun(seen, [chance.randint(LEAST, MOST) for _ in seen])
            watch = Others([order[1].pid])
            died_at = order[0].kill()
            until_done(threads)
            rows += [row(each, right[each.prompt], died_at, watch.cores()) for each in seen]
            if turn != turns[-1]:
                order[0].start()
                order[0].wait_ready()
                until_healthy(order[0])
    return rows


def row(seen: Seen, right: list[int], died_at: float, others_cores: float) -> dict[str, Any]:
    """What became of one answer."""
    out: dict[str, Any] = {
        "prompt": seen.prompt,
        "drafter": seen.drafter,
        "tokens": len(seen.tokens),
        "before": seen.before,
        "disturbed": seen.disturbed,
        "equal": not seen.error and seen.ids == right,
        "error": seen.error,
        "others_cores": round(others_cores, 2),
    }
    if seen.disturbed:
        out["resume_ms"] = round(1000.0 * seen.resume_s, 1)
        out["after_death_ms"] = round(1000.0 * (seen.tokens[seen.before][0] - died_at), 1)
    return out


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and percentiles of a part."""
    times, after = ([each[name] for each in rows if each["disturbed"]] for name in ("resume_ms", "after_death_ms"))
    alone = [each["resume_ms"] for each in rows if each["disturbed"] and each["others_cores"] <= ALLOWED_CORES]
    return {
        "answers": len(rows),
        "disturbed": len(times),
        "finished": sum(not each["error"] for each in rows),
        "equal": sum(each["equal"] for each in rows),
        "resume_ms": percentiles(times),
        "after_death_ms": percentiles(after),
        "alone": len(alone),
        "alone_resume_ms": percentiles(alone),
        "rows": rows,
    }


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the greatest."""
    if len(times) < 2:
        return {}
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1), "max": max(times)}


def publish(parts: dict[str, Any], right: dict[str, dict[str, list[int]]], stamped: dict[str, Any]) -> None:
    """Write the results, and the figures of all deaths by kill -9."""
    killed = [each for name in PARTS if PARTS[name][2] == "kill" and name in parts for each in parts[name]["rows"]]
    disturbed = [each for each in killed if each["disturbed"]]
    total = {name: value for name, value in summary(disturbed).items() if name != "rows"}
    # Turns beside which other processes ran say little about us; where most were such, all of them count.
    alone = total["alone"] >= len(disturbed) / 2
    times = total["alone_resume_ms" if alone else "resume_ms"]
    how = f"{total['alone']} with the machine to themselves" if alone else f"{len(disturbed)} beside other work"
    beside = "; ".join(
        f"{text}: p99 {parts[name]['alone_resume_ms' if parts[name]['alone_resume_ms'] else 'resume_ms']['p99']:.0f} ms"
        for name, text in PEERS_SAY.items()
        if name in parts
    )
    figures: dict[str, record.Figure] = {}
    if disturbed:
        figures = {
            "sled.takeover.answers_equal": record.figure(
                float(total["equal"]),
                f"of {len(disturbed)} answers whose server was killed; goal: all",
                "the undisturbed answers",
                COMMAND,
                stamped,
            ),
            "sled.takeover.resume_ms_p99": record.figure(
                times["p99"],
                f"ms from the last token before kill -9 to the first after, five answers at once, of {how}; "
                f"goal: {GOAL_MS:.0f} at most",
                beside or "llama.cpp's server was not there",
                COMMAND,
                stamped,
            ),
        }
    about = {"model": MODEL, "dtype": "float32", "threads_per_server": THREADS, "devices": len(DRAFTERS)}
    results = {**about, "num_tokens": NUM_TOKENS, "killed": total, "parts": parts, "undisturbed": right}
    record.write("takeover", results, figures, stamped)


def main() -> int:
    """Measure the parts asked for, keep those measured before, publish; 1 if an answer is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    choices = [*UNDISTURBED, *PARTS, *PEERS]
    parser.add_argument("--part", action="append", choices=choices, help="only this one; may be repeated")
    parser.add_argument("--turns", type=int, help="deaths in each part, of five answers each")
    parser.add_argument("--add", action="store_true", help="to what the part has already")
    parser.add_argument("--peers", type=Path, default=record.RESULTS.parents[1] / "build" / "serving-peers")
    options = parser.parse_args()
    file = record.RESULTS / "takeover.json"
    known = json.loads(file.read_text()) if options.part and file.is_file() else {}
    parts, right, wrong = known.get("parts", {}), known.get("undisturbed", {}), 0
    stamped, binary = record.stamp(), options.peers / "bin" / "llama-server"
    with Sled() as ours:
        for part in options.part or [*UNDISTURBED, *PARTS, *PEERS]:
            began = time.monotonic()
            if part in UNDISTURBED:
                right[UNDISTURBED[part]] = ours.undisturbed(SAMPLINGS[UNDISTURBED[part]])
            elif part in PEERS and not binary.is_file():
                print(f"{part}: there is no {binary}; run sh scripts/serving_peers.sh", flush=True)
            else:
                before = parts[part]["rows"] if options.add and part in parts else []
                first = len(before) // len(DRAFTERS)
                turns = range(first, first + (options.turns or TURNS[part]))
                if part in PEERS:
                    rows = peers(part, turns, binary)
                elif options.turns:
                    rows = ours.part(part, turns, right[PARTS[part][1]])
                else:
                    rows = with_enough(ours, part, turns, right[PARTS[part][1]])
                parts[part] = summary([*before, *rows])
                wrong += sum(not each["equal"] for each in rows) if part in PARTS else 0
                shown = {name: value for name, value in parts[part].items() if name != "rows"}
                print(f"{part}: {shown} in {time.monotonic() - began:.0f} s", flush=True)
            publish(parts, right, stamped)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
