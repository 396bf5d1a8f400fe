"""ggml's matrix product through the library inside llama-cpp-python, by ctypes: the peer that llama.cpp computes with.

A weight lies in one of ggml's buffer types: the plain one, or one which repacks it for the processor (what llama.cpp
itself takes where it can). A repacked product "runs" in no time where it is not supported, so whoever times this must
look at its answers first.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 8, "q2_K": 10, "q3_K": 11, "q4_K": 12, "q6_K": 14}
_F32 = 0
_GRAPH_BYTES = 1 << 20


_QUIET = CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda level, text, data: None)
"""Takes the place of ggml's log, which tells of every weight that it repacks."""


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


# function: (result, arguments)
_BASE = {
    "ggml_init": (c_void_p, [_InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_quantize_chunk": (c_size_t, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_backend_supports_op": (c_bool, [c_void_p, c_void_p]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_reg_dev_get": (c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_buft_name": (c_char_p, [c_void_p]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_free": (None, [c_void_p]),
    "ggml_backend_cpu_buffer_type": (c_void_p, []),
    "ggml_log_set": (None, [c_void_p, c_void_p]),
}
_CPU = {
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
    "ggml_backend_cpu_reg": (c_void_p, []),
}


def directory() -> Path | None:
    """Where llama-cpp-python keeps its libraries, or None if it is not installed."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "lib"


@functools.cache
def _library() -> Any:
    """One namespace of all functions used, typed."""
    folder = directory()
    if folder is None:
        raise ImportError("the peer ggml needs llama-cpp-python: make kernel-peers installs it")

    class Library:
        """Functions of libggml-base and libggml-cpu."""

    for file, functions in (("libggml-base.so", _BASE), ("libggml-cpu.so", _CPU)):
        loaded = ctypes.CDLL(str(folder / file), mode=ctypes.RTLD_GLOBAL)
        for name, (result, arguments) in functions.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
            setattr(Library, name.removeprefix("ggml_"), staticmethod(function))
    Library.log_set(_QUIET, None)  # type: ignore[attr-defined]
    return Library


def quantised(type_name: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rows of float32 in one of ggml's types, by ggml's own quantiser, without an importance matrix."""
    g, kind = _library(), TYPES[type_name]
    rows, columns = values.shape
    packed = np.empty((rows, g.row_size(kind, columns)), np.uint8)
    written = g.quantize_chunk(kind, values.ctypes.data, packed.ctypes.data, 0, rows, columns, None)
    if written != packed.nbytes:
        raise ValueError(f"ggml wrote {written} bytes of {type_name}, {packed.nbytes} were expected")
    return packed


def buffer_types() -> dict[str, int]:
    """ggml's places for weights on this processor, by name: the plain one and those that repack."""
    g = _library()
    found = {"CPU": g.backend_cpu_buffer_type()}
    registry = g.backend_cpu_reg()
    address = g.backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if address:
        extra = CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(g.backend_reg_dev_get(registry, 0))
        for at in range(16):
            if not extra or not extra[at]:
                break
            found[g.backend_buft_name(extra[at]).decode()] = extra[at]
    return found


class Product:
    """weights (rows, columns) of one type times activations (m, columns), as a graph of several products.

    Args:
        type_name: one of TYPES.
        packed: weights (rows, bytes of a row).
        columns: of the weights.
        m: rows of activations.
        buffer_type: name of one of `buffer_types()`.
        copies: of the weights, multiplied in turn.
        products: in the graph.

    Raises:
        ValueError: ggml does not support the product there.
    """

    def __init__(
        self,
        type_name: str,
        packed: NDArray[np.uint8],
        columns: int,
        m: int,
        buffer_type: str = "CPU",
        *,
        copies: int = 1,
        products: int = 1,
    ) -> None:
        g = self.ggml = _library()
        self.rows, self.m = packed.shape[0], m
        self.backend = g.backend_cpu_init()
        self._contexts = [g.init(_InitParams(_GRAPH_BYTES, None, True)) for _ in range(3)]
        weights_in, values_in, graph_in = self._contexts
        weights = [g.new_tensor_2d(weights_in, TYPES[type_name], columns, self.rows) for _ in range(copies)]
        self.input = g.new_tensor_2d(values_in, _F32, columns, m)
        place = buffer_types()[buffer_type]
        self._buffers = [g.backend_alloc_ctx_tensors_from_buft(weights_in, place)]
        self.outputs = [g.mul_mat(graph_in, weights[n % copies], self.input) for n in range(products)]
        if not self._buffers[0] or not g.backend_supports_op(self.backend, self.outputs[0]):
            self.close()
            raise ValueError(f"ggml has no product of {type_name} in {buffer_type}")
        for tensor in weights:
            g.backend_tensor_set(tensor, packed.ctypes.data, 0, packed.nbytes)
        self.graph = g.new_graph(graph_in)
        for output in self.outputs:
            g.build_forward_expand(self.graph, output)
        plain = g.backend_cpu_buffer_type()
        self._buffers += [g.backend_alloc_ctx_tensors_from_buft(context, plain) for context in (values_in, graph_in)]

    def set_threads(self, count: int) -> None:
        """For the calls that follow."""
        self.ggml.backend_cpu_set_n_threads(self.backend, count)

    def set_input(self, values: NDArray[np.float32]) -> None:
        """The activations (m, columns) of all calls that follow."""
        values = np.ascontiguousarray(values, np.float32)
        self.ggml.backend_tensor_set(self.input, values.ctypes.data, 0, values.nbytes)

    def compute(self) -> None:
        """All products."""
        if status := self.ggml.backend_graph_compute(self.backend, self.graph):
            raise RuntimeError(f"ggml answered {status}")

    def output(self, product: int = 0) -> NDArray[np.float32]:
        """What one product gave, (m, rows)."""
        values = np.empty((self.m, self.rows), np.float32)
        self.ggml.backend_tensor_get(self.outputs[product], values.ctypes.data, 0, values.nbytes)
        return values

    def forget_output(self) -> None:
        """Overwrite the outputs with NaN, so that a product that does nothing is found out."""
        nothing = np.full((self.m, self.rows), np.nan, np.float32)
        for output in self.outputs:
            self.ggml.backend_tensor_set(output, nothing.ctypes.data, 0, nothing.nbytes)

    def close(self) -> None:
        """Free everything."""
        for held in self._buffers:
            if held:
                self.ggml.backend_buffer_free(held)
        for context in self._contexts:
            self.ggml.free(context)
        self.ggml.backend_free(self.backend)
        self._buffers, self._contexts = [], []
