"""The operations a network may consist of: a closed list, each with its parameters, its shapes and its work.

Shapes are per sample: the batch dimension stands in front of every tensor and is never named. What an operation
computes is what torch's function of that name computes in float32.
"""

from __future__ import annotations

from qpart.ops.base import (
    LARGEST,
    MAX_DIMS,
    MAX_INPUTS,
    MAX_TAPS,
    MAX_TENSOR_ITEMS,
    Axis,
    Dims,
    Op,
    Padding,
    Shape,
    Size,
)
from qpart.ops.layers import AddConstant, Affine, Embedding, Linear, MulConstant, Norm
from qpart.ops.pointwise import (
    Activation,
    Add,
    Clamp,
    Elu,
    Function,
    GlobalMean,
    LeakyRelu,
    Mul,
    Reduce,
    Relu,
    Rescale,
    Softmax,
)
from qpart.ops.products import Attention, MatMul
from qpart.ops.shaping import Concat, Expand, Pad, Permute, Reshape, Slice
from qpart.ops.windows import AdaptivePool2d, AvgPool2d, Conv2d, MaxPool2d

AnyOp = (
    Linear
    | Conv2d
    | MaxPool2d
    | AvgPool2d
    | AdaptivePool2d
    | GlobalMean
    | Reduce
    | Norm
    | Affine
    | AddConstant
    | MulConstant
    | Embedding
    | Relu
    | LeakyRelu
    | Elu
    | Clamp
    | Activation
    | Rescale
    | Softmax
    | Add
    | Mul
    | MatMul
    | Attention
    | Reshape
    | Permute
    | Slice
    | Concat
    | Pad
    | Expand
)

__all__ = [
    "LARGEST",
    "MAX_DIMS",
    "MAX_INPUTS",
    "MAX_TAPS",
    "MAX_TENSOR_ITEMS",
    "Activation",
    "AdaptivePool2d",
    "Add",
    "AddConstant",
    "Affine",
    "AnyOp",
    "Attention",
    "AvgPool2d",
    "Axis",
    "Clamp",
    "Concat",
    "Conv2d",
    "Dims",
    "Elu",
    "Embedding",
    "Expand",
    "Function",
    "GlobalMean",
    "LeakyRelu",
    "Linear",
    "MatMul",
    "MaxPool2d",
    "Mul",
    "MulConstant",
    "Norm",
    "Op",
    "Pad",
    "Padding",
    "Permute",
    "Reduce",
    "Relu",
    "Rescale",
    "Reshape",
    "Shape",
    "Size",
    "Slice",
    "Softmax",
]
