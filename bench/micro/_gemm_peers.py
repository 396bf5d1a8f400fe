"""Products of packed weights with few activations: ours, and other ways to the same, as their users would write them.

A contender multiplies one matrix (4096, 4096) with m rows of activations, `products` times in a turn, going round its
`copies` of the weights. It also says which weights it multiplies with, so that its answers can be checked, and how many
bits it spends on one.
"""

from __future__ import annotations

import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench import limits
from bench.micro import _ggml

Floats = NDArray[np.float32]
ROWS = COLUMNS = 4096
GROUP = 64
WIDTHS = (2, 3, 4, 8)
PRODUCTS = 4  # in a turn, where the weights stay in cache


@dataclass(frozen=True)
class Case:
    """What is multiplied, and where the weights lie: `copies_of` says how many are needed to fill that place."""

    bits: int
    m: int
    place: str  # "L3" or "DRAM"
    weights: Floats = field(repr=False)
    x: Floats = field(repr=False)

    def copies_of(self, num_bytes: int) -> int:
        """Copies of so many bytes which together are four times the last cache; one, if they shall stay in it."""
        return 1 if self.place == "L3" else -(-limits.sizes()["DRAM"] // num_bytes)

    def products(self, copies: int) -> int:
        """Products of one turn."""
        return max(PRODUCTS, copies)


def case_of(bits: int, m: int, place: str) -> Case:
    """The same values for all contenders: a normal law, which is what trained weights look like."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((ROWS, COLUMNS), np.float32)
    return Case(bits, m, place, weights, rng.standard_normal((m, COLUMNS), np.float32))


class Contender(Protocol):
    """One way to multiply."""

    bits_per_weight: float
    products: int

    def prepare(self, num_threads: int) -> None:
        """Before a turn, untimed."""

    def turn(self) -> None:
        """All products."""

    def answer(self) -> Floats:
        """What the last product gave, (m, rows)."""

    def weights(self) -> Floats:
        """What it multiplies with, (rows, columns)."""


class Edgekernels:
    """The functions under test, scales in float16 for each group of 64."""

    def __init__(self, case: Case, activations: str, symmetric: bool) -> None:
        from edgekernels import PackedMatrix, matmul

        def packed() -> Any:
            return PackedMatrix.quantise(
                case.weights, case.bits, group=GROUP, symmetric=symmetric, factors=np.dtype(np.float16)
            )

        self.case, self.matmul, self.activations = case, matmul, activations
        matrix = packed()
        copies = case.copies_of(matrix.nbytes)
        codes, factors = matrix.codes(), {"scale": matrix.scale, "offset": matrix.offset}
        self.matrices = [matrix] + [
            PackedMatrix.from_codes(codes, case.bits, group=GROUP, **factors) for _ in range(copies - 1)
        ]
        self.products = case.products(copies)
        self.bits_per_weight = 8 * matrix.nbytes / case.weights.size
        self.out = np.full((case.m, ROWS), np.nan, np.float32)
        self.num_threads = 1

    def prepare(self, num_threads: int) -> None:
        self.num_threads = num_threads

    def turn(self) -> None:
        for n in range(self.products):
            self.matmul(
                self.matrices[n % len(self.matrices)],
                self.case.x,
                activations=self.activations,
                out=self.out,
                num_threads=self.num_threads,
            )

    def answer(self) -> Floats:
        return self.out

    def weights(self) -> Floats:
        return self.matrices[0].dequantise()


class Limit:
    """No product: only reads as many bytes as our matrix has, as fast as this machine can."""

    def __init__(self, case: Case) -> None:
        num_bytes = int(case.weights.size * (case.bits + 0.5) / 8)
        self.bits_per_weight = case.bits + 0.5
        copies = case.copies_of(num_bytes)
        self.products = case.products(copies)
        self.memory = [limits.buffer(num_bytes) for _ in range(copies)]
        self.num_threads = 1

    def prepare(self, num_threads: int) -> None:
        self.num_threads = num_threads

    def turn(self) -> None:
        for n in range(self.products):
            limits.read(self.memory[n % len(self.memory)], self.num_threads)


class Ggml:
    """ggml's own quantiser and product; all of a turn's products in one graph, so its overhead is shared by them."""

    def __init__(self, case: Case, type_name: str, buffer_type: str) -> None:
        self.type_name, self.packed = type_name, _quantised(type_name, case)
        copies = case.copies_of(self.packed.nbytes)
        self.products = case.products(copies)
        self.bits_per_weight = 8 * self.packed.nbytes / case.weights.size
        self.product = _ggml.Product(
            type_name, self.packed, COLUMNS, case.m, buffer_type, copies=copies, products=self.products
        )
        self.product.set_input(case.x)
        self.product.forget_output()

    def prepare(self, num_threads: int) -> None:
        self.product.set_threads(num_threads)

    def turn(self) -> None:
        self.product.compute()

    def answer(self) -> Floats:
        return self.product.output(self.products - 1)

    def weights(self) -> Floats:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        return dequantize(self.packed, GGMLQuantizationType(_ggml.TYPES[self.type_name]))


_packed: dict[str, NDArray[np.uint8]] = {}


def _quantised(type_name: str, case: Case) -> NDArray[np.uint8]:
    """Kept, for ggml takes a second for it and all cases have the same weights."""
    if type_name not in _packed:
        _packed[type_name] = _ggml.quantised(type_name, case.weights)
    return _packed[type_name]


class TorchLike(ABC):
    """Common to what takes and gives torch tensors."""

    products: int

    def __init__(self, case: Case, dtype: str) -> None:
        import torch

        self.torch, self.case = torch, case
        self.x = torch.from_numpy(case.x).to(getattr(torch, dtype))
        self.held: list[Any] = []
        self.out: Any = None

    def fill(self, make: Callable[[], Any], num_bytes: int) -> None:
        """As many copies of the weights as the place needs."""
        copies = self.case.copies_of(num_bytes)
        self.held = [make() for _ in range(copies)]
        self.products = self.case.products(copies)
        self.bits_per_weight = 8 * num_bytes / self.case.weights.size

    def prepare(self, num_threads: int) -> None:
        self.torch.set_num_threads(num_threads)

    @abstractmethod
    def multiply(self, held: Any) -> Any:
        """The product with one copy of the weights, as this peer calls it."""

    def turn(self) -> None:
        with self.torch.inference_mode():
            for n in range(self.products):
                self.out = self.multiply(self.held[n % len(self.held)])

    def answer(self) -> Floats:
        return self.out.to(self.torch.float32).numpy()


class TorchFloats(TorchLike):
    """torch's own product, nothing packed."""

    def __init__(self, case: Case, dtype: str) -> None:
        super().__init__(case, dtype)
        weights = self.torch.from_numpy(case.weights).to(getattr(self.torch, dtype))
        self.fill(weights.clone, weights.nbytes)

    def multiply(self, held: Any) -> Any:
        return self.torch.nn.functional.linear(self.x, held)

    def weights(self) -> Floats:
        return self.held[0].to(self.torch.float32).numpy()


class TorchInt4(TorchLike):
    """torch's _weight_int4pack_mm_for_cpu: bfloat16 activations, an affine scale for each group of 64."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, "bfloat16")
        torch = self.torch
        grouped = torch.from_numpy(case.weights).reshape(ROWS, -1, GROUP)
        low, high = grouped.amin(2), grouped.amax(2)
        scale = (high - low) / 15
        codes = ((grouped - low[:, :, None]) / scale[:, :, None]).round().clamp(0, 15)
        # its value is (code - 8) * scale + zero
        factors = torch.stack([scale, low + 8 * scale], 2).transpose(0, 1).contiguous().to(torch.bfloat16)
        self.factors = factors
        rounded = factors.to(torch.float32).transpose(0, 1)
        self._weights = ((codes - 8) * rounded[:, :, :1] + rounded[:, :, 1:]).reshape(ROWS, COLUMNS).numpy()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.reshape(ROWS, COLUMNS).to(torch.int32), 1)
        self.fill(lambda: (packed.clone(), factors.clone()), packed.nbytes + factors.nbytes)

    def multiply(self, held: Any) -> Any:
        return self.torch.ops.aten._weight_int4pack_mm_for_cpu(self.x, held[0], GROUP, held[1])

    def weights(self) -> Floats:
        return self._weights


class TorchInt8(TorchLike):
    """torch's _weight_int8pack_mm: bfloat16 activations, one scale for each row."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, "bfloat16")
        torch = self.torch
        weights = torch.from_numpy(case.weights)
        scale = (weights.abs().amax(1) / 127).to(torch.bfloat16)
        codes = (weights / scale.to(torch.float32)[:, None]).round().clamp(-128, 127).to(torch.int8)
        self._weights = (codes.to(torch.float32) * scale.to(torch.float32)[:, None]).numpy()
        self.scale = scale
        self.fill(codes.clone, codes.nbytes + scale.nbytes)

    def multiply(self, held: Any) -> Any:
        return self.torch._weight_int8pack_mm(self.x, held, self.scale)

    def weights(self) -> Floats:
        return self._weights


class TorchDynamic(TorchLike):
    """torch's quantised linear: activations to int8 for the whole of x, one weight scale for each row."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, "float32")
        torch = self.torch
        weights = torch.from_numpy(case.weights)
        scale = weights.abs().amax(1) / 127
        zeros = torch.zeros(ROWS, dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            packed = torch.quantize_per_channel(weights, scale.double(), zeros, 0, torch.qint8)
        self._weights = packed.dequantize().numpy()
        self.fill(lambda: torch.ops.quantized.linear_prepack(packed, None), weights.numel() + 4 * ROWS)

    def multiply(self, held: Any) -> Any:
        return self.torch.ops.quantized.linear_dynamic(self.x, held)

    def weights(self) -> Floats:
        return self._weights


class TorchAo(TorchLike):
    """torchao's int8 weights with int8 activations: quantize_, then torch.compile, without which it takes 20 ms."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, "float32")
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        def linear() -> Any:
            layer = self.torch.nn.Linear(COLUMNS, ROWS, bias=False)
            layer.weight = self.torch.nn.Parameter(self.torch.from_numpy(case.weights.copy()), requires_grad=False)
            quantize_(layer, Int8DynamicActivationInt8WeightConfig())
            return layer

        if case.place != "L3":
            raise ValueError("compiled once for each copy of the weights, which takes minutes: only measured in L3")
        self.plain = linear()
        self.fill(lambda: self.torch.compile(self.plain), ROWS * COLUMNS + 4 * ROWS)

    def multiply(self, held: Any) -> Any:
        return held(self.x)

    def weights(self) -> Floats:
        return self.plain.weight.dequantize().numpy()


class BitsAndBytes(TorchLike):
    """bitsandbytes' NF4 with groups of 64 and bfloat16 activations."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, "bfloat16")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes

        self.bnb = bitsandbytes
        source = self.torch.from_numpy(case.weights).to(self.torch.bfloat16)

        def packed() -> Any:
            return bitsandbytes.functional.quantize_4bit(source, blocksize=GROUP, quant_type="nf4")

        codes, state = packed()
        self._weights = bitsandbytes.functional.dequantize_4bit(codes, state).to(self.torch.float32).numpy()
        self.fill(packed, codes.nbytes + state.absmax.nbytes)

    def multiply(self, held: Any) -> Any:
        return self.bnb.matmul_4bit(self.x, held[0].t(), quant_state=held[1])

    def weights(self) -> Floats:
        return self._weights


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def contenders(bits: int) -> dict[str, Callable[[Case], Any]]:
    """Who multiplies with weights of this width here, by name; ours first, torch's floats with 4 bits only."""
    found: dict[str, Callable[[Case], Any]] = {
        "edgekernels": lambda case: Edgekernels(case, "int8", False),
        "edgekernels, symmetric": lambda case: Edgekernels(case, "int8", True),
        "edgekernels, float activations": lambda case: Edgekernels(case, "float", False),
    }
    if _ggml.directory() is not None:
        for name in {2: ["q2_K"], 3: ["q3_K"], 4: ["q4_0", "q4_K"], 8: ["q8_0"]}[bits]:
            for place in _ggml.buffer_types():
                label = f"ggml {name}" + ("" if place == "CPU" else ", repacked")
                found[label] = lambda case, name=name, place=place: Ggml(case, name, place)
    if bits == 4 and _has("torch"):
        found |= {
            "torch float32": lambda case: TorchFloats(case, "float32"),
            "torch bfloat16": lambda case: TorchFloats(case, "bfloat16"),
            "torch int4pack": TorchInt4,
        }
    if bits == 8 and _has("torch"):
        found |= {"torch int8pack": TorchInt8, "torch dynamic int8": TorchDynamic}
    if bits == 8 and _has("torchao"):
        found["torchao int8, compiled"] = TorchAo
    if bits == 4 and _has("bitsandbytes"):
        found["bitsandbytes nf4"] = BitsAndBytes
    return found


def check(contender: Any, case: Case) -> dict[str, float]:
    """Fail unless the answer is the product with the contender's own weights, and these are those of the case.

    Returns:
        Root mean square errors relative to the exact: of the product given its weights, and of the weights.
    """
    weights = contender.weights()
    expected = case.x.astype(np.float64) @ weights.astype(np.float64).T
    product_error = _relative(contender.answer() - expected, expected)
    weight_error = _relative(weights - case.weights, case.weights)
    if not product_error <= 0.02:  # int8 activations: 0.004 to 0.01; NaN, and so nothing computed, fails as well
        raise AssertionError(f"its product is {product_error:.3f} off, 0.02 is allowed")
    if not weight_error <= {2: 0.45, 3: 0.22, 4: 0.12, 8: 0.02}[case.bits]:
        raise AssertionError(f"its weights are {weight_error:.3f} off the true ones")
    return {"product_error": product_error, "weight_error": weight_error}


def _relative(error: NDArray[Any], of: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(error, dtype=np.float64)) / np.mean(np.square(of, dtype=np.float64))))
