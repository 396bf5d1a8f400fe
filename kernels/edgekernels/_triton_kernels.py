"""The coupled rule on CUDA: noise, scores and their maximum in one pass over the logits."""

from typing import Any

import torch
import triton
import triton.language as tl

Tensor = Any  # torch.Tensor
TILE = 2048


@triton.jit
def _word(ids, low_key, high_key, low_position, high_position):  # type: ignore[no-untyped-def]
    """Noise words, uint32, of token ids."""
    c0 = (ids >> 2).to(tl.uint32)
    zero = c0 * 0
    c1, c2 = zero + low_position.to(tl.uint32), zero + high_position.to(tl.uint32)
    c3 = zero + 0x534C4544
    k0, k1 = low_key.to(tl.uint32), high_key.to(tl.uint32)
    m0, m1 = zero + 0xD2511F53, zero + 0xCD9E8D57
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, m0), c0 * m0
        high1, low1 = tl.umulhi(c2, m1), c2 * m1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + 0x9E3779B9).to(tl.uint32)
        k1 = (k1 + 0xBB67AE85).to(tl.uint32)
    which = ids & 3
    return tl.where(which == 0, c0, tl.where(which == 1, c1, tl.where(which == 2, c2, c3)))


@triton.jit
def _best_of_tile(  # type: ignore[no-untyped-def]
    logits, stride, rows, floors, temperatures, seeds, positions, ids, scores, columns, vocab, tiles,
    mapped: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """The largest score of a tile of a row, and the lowest column which has it."""
    n, t = tl.program_id(0), tl.program_id(1)
    column = t * tile + tl.arange(0, tile)
    inside = column < vocab
    logit = tl.load(logits + tl.load(rows + n) * stride + column, mask=inside, other=float("-inf")).to(tl.float32)
    token = tl.load(ids + column, mask=inside, other=0) if mapped else column.to(tl.int64)
    seed, position = tl.load(seeds + n), tl.load(positions + n)
    mask = 0xFFFFFFFF
    word = _word(token, seed & mask, (seed >> 32) & mask, position & mask, (position >> 32) & mask)
    noise = -tl.log(-tl.log((word.to(tl.float64) + 0.5) * 2.3283064365386963e-10))
    score = logit.to(tl.float64) * (1.0 / tl.load(temperatures + n)) + noise
    score = tl.where(logit >= tl.load(floors + n), score, float("-inf"))  # false for NaN
    best = tl.max(score, axis=0)
    tl.store(scores + n * tiles + t, best)
    tl.store(columns + n * tiles + t, tl.min(tl.where(score == best, column, vocab), axis=0))


def best_scores(logits: Tensor, rows: Tensor, floors: Tensor, rules: list[Tensor], ids: Tensor | None) -> Tensor:
    """Columns (n,) with the largest scores of n rows of the logits; see `_torch_ops.best_scores`."""
    temperature, seeds, positions = rules
    n, vocab = len(rows), logits.shape[1]
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    tiles = triton.cdiv(vocab, TILE)
    scores = torch.empty(n, tiles, dtype=torch.float64, device=logits.device)
    columns = torch.empty(n, tiles, dtype=torch.int32, device=logits.device)
    _best_of_tile[(n, tiles)](
        logits, logits.stride(0), rows, floors, temperature, seeds, positions, rows if ids is None else ids, scores,
        columns, vocab, tiles, mapped=ids is not None, tile=TILE, enable_fp_fusion=False,
    )  # fmt: skip
    best = torch.where(scores == scores.amax(dim=1, keepdim=True), columns.to(torch.int64), vocab)
    return best.amin(dim=1)
