"""Nets as people write them: a mobile net with squeeze-and-excitation, transformers, and many styles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Squeeze(nn.Module):
    """Squeeze-and-excitation, as in MobileNet-v3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x):
        scale = functional.adaptive_avg_pool2d(x, 1)
        return x * functional.hardsigmoid(self.up(functional.relu(self.down(scale))))


class Inverted(nn.Module):
    """Expand, depthwise, squeeze, project; a residual where the shape stays."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.block = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(inplace=True),
            nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(inplace=True),
            Squeeze(wide),
            nn.Conv2d(wide, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.residual = stride == 1 and channels == out

    def forward(self, x):
        return x + self.block(x) if self.residual else self.block(x)


def mobile_v3() -> nn.Module:
    """Two inverted blocks, the second with a residual."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.Hardswish(),
        Inverted(4, 8, 3, 2), Inverted(8, 8, 5, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(16, 5),
    )  # fmt: skip


class Block(nn.Module):
    """A block of a vision transformer, attention by hand."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5
        mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.project(mixed)
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, class token, learned positions, pre-norm blocks, a head on the first token."""

    def __init__(self, width: int = 12, heads: int = 3, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Encoder(nn.Module):
    """nn.TransformerEncoder, mean over the sequence, a classifier."""

    def __init__(self, width: int = 8, layers: int = 1, **options: Any) -> None:
        super().__init__()
        options = {"batch_first": True, "norm_first": True, "activation": "gelu", **options}
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, **options)
        self.embed = nn.Linear(3, width)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(dim=1))


class Of(nn.Module):
    """A module around a function of (module, x), with parts to use; its results go through one more layer."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)
        self.last = nn.LazyLinear(3)

    def forward(self, x):
        return self.last(self.function(self, x).reshape(x.shape[0], -1))


P, F, R, MHA = nn.Parameter, functional, torch.randn, nn.MultiheadAttention
SEQUENCE, IMAGE = (5, 8), (4, 6, 6)


def _heads(x, heads=2):
    return x.view(x.shape[0], 5, heads, -1).transpose(1, 2)


def _joined(x):
    return x.transpose(1, 2).flatten(2)


def _activations(m, x):
    y = F.mish(F.softplus(F.elu(F.leaky_relu(F.gelu(F.gelu(F.silu(F.hardswish(x))), approximate="tanh")))))
    y = y + F.celu(x, 0.5) + F.selu(x) + m.p(x) + F.logsigmoid(x) + F.softsign(x) + F.tanhshrink(x) + F.hardsigmoid(x)
    return y + F.relu6(x) + F.hardtanh(x) + x.abs() + torch.exp(-x * x) + x.pow(3)


def _positions(m, x):
    y = x[:, 0] + x[:, [1]].squeeze(1) + x.amax(1) + x.max(1)[0] + x.mean(1) + x.std(1) + x.norm(dim=1) + x[:, -1]
    return y + x[:, 1:3].sum(1) + x[:, ::2].mean(1) + x[:, [4, 0, 2]].mean(1) + F.normalize(x, dim=-1)[:, 0]


def _swin(m, x):
    w = torch.roll(x.permute(0, 2, 3, 1), (-1, -1), (1, 2)).view(x.shape[0], 2, 3, 2, 3, 4)
    w = w.permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, 2, 2).transpose(1, 2)
    w = F.scaled_dot_product_attention(w, w, w)
    return w.view(x.shape[0], 2, 2, 2, 3, 3, 2).permute(0, 1, 4, 2, 5, 3, 6).reshape(x.shape[0], 6, 6, 4)


def _pools(m, x):
    y = F.interpolate(F.adaptive_avg_pool2d(x, 4) + F.adaptive_max_pool2d(x, 4), scale_factor=2).mean((1,))
    y = y + F.max_pool2d(x, 2, 2, ceil_mode=True).sum((1, 2, 3), keepdim=True).squeeze(1)
    return y + F.avg_pool2d(x, 3, 1, 1, count_include_pad=False).amax((2, 3)).mean(1, keepdim=True)[:, :, None]


STYLES: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]], tuple[int, ...]]] = {
    "attention with weights": (lambda m, x: m.a(x, x, x)[0], lambda: {"a": MHA(8, 2, batch_first=True)}, SEQUENCE),
    "attention, causal": (
        lambda m, x: m.a(x, x, x, need_weights=False, attn_mask=torch.ones(5, 5).triu(1).bool())[0],
        lambda: {"a": MHA(8, 2, batch_first=True)},
        SEQUENCE,
    ),
    "attention, batch second": (
        lambda m, x: m.a(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1), lambda: {"a": MHA(8, 2)}, SEQUENCE,
    ),
    "attention from a learned query": (
        lambda m, x: m.a(m.q.expand(x.shape[0], -1, -1), x, x)[0],
        lambda: {"a": MHA(8, 2, batch_first=True), "q": P(R(1, 1, 8))},
        SEQUENCE,
    ),
    "attention of chunks": (
        lambda m, x: _joined(F.scaled_dot_product_attention(*map(_heads, m.l(x).chunk(3, -1)), is_causal=True)),
        lambda: {"l": nn.Linear(8, 24)},
        SEQUENCE,
    ),
    "attention with a bias by position": (
        lambda m, x: _joined(F.scaled_dot_product_attention(*[_heads(x)] * 3, attn_mask=m.b)),
        lambda: {"b": P(R(1, 2, 5, 5))},
        SEQUENCE,
    ),
    "attention of grouped queries": (
        lambda m, x: F.scaled_dot_product_attention(_heads(x, 4), *[_heads(m.k(x))] * 2, enable_gqa=True),
        lambda: {"k": nn.Linear(8, 4)},
        SEQUENCE,
    ),
    "attention masked by hand": (
        lambda m, x: (x @ x.mT).masked_fill(torch.ones(5, 5).tril() == 0, float("-inf")).softmax(-1) @ x,
        dict,
        SEQUENCE,
    ),
    "attention pooling": (lambda m, x: (F.softmax(m.w(x), 1) * x).sum(1), lambda: {"w": nn.Linear(8, 1)}, SEQUENCE),
    "attention in shifted windows": (_swin, dict, IMAGE),
    "constants joined on either side": (
        lambda m, x: torch.cat([m.c.repeat(x.shape[0], 1, 1), x, torch.zeros(x.shape[0], 1, 8)], 1),
        lambda: {"c": P(R(1, 2, 8))},
        SEQUENCE,
    ),
    "rotary embedding": (
        lambda m, x: x * m.c + torch.cat([-x[..., 4:], x[..., :4]], -1) * m.s,
        lambda: {"c": P(R(5, 8)), "s": P(R(5, 8))},
        SEQUENCE,
    ),
    "norms": (
        lambda m, x: m.i(m.g(x)) + m.j(x) + m.r(x),
        lambda: {
            "g": nn.GroupNorm(5, 5), "i": nn.InstanceNorm1d(5, affine=True), "j": nn.InstanceNorm1d(5),
            "r": nn.RMSNorm(8),
        },
        SEQUENCE,
    ),
    "norms by hand": (
        lambda m, x: m.g * (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)
        + x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),
        lambda: {"g": P(torch.rand(8))},
        SEQUENCE,
    ),
    "norms of images": (
        lambda m, x: m.n(x) + m.g(x), lambda: {"n": nn.LayerNorm(IMAGE), "g": nn.GroupNorm(2, 4)}, IMAGE,
    ),
    "batch norms that follow no layer": (
        lambda m, x: F.relu(m.b(F.relu(m.a(x)))) + m.s[:, None, None] * x,
        lambda: {"a": nn.BatchNorm2d(4), "b": nn.BatchNorm2d(4), "s": P(torch.rand(4))},
        IMAGE,
    ),
    "activations": (_activations, lambda: {"p": nn.PReLU(5)}, SEQUENCE),
    "gates and einsum": (
        lambda m, x: torch.einsum("bij,bkj->bik", *x.chunk(2, -1)) @ F.glu(x), dict, SEQUENCE,
    ),
    "masks, numbers on the left": (
        lambda m, x: torch.where(torch.arange(8) > 3, x, 0.5) + 1 / (1 + x * x) + (2 - x) / 3 + x / m.d
        - torch.tensor(1.5),
        lambda: {"d": P(torch.rand(8) + 1)},
        SEQUENCE,
    ),
    "softmax and its logarithm": (lambda m, x: F.log_softmax(x, -1) + F.softmax(x, 1), dict, SEQUENCE),
    "positions": (_positions, dict, SEQUENCE),
    "rolled, flipped, stacked": (
        lambda m, x: torch.roll(x.flip(1), (1,), (1,)) + torch.stack([x[..., 0], x[..., 1]], -1).sum(-1, keepdim=True),
        dict,
        SEQUENCE,
    ),
    "mixer": (
        lambda m, x: m.b(F.gelu(m.a(x.mT))).mT + x + m.w @ x,
        lambda: {"a": nn.Linear(5, 7), "b": nn.Linear(7, 5), "w": P(R(5, 5))},
        SEQUENCE,
    ),
    "convolutions over sequences": (
        lambda m, x: F.adaptive_max_pool1d(F.pad(F.max_pool1d(m.b(m.c(x)), 2), (0, 1)), 2)
        + F.adaptive_avg_pool1d(F.avg_pool1d(m.c(x), 2), 2),
        lambda: {"c": nn.Conv1d(5, 3, 3, padding=1), "b": nn.BatchNorm1d(3)},
        SEQUENCE,
    ),
    "gated recurrence": (lambda m, x: m.g(x)[0], lambda: {"g": nn.GRU(8, 4, batch_first=True)}, SEQUENCE),
    "squeeze by linear layers": (
        lambda m, x: x * torch.sigmoid(m.b(F.relu(m.a(x.mean((2, 3)))))).view(x.shape[0], 4, 1, 1).expand_as(x),
        lambda: {"a": nn.Linear(4, 2), "b": nn.Linear(2, 4)},
        IMAGE,
    ),
    "uneven padding": (
        lambda m, x: m.a(F.pad(x, (0, 1, 0, 1))) + m.b(x)[:, :, :3, :3]
        + F.conv2d(F.pad(x, (1, 1, 1, 1)), m.a.weight, stride=2),
        lambda: {"a": nn.Conv2d(4, 3, 3, 2), "b": nn.Conv2d(4, 3, 2, padding="same")},
        IMAGE,
    ),
    "pools": (_pools, dict, (4, 7, 7)),
    "shuffles": (
        lambda m, x: F.pixel_unshuffle(F.channel_shuffle(x, 2), 2)
        + F.pixel_unshuffle(F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2), 2),
        dict,
        IMAGE,
    ),
    "channels last": (
        lambda m, x: x + (m.g * m.q(F.gelu(m.p(m.n(m.d(x).permute(0, 2, 3, 1)))))).permute(0, 3, 1, 2),
        lambda: {
            "d": nn.Conv2d(4, 4, 7, padding=3, groups=4), "n": nn.LayerNorm(4), "p": nn.Linear(4, 16),
            "q": nn.Linear(16, 4), "g": P(torch.rand(4)),
        },
        (4, 8, 8),
    ),
}  # fmt: skip
