"""The specification in numpy: noise, filters and acceptance as docs/spec/kernels.md defines them.

Every other backend gives the same answers. Arguments are checked by the callers; rows are read one at a time,
and only as long as drafts are accepted.
"""

import numpy as np
import numpy.typing as npt

NAME = "numpy"

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]

DOMAIN = 0x534C4544  # "SLED"
LOG2_E = 1.4426950408889634
MASS_BITS = 30
LOWEST_LOG2 = np.float32(-32)
EXP2_SERIES = np.array(
    [1.0, 0.69314718, 0.24022651, 0.055504109, 0.0096181291, 0.0013333558, 0.00015403530], np.float32
)


def philox(counter: npt.NDArray[np.uint64], key: tuple[int, int]) -> Words:
    """Philox4x32-10 of counters (n, 4), held in 64-bit integers, as words (n, 4)."""
    low32 = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    c0, c1, c2, c3 = counter.T
    k0, k1 = key
    for _ in range(10):
        p0 = c0 * np.uint64(0xD2511F53)
        p1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & low32
        c2, c3 = (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & low32
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def noise_words(seed: int, position: int, token_ids: npt.NDArray[np.integer]) -> Words:
    """Noise words (n,) of tokens (n,) at one position."""
    quads = (token_ids >> 2).astype(np.int64)
    place = np.arange(len(quads))
    if len(quads) and quads.max() - quads.min() < len(quads):  # dense ids share counters, four to each
        place = quads - quads.min()
        quads = np.arange(quads.min(), quads.max() + 1)
    counter = np.empty((len(quads), 4), np.uint64)
    counter[:, 0] = quads
    counter[:, 1] = position & 0xFFFFFFFF
    counter[:, 2] = position >> 32
    counter[:, 3] = DOMAIN
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    chosen: Words = words[place, token_ids & 3]
    return chosen


def gumbel(words: Words) -> Doubles:
    """Gumbel variates of noise words, elementwise."""
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-32
    gumbels: Doubles = -np.log(-np.log(uniform))
    return gumbels


def masses(logits: Floats, top: np.float32, scale: np.float32) -> Ints:
    """Integer masses trunc(2**(30 + (logit - top) * scale)): sums and comparisons of them are exact."""
    with np.errstate(over="ignore"):  # to -inf, which has mass 0
        exponent = np.maximum((logits - top) * scale, LOWEST_LOG2)  # float32 from here to the end
    whole = np.rint(exponent)
    fraction = exponent - whole
    series = np.full_like(fraction, EXP2_SERIES[-1])
    for coefficient in EXP2_SERIES[-2::-1]:
        series = series * fraction + coefficient
    mass: Ints = np.ldexp(series, whole.astype(np.int32) + MASS_BITS).astype(np.int64)
    return mass


def survivors(logits: Floats, temperature: float, top_k: int, top_p: float) -> npt.NDArray[np.bool_]:
    """Which logits (vocab,), none of them NaN or +inf, survive top-k and then top-p."""
    keep = np.ones(len(logits), np.bool_)
    if 0 < top_k < len(logits):
        keep = logits >= np.partition(logits, -top_k)[-top_k]
    if top_p < 1.0:
        descending = np.sort(logits[keep])[::-1]
        mass = np.cumsum(masses(descending, descending[0], np.float32((1.0 / temperature) * LOG2_E)))
        enough = mass >= top_p * float(mass[-1])
        keep &= logits >= descending[np.argmax(enough)]
    return keep


def choose(
    row: Floats,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    position: int,
    token_ids: Ids | None = None,
) -> int:
    """The token which one row (vocab,) decides; the lowest id wins ties."""
    logits = np.where(np.isnan(row), np.float32(-np.inf), row)
    ids: npt.NDArray[np.integer] = np.arange(len(row)) if token_ids is None else token_ids
    top = logits.max()
    if temperature == 0.0 or np.isinf(top):
        return int(ids[logits == top].min())
    keep = survivors(logits, temperature, top_k, top_p)
    ids = ids[keep]
    scores = logits[keep].astype(np.float64) * (1.0 / temperature) + gumbel(noise_words(seed, position, ids))
    return int(ids[scores == scores.max()].min())


def accept(
    logits: Floats,
    drafts: Ids,
    row_starts: Ints,
    *,
    temperature: Doubles,
    top_k: Ints,
    top_p: Doubles,
    seed: npt.NDArray[np.uint64],
    position: npt.NDArray[np.uint64],
    accepted: Ids,
    next_token: Ids,
    num_threads: int,
) -> None:
    """Write accepted counts (batch,) and next tokens (batch,) of every sequence."""
    del num_threads  # an upper bound; numpy uses one
    for b in range(len(accepted)):
        start, end = int(row_starts[b]), int(row_starts[b + 1])
        for row in range(start, end):
            token = choose(
                logits[row],
                temperature=float(temperature[b]),
                top_k=int(top_k[b]),
                top_p=float(top_p[b]),
                seed=int(seed[b]),
                position=int(position[b]) + row - start,
            )
            if row == end - 1 or token != drafts[row - b]:
                accepted[b], next_token[b] = row - start, token
                break


def sample(
    logits: Floats,
    *,
    temperature: Doubles,
    top_k: Ints,
    top_p: Doubles,
    seed: npt.NDArray[np.uint64],
    position: npt.NDArray[np.uint64],
    token_ids: Ids | None,
    chosen: Ids,
    num_threads: int,
) -> None:
    """Write the choice (rows,) of every row."""
    del num_threads
    for r in range(len(chosen)):
        chosen[r] = choose(
            logits[r],
            temperature=float(temperature[r]),
            top_k=int(top_k[r]),
            top_p=float(top_p[r]),
            seed=int(seed[r]),
            position=int(position[r]),
            token_ids=token_ids,
        )


def noise_bits(seed: int, position: int, token_ids: Ids, words: Words) -> None:
    """Write the noise word (n,) of every token id (n,)."""
    words[:] = noise_words(seed, position, token_ids)
