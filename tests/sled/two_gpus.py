"""Run under torchrun by test_cuda.py: a tiny model divided over GPUs; rank 0 prints what it computes as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sled.targets.catalog import ModelFiles
from sled.targets.tensor_parallel import load_tensor_parallel
from sled.types import Chunk
from tests.sled.two_ranks import TEXT, answer

if __name__ == "__main__":
    files = ModelFiles("tiny", "directory", Path(sys.argv[1]))
    target = load_tensor_parallel(files, device="cuda", kv_bytes=1 << 22, timeout_s=30.0)
    if target.rank:
        target.follow()
    else:
        with target:
            logits = target.logits([Chunk(b"a", tuple(TEXT), 0, 4, (3,)), Chunk(b"b", tuple(TEXT[:5]), 0, 2, (5,))])
            print(
                "RESULT " + json.dumps({"logits": logits.tolist(), "answer": answer(target, TEXT[:7], 12)}), flush=True
            )
