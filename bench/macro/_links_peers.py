"""Peers of the link benchmark, in one process, both cores and no link: transformers and llama.cpp, same weights."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bench.macro.serving.servers import _free_port, _until_healthy
from bench.macro.serving.worker import Process, WorkerFailed

MODEL = "smollm2-135m"
START_S, ANSWER_S = 120.0, 120.0


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


def peer_rows(prompts: list[list[int]], tokens: int, peers: Path, folder: Path) -> list[dict[str, Any]]:
    """Whoever is at hand."""
    found: list[dict[str, Any]] = []
    for rows in (transformers_rows, partial(llamacpp_rows, peers=peers, folder=folder)):
        try:
            found += rows(prompts, tokens)
        except WorkerFailed as error:
            found.append({"peer": "failed", "error": str(error)})
    return found
