"""Which drafter is right how often: acceptance of every kind on four kinds of prompts, at three temperatures.

The target's answers do not depend on who drafts (coupled sampling), so they are made once and every drafter is held
against them, round by round with 4 drafts each. The target is SmolLM2-135M on the native decoder with exact
activations; costs are one thread's, beside a decode step of the target as its own drafter computes it.

    python -m bench.macro.drafters                      all of it (under ten minutes)
    python -m bench.macro.drafters acceptance NAME ...  some drafters; results are put beside those that are there
    python -m bench.macro.drafters rules                coupled, rejection and independent for the distilled drafter
    python -m bench.macro.drafters costs                alone on the machine
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import edgekernels
import msgspec
from edgekernels.decoder import load_decoder
from edgekernels.gguf import GgufFile

from bench import record
from bench.macro.prompts import CHAT, CODE, COPYING, STORY
from sled.acceptance import RoundRows, decide
from sled.drafters import Drafter, open_drafter
from sled.errors import UnknownModel
from sled.messages import Described
from sled.pieces import vocabulary_of_gguf
from sled.proposal import Proposal, law_of_round, proposals
from sled.targets.catalog import find_model
from sled.targets.text import TextCodec, codec_from_gguf
from sled.types import Sampling
from sled.vocabulary import vocabulary_hash

COMMAND = "python -m bench.macro.drafters"
TARGET = "smollm2-135m"
KINDS = {"chat": CHAT, "code": CODE, "copying": COPYING, "story": STORY}
TEMPERATURES = (0.0, 0.7, 1.0)
WINDOW, NUM_TOKENS, STOP = 4, 48, 2
DRAFTERS = {
    "none": "none",
    "ngram": "ngram",
    "smollm2-12m": "smollm2-12m",
    "ngram+smollm2-12m": "ngram+smollm2-12m",
    "28 of 30 layers": f"{TARGET}@skip=12,17",
    "25 of 30 layers": f"{TARGET}@skip=5,9,14,17,20",
    "4 bits": f"{TARGET}@bits=4,group=64",
    "3 bits": f"{TARGET}@bits=3,group=32",
    "llama.cpp": f"llama:{TARGET}",
    "itself": TARGET,
}
LABELS = {0.0: "t0", 0.7: "t07", 1.0: "t1"}


class Answer(NamedTuple):
    """What the target says to one prompt."""

    kind: str
    seed: int
    prompt: list[int]
    tokens: list[int]


class World:
    """The target, its answers, and drafters for it."""

    def __init__(self) -> None:
        path = find_model(TARGET).path
        with GgufFile(path) as file:
            self.codec: TextCodec = codec_from_gguf(file.metadata)
            self.vocabulary = vocabulary_of_gguf(file.metadata)
        self.decoder = load_decoder(path, activations="float")
        config = self.decoder.config
        self.target = Described(
            TARGET, "float32", config.vocab_size, vocabulary_hash(self.vocabulary), 1024, WINDOW, [STOP]
        )

    def drafter(self, name: str) -> Drafter:
        return open_drafter(DRAFTERS[name], self.target, vocabulary=self.vocabulary, threads=1)

    def answers(self, temperature: float) -> list[Answer]:
        found = []
        prompts = [(kind, prompt) for kind, prompts in KINDS.items() for prompt in prompts]
        for seed, (kind, prompt) in enumerate(prompts):
            ids = self.codec.encode(prompt, chat=True)
            text, cache, feed = list(ids), self.decoder.new_cache(1024), ids
            while len(text) < len(ids) + NUM_TOKENS and text[-1] != STOP:
                row = self.decoder.forward(feed, cache)
                token = edgekernels.sample(row, temperature=temperature, seed=seed, position=len(text))[0]
                feed = [int(token)]
                text += feed
            found.append(Answer(kind, seed, ids, text[len(ids) :]))
        return found


class Tally:
    """Rounds of one drafter."""

    def __init__(self) -> None:
        self.rounds = self.drafted = self.accepted = 0
        self.reached, self.passed = [0] * WINDOW, [0] * WINDOW

    def add(self, drafted: int, accepted: int) -> None:
        self.rounds += 1
        self.drafted += drafted
        self.accepted += accepted
        for at in range(min(drafted, accepted + 1)):
            self.reached[at] += 1
            self.passed[at] += at < accepted

    def result(self) -> dict[str, Any]:
        by_position = [round(p / r, 3) if r else None for p, r in zip(self.passed, self.reached, strict=True)]
        return {
            "rounds": self.rounds,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "acceptance": round(self.accepted / self.drafted, 3) if self.drafted else None,
            "tokens_per_round": round(1 + self.accepted / self.rounds, 3),
            "of_first_drafts": by_position[0],
            "by_position": by_position,
        }


def take(drafter: Drafter, text: list[int], limit: int) -> list[Proposal]:
    """As a device with a fixed window does."""
    return list(islice(proposals(drafter.draft(text, limit)), limit))


def hold(drafter: Drafter, answer: Answer, sampling: Sampling, tallies: Iterable[Tally]) -> None:
    """One answer in rounds of 4; the target says what it has said."""
    full = answer.prompt + answer.tokens
    text = list(answer.prompt)
    drafter.start(sampling, len(text))
    while len(text) < len(full):
        draft = [proposal.token for proposal in take(drafter, text, min(WINDOW, len(full) - len(text)))]
        accepted = 0
        while accepted < len(draft) and draft[accepted] == full[len(text) + accepted]:
            accepted += 1
        for tally in tallies:
            tally.add(len(draft), accepted)
        text = full[: len(text) + accepted + 1]


def acceptance(world: World, name: str, texts: dict[float, list[Answer]]) -> dict[str, Any]:
    """One drafter against all answers."""
    drafter, found = world.drafter(name), dict[str, Any]()
    for temperature, answers in texts.items():
        tallies = {kind: Tally() for kind in ("all", *KINDS)}
        for answer in answers:
            sampling = Sampling(temperature, seed=answer.seed)
            hold(drafter, answer, sampling, (tallies["all"], tallies[answer.kind]))
        found[LABELS[temperature]] = {kind: tally.result() for kind, tally in tallies.items()}
    return {"drafter": DRAFTERS[name], **found}


def rules(world: World, texts: dict[float, list[Answer]]) -> dict[str, Any]:
    """The distilled drafter under three rules: coupled, rejection, and sampling with noise of its own."""
    drafter, found = world.drafter("smollm2-12m"), dict[str, Any]()
    for temperature in TEMPERATURES[1:]:
        coupled, independent, rejection = Tally(), Tally(), Tally()
        for answer in texts[temperature]:
            hold(drafter, answer, Sampling(temperature, seed=answer.seed), (coupled,))
            hold(drafter, answer, Sampling(temperature, seed=answer.seed + 1000), (independent,))
            by_rejection(world, drafter, answer, Sampling(temperature, seed=answer.seed, rule="rejection"), rejection)
        found[LABELS[temperature]] = {
            "coupled": coupled.result(),
            "rejection": rejection.result(),
            "independent": independent.result(),
        }
    return found


def by_rejection(world: World, drafter: Drafter, answer: Answer, sampling: Sampling, tally: Tally) -> None:
    """One answer in rounds of 4 under the rejection rule, decided by the target as a server does."""
    text, cache = list(answer.prompt), world.decoder.new_cache(1024)
    drafter.start(sampling, len(text))
    end = len(text) + NUM_TOKENS
    while len(text) < end and text[-1] != STOP:
        draft = take(drafter, text, WINDOW)
        tokens = [proposal.token for proposal in draft]
        logits = world.decoder.forward(text[len(cache) :] + tokens, cache, num_logits=len(tokens) + 1)
        (decision,) = decide(logits, [RoundRows(tokens, sampling, len(text), law=law_of_round(draft))])
        tally.add(len(tokens), decision.accepted)
        text += [*tokens[: decision.accepted], decision.next_token]
        cache.truncate(len(text) - 1)


def costs(world: World) -> dict[str, Any]:
    """Milliseconds for each drafted token, and how many decode steps of the target that is; one thread."""
    ids = world.codec.encode(STORY[0], chat=True)
    step = load_decoder(find_model(TARGET).path)
    cache = step.new_cache(512)
    step.forward(ids, cache)

    def one() -> None:
        step.forward([28], cache)
        cache.truncate(len(ids))

    drafters = {}
    for name in DRAFTERS:
        try:
            drafters[name] = world.drafter(name)
        except UnknownModel as error:
            print(f"{name}: {error}", file=sys.stderr)
    found = dict[str, Any]()
    for name, drafter in drafters.items():
        text = ids * 2 if name == "ngram" else ids  # something to find
        drafter.start(Sampling(), len(text))
        texts = (text, text[:-1])  # each round loses a token, or gains one
        num = sum(len(take(drafter, each, WINDOW)) for each in texts)
        if not num:
            continue

        def round_(drafter: Drafter = drafter, texts: tuple[list[int], list[int]] = texts) -> None:
            for each in texts:
                take(drafter, each, WINDOW)

        round_ms, target_ms = best_ms(round_, one)
        ms = round_ms / num
        found[name] = {"ms": round(ms, 4), "target_ms": round(target_ms, 3), "of_target": round(ms / target_ms, 4)}
    return found


def best_ms(*works: Callable[[], Any]) -> list[float]:
    """The best of 25, in turn, after two to warm up: what the machine does undisturbed."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(27):
        for work, own in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            own.append((time.perf_counter() - start) * 1e3)
    return [min(own[2:]) for own in times]


def figures(results: dict[str, Any], stamp: dict[str, Any]) -> dict[str, Any]:
    """Acceptance and tokens per round of every drafter, costs, and the three rules."""
    found = {}

    def put(key: str, value: float | None, unit: str, peer: str) -> None:
        if value is not None:
            found[f"sled.drafters.{key}"] = record.figure(value, unit, peer, COMMAND, stamp)

    for name, row in results.get("acceptance", {}).items():
        key = name.replace(" of 30 ", "_").replace(" ", "_").replace(".", "")
        for label in LABELS.values():
            all_kinds = row[label]["all"]
            put(f"{key}.acceptance_{label}", all_kinds["acceptance"], "accepted / drafted, window 4", "itself")
            put(f"{key}.tokens_per_round_{label}", all_kinds["tokens_per_round"], "tokens, window 4", "none: 1")
        cost = results.get("costs", {}).get(name)
        if cost:
            put(f"{key}.cost", cost["of_target"], "decode steps of the target for a drafted token, 1 thread", "target")
    for label, by_rule in results.get("rules", {}).items():
        for rule, row in by_rule.items():
            unit = "share of first drafts accepted, smollm2-12m"
            put(f"rules.{rule}_{label}", row["of_first_drafts"], unit, "coupled, rejection, independent")
    return found


def main(what: str = "all", *names: str) -> None:
    """Measure, put it beside what is there, and write."""
    stamp, world = record.stamp(), World()
    file = record.RESULTS / "drafters.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() and what != "all" else {}
    results.pop("stamp", None)
    if what in ("all", "acceptance", "rules"):
        texts = {temperature: answers_of(world, temperature, fresh=what == "all") for temperature in TEMPERATURES}
    if what in ("all", "acceptance"):
        for name in names or DRAFTERS:
            start = time.monotonic()
            try:
                results.setdefault("acceptance", {})[name] = row = acceptance(world, name, texts)
            except UnknownModel as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            shown = {label: row[label]["all"]["tokens_per_round"] for label in LABELS.values()}
            print(f"{name:20} {shown} {time.monotonic() - start:.0f} s", flush=True)
    if what in ("all", "rules"):
        results["rules"] = rules(world, texts)
        print({key: {r: v["of_first_drafts"] for r, v in row.items()} for key, row in results["rules"].items()})
    if what in ("all", "costs"):
        results["costs"] = costs(world)
        print(results["costs"])
    record.write("drafters", results, figures(results, stamp), stamp)


def answers_of(world: World, temperature: float, *, fresh: bool) -> list[Answer]:
    """The target's answers; kept between runs that measure a part."""
    file = Path("build") / f"drafters-answers-{LABELS[temperature]}-{NUM_TOKENS}.json"
    if not fresh and file.is_file():
        return msgspec.json.decode(file.read_bytes(), type=list[Answer])
    found = world.answers(temperature)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(msgspec.json.encode(found))
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
