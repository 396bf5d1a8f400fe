"""Apply the acceptance rule to a batch of ragged rounds.

Pure: numpy and the kernels only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import edgekernels
import numpy as np
from edgekernels import Bias, History, SparseQ
from numpy.typing import NDArray

from sled.types import Logprob, Sampling, SparseLaw

_FILTERS = ("top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
_filters = attrgetter(*_FILTERS)
_NO_FILTERS = _filters(Sampling())


@dataclass(frozen=True, slots=True)
class RoundRows:
    """One round as the rule sees it.

    Args:
        draft: k token ids.
        sampling: how the session samples.
        position: absolute position the first row decides, which is the length of the committed text.
        text: the committed text, for penalties; its first `num_prompt` tokens are the prompt.
        num_prompt: see `text`.
        law: the laws the drafts were sampled from; only with the rejection rule.
        num_logprobs: likeliest tokens to report with each token; -1 reports nothing.
        allowed: uint32 (k + 1, ceil(vocab / 32)), bit i % 32 of word i // 32 says whether row r may choose token i;
            None allows all. Rows behind a draft that is not allowed hold anything.
    """

    draft: Sequence[int]
    sampling: Sampling
    position: int
    text: Sequence[int] = ()
    num_prompt: int = 0
    law: SparseLaw | None = None
    num_logprobs: int = -1
    allowed: NDArray[np.uint32] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the target decided for one round: accepted drafts, then the next token.

    `finite` is False where the logits were not numbers: then nothing else holds. `logprobs` has an entry for each of
    the accepted + 1 tokens if they were asked for.
    """

    accepted: int
    next_token: int
    finite: bool = True
    logprobs: tuple[Logprob, ...] = ()


class RuleGroup(NamedTuple):
    """Rounds of a batch under one rule, as the kernels take them.

    Args:
        members: indices of the rounds.
        rows: (rows,) indices of their logits; None is all of the batch.
        drafts: int32, round after round.
        row_starts: int64 (members + 1,).
        arguments: of `edgekernels.accept` besides logits, drafts and row_starts.
    """

    members: list[int]
    rows: NDArray[np.int64] | None
    drafts: NDArray[np.int32]
    row_starts: NDArray[np.int64]
    arguments: dict[str, Any]


def decide(
    logits: NDArray[Any],
    rounds: Sequence[RoundRows],
    *,
    finite: NDArray[np.bool_] | None = None,
    num_threads: int = 1,
) -> list[Decision]:
    """Accepted count and next token of every round.

    Args:
        logits: (rows, vocab) target logits, `len(draft) + 1` rows per round in order: float32, float16, or the bits
            of bfloat16 as uint16. Rows under a mask (`allowed`) are changed in place.
        rounds: the rounds, in the order of the rows.
        finite: (rows,) whether a row has a largest number, where that is known already.
        num_threads: upper bound of threads.

    Returns:
        One decision per round.

    Source: coupled sampling, arXiv 2408.07978; greedy is its case without noise; rejection: arXiv 2211.17192.
    """
    if not rounds:
        return []
    starts = row_starts(rounds)
    sound = np.logical_and.reduceat(_finite(logits) if finite is None else finite, starts[:-1]).tolist()
    kept = {  # before anything is forbidden
        i: _as_float32(logits[starts[i] : starts[i + 1]])
        for i, r in enumerate(rounds)
        if r.num_logprobs >= 0 and sound[i]
    }
    _forbid(logits, rounds, starts)
    accepted, tokens = np.zeros((2, len(rounds)), np.int32)
    for group in groups(rounds, starts, logits.shape[1]):
        rows = logits if group.rows is None else logits[group.rows]
        found = edgekernels.accept(rows, group.drafts, group.row_starts, num_threads=num_threads, **group.arguments)
        accepted[group.members], tokens[group.members] = found
    triples = zip(accepted.tolist(), tokens.tolist(), sound, strict=True)
    if not kept:
        return [Decision(*triple) for triple in triples]
    return [
        Decision(a, t, f, _logprobs(kept[i], [*rounds[i].draft[:a], t], rounds[i].num_logprobs) if i in kept else ())
        for i, (a, t, f) in enumerate(triples)
    ]


def row_starts(rounds: Sequence[RoundRows]) -> NDArray[np.int64]:
    """(rounds + 1,) first row of each round."""
    return np.cumsum([0, *(len(r.draft) + 1 for r in rounds)], dtype=np.int64)


def groups(rounds: Sequence[RoundRows], starts: NDArray[np.int64], vocab_size: int) -> list[RuleGroup]:
    """The rounds by rule, with the arguments somebody asked for and no others."""
    by_rule: dict[str, list[int]] = {}
    for i, r in enumerate(rounds):
        by_rule.setdefault(r.sampling.rule, []).append(i)
    found = []
    for rule, members in by_rule.items():
        own = [rounds[i] for i in members]
        drafts = np.fromiter(chain.from_iterable(r.draft for r in own), np.int32)
        whole = len(own) == len(rounds)
        rows = None if whole else np.concatenate([np.arange(starts[i], starts[i + 1]) for i in members])
        arguments = _arguments(own, vocab_size)
        if rule == "rejection":
            arguments |= {"rule": rule, "q": _laws(own)}
        found.append(RuleGroup(members, rows, drafts, starts if whole else row_starts(own), arguments))
    return found


def _arguments(rounds: Sequence[RoundRows], vocab_size: int) -> dict[str, Any]:
    samplings = [r.sampling for r in rounds]
    arguments: dict[str, Any] = {"temperature": 0.0}
    if any(s.temperature for s in samplings):
        arguments = {
            "temperature": np.array([s.temperature for s in samplings], np.float64),
            "seed": np.array([s.seed for s in samplings], np.uint64),
            "position": np.array([r.position for r in rounds], np.int64),
        }
    filters = [_filters(s) for s in samplings]
    if any(own != _NO_FILTERS for own in filters):
        for name, numbers, off in zip(_FILTERS, zip(*filters, strict=True), _NO_FILTERS, strict=True):
            if any(number != off for number in numbers):
                arguments[name] = np.array(numbers)
    if any(s.counts_tokens for s in samplings):
        texts = [r.text if r.sampling.counts_tokens else () for r in rounds]
        prompts = [r.num_prompt if r.sampling.counts_tokens else 0 for r in rounds]
        arguments["history"] = History(_ids(texts), _starts(texts), np.array(prompts, np.int64))
    if any(s.bias for s in samplings):
        known = [[pair for pair in s.bias if pair[0] < vocab_size] for s in samplings]
        ids = [[token for token, _ in pairs] for pairs in known]
        values = np.fromiter((value for pairs in known for _, value in pairs), np.float32)
        arguments["bias"] = Bias(_ids(ids), values, _starts(ids))
    return arguments


def _ids(parts: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    return np.fromiter(chain.from_iterable(parts), np.int32)


def _starts(parts: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)


def _laws(rounds: Sequence[RoundRows]) -> SparseQ:
    """The laws of all drafts; one without a law was certain."""
    parts, values, counts = [], [], []
    for r in rounds:
        if r.law is None:
            parts.append(np.array(r.draft, np.int32))
            values.append(np.ones(len(r.draft), np.float32))
            counts += [1] * len(r.draft)
        else:
            parts.append(np.frombuffer(r.law.ids, "<i4").astype(np.int32))
            values.append(np.minimum(np.frombuffer(r.law.probabilities, "<f4"), np.float32(1)))
            counts += r.law.counts
    return SparseQ(np.concatenate(parts), np.concatenate(values), np.cumsum([0, *counts], dtype=np.int64))


_INFINITY = {np.dtype(np.float16): 0x7C00, np.dtype(np.uint16): 0x7F80}
_SIGN = 0x8000


def _finite(logits: NDArray[Any]) -> NDArray[np.bool_]:
    """(rows,) whether a row has a largest number: no NaN, no +inf, and not -inf alone."""
    if logits.dtype == np.float32:
        with np.errstate(invalid="ignore"):
            return np.asarray(np.isfinite(logits.max(axis=1)))
    bits, infinity = logits.view(np.uint16), _INFINITY[logits.dtype]
    positive = bits.view(np.int16).max(axis=1) < infinity  # neither +inf nor a positive NaN
    return np.asarray(positive & (bits.max(axis=1) <= infinity + _SIGN) & (bits.min(axis=1) < infinity + _SIGN))


def _as_float32(rows: NDArray[Any]) -> NDArray[np.float32]:
    """A copy in float32."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return rows.astype(np.float32)


def mask_words(allowed: NDArray[np.uint32], vocab_size: int) -> NDArray[np.uint32]:
    """The mask with as many words as the vocabulary needs; ids it says nothing of are forbidden."""
    missing = -(-vocab_size // 32) - allowed.shape[1]
    return np.ascontiguousarray(np.pad(allowed, ((0, 0), (0, missing))) if missing > 0 else allowed, np.uint32)


def _forbid(logits: NDArray[Any], rounds: Sequence[RoundRows], starts: NDArray[np.int64]) -> None:
    """Set logits of tokens that a mask does not allow to -inf."""
    vocab = logits.shape[1]
    lowest: Any = -np.inf if logits.dtype.kind == "f" else _INFINITY[logits.dtype] + _SIGN
    for r, start in zip(rounds, starts.tolist(), strict=False):
        if r.allowed is not None:
            words = mask_words(r.allowed, vocab)
            bits = np.unpackbits(words.astype("<u4").view(np.uint8), axis=1, count=vocab, bitorder="little")
            np.putmask(logits[start : start + len(bits)], bits == 0, lowest)


def _logprobs(rows: NDArray[np.float32], tokens: Sequence[int], count: int) -> tuple[Logprob, ...]:
    """Log-probabilities of `tokens`, one in each row, and of the `count` likeliest ones."""
    rows = rows[: len(tokens)]
    top = rows.max(axis=1, keepdims=True)
    total = top + np.log(np.exp(rows - top, dtype=np.float32).sum(axis=1, keepdims=True, dtype=np.float64))
    found = []
    for row, token, norm in zip(rows, tokens, total[:, 0].tolist(), strict=True):
        few = np.argpartition(row, -count)[-count:] if 0 < count < len(row) else np.arange(len(row))[: count or 0]
        likeliest = sorted(few.tolist(), key=lambda i: (-float(row[i]), i))
        found.append(Logprob(float(row[token]) - norm, [(i, float(row[i]) - norm) for i in likeliest]))
    return tuple(found)
