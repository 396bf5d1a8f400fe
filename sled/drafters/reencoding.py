"""A model of another vocabulary as a drafter: it drafts in its own tokens, which are told in the target's.

Source: universal assisted decoding (D. Korat et al., 2024; arXiv 2502.05202).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import edgekernels
import numpy as np
from numpy.typing import NDArray

from sled.drafters.encoder import PieceEncoder
from sled.drafters.following import agreed
from sled.drafters.identity import Identity
from sled.drafters.model import LanguageModel, piece_of
from sled.drafters.retelling import Retelling, Writer, whole_characters
from sled.messages import Described, Vocabulary
from sled.proposal import LITTLE, Proposal, Reading, stated
from sled.types import Sampling

_KEPT_ROWS = 12  # logits remembered, for words that the target divides elsewhere
_MOST_REPLACED = 4  # tokens of the drafter that a longer one may take the place of
_FEW = 64  # of the drafter's tokens, among which one is chosen with the target's noise


class ReencodingDrafter:
    """Drafts of a model that has a tokenizer of its own.

    With a temperature it chooses by the noise of the target's token that each of its own begins with, so that the two
    agree more often than independent samples would; under the rejection rule, and at temperature 0, it takes its
    likeliest.
    Bias and penalties of the answer are the target's alone.

    Args:
        model: a causal language model, fresh.
        own: its vocabulary.
        target: what the server said about its model.
        vocabulary: the target's.
        name: what users call it.

    Attributes:
        reencodes: True; drafters that speak the target's ids have no such attribute.
    """

    reencodes = True

    def __init__(
        self, model: LanguageModel, own: Identity, target: Described, vocabulary: Vocabulary, *, name: str
    ) -> None:
        assert own.vocabulary is not None
        self.name, self.model = name, model
        self._stop_ids = frozenset(own.stop_ids)
        self._target_stop = target.stop_ids[0] if target.stop_ids else -1
        self._pieces, self._special = own.vocabulary.pieces, frozenset(own.vocabulary.special_ids)
        self._target_pieces = vocabulary.pieces
        self._encoder, theirs = PieceEncoder(own.vocabulary), PieceEncoder(vocabulary)
        self._target_encoder = theirs
        by_text = {self._pieces[index]: index for index in own.vocabulary.special_ids if index < len(self._pieces)}
        specials = {index: by_text.get(vocabulary.pieces[index]) for index in vocabulary.special_ids}
        self._told = Retelling(vocabulary.pieces, self._encoder, specials, [own.bos_id] if own.bos_id >= 0 else [])
        order = sorted(self._encoder.ids)
        self._sorted, self._sorted_ids = order, np.array([self._encoder.ids[piece] for piece in order], np.int64)
        self._first_ids = _first_ids(self._pieces, theirs, model.vocab_size)
        self._read: list[int] = []
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._turn = 0
        self.start(Sampling(), 0)

    def start(self, sampling: Sampling, num_prompt: int) -> None:
        """See Drafter."""
        self._sampling, self._is_new = sampling, True
        self._turn += 1
        self._told.restart()

    def unread(self, text: Sequence[int]) -> int:
        """See ModelDrafter; in tokens of its own."""
        ids = self._told.follow(text)
        return len(ids) - self._kept(ids) if 0 < len(ids) <= self.model.max_positions else 0

    def draft(self, text: Sequence[int], limit: int) -> Iterator[Proposal | Reading]:
        """What the model says next, in the target's tokens; nothing while the text ends within a character."""
        self._turn += 1
        turn, num_drafted = self._turn, 0
        ids = self._told.follow(text)
        tail = self._told.tail
        if not ids or whole_characters(tail) != tail:
            return
        self._roll_back(ids)
        if limit > 0 and len(ids) <= self.model.max_positions and len(ids) - len(self._read) > LITTLE:
            while (left := len(ids) - len(self._read)) > LITTLE:
                yield Reading(left)
                if turn != self._turn:
                    return
                self._take_in(ids[: len(self._read) + min(piece_of(self.model), left - 1)])
            yield Reading(left)
        writer = Writer(self._target_encoder, tail, self._told.tail_ids, self._target_pieces)
        said = self._longer_word(ids) if tail else None
        self._roll_back(ids)  # of what a longer word took the place of
        for _ in range(4 * limit + 8):  # pieces of characters make no token by themselves
            if said is None:
                if len(ids) > self.model.max_positions:
                    return
                token, confidence = self._choose(self._take_in(ids), len(text) + writer.num_told)
                if token in self._stop_ids and self._target_stop >= 0:
                    yield Proposal(self._target_stop, stated(confidence))
                if token in self._special or token >= len(self._pieces) or not self._pieces[token]:
                    return
                ids.append(token)
                said = confidence, self._pieces[token]
            confidence, piece = said
            for proposal in writer.add(piece, confidence):
                yield proposal
                num_drafted += 1
                if num_drafted >= limit or turn != self._turn:
                    return
            if writer.contradicted:
                return
            said = None

    def _roll_back(self, ids: list[int]) -> None:
        """Keep of the cache what agrees with the text, and leave at least its last token to feed."""
        keep = self._kept(ids)
        self._is_new = False
        if keep < len(self._read):
            self.model.forget(keep)
            del self._read[keep:]
            self._rows = {length: row for length, row in self._rows.items() if length <= keep}

    def _kept(self, ids: list[int]) -> int:
        return min(agreed(self._read, ids, whole=self._is_new), len(ids) - 1)

    def _take_in(self, ids: list[int]) -> NDArray[np.float32]:
        """The logits of what follows these, of which the model has read the first."""
        feed = ids[len(self._read) :]
        try:
            row: NDArray[np.float32] = self.model.read(np.array(feed))[0]
        except BaseException:  # whatever it is, the cache may hold a part of them
            self._read.clear()
            self._rows.clear()
            self.model.forget(0)
            raise
        self._read += feed
        self._rows[len(self._read)] = row
        while len(self._rows) > _KEPT_ROWS:
            del self._rows[next(iter(self._rows))]
        return row

    def _longer_word(self, ids: list[int]) -> tuple[float, bytes] | None:
        """Put a longer token in place of the last ones, if the model thought it likelier; its confidence, what it adds.

        The target may divide a word that is one token here; behind its first half the model would not know how to go
        on. What it thought before that half is remembered from its own draft.
        """
        said = b""
        for at in range(len(ids) - 1, max(0, len(ids) - 1 - _MOST_REPLACED), -1):
            said = self._pieces[ids[at]] + said
            row = self._rows.get(at)
            if row is None or not said:
                continue
            low, high = bisect_left(self._sorted, said), bisect_left(self._sorted, said + b"\xff")
            longer = self._sorted_ids[low:high]
            longer = longer[(longer < len(row)) & (longer != ids[at])]
            if not len(longer) or row[longer].max() <= row[ids[at]]:
                return None
            weights = np.exp(row[longer] - row[longer].max(), dtype=np.float64)
            token = int(longer[weights.argmax()])
            if self._pieces[token] == said:
                return None
            rest = math.exp(float(row[ids[at]] - row[token]))
            ids[at:] = [token]
            return float(1 / (weights.sum() + rest)), self._pieces[token][len(said) :]
        return None

    def _choose(self, row: NDArray[np.float32], position: int) -> tuple[int, float]:
        """The model's next token, and its probability."""
        s = self._sampling
        if s.temperature == 0 or s.rule == "rejection":
            token = int(row.argmax())
            return token, float(1 / np.exp((row - row[token]) / (s.temperature or 1.0)).sum(dtype=np.float64))
        few = np.argpartition(row, -_FEW)[-_FEW:] if len(row) > _FEW else np.arange(len(row))
        scaled = (row.astype(np.float64) - row.max()) / s.temperature
        firsts, group = np.unique(self._first_ids[few], return_inverse=True)
        shares = np.bincount(group, np.exp(scaled[few]))
        logits = (np.log(np.maximum(shares, 1e-30)) * s.temperature).astype(np.float32)
        chosen = edgekernels.sample(
            logits[None],
            temperature=s.temperature,
            top_k=s.top_k,
            top_p=s.top_p,
            min_p=s.min_p,
            seed=s.seed,
            position=position,
            token_ids=firsts.astype(np.int32),
        )[0]
        at = int(np.flatnonzero(firsts == chosen)[0])
        members = few[group == at]
        return int(members[row[members].argmax()]), float(shares[at] / np.exp(scaled).sum())


def _first_ids(pieces: Sequence[bytes], theirs: PieceEncoder, size: int) -> NDArray[np.int32]:
    """The target's token that each piece begins with: the longest, as whoever encodes it by itself mostly would."""
    found = np.zeros(size, np.int32)
    for index, piece in enumerate(pieces[:size]):
        for length in range(min(len(piece), 24), 0, -1):
            token = theirs.ids.get(piece[:length])
            if token is not None:
                found[index] = token
                break
    return found
