"""The target as what a student learns from: hidden states of whole texts, its head, and many texts step by step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from sled.distill.lockstep import LOCKSTEP, Step, bias_of, drop_caches, hang_caches, row_bytes
from sled.distill.shapes import Shape
from sled.errors import UnknownModel
from sled.targets.pool import find_layers
from sled.targets.probe import check_kind, check_windows, max_positions
from sled.targets.text import TextCodec
from sled.vocabulary import vocabulary_hash

Tensor = Any  # torch.Tensor
_TOLERANCE = {torch.float32: 1e-3}
_COARSE = 0.1  # half precision through some tens of layers; what is left out or mixed shows as about 1
_TRIED = 12


class _Given(nn.Module):
    """Stands in a model's body and gives back the hidden states it is handed."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


class Head:
    """A target's own way from hidden states to logits, for all ids or some: the model's code around another matrix.

    Args:
        model: the causal language model.
        ids: int64 (n,), which logits are wanted; None is all.
    """

    def __init__(self, model: Any, ids: Tensor | None = None) -> None:
        self._model, self._columns = copy.copy(model), None
        self._model.__dict__["_modules"] = {**model._modules, model.base_model_prefix: _Given()}
        if ids is None:
            return
        whole = model.get_output_embeddings()
        place = next((name for name, module in model._modules.items() if module is whole), None)
        if place is None or type(whole) is not nn.Linear:
            self._columns = ids
            return
        cut = nn.Linear(whole.in_features, len(ids), bias=whole.bias is not None, device="meta")
        cut.weight = nn.Parameter(whole.weight.detach()[ids], requires_grad=False)
        if whole.bias is not None:
            cut.bias = nn.Parameter(whole.bias.detach()[ids], requires_grad=False)
        self._model._modules[place] = cut

    def __call__(self, hidden: Tensor) -> Tensor:
        """Hidden states (n, width) to logits (n, ids)."""
        logits = self._model(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return logits if self._columns is None else logits[:, self._columns]


class Teacher:
    """A causal language model of transformers, read only.

    Args:
        model: the model, on its device.
        codec: its tokenizer.
        name: what it is called.

    Raises:
        UnknownModel: it computes something besides plain attention and a head.
    """

    def __init__(self, model: Any, codec: TextCodec, name: str) -> None:
        check_kind(model)
        self.model, self.codec, self.name = model.eval().requires_grad_(False), codec, name
        self.device, self.dtype = model.device, model.dtype
        self.layers = find_layers(model)
        check_windows(model, self.layers)
        vocabulary = codec.vocabulary()
        config = model.config.get_text_config()
        self.vocab_hash, self.vocab_size = vocabulary_hash(vocabulary), int(config.vocab_size)
        self.num_ids = min(self.vocab_size, len(vocabulary.pieces))  # behind them a matrix is only padded
        self.positions = max_positions(model)
        right = self._own()
        model.set_attn_implementation(LOCKSTEP)
        self.head = Head(model)
        self._check(right)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Last hidden states (rows, length, width) of whole texts (rows, length)."""
        positions = torch.arange(tokens.shape[1], device=self.device)[None]
        return self.model.base_model(input_ids=tokens, position_ids=positions, use_cache=False)[0]

    def step(self, tokens: Tensor, step: Step) -> Tensor:
        """Take in one more token (rows, 1) of every text; logits (rows, ids) of what follows."""
        out = self.model.base_model(
            input_ids=tokens, position_ids=step.position[None].expand(len(tokens), 1), use_cache=False, sled_step=step
        )[0]
        return self.head(out[:, 0])[:, : self.num_ids]

    def step_at(self, position: Tensor, seen: int) -> Step:
        """All texts stand at `position` (1,); of what is before, `seen` positions are read."""
        windows = {layer.terms.window for layer in self.layers}
        return Step(position, seen, {window: bias_of(position, seen, window) for window in windows})

    def open_rows(self, rows: int, positions: int) -> None:
        """Room for so many texts at once."""
        hang_caches(self.layers, rows, positions, self.device)

    def close_rows(self) -> None:
        """Give it back."""
        drop_caches(self.layers)

    def row_bytes(self, positions: int) -> int:
        """Memory of one text while it is written: keys, values, and logits with the noise on them."""
        return row_bytes(self.layers, positions) + 16 * self.vocab_size

    def compile(self) -> None:
        """Compile the model's blocks: one program for all of them."""
        for blocks in self.model.modules():
            if isinstance(blocks, nn.ModuleList) and len(blocks) == len(self.layers):
                for block in blocks:
                    block.compile(dynamic=False)

    def shape(self) -> Shape | None:
        """Its shape if it is a plain Llama, whose layers a student can take over; else None."""
        config = self.model.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or {}
        if config.model_type not in ("llama", "mistral") or rope.get("rope_type", "default") != "default":
            return None
        if any(name.endswith(".bias") for name, _ in self.model.named_parameters()) or config.hidden_act != "silu":
            return None
        return Shape(
            vocab=self.num_ids,
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            ffn=config.intermediate_size,
            epsilon=config.rms_norm_eps,
            theta=self.theta(),
            positions=self.positions,
            tied=model_ties(self.model),
        )

    def theta(self) -> float:
        """Base of its rotary frequencies, or the usual one."""
        rope = getattr(self.model.config.get_text_config(), "rope_parameters", None) or {}
        return float(rope.get("rope_theta") or 10000.0) if not isinstance(rope.get("rope_theta"), dict) else 10000.0

    def _texts(self) -> Tensor:
        length = min(_TRIED, self.positions)
        rows: Sequence[list[int]] = [[(i * k + k) % self.num_ids for i in range(length)] for k in (7919, 104729)]
        return torch.tensor(rows, device=self.device)

    @torch.no_grad()
    def _own(self) -> Tensor:
        """The model's own logits of two texts, by the attention that leaves nothing out."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            return self.model(input_ids=self._texts(), use_cache=False).logits.float()
        finally:
            self.model.set_attn_implementation(before)

    @torch.no_grad()
    def _check(self, right: Tensor) -> None:
        """Hold both ways of ours, whole and step by step, against the model's own."""
        texts = self._texts()
        rows, length = texts.shape
        whole = self.head(self.hidden(texts).reshape(rows * length, -1)).float().view(rows, length, -1)
        self.open_rows(rows, length)
        steps = []
        for at in range(length):
            position = torch.tensor([at], device=self.device)
            steps.append(self.step(texts[:, at : at + 1], self.step_at(position, length)).float())
        self.close_rows()
        scale = right.abs().max()
        errors = [
            float((whole - right).abs().max() / scale),
            float((torch.stack(steps, 1) - right[..., : self.num_ids]).abs().max() / scale),
        ]
        if not max(errors) < _TOLERANCE.get(self.dtype, _COARSE):
            raise UnknownModel(
                f"{self.model.config.model_type} computes something besides plain attention and a head (logits are off "
                f"by {max(errors):.1%}), which is not supported yet; use another target"
            )


def model_ties(model: Any) -> bool:
    """Whether its head is its embedding."""
    return bool(model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr())
