"""Targets: models that decide. torch and transformers are imported here, when a target is loaded, never before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sled.types import Chunk


class Target(Protocol):
    """What the server asks of a model."""

    def forward(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Logits (sum of num_logits, vocab) of the chunks' last tokens, in order.

        Keys and values of every chunk's tokens are kept for its session from position `past` on; what was
        kept beyond `past` is overwritten, which is how a rejected draft is rolled back.
        """

    def drop(self, session: bytes) -> None:
        """Free what is kept for a session; unknown sessions are fine."""
