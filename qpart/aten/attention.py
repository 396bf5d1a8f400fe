"""Scaled dot product attention: one operation where that can be, products and a softmax where a mask is added."""

from __future__ import annotations

import numpy as np

from qpart.aten.call import Call, Step, Steps, Value, Vector
from qpart.aten.pointwise import MASKED, added_constant, added_mask, combined
from qpart.ops import Attention, Expand, MatMul, Permute, Rescale, Reshape, Softmax


def attention(call: Call) -> Value:
    call.require(dropout_p=0.0)
    given = [call.arguments.get(name) for name in ("query", "key", "value")]
    queries, keys, values = (call.materialised(one, given) for one in given)
    for value in (queries, keys, values):
        call.axis(value, -1)
        call.axis(value, -2)
    scale = call.arguments.get("scale")
    scale = queries.shape[-1] ** -0.5 if scale is None else float(scale)
    if call.arguments.get("enable_gqa"):
        keys, values = (_repeated(call, value, queries.shape[-3]) for value in (keys, values))
    mask, causal = call.arguments.get("attn_mask"), bool(call.arguments.get("is_causal", False))
    if isinstance(mask, np.ndarray) and is_causal(added_mask(mask)):
        mask, causal = None, True
    if isinstance(mask, np.ndarray) and not added_mask(mask).any():
        mask = None
    if mask is not None:
        return _masked(call, (queries, keys, values), scale, mask)
    made = attend(call.steps, (queries.id, keys.id, values.id), scale, causal)
    return queries._replace(id=made, shape=call.steps.shapes[made])


def is_causal(added: Vector | None) -> bool:
    """Whether what is added to scores hides, for each query, the keys behind its own position, and nothing else."""
    if added is None or added.ndim < 2 or added.size != added.shape[-2] * added.shape[-1]:
        return False
    hidden = np.triu(np.ones(added.shape[-2:], bool), 1)
    return bool((added.reshape(hidden.shape)[~hidden] == 0).all() and (added[..., hidden] <= MASKED).all())


def _masked(call: Call, inputs: tuple[Value, Value, Value], scale: float, mask: object) -> Value:
    queries, keys, values = inputs
    scores = call.emit(Rescale(scale), call.emit(MatMul(transposed=True), queries, keys))
    if isinstance(mask, np.ndarray):
        scores = added_constant(call, scores, added_mask(mask))
    elif isinstance(mask, Value):
        scores = combined(call, scores, mask, 1.0)
    else:
        raise call.refused("needs a mask of numbers")
    return call.emit(MatMul(), call.emit(Softmax(len(scores.shape) - 1), scores), values)


def _repeated(call: Call, value: Value, heads: int) -> Value:
    """Heads of keys or values that several heads of queries share, once for each of these."""
    shape = value.shape
    times = heads // shape[-3]
    if times == 1:
        return value
    wide = call.emit(Reshape((*shape[:-2], 1, *shape[-2:])), value)
    wide = call.emit(Expand((*shape[:-2], times, *shape[-2:])), wide)
    return call.emit(Reshape((*shape[:-3], heads, *shape[-2:])), wide)


def attend(steps: Steps, inputs: tuple[int, int, int], scale: float, causal: bool) -> int:
    """Attention over values (..., heads, tokens, size); the result (..., heads, tokens, size of the values).

    Heads go behind the tokens and back, which views before and behind it undo again more often than not.
    """
    shapes = [steps.shapes[value] for value in inputs]
    heads = shapes[0][-3] if len(shapes[0]) > 2 else 1
    merged = tuple(_merged(steps, value) for value in inputs)
    op = Attention(heads, shapes[0][-1], shapes[2][-1], scale, (0, 0, 0), causal)
    made = steps.add(Step(op, merged))
    if len(shapes[0]) == 2:
        return made
    *lead, tokens, _ = steps.shapes[made]
    made = steps.add(Step(Reshape((*lead, tokens, heads, shapes[2][-1])), (made,)))
    return steps.add(Step(_swapped(len(lead) + 3), (made,)))


def _merged(steps: Steps, value: int) -> int:
    """(..., heads, tokens, size) to (..., tokens, heads * size)."""
    shape = steps.shapes[value]
    if len(shape) == 2:
        return value
    *lead, heads, tokens, size = shape
    swapped = steps.add(Step(_swapped(len(shape)), (value,)))
    return steps.add(Step(Reshape((*lead, tokens, heads * size)), (swapped,)))


def _swapped(rank: int) -> Permute:
    return Permute((*range(rank - 3), rank - 2, rank - 3, rank - 1))
