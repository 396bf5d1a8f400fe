"""Whether what a device sent can be believed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sled.server.limits import Refusal, TargetShape
from sled.types import Sampling, SparseLaw, Terms

_LAW_TOLERANCE = 1e-3


def check_ids(shape: TargetShape, tokens: Sequence[int]) -> None:
    """Refuse tokens that the target has not."""
    if tokens and max(tokens) >= shape.vocab_size:
        raise Refusal("invalid", f"token id {max(tokens)} is outside the target's vocabulary of {shape.vocab_size}")


def check_text(shape: TargetShape, tokens: Sequence[int], num_answer: int = 0) -> None:
    """Refuse a text that is empty or longer than the target or all its pages take; its end may be an answer's."""
    limit = min(shape.max_positions, shape.pool_tokens) - 1
    if len(tokens) <= num_answer:
        raise Refusal("invalid", "the prompt is empty; give at least one token")
    if len(tokens) - num_answer > limit:
        raise Refusal("prompt_too_long", f"{len(tokens)} tokens, the target takes {limit}; shorten the prompt")
    if len(tokens) > limit:
        raise Refusal(
            "prompt_too_long",
            f"prompt and answer have {len(tokens)} tokens by now, this server takes {limit}; go on at one with more "
            "memory for keys and values, or ask for fewer tokens",
        )
    check_ids(shape, tokens)


def check_parameters(shape: TargetShape, sampling: Sampling, terms: Terms) -> None:
    """Refuse what this target cannot do."""
    check_ids(shape, [token for token, _ in sampling.bias])
    if terms.stop and not shape.pieces:
        raise Refusal(
            "invalid", "this server does not know its tokens' bytes, so no stop texts; look for them yourself"
        )


def check_draft(shape: TargetShape, draft: Sequence[int]) -> None:
    """Refuse a draft that is too long or not of the vocabulary."""
    if len(draft) > shape.max_window:
        raise Refusal("window_too_long", f"{len(draft)} drafts, the limit is {shape.max_window}")
    check_ids(shape, draft)


def check_law(shape: TargetShape, draft: Sequence[int], law: SparseLaw) -> None:
    """Refuse laws of which the acceptance rule would make nonsense."""
    counts = np.array(law.counts, np.int64)
    size = 4 * int(counts.sum())
    if len(counts) != len(draft) or len(law.ids) != size or len(law.probabilities) != size:
        raise Refusal(
            "invalid",
            f"{len(counts)} laws of {len(law.ids)} and {len(law.probabilities)} bytes for {len(draft)} drafts; "
            f"give one for each draft, {size} bytes of ids and of probabilities",
        )
    if not len(counts):
        return
    if counts.min() < 1:
        raise Refusal("invalid", "a law is empty; send the one that the draft was sampled from")
    ids, probabilities = np.frombuffer(law.ids, "<i4"), np.frombuffer(law.probabilities, "<f4").astype(np.float64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rising = np.diff(ids.astype(np.int64)) > 0
    rising[starts[1:] - 1] = True  # from one draft's ids to the next one's
    if not rising.all() or ids.min() < 0 or ids.max() >= shape.vocab_size:
        raise Refusal("invalid", f"ids of a law must rise within 0 .. {shape.vocab_size - 1}")
    if not (np.isfinite(probabilities).all() and (probabilities > 0).all()):
        raise Refusal("invalid", "a law has probabilities that are not above 0 and finite; leave such ids out")
    sums = np.add.reduceat(probabilities, starts)
    if (np.abs(sums - 1) > _LAW_TOLERANCE).any():
        raise Refusal("invalid", f"a law's probabilities sum to {sums[np.abs(sums - 1).argmax()]:.6f}; give 1")
    owner = np.repeat(np.arange(len(counts)), counts)
    if np.unique(owner[ids == np.array(draft)[owner]]).size != len(draft):
        raise Refusal("invalid", "a draft is not among the ids of its own law; send the law it was sampled from")


class StopTexts:
    """Watches the bytes of an answer for texts that end it, token by token, however the tokens came.

    Args:
        stop: the texts.
        pieces: the bytes of every token id; a token without any stands for none.

    >>> watch = StopTexts(("bc",), [b"a", b"b", b"cd"])
    >>> [watch.ends_with(token) for token in (0, 1, 2)]
    [False, False, True]
    """

    def __init__(self, stop: Sequence[str], pieces: Sequence[bytes]) -> None:
        self._stop, self._pieces = [text.encode() for text in stop], pieces
        self._keep = max(map(len, self._stop), default=1) - 1
        self._tail = b""

    def ends_with(self, token: int) -> bool:
        """Whether this token completes a stop text."""
        if not self._stop:
            return False
        text = self._tail + (self._pieces[token] if token < len(self._pieces) else b"")
        self._tail = text[-self._keep :] if self._keep else b""
        return any(stop in text for stop in self._stop)
