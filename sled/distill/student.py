"""The network that learns: a Llama, plain and quick to train."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from sled.distill.shapes import Shape

Tensor = Any  # torch.Tensor


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of (rows, tokens, heads, head_dim) by tables (tokens, 1, head_dim).

    Source: RoFormer (arXiv 2104.09864), pairs head_dim / 2 apart.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


class Block(nn.Module):
    """One layer: attention and MLP, each behind its norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        heads, all_heads = shape.heads, shape.heads + 2 * shape.kv_heads
        self.attention_norm = nn.Parameter(torch.ones(shape.width))
        self.ffn_norm = nn.Parameter(torch.ones(shape.width))
        self.qkv = nn.Linear(shape.width, all_heads * shape.head_dim, bias=False)
        self.output = nn.Linear(heads * shape.head_dim, shape.width, bias=False)
        self.gate_up = nn.Linear(shape.width, 2 * shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, shape.width, bias=False)
        for wide in (self.qkv, self.gate_up):
            nn.init.normal_(wide.weight, std=shape.width**-0.5)
        for narrow in (self.output, self.down):
            nn.init.normal_(narrow.weight, std=(2 * shape.layers * narrow.in_features) ** -0.5)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Residual stream (rows, tokens, width) to the next."""
        shape, (rows, tokens, width) = self.shape, x.shape
        normed = functional.rms_norm(x, (width,), self.attention_norm.to(x.dtype), shape.epsilon)
        mixed = self.qkv(normed).view(rows, tokens, -1, shape.head_dim)
        both, values = mixed.split([shape.heads + shape.kv_heads, shape.kv_heads], dim=2)
        queries, keys = turned(both, cosine, sine).split([shape.heads, shape.kv_heads], dim=2)
        shared = shape.heads // shape.kv_heads
        if shared > 1:  # copied for the kernel that needs no mask in memory
            keys, values = keys.repeat_interleave(shared, 2), values.repeat_interleave(shared, 2)
        seen = functional.scaled_dot_product_attention(
            queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), is_causal=True
        )
        x = x + self.output(seen.transpose(1, 2).flatten(2))
        normed = functional.rms_norm(x, (width,), self.ffn_norm.to(x.dtype), shape.epsilon)
        gate, up = self.gate_up(normed).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class Student(nn.Module):
    """A causal language model over its own ids.

    Args:
        shape: of it.
        length: longest text it is trained on.
    """

    def __init__(self, shape: Shape, length: int) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocab, shape.width) * 0.02)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.width))
        self.unembedding = None if shape.tied else nn.Parameter(torch.randn(shape.vocab, shape.width) * 0.02)
        frequencies = shape.theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angles = torch.arange(length).float()[:, None] * frequencies
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    @property
    def head(self) -> Tensor:
        """The matrix (vocab, width) from hidden states to logits."""
        return self.embedding if self.unembedding is None else self.unembedding

    def hidden(self, ids: Tensor) -> Tensor:
        """Hidden states (rows, tokens, width) of texts (rows, tokens) in its own ids."""
        x = functional.embedding(ids, self.embedding)
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        tokens = ids.shape[1]
        cosine, sine = self.cosine[:tokens].to(x.dtype), self.sine[:tokens].to(x.dtype)
        for block in self.blocks:
            x = block(x, cosine, sine)
        normed = functional.rms_norm(x, (self.shape.width,), self.norm.to(x.dtype), self.shape.epsilon)
        return normed.to(x.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (rows, tokens, vocab) of texts (rows, tokens)."""
        return functional.linear(self.hidden(ids), self.head)

    def hugging_face(self) -> dict[str, Tensor]:
        """Its weights, float32 on the CPU, by the names of transformers' Llama."""
        shape, d = self.shape, self.shape.head_dim
        found = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if self.unembedding is not None:
            found["lm_head.weight"] = self.unembedding
        for number, block in enumerate(self.blocks):
            at = f"model.layers.{number}."
            query, key, value = block.qkv.weight.split([shape.heads * d, shape.kv_heads * d, shape.kv_heads * d])
            gate, up = block.gate_up.weight.chunk(2)
            found |= {
                f"{at}input_layernorm.weight": block.attention_norm,
                f"{at}post_attention_layernorm.weight": block.ffn_norm,
                f"{at}self_attn.q_proj.weight": query,
                f"{at}self_attn.k_proj.weight": key,
                f"{at}self_attn.v_proj.weight": value,
                f"{at}self_attn.o_proj.weight": block.output.weight,
                f"{at}mlp.gate_proj.weight": gate,
                f"{at}mlp.up_proj.weight": up,
                f"{at}mlp.down_proj.weight": block.down.weight,
            }
        return {name: weight.detach().float().cpu().contiguous() for name, weight in found.items()}

    @torch.no_grad()
    def take_layers(self, weights: dict[str, Tensor], kept: tuple[int, ...]) -> None:
        """Begin with these layers of a Llama whose weights have transformers' names."""
        self.norm.copy_(weights["model.norm.weight"])
        for block, number in zip(self.blocks, kept, strict=True):
            at = f"model.layers.{number}."
            block.attention_norm.copy_(weights[f"{at}input_layernorm.weight"])
            block.ffn_norm.copy_(weights[f"{at}post_attention_layernorm.weight"])
            parts = [weights[f"{at}self_attn.{part}_proj.weight"] for part in "qkv"]
            block.qkv.weight.copy_(torch.cat(parts))
            block.output.weight.copy_(weights[f"{at}self_attn.o_proj.weight"])
            gate_up = [weights[f"{at}mlp.{part}_proj.weight"] for part in ("gate", "up")]
            block.gate_up.weight.copy_(torch.cat(gate_up))
            block.down.weight.copy_(weights[f"{at}mlp.down_proj.weight"])
