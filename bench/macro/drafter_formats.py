"""What quantising the packaged drafter costs: acceptance by file format and temperature, load time, size.

`python -m bench.macro.drafter_formats DIRECTORY [--tokens N] [--prompts N] [--answers FILE]`, where DIRECTORY holds the
drafter in float16 (config.json and model.safetensors as `sled distill` writes them).

The target (SmolLM2-135M, float32) answers the prompts of
`bench.macro.prompts` once for each temperature under the coupled rule; every format then drafts one token behind each
position of the same answers on the native decoder, as devices do. A draft is accepted where it is the target's token,
and rounds of a window are counted along the answer. Formats thus differ by nothing but their weights.
Writes bench/results/drafter_formats.json and the figures `sled.drafter.*`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import edgekernels
import numpy as np
import torch
from edgekernels.decoder import load_decoder
from edgekernels.safetensors import SafetensorsFile

from bench import record
from bench.macro.prompts import PROMPTS, hundred
from sled.distill.acceptance import rounds_of
from sled.distill.export import gguf_of
from sled.distill.shapes import Shape
from sled.distill.teacher import Teacher
from sled.drafters import open_drafter
from sled.drafters.native import BITS, GROUP
from sled.messages import Described
from sled.targets.catalog import find_model
from sled.targets.loading import load_model

TEMPERATURES = (0.0, 0.7, 1.0)
KINDS = ("f16", "q8_0", "q4_0")
WINDOWS = (1, 2, 4, 8)
SEED = 1
GROUP_ROWS = 20  # answered at once
COMMAND = "python -m bench.macro.drafter_formats DIRECTORY"


@torch.no_grad()
def answers(teacher: Teacher, prompts: list[list[int]], temperature: float, num_tokens: int) -> list[list[int]]:
    """The target's own answers, all at once; a stop token ends one."""
    rows, longest = len(prompts), max(map(len, prompts)) + num_tokens
    texts = [list(prompt) for prompt in prompts]
    teacher.open_rows(rows, longest)
    open_rows = set(range(rows))
    for at in range(longest - 1):
        tokens = torch.tensor([[text[at] if at < len(text) else 0] for text in texts])
        logits = teacher.step(tokens, teacher.step_at(torch.tensor([at]), longest)).contiguous().numpy()
        chosen = edgekernels.sample(logits, temperature=temperature, seed=SEED, position=np.full(rows, at + 1))
        for row in sorted(open_rows):
            if len(texts[row]) == at + 1:
                texts[row].append(int(chosen[row]))
                done = len(texts[row]) - len(prompts[row]) >= num_tokens
                if done or texts[row][-1] in teacher.codec.stop_ids:
                    open_rows.remove(row)
        if not open_rows:
            break
    teacher.close_rows()
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def kept_answers(
    teacher: Teacher, prompts: list[list[int]], temperature: float, num_tokens: int, path: Path | None
) -> list[list[int]]:
    """The answers, a group of prompts at a time, from a file as far as they are there."""
    known = json.loads(path.read_text()) if path and path.is_file() else {}
    said: list[list[int]] = []
    for at in range(0, len(prompts), GROUP_ROWS):
        key = f"{temperature} {num_tokens} {at} {len(prompts[at : at + GROUP_ROWS])}"
        if key not in known:
            known[key] = answers(teacher, prompts[at : at + GROUP_ROWS], temperature, num_tokens)
            if path:
                path.write_text(json.dumps(known))
        said += known[key]
    return said


def hits(decoder: Any, ids: np.ndarray, prompt: list[int], answer: list[int], temperature: float) -> list[bool]:
    """Where a draft behind the text so far would be the target's token."""
    own = np.zeros(1 << 16, np.int64)
    own[ids] = np.arange(len(ids))
    text = np.array([*prompt, *answer])
    logits = decoder.forward(own[text[:-1]], decoder.new_cache(len(text)), num_logits=len(answer), num_threads=2)
    positions = np.arange(len(prompt), len(text))
    drafts = edgekernels.sample(
        logits, temperature=temperature, seed=SEED, position=positions, token_ids=ids.astype(np.int32)
    )
    return [bool(draft == token) for draft, token in zip(drafts, answer, strict=True)]


def tally(rows: list[list[bool]], before: list[list[bool]]) -> dict[str, Any]:
    """Acceptance per position, by how much it is above `before` with that difference's standard error over answers,
    and mean accepted drafts by window."""
    sizes = np.array([len(row) for row in rows])
    gains = np.array([sum(row) - sum(own) for row, own in zip(rows, before, strict=True)])
    gain = float(gains.sum() / sizes.sum())
    error = float(np.sqrt(((gains - gain * sizes) ** 2).sum()) / sizes.sum())
    means = {}
    for window in WINDOWS:
        lengths = [length for row in rows for length, _ in rounds_of(row, window)]
        means[str(window)] = round(float(np.mean(lengths)), 3)
    return {
        "acceptance": round(sum(map(sum, rows)) / int(sizes.sum()), 4),
        "gain": round(gain, 4),
        "standard_error_of_gain": round(error, 4),
        "positions": int(sizes.sum()),
        "mean_accepted": means,
    }


def load_ms(path: Path, target: Described) -> float:
    """Milliseconds to open a drafter as a device does, files in the page cache, the best of seven."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        open_drafter(str(path), target)
        times.append(time.perf_counter() - start)
    return round(min(times) * 1e3, 1)


def formats(directory: Path, out: Path) -> tuple[dict[str, Path], np.ndarray]:
    """The drafter as it is, and as GGUF of every kind; its ids."""
    config = json.loads((directory / "config.json").read_text())
    shape = Shape(
        config["vocab_size"],
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["head_dim"],
        config["intermediate_size"],
        config["rms_norm_eps"],
        config["rope_theta"],
        config["max_position_embeddings"],
    )
    with SafetensorsFile(directory / "model.safetensors") as file:
        weights = dict(file.read_all())
    ids = weights.pop("draft_to_target").astype(np.int64)
    found = {"safetensors, 8 bits at load": directory}
    for kind in KINDS:
        path = out / f"{kind}.gguf"
        name, vocab_hash = directory.name, bytes.fromhex(config["target_vocab_hash"])
        path.write_bytes(gguf_of(name, shape, weights, ids.tolist(), vocab_hash, kind, "Apache-2.0"))
        found[f"GGUF {kind}"] = path
    return found, ids


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--answers", type=Path, help="file that keeps the target's answers, so that a run goes on")
    arguments = parser.parse_args()
    stamp = record.stamp()
    model, codec = load_model(find_model("smollm2-135m"))
    teacher = Teacher(model, codec, "smollm2-135m")
    prompts = [codec.encode(prompt, chat=True) for prompt in hundred()[: arguments.prompts]]
    target = Described("smollm2-135m", "float32", teacher.vocab_size, teacher.vocab_hash, 2048, 16, codec.stop_ids)
    with tempfile.TemporaryDirectory() as out:
        paths, ids = formats(arguments.directory, Path(out))
        decoders = {name: load_decoder(path, bits=BITS, group=GROUP) for name, path in paths.items()}
        decoders["safetensors, float32"] = load_decoder(arguments.directory, activations="float")
        results: dict[str, Any] = {name: {} for name in decoders}
        for name, path in paths.items():
            files = [path] if path.is_file() else list(path.glob("*.safetensors"))
            results[name] = {"bytes": sum(file.stat().st_size for file in files), "load_ms": load_ms(path, target)}
        for temperature in TEMPERATURES:
            said = kept_answers(teacher, prompts, temperature, arguments.tokens, arguments.answers)
            before: list[list[bool]] = []
            for name, decoder in decoders.items():
                found = [hits(decoder, ids, *pair, temperature) for pair in zip(prompts, said, strict=True)]
                before = before or found
                results[name][f"T={temperature}"] = tally(found, before)
                few = len(PROMPTS)
                results[name][f"T={temperature}, first {few}"] = tally(found[:few], before[:few])
                print(f"{name:28} T={temperature} {results[name][f'T={temperature}']}", flush=True)
    figures, command = {}, f"{COMMAND} --prompts {len(prompts)} --tokens {arguments.tokens}"
    for name, key in (("safetensors, 8 bits at load", "before"), ("GGUF q8_0", "q8_0"), ("GGUF q4_0", "q4_0")):
        for temperature in TEMPERATURES:
            value = results[name][f"T={temperature}"]["acceptance"]
            figures[f"sled.drafter.acceptance.{key}.t{temperature}"] = record.figure(
                value,
                f"acceptance per position, coupled rule, {len(prompts)} prompts of at most {arguments.tokens} tokens",
                "safetensors, float32",
                command,
                stamp,
            )
        figures[f"sled.drafter.load_ms.{key}"] = record.figure(
            results[name]["load_ms"], "ms to open, best of 7", "", command, stamp
        )
    asked = {"prompts": len(prompts), "tokens": arguments.tokens}
    record.write("drafter_formats", {**asked, "formats": results}, figures, stamp)


if __name__ == "__main__":
    main()
