"""Calls of pools, over images and sequences (images of height 1)."""

from __future__ import annotations

from qpart.aten.call import Batch, Call, Value
from qpart.ops import LARGEST, AdaptivePool2d, AvgPool2d, GlobalMean, MaxPool2d, Pad, Rescale

_Pair = tuple[int, int]


def _image(call: Call, dims: int) -> Value:
    value = call.value("self")
    if value.at != 0 or value.merged or len(value.shape) != dims + 1:
        raise call.refused("needs (batch, channels, height, width)" if dims == 2 else "needs (batch, channels, length)")
    return value if dims == 2 else call.viewed(value, (Batch(1), value.shape[0], 1, value.shape[1]))


def _back(call: Call, found: Value, dims: int) -> Value:
    return found if dims == 2 else call.viewed(found, (Batch(1), found.shape[0], found.shape[2]))


def _dims(call: Call) -> int:
    return 1 if "1d" in call.function else 2


def _window(call: Call, dims: int) -> tuple[_Pair, _Pair, _Pair]:
    kernel = call.numbers("kernel_size", dims)
    stride = call.numbers("stride", dims) if call.arguments["stride"] else kernel
    padding = call.numbers("padding", dims)
    front = (1,) * (2 - dims)
    return (*front, *kernel), (*front, *stride), (*(0 for _ in front), *padding)  # type: ignore[return-value]


def _ceiling(call: Call, value: Value, window: tuple[_Pair, _Pair, _Pair]) -> _Pair:
    """How much further than its padding a pool reaches that rounds its output up."""
    if not call.arguments.get("ceil_mode"):
        return (0, 0)
    wanted = (1, *call.shape[2:])[-2:]
    kernel, stride, padding = window
    reach = [max(0, (int(wanted[i]) - 1) * stride[i] + kernel[i] - value.shape[i + 1] - 2 * padding[i]) for i in (0, 1)]  # type: ignore[arg-type]
    return reach[0], reach[1]


def max_pool(call: Call) -> list[Value]:
    dims = _dims(call)
    if set(call.numbers("dilation", dims)) != {1}:
        raise call.refused("is known without dilation only")
    value, window = _image(call, dims), _window(call, dims)
    more = _ceiling(call, value, window)
    if any(more):
        kernel, stride, padding = window
        value = call.emit(Pad((0, *padding), (0, padding[0] + more[0], padding[1] + more[1]), -LARGEST), value)
        window = kernel, stride, (0, 0)
    return [_back(call, call.emit(MaxPool2d(*window), value), dims)]


def avg_pool(call: Call) -> Value:
    dims = _dims(call)
    value, window = _image(call, dims), _window(call, dims)
    if any(_ceiling(call, value, window)):
        call.require(ceil_mode=False)
    kernel, _, padding = window
    counted = bool(call.arguments.get("count_include_pad", True)) or not any(padding)
    divisor = call.arguments.get("divisor_override")
    found = call.emit(AvgPool2d(*window, counted or divisor is not None), value)
    if divisor is not None:
        found = call.emit(Rescale(kernel[0] * kernel[1] / divisor), found)
    return _back(call, found, dims)


def adaptive_pool(call: Call) -> Value | list[Value]:
    """Even windows where they fit, others where they do not."""
    dims, largest = _dims(call), "max" in call.function
    value = _image(call, dims)
    found = _back(call, _adapted(call, value, largest, dims), dims)
    return [found] if largest else found


def _adapted(call: Call, value: Value, largest: bool, dims: int) -> Value:
    height, width = value.shape[1:]
    size = call.shape[2:] if dims == 2 else (1, call.shape[2])
    if not all(isinstance(extent, int) for extent in size):
        raise call.refused("needs a fixed size")
    rows, columns = int(size[0]), int(size[1])  # type: ignore[arg-type]
    if (rows, columns) == (height, width):
        return value
    if (rows, columns) == (1, 1) and not largest:
        return call.emit(GlobalMean(keep=True), value)
    if height % rows or width % columns:
        return call.emit(AdaptivePool2d((rows, columns), largest), value)
    kernel = (height // rows, width // columns)
    op = MaxPool2d(kernel, kernel, (0, 0)) if largest else AvgPool2d(kernel, kernel, (0, 0))
    return call.emit(op, value)
