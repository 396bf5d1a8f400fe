"""Renders the figures of bench/results/figures.json into the README, and what we lose into bench/README.md.

`python -m bench.report`; a test holds both against the committed results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bench import losses
from bench.record import FIGURES, Figure, value_of

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- figures: written by bench/report.py -->", "<!-- end of figures -->"

# what a reader sees: (row, figure, how to print it)
ROWS = (
    (
        "answers as they must be, of the whole exactness grid",
        "sled.exactness.equal",
        "{:,} of {sled.exactness.answers:,}",
    ),
    ("... numerical ties (reference's top-two margin under 1e-3)", "sled.exactness.ties", "{}"),
    ("... different", "sled.exactness.different", "{}"),
    (
        "prompts answered in a crowd of joins, leaves, evictions and rejections as they must be",
        "sled.server.exact_prompts",
        "{} of 100",
    ),
    (
        "goodput with window limits over the better of no drafts and the best fixed window, worst load",
        "sled.server.goodput_ratio_min",
        "{:.2f}",
    ),
    (
        "verify step of an 8B shape on an H100 over what memory and arithmetic allow, worst of 40 cells",
        "sled.server.h100_floor_ratio_max",
        "{:.2f}",
    ),
    (
        "accepting 8 drafts of 4 tokens, V=49,152, T=0.8, against transformers",
        "kernels.accept.v49152_b8_sampled.x_transformers",
        "x{:.1f}",
    ),
    ("... against lazy numpy (inverse transform)", "kernels.accept.v49152_b8_sampled.x_lazy_numpy", "x{:.1f}"),
    ("... greedy, batch 1, against a numpy argmax loop", "kernels.accept.v49152_b1_greedy.x_lazy_numpy", "x{:.1f}"),
    (
        "qpart: bytes saved against float32 by a slow device that loads the whole net, 1 % of predictions may change, "
        "least of 4 nets",
        "qpart.payload_reduction_min",
        "{:.1%}",
    ),
    ("... bytes of head and one image, cut near the input", "qpart.payload_reduction_min_split", "{:.1%}"),
    (
        "... the same, as many may change as cost 1 % of the accuracy in calibration",
        "qpart.payload_reduction_min_split_seen",
        "{:.1%}",
    ),
    ("... accuracy lost on 10,000 held-out images, most of 24 such plans", "qpart.accuracy_drop_max", "{:.2%}"),
    (
        "... plans served over the bus that lost more accuracy than promised",
        "qpart.promises_broken",
        "{} of {qpart.plans_served:,}",
    ),
    (
        "... plans that changed more predictions than that, for better or worse",
        "qpart.changed_over_promise",
        "{} of {qpart.plans_served:,}",
    ),
    ("... bytes planned minus bytes sent, over all these plans", "qpart.planned_minus_sent_bytes", "{}"),
    (
        "... time of a plan for a cache that was never shown, 54 layers with weights, 99th percentile",
        "qpart.plan_ms_p99",
        "{:.2f} ms",
    ),
    ("... cost of the best cut in float32 (Neurosurgeon) over the plan's", "qpart.gap.neurosurgeon", "+{:.0%}"),
    ("... cost of 8-bit weights with the best cut and cut bits (JALAD) over the plan's", "qpart.gap.jalad", "+{:.0%}"),
    (
        "... seconds of the best other way that keeps the accuracy over ours, 1,000 answers, 0.1-100 Mbit/s, 4 nets",
        "qpart.latency.mean_over_best_other",
        "x{:.2f}",
    ),
    ("... where the raw input may not leave the device", "qpart.latency.mean_over_best_other_private", "x{:.2f}"),
    ("... first of 1,000 answers from an empty cache", "qpart.latency.cold_over_best_other", "x{:.2f}"),
    ("... the only answer from an empty cache", "qpart.latency.once_over_best_other", "x{:.2f}"),
    ("... tails per second of 16 devices, batched over not batched", "qpart.tails_batched_ratio", "x{:.2f}"),
    ("dequantising 4-bit codes in L3, one thread, against numpy", "kernels.bits.dequantise_b4.x_numpy", "x{:.1f}"),
    ("... against torch", "kernels.bits.dequantise_b4.x_torch", "x{:.1f}"),
    (
        "200 B round trip, our time over that of pyzmq + msgspec, the worse of plaintext and CURVE",
        "bus.roundtrip_ratio_pyzmq",
        "{:.2f}",
    ),
    ("64 devices to one server, our messages per second over pyzmq's", "bus.fanin64_ratio_pyzmq", "{:.2f}"),
    (
        "tensors over tcp, our throughput over pyzmq's without copies, worse of 1 and 16 MiB",
        "bus.bulk_ratio_pyzmq",
        "{:.2f}",
    ),
    (
        "round trip beside saturating tensors on the same link, over its idle time",
        "bus.draft_beside_bulk_ratio",
        "{:.1f}",
    ),
    ("tensors on one host, our time over iceoryx2's, worse of 1 and 16 MiB", "bus.shm_ratio_iceoryx2", "{:.2f}"),
    (
        "4096 x 4096 weights of 4 bits times one vector, 2 threads, against the fastest of ggml",
        "kernels.gemv4_ratio_ggml",
        "x{:.2f}",
    ),
    ("... of 3 bits", "kernels.gemv3_ratio_ggml", "x{:.2f}"),
    ("... of 2 bits", "kernels.gemv2_ratio_ggml", "x{:.2f}"),
    (
        "native decoder, SmolLM2-135M Q4_1, tokens per second over llama.cpp's, worse of 1 and 2 threads",
        "kernels.decoder_ratio_llamacpp",
        "x{:.2f}",
    ),
    (
        "64 sessions served on two cores, SmolLM2-135M, replayed drafts as the server allows, tokens per second",
        "sled.server.cpu_auto_tokens_per_s_64",
        "{:.0f}",
    ),
    ("... over transformers' continuous batching, float32", "sled.server.cpu_auto_ratio_hf_64", "x{:.2f}"),
    ("... over llama.cpp's server, the same weights in F32", "sled.server.cpu_auto_ratio_llamacpp_f32_64", "x{:.2f}"),
    ("... over llama.cpp's server, Q4_1, products of integers", "sled.server.cpu_auto_ratio_llamacpp_64", "x{:.2f}"),
    ("... one session alone over llama.cpp's server, Q4_1", "sled.server.cpu_auto_ratio_llamacpp_1", "x{:.2f}"),
    (
        "... over the best of these servers, least of 1, 4, 16 and 64 sessions",
        "sled.server.cpu_auto_over_best_min",
        "x{:.2f}",
    ),
    ("importing edgebus, milliseconds above an empty Python", "bus.import_ms", "{:.0f}"),
)


def table(entries: Mapping[str, float | Figure]) -> str:
    """The figures as a Markdown table; a figure that was not measured yet is left out."""
    figures = {key: value_of(entry) for key, entry in entries.items()}
    lines = ["| what | figure |", "|---|---|"]
    for row, key, form in ROWS:
        if key in figures:
            value = form
            for name in [k for k in figures if "{" + k in form]:
                value = value.replace("{" + name + ":,}", f"{figures[name]:,}")
            lines.append(f"| {row} | {value.format(figures[key])} |")
    return "\n".join(lines)


def rendered(text: str) -> str:
    """The README with its figures replaced by the committed ones."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{table(json.loads(FIGURES.read_text()))}\n{END}{tail}"


def render() -> None:
    """Write the figures into the README, and what is slower than a peer into bench/README.md."""
    README.write_text(rendered(README.read_text()))
    losses.README.write_text(losses.rendered(losses.README.read_text()))


if __name__ == "__main__":
    render()
