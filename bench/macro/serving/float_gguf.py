"""A GGUF file's weights in float32: the same model without products of integers, for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from edgekernels.gguf import GgufFile


def write_float32(source: Path, out: Path) -> Path:
    """Write `source` with every tensor dequantised, unless `out` is there; returns `out`.

    Args:
        source: any GGUF file that edgekernels reads.
        out: the file to write, four bytes a weight.
    """
    if out.is_file():
        return out
    reader = gguf.GGUFReader(source)
    field = reader.get_field("general.architecture")
    assert field is not None
    partial = out.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, str(field.contents()))
    for name, value in reader.fields.items():
        if name not in ("general.architecture", "general.file_type") and not name.startswith("GGUF."):
            _copy(writer, name, value)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    with GgufFile(source) as file:
        for name, weight in file.read_all():
            writer.add_tensor(name, np.ascontiguousarray(weight, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(out)
    return out


def _copy(writer: gguf.GGUFWriter, name: str, field: Any) -> None:
    kind = field.types[0]
    sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(name, field.contents(), kind, sub_type=sub)
