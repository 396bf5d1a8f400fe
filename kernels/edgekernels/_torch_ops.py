"""Noise, filters and masses as torch operations, each rounded as docs/spec/kernels*.md say, on any device.

Products and sums are separate operations, so nothing is fused; powers of two are made from bits, because a library's
`pow` or `ldexp` need not be exact.
"""

from typing import Any

import torch

from edgekernels._reference import DOMAIN
from edgekernels._reference_filters import EXP2_SERIES, LOG2_E, MASS_BITS
from edgekernels._reference_rejection import BLOCK, BLOCK_BITS, EXP2_FINE, ROW_BITS

Tensor = Any  # torch.Tensor; torch has no types here
LOW = 0xFFFFFFFF


def noise_words(seeds: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """Noise words (rows, n), as int64, of ids (n,) at positions (rows,) under seeds (rows,), all int64.

    Seeds from 2**63 on are passed as their two's complement.
    """
    first = int(ids[0]) if len(ids) else 0
    dense = len(ids) > 0 and bool((ids == torch.arange(first, first + len(ids), device=ids.device)).all())
    if not dense:
        return _gathered(_philox(seeds, positions, ids >> 2), ids & 3)
    quads = torch.arange(first >> 2, ((first + len(ids) - 1) >> 2) + 1, device=ids.device)
    words = torch.stack(_philox(seeds, positions, quads), dim=2).reshape(len(seeds), -1)
    return words[:, first & 3 : (first & 3) + len(ids)]


def _gathered(words: tuple[Tensor, ...], which: Tensor) -> Tensor:
    return torch.stack(words).gather(0, which.expand(1, words[0].shape[0], -1))[0]


def _philox(seeds: Tensor, positions: Tensor, counters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four output words (rows, n) of counters (n,); products of 64 bits wrap, which their halves do not mind."""
    k0, k1 = (seeds & LOW)[:, None], (seeds >> 32 & LOW)[:, None]
    c0 = counters.expand(len(seeds), -1)
    c1, c2 = (positions & LOW)[:, None], (positions >> 32 & LOW)[:, None]
    c3 = torch.full_like(c1, DOMAIN)
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32 & LOW) ^ c1 ^ k0, p1 & LOW, (p0 >> 32 & LOW) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    shape = (len(seeds), len(counters))
    return c0.expand(shape), c1.expand(shape), c2.expand(shape), c3.expand(shape)


def gumbel(words: Tensor) -> Tensor:
    """Gumbel variates, float64, of noise words."""
    return -torch.log(-torch.log((words.to(torch.float64) + 0.5) * 2.0**-32))


def lowest_at(values: Tensor, largest: Tensor) -> Tensor:
    """Lowest column (rows,) at which values (rows, n) are the largest (rows,)."""
    columns = torch.arange(values.shape[1], device=values.device)
    return torch.where(values == largest[:, None], columns, values.shape[1]).amin(dim=1)


def _exp2(t: Tensor, bits: int) -> Tensor:
    """2**(t + bits) of float32 t, by the series of the specification."""
    whole = torch.round(t)
    fraction = t - whole
    series = torch.full_like(fraction, float(EXP2_SERIES[-1]))
    for coefficient in EXP2_SERIES[-2::-1].tolist():
        series = series * fraction + coefficient
    return series * ((whole.to(torch.int32) + (bits + 127)) << 23).view(torch.float32)


def filter_floor(logits: Tensor, rules: dict[str, Tensor], active: dict[str, Any]) -> Tensor:
    """Floors (rows,) of top-k, top-p and min-p; `active` names the filters that any row uses, and the largest top_k."""
    rows, vocab = logits.shape
    floor = torch.full((rows,), -torch.inf, dtype=torch.float32, device=logits.device)
    if active["top_k"]:
        top_k = rules["top_k"]
        descending = torch.topk(logits, active["top_k"], dim=1).values
        place = (top_k.clamp(1, active["top_k"]) - 1)[:, None]
        floor = torch.where((top_k > 0) & (top_k < vocab), descending.gather(1, place)[:, 0], floor)
    if active["top_p"]:
        descending = torch.sort(logits, dim=1, descending=True).values
        scale = ((1.0 / rules["temperature"]) * LOG2_E).to(torch.float32)
        t = torch.clamp_min((descending - descending[:, :1]) * scale[:, None], -32.0)
        mass = _exp2(t, MASS_BITS).to(torch.int64)
        mass = torch.where(descending >= floor[:, None], mass, 0).cumsum(dim=1)
        total = mass[:, -1:].to(torch.float64)
        enough = mass.to(torch.float64) >= rules["top_p"][:, None] * total
        cut = descending.gather(1, enough.to(torch.int8).argmax(dim=1, keepdim=True))[:, 0]
        floor = torch.where(rules["top_p"] < 1, torch.maximum(cut, floor), floor)
    top = logits.amax(dim=1).to(torch.float64)
    return torch.maximum(floor, (top + rules["temperature"] * rules["log_min_p"]).to(torch.float32))


def best_scores(logits: Tensor, floor: Tensor, rules: list[Tensor], ids: Tensor) -> Tensor:
    """Columns (rows,) with the largest sum of logit / temperature and noise among logits at or above the floors.

    `rules` are temperature, seed and position, (rows,) each.
    """
    temperature, seeds, positions = rules
    scores = logits.to(torch.float64) * (1.0 / temperature)[:, None] + gumbel(noise_words(seeds, positions, ids))
    scores = torch.where(logits >= floor[:, None], scores, -torch.inf)
    return lowest_at(scores, scores.amax(dim=1))


def in_blocks(values: Tensor, padding: float) -> Tensor:
    """Values (rows, vocab) as (rows, blocks, 64)."""
    missing = -values.shape[1] % BLOCK
    return torch.nn.functional.pad(values, (0, missing), value=padding).view(len(values), -1, BLOCK)


def weigh(logits: Tensor, temperature: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Masses (rows, blocks, 64), weights (rows, blocks) and sums (rows, blocks) of section 2."""
    blocks = in_blocks(logits, -torch.inf)
    maxima = blocks.amax(dim=2)
    top = maxima.amax(dim=1, keepdim=True)
    maxima = torch.where(maxima == -torch.inf, 0.0, maxima)
    scale = (1.0 / temperature) * LOG2_E
    t = torch.clamp_min((blocks - maxima[:, :, None]) * scale.to(torch.float32)[:, None, None], -BLOCK_BITS - 2.0)
    masses = torch.round(_exp2(t, BLOCK_BITS)).to(torch.int64)
    masses = torch.where(blocks >= floor[:, None, None], masses, 0)
    exponent = ((maxima.to(torch.float64) - top.to(torch.float64)) * scale[:, None]).clamp(-64.0, 0.0)
    whole = torch.round(exponent)
    fraction = exponent - whole
    series = torch.full_like(fraction, EXP2_FINE[-1])
    for coefficient in EXP2_FINE[-2::-1]:
        series = series * fraction + coefficient
    weights = series * ((whole.to(torch.int64) + (1023 + ROW_BITS - BLOCK_BITS)) << 52).view(torch.float64)
    return masses, weights, sums_of(masses, weights)


def sums_of(masses: Tensor, weights: Tensor) -> Tensor:
    """Sums (rows, blocks) of masses times weights, truncated."""
    return (masses.sum(dim=2).to(torch.float64) * weights).to(torch.int64)


def residual(masses: Tensor, weights: Tensor, sums: Tensor, q: Tensor) -> Tensor:
    """Masses of max(p - q, 0), q (rows, vocab); those of p in rows where that is nothing."""
    shares = (sums.sum(dim=1, keepdim=True).to(torch.float64) / weights).to(torch.float32)
    laid_out = in_blocks(q, 0.0)
    taken = laid_out * shares[:, :, None]
    gone = (laid_out >= 1) | (taken >= masses.to(torch.float32))
    taken = torch.where((taken > 0) & ~gone, taken, 0.0).to(torch.int64)
    left = torch.where(gone, 0, masses - taken)
    return torch.where((sums_of(left, weights).sum(dim=1) > 0)[:, None, None], left, masses)


def emit(masses: Tensor, weights: Tensor, numbers: Tensor) -> Tensor:
    """Ids (rows,) at the places of numbers (rows,) in [0, 1), counting masses block by block."""
    sums = sums_of(masses, weights)
    ends = sums.cumsum(dim=1)
    total = ends[:, -1]
    place = torch.minimum((numbers * total.to(torch.float64)).to(torch.int64), total - 1)
    block = (ends > place[:, None]).to(torch.int8).argmax(dim=1, keepdim=True)
    rest = place[:, None] - (ends.gather(1, block) - sums.gather(1, block))
    inside = masses.gather(1, block[:, :, None].expand(-1, 1, BLOCK))[:, 0]
    reached = inside.cumsum(dim=1).to(torch.float64) * weights.gather(1, block) > rest.to(torch.float64)
    columns = torch.arange(BLOCK, device=masses.device)
    last = torch.where(inside > 0, columns, -1).amax(dim=1)
    within = torch.where(reached, columns, BLOCK).amin(dim=1)
    return block[:, 0] * BLOCK + torch.where(within < BLOCK, within, last)
