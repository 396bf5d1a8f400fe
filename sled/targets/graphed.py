"""A transformers model on CUDA: compiled layers, joined projections, captured forwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sled.acceptance import Decision, RoundRows
from sled.targets.causal_lm import CausalLMTarget, finish, memory_given_back, on_device
from sled.targets.decide import decide
from sled.targets.graphs import Batch, GraphedForward, Pages
from sled.targets.joined import join_projections
from sled.targets.layout import check_rounds, lay_out
from sled.targets.sizes import measured_on
from sled.targets.text import TextCodec
from sled.types import Chunk, Sampling  # noqa: F401  (Sampling in a doctest)

Tensor = Any  # torch.Tensor
_COMPILED_FORMS = 64  # of one layer: sizes of 1 and the rest, rows of a piece, whether it is divided


class GraphedTarget(CausalLMTarget):
    """A target that packs, replays and decides on one CUDA device.

    Args:
        model: a causal language model on a CUDA device; its projections are joined.
        codec: its tokenizer.
        name: what devices are told.
        max_window: drafts per round that devices may send.
        kv_bytes: memory for keys and values; None takes a share of what is free.
        page_tokens: positions in a page: 16, 32, 64 or more powers of two.
        attention: "auto" or "triton".

    Raises:
        UnknownModel: it computes something besides plain attention.
        OutOfMemory: no room for `kv_bytes`.
    """

    def __init__(
        self,
        model: Any,
        codec: TextCodec,
        *,
        name: str,
        max_window: int = 16,
        kv_bytes: int | None = None,
        page_tokens: int | None = None,
        attention: str = "triton",
    ) -> None:
        super().__init__(
            model,
            codec,
            name=name,
            max_window=max_window,
            kv_bytes=kv_bytes,
            page_tokens=page_tokens,
            attention=attention,
        )
        join_projections(model)
        _compile(model, len(self._layers))
        self.graphs = GraphedForward(
            self._compute,
            model.device,
            kv_heads=self._backend.kv_heads,
            head_dim=self._backend.head_dim,
            num_windows=len(self._backend.windows),
            table_room=2 * self.shape.num_pages + 1024,
            sizes=measured_on(nn.ModuleList(_blocks(model, len(self._layers)))),
        )
        self._probe.check(self._captured_logits, self.shape.page_tokens)

    def verify(self, chunks: Sequence[Chunk], rounds: Sequence[RoundRows]) -> list[Decision]:
        """See `sled.targets.Target.verify`."""
        check_rounds(chunks, rounds)
        device = self.model.device
        with memory_given_back(device), on_device(device), torch.inference_mode():
            plain = all(map(_is_plain, rounds))
            result = self.graphs.run(self.pack(chunks), keep_logits=not plain)
            finish(device, rounds)
            return likeliest(result.token.tolist(), rounds) if plain else decide(result.logits, rounds)

    def pack(self, chunks: Sequence[Chunk]) -> Batch:
        """Chunks as one batch on the host."""
        layout = lay_out(chunks, page_tokens=self.shape.page_tokens, num_pages=self.shape.num_pages)
        batch: Batch = self._backend.pack(layout)
        return batch

    def _captured_logits(self, chunks: Sequence[Chunk]) -> Tensor:
        with on_device(self.model.device), torch.inference_mode():
            return self.graphs.run(self.pack(chunks), keep_logits=True).logits

    def _compute(self, tokens: Tensor, positions: Tensor, wanted: Tensor, pages: Pages) -> Tensor:
        keep = {"logits_to_keep": wanted} if self._takes_rows else {}
        logits = self.model(input_ids=tokens, position_ids=positions, use_cache=False, sled_plan=pages, **keep).logits[
            0
        ]
        return logits if keep else logits[wanted]


def likeliest(tokens: Sequence[int], rounds: Sequence[RoundRows]) -> list[Decision]:
    """Greedy decisions from the likeliest token of each row; -1 is a row of logits that are not numbers.

    >>> likeliest([7, 8, 9], [RoundRows((7, 5), Sampling(), 3)])[0].accepted
    1
    """
    decisions, start = [], 0
    for r in rounds:
        own = tokens[start : start + len(r.draft) + 1]
        start += len(own)
        accepted = 0
        while accepted < len(r.draft) and own[accepted] == r.draft[accepted]:
            accepted += 1
        decisions.append(Decision(accepted, own[accepted], -1 not in own))
    return decisions


def _is_plain(r: RoundRows) -> bool:
    """Whether the likeliest token of each row is all that decides."""
    s = r.sampling
    return s.temperature == 0.0 and not s.counts_tokens and not s.bias and r.allowed is None and r.num_logprobs < 0


def _blocks(model: Any, num_layers: int) -> list[Any]:
    """The model's layers, in whatever list of theirs it has them."""
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers)
    return [block for blocks in lists for block in blocks]


def _compile(model: Any, num_layers: int) -> None:
    """Compile the model's blocks: one program for all of them, and for all numbers of tokens."""
    limit = torch._dynamo.config
    limit.recompile_limit = max(limit.recompile_limit, _COMPILED_FORMS)
    for block in _blocks(model, num_layers):
        block.compile(dynamic=True)
    norm = getattr(model.base_model, "norm", None)
    if norm is not None:
        norm.compile(dynamic=True)
