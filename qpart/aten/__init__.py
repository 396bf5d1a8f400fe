"""ATen operations, as torch.export writes them, turned into operations of `qpart.ops`. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qpart.aten import layers, pointwise, shaping, windows
from qpart.aten.attention import attention
from qpart.aten.call import Batch, Call, PerChannel, Step, Steps, Traced, Value, said
from qpart.errors import UnknownOperation

__all__ = [
    "KNOWN",
    "Batch",
    "Call",
    "PerChannel",
    "Step",
    "Steps",
    "Traced",
    "Value",
    "convert",
    "is_known",
    "said",
    "unknown",
]

Converter = Callable[[Call], Value | list[Value]]
_FUNCTIONS = (
    "abs", "exp", "gelu", "hardsigmoid", "hardswish", "log", "mish", "reciprocal", "rsqrt", "sigmoid", "silu",
    "softplus", "sqrt", "square", "tanh",
)  # fmt: skip


def _named(names: str, converter: Converter) -> dict[str, Converter]:
    return dict.fromkeys(names.split(), converter)


_CONVERTERS: dict[str, Converter] = {
    **_named("linear", layers.linear),
    **_named("addmm", layers.addmm),
    **_named("mm matmul bmm", layers.matmul),
    **_named("baddbmm", layers.baddbmm),
    **_named("conv1d conv2d convolution", layers.conv),
    **_named("batch_norm _native_batch_norm_legit_no_training", layers.batch_norm),
    **_named("layer_norm native_layer_norm rms_norm _fused_rms_norm", layers.layer_norm),
    **_named("group_norm native_group_norm", layers.group_norm),
    **_named("instance_norm", layers.instance_norm),
    **_named("embedding", layers.embedding),
    **_named("prelu", layers.prelu),
    **_named("scaled_dot_product_attention", attention),
    **dict.fromkeys(_FUNCTIONS, pointwise.function),
    **_named("relu relu_", pointwise.relu),
    **_named("relu6 relu6_", pointwise.relu6),
    **_named("hardtanh clamp clamp_min clamp_max", pointwise.clamp),
    **_named("leaky_relu", pointwise.leaky_relu),
    **_named("elu celu selu", pointwise.elu),
    **_named("softmax _softmax log_softmax _log_softmax", pointwise.softmax),
    **_named("log_sigmoid", pointwise.log_sigmoid),
    **_named("neg", pointwise.negative),
    **_named("pow", pointwise.power),
    **_named("add sub rsub", pointwise.add),
    **_named("mul div", pointwise.mul),
    **_named("masked_fill", pointwise.masked_fill),
    **_named("where", pointwise.where),
    **_named("mean sum amax", pointwise.mean),
    **_named("max", pointwise.largest),
    **_named("var var_mean std", pointwise.variance),
    **_named("linalg_vector_norm", pointwise.vector_norm),
    **_named("max_pool1d max_pool2d max_pool2d_with_indices", windows.max_pool),
    **_named("avg_pool1d avg_pool2d", windows.avg_pool),
    **_named(
        "adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d",
        windows.adaptive_pool,
    ),
    **_named("view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_copy", shaping.view),
    **_named("expand expand_as", shaping.expand),
    **_named("repeat tile", shaping.repeat),
    **_named("permute", shaping.permute),
    **_named("transpose swapaxes swapdims t", shaping.transpose),
    **_named("select", shaping.select),
    **_named("slice", shaping.slice_),
    **_named("narrow", shaping.narrow),
    **_named("split split_with_sizes chunk", shaping.split),
    **_named("unbind", shaping.unbind),
    **_named("index index_select", shaping.index),
    **_named("flip", shaping.flip),
    **_named("roll", shaping.roll),
    **_named("cat concat", shaping.cat),
    **_named("stack", shaping.stack),
    **_named("pad constant_pad_nd", shaping.pad),
    **_named("upsample_nearest1d upsample_nearest2d", shaping.upsample_nearest),
    **_named(
        "dropout feature_dropout alpha_dropout native_dropout clone contiguous alias detach lift_fresh_copy _to_copy "
        "to type_as view_as identity",
        pointwise.same,
    ),
}
KNOWN = (
    "linear and convolution layers, norms, pools, attention, activations, softmax, sums, products, means, "
    "and what moves numbers about (docs/spec/qpart-protocol.md)"
)


def is_known(function: str) -> bool:
    """Whether there is anything to turn a function of ATen into."""
    return function in _CONVERTERS


def unknown(found: Mapping[str, Sequence[str]]) -> UnknownOperation:
    """The error for functions that there is no operation for, by the places where each is."""
    several = (
        f"{function} at {places[0]}" + (f" and {len(places) - 1} more" if len(places) > 1 else "")
        for function, places in found.items()
    )
    return UnknownOperation(
        f"there is no operation for {', '.join(several)}: replace it in the model, or do it outside of it. "
        f"Known: {KNOWN}"
    )


def convert(call: Call) -> Value | list[Value]:
    """What a call to a known operation computes: values, of new steps or there already.

    Raises:
        UnknownOperation: it cannot be said in the operations of `qpart.ops`.
    """
    return _CONVERTERS[call.function](call)
