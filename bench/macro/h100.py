"""One verify step of an 8B-shaped target on a GPU, by sessions and tokens a session, against what the GPU could do.

Random weights in bfloat16. The floor of a cell is the larger of two times: weights and cached keys and values once
through the measured memory bandwidth, and the floating-point operations at the measured rate of a large matrix product.
Beside it, in the same run: plain attention (PyTorch's SDPA over contiguous keys and values, padded) in a CUDA graph,
uncompiled, which is what a careful first version does. `python -m bench.macro.h100 [--quick]`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench import record
from sled.acceptance import RoundRows
from sled.messages import Vocabulary
from sled.targets.graphed import GraphedTarget
from sled.types import Chunk, Sampling

Cell = tuple[int, int, int]
SESSIONS = (1, 8, 32, 64, 128, 256)
TOKENS = (1, 3, 5, 9)
CONTEXTS = (512, 4096)
SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
DESIGN_TABLE = {  # plain SDPA in a CUDA graph at context 512, measured before this engine was written; ms
    (1, 1): 6.4, (1, 3): 6.7, (1, 5): 6.7, (1, 9): 7.0, (8, 1): 6.9, (8, 3): 7.3, (8, 5): 7.4, (8, 9): 7.7,
    (32, 1): 7.5, (32, 3): 9.2, (32, 5): 9.8, (32, 9): 12.6, (64, 1): 8.5, (64, 3): 11.8, (64, 5): 14.4, (64, 9): 20.7,
    (128, 1): 10.4, (128, 3): 19.6, (128, 5): 25.8, (128, 9): 38.1,
    (256, 1): 14.5, (256, 3): 36.2, (256, 5): 48.8, (256, 9): 75.1,
}  # fmt: skip


class NoText:
    """A tokenizer in name only."""

    stop_ids: tuple[int, ...] = ()

    def vocabulary(self) -> Vocabulary:
        return Vocabulary([b""] * SHAPE["vocab_size"], [])


def random_model() -> Any:
    """A Llama of 8B shape with random weights on the GPU."""
    import transformers

    config = transformers.LlamaConfig(**SHAPE)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model = model.to_empty(device="cuda")
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.02) if weight.dim() > 1 else weight.fill_(1.0)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to("cuda")
    return model.eval()


def median_ms(work: Callable[[], Any], repeats: int = 10) -> float:
    """Median time on the GPU of one call."""
    for _ in range(2):
        work()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for before, after in events:
        before.record()
        work()
        after.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in events)


def ceilings() -> tuple[float, float]:
    """Measured bytes/s of reading memory and FLOP/s of a large product in bfloat16, on random data."""
    block = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    words = block.view(torch.int32)
    read = block.numel() * 2 / median_ms(words.max) * 1e3
    del block, words
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = 2 * 8192**3 / median_ms(lambda: a @ b) * 1e3
    torch.cuda.empty_cache()
    return read, product


def costs(sessions: int, tokens: int, context: int) -> tuple[float, float, float]:
    """Bytes of weights, bytes of keys and values, and FLOPs of one step."""
    hidden, inner, heads, kv = 4096, 14336, 32 * 128, 8 * 128
    layer = hidden * (heads + 2 * kv) + heads * hidden + 3 * hidden * inner
    weights = 32 * layer + hidden * SHAPE["vocab_size"]
    cached = sessions * context * 32 * 2 * kv * 2
    new = sessions * tokens
    return 2.0 * weights, float(cached), 2.0 * weights * new + 4.0 * new * context * heads * 32


def batch(sessions: int, tokens: int, context: int, page: int, pages: int) -> tuple[list[Chunk], list[RoundRows]]:
    """One round of every session, over pages in random order."""
    rng = np.random.default_rng(0)
    each = -(-context // page)
    table = rng.permutation(pages)[: sessions * each].reshape(sessions, each)
    chunks, rounds = [], []
    for s in range(sessions):
        ids = tuple(rng.integers(SHAPE["vocab_size"], size=tokens).tolist())
        chunks.append(Chunk(s.to_bytes(8, "big"), ids, context - tokens, tokens, tuple(table[s].tolist())))
        rounds.append(RoundRows(ids[1:], Sampling(), context - tokens + 1))
    return chunks, rounds


def wall_ms(work: Callable[[], Any], repeats: int = 7) -> float:
    """Median time of one call with everything the host does."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def measure(
    target: GraphedTarget, cells: list[tuple[int, int, int]], limits: tuple[float, float]
) -> list[dict[str, Any]]:
    """Every cell that fits into memory."""
    shape, rows = target.shape, []
    for sessions, tokens, context in cells:
        weights, cached, flops = costs(sessions, tokens, context)
        row: dict[str, Any] = {"sessions": sessions, "tokens": tokens, "context": context}
        rows.append(row)
        if sessions * -(-context // shape.page_tokens) > shape.num_pages:
            row["error"] = f"keys and values of {cached / 1e9:.0f} GB do not fit beside the weights"
            continue
        chunks, rounds = batch(sessions, tokens, context, shape.page_tokens, shape.num_pages)
        target.verify(chunks, rounds)
        packed = target.pack(chunks)
        step = median_ms(lambda packed=packed: target.graphs.run(packed, keep_logits=False))
        whole = wall_ms(lambda chunks=chunks, rounds=rounds: target.verify(chunks, rounds))
        bytes_s, flops_s = (weights + cached) / limits[0] * 1e3, flops / limits[1] * 1e3
        apart = (
            max(weights / limits[0], (2.0 * weights / 2 * sessions * tokens) / limits[1]) * 1e3
            + cached / limits[0] * 1e3
        )
        floor = max(bytes_s, flops_s)
        row |= {
            "step_ms": round(step, 3),
            "verify_wall_ms": round(whole, 3),
            "floor_ms": round(floor, 3),
            "floor_ratio": round(step / floor, 3),
            "floor_in_order_ms": round(apart, 3),
            "floor_in_order_ratio": round(step / apart, 3),
            "design_table_ms": DESIGN_TABLE.get((sessions, tokens)) if context == 512 else None,
        }
        print(row, flush=True)
    return rows


def plain_step(model: Any, sessions: int, tokens: int, context: int) -> float:
    """The same step with SDPA over contiguous keys and values, in a CUDA graph."""
    from transformers import AttentionInterface

    keys = torch.randn(32, 2, sessions, 8, context, 128, device="cuda", dtype=torch.bfloat16)
    mask = torch.ones(tokens, context, dtype=torch.bool, device="cuda").tril(context - tokens)

    def attend(
        module: Any, query: Any, key: Any, value: Any, *_: Any, scaling: Any = None, **__: Any
    ) -> tuple[Any, None]:
        k, v = keys[module.layer_idx]
        k[:, :, context - tokens :], v[:, :, context - tokens :] = key, value
        out = torch.nn.functional.scaled_dot_product_attention(
            query, k, v, attn_mask=mask if tokens > 1 else None, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None

    AttentionInterface.register("bench_plain", attend)
    model.set_attn_implementation("bench_plain")
    ids = torch.randint(SHAPE["vocab_size"], (sessions, tokens), device="cuda")
    positions = torch.arange(context - tokens, context, device="cuda")[None].expand(sessions, -1)
    with torch.inference_mode():
        model(input_ids=ids, position_ids=positions, use_cache=False)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(input_ids=ids, position_ids=positions, use_cache=False).logits.argmax(-1)
        result = median_ms(graph.replay)
    del graph
    AttentionInterface.register("bench_plain", lambda *_, **__: None)  # which would keep the keys otherwise
    model.set_attn_implementation("sdpa")
    torch.cuda.empty_cache()
    return result


def main() -> int:
    """Measure, write, and print the worst ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cells, nothing is written")
    options = parser.parse_args()
    limits = ceilings()
    print(f"reads {limits[0] / 1e9:.0f} GB/s, multiplies {limits[1] / 1e12:.0f} TFLOP/s", flush=True)
    cells = [(b, q, c) for c, b, q in itertools.product(CONTEXTS, SESSIONS, TOKENS)]
    if options.quick:
        cells = [(1, 1, 512), (64, 5, 512), (256, 9, 512), (32, 5, 4096)]
    model = random_model()
    plain = {(b, q): round(plain_step(model, b, q, c), 3) for b, q, c in cells if c == 512 and b * q <= 2304}
    print("plain SDPA in a CUDA graph, context 512:", plain, flush=True)
    target = GraphedTarget(model, NoText(), name="8B-shaped", kv_bytes=int(50e9))
    rows = measure(target, cells, limits)
    for row in rows:
        row["plain_ms"] = plain.get((row["sessions"], row["tokens"])) if row["context"] == 512 else None
    done = [row for row in rows if "step_ms" in row]
    worst = max(row["floor_ratio"] for row in done)
    more = [row for row in done if row["tokens"] > 1 and row["design_table_ms"]]
    slower = [(row["sessions"], row["tokens"]) for row in more if row["step_ms"] >= row["design_table_ms"]]
    print(f"worst ratio to the floor {worst}, cells not faster than the design's table: {slower}")
    if not options.quick:
        stamped = record.stamp() | {"gpu": torch.cuda.get_device_name()}
        stamped["cpu"] = stamped["gpu"]
        results = {"read_bytes_per_s": limits[0], "flops_per_s": limits[1], "shape": SHAPE, "cells": rows}
        record.write(
            "h100",
            results,
            {
                "sled.server.h100_floor_ratio_max": record.figure(
                    worst,
                    "step time over max(bytes / bandwidth, FLOPs / peak), worst cell of B = 1..256, 1..9 tokens",
                    "measured read bandwidth and 8192^3 product of the same run",
                    "python -m bench.macro.h100",
                    stamped,
                )
            },
            stamped,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
