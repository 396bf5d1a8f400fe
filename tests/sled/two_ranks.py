"""Run by test_tensor_parallel.py: two ranks of one tiny model, forked; rank 0 prints what it found as JSON.

The parent is rank 0, so that torch is imported once; it never starts torch's threads before the fork.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)

import transformers.distributed  # before the fork
import transformers.models.llama.modeling_llama  # noqa: F401

from edgebus import LocalError
from sled.acceptance import RoundRows
from sled.errors import OutOfMemory
from sled.run.warming import measure_steps
from sled.targets.catalog import ModelFiles
from sled.targets.tensor_parallel import RanksLost, load_tensor_parallel
from sled.types import Chunk, Sampling

TEXT = [5, 17, 3, 88, 41, 2, 60, 9, 33, 71, 12, 4, 90, 26, 8, 55, 19, 47, 66, 1]
TIMEOUT_S = 8.0
MOST_TOKENS = 17


def answer(target, prompt, num_tokens):
    """Greedy, one token a round, through `verify`."""
    text, past = list(prompt), 0
    for _ in range(num_tokens):
        chunk = Chunk(b"a", tuple(text[past:]), past, 1, tuple(range(9, 9 + len(text) // 16 + 1)))
        (decision,) = target.verify([chunk], [RoundRows([], Sampling(), len(text))])
        past = len(text)
        text.append(decision.next_token)
    return text[len(prompt) :]


def lead(directory: Path) -> dict:
    logged = Kept()
    logging.getLogger("sled.server").addHandler(logged)
    logging.getLogger("sled.server").setLevel(logging.DEBUG)
    return answers(directory) | {"untried": logged.lines}


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines += [record.why] if "tried" in record.msg else []


def answers(directory: Path) -> dict:
    with load_tensor_parallel(files(directory), kv_bytes=1 << 19, timeout_s=TIMEOUT_S) as target:
        chunks = [Chunk(b"a", tuple(TEXT), 0, 4, (7, 3)), Chunk(b"b", tuple(TEXT[:5]), 0, 2, (5,))]
        found = {
            "kv_heads": target.model.model.layers[0].self_attn.sled_pool.keys.shape[1],
            "num_pages": target.shape.num_pages,
            "target_id": target.described.target_id.hex(),
            "logits": target.logits(chunks).tolist(),
            "answer": answer(target, TEXT[:7], 12),
        }
        try:
            target.verify([Chunk(b"a", (1,), 40, 1, (7,))], [RoundRows([], Sampling(), 41)])
        except ValueError as error:  # refused before anybody was told: the ranks go on
            found["refused"] = str(error)
        found["afterwards"] = answer(target, TEXT[:7], 2)
    found["short"] = [short_of_memory(directory, rank) for rank in (0, 1)]
    with load_tensor_parallel(files(directory), kv_bytes=1 << 18, timeout_s=TIMEOUT_S) as target:
        began = time.monotonic()
        for name in ("lost", "lost_again"):
            try:
                answer(target, TEXT, 3)
            except LocalError as error:
                found[name] = f"{type(error).__name__}: {error}"
        found["lost_after_s"] = time.monotonic() - began
    return found


def short_of_memory(directory: Path, rank: int) -> dict:
    """Warm up, then answer, while one rank has no memory for forwards of more than `MOST_TOKENS`."""
    with load_tensor_parallel(files(directory), kv_bytes=1 << 18, timeout_s=TIMEOUT_S) as target:
        if rank == 0:
            limit_memory(target)
        told = []
        measure_steps(target, lambda *each: told.append(each[:2]), at_most_s=60.0, most_rounds=16)
        found = {"target_id": target.described.target_id.hex(), "told": told, "answer": answer(target, TEXT[:7], 12)}
        found["refused"] = []
        for length in (len(TEXT), MOST_TOKENS, MOST_TOKENS + 1):  # what just fits says nothing of one token more
            try:
                answer(target, TEXT[:length], 1)
            except OutOfMemory as error:
                found["refused"].append([length, str(error)])
        found["afterwards"] = answer(target, TEXT[:7], 2)
    return found


def limit_memory(target):
    """In the middle of the model, where the other ranks have begun to add up."""
    layer = target.model.model.layers[1].mlp
    forward = layer.forward

    def within(x):
        if x.shape[-2] > MOST_TOKENS:
            raise torch.OutOfMemoryError("CUDA out of memory (so the test says)")
        return forward(x)

    layer.forward = within


def follow(directory: Path) -> int:
    load_tensor_parallel(files(directory), kv_bytes=1 << 18, timeout_s=TIMEOUT_S).follow()
    for rank in (0, 1):
        target = load_tensor_parallel(files(directory), kv_bytes=1 << 18, timeout_s=TIMEOUT_S)
        if rank == 1:
            limit_memory(target)
        target.follow()
    target = load_tensor_parallel(files(directory), kv_bytes=1 << 19, timeout_s=TIMEOUT_S)
    target.model.model.layers[1].mlp.forward = None
    try:
        target.follow()
    except RanksLost:
        return 3
    return 4


def files(directory: Path) -> ModelFiles:
    return ModelFiles("tiny", "directory", directory)


if __name__ == "__main__":
    model_directory = Path(sys.argv[1])
    child = os.fork()
    os.environ |= {"RANK": "0" if child else "1", "LOCAL_RANK": "0" if child else "1", "WORLD_SIZE": "2"}
    if not child:
        os._exit(follow(model_directory))
    result = lead(model_directory)
    result["follower"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("RESULT " + json.dumps(result), flush=True)
    os._exit(0)
