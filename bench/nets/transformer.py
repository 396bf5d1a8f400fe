"""A small transformer encoder that looks at an image in patches."""

from __future__ import annotations

import torch
from torch import nn

from qpart.ops import Shape


class SmallTransformer(nn.Module):  # type: ignore[misc]  # torch is seen as untyped
    """Patches to tokens, encoder layers that normalise first, the mean over the tokens and a linear layer.

    Args:
        input_shape: (channels, height, width), height and width multiples of the patch.
        num_classes: of the answer.
        patch: side of a patch; 7 makes 16 tokens of 28 x 28, other images get patches of a quarter of their height.
        dim, depth, heads: of the encoder; its inner layer is twice as wide as `dim`.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021.
    """

    def __init__(
        self,
        input_shape: Shape,
        num_classes: int,
        patch: int | None = None,
        dim: int = 96,
        depth: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        side = patch or height // 4
        tokens = (height // side) * (width // side)
        self.patches = nn.Conv2d(channels, dim, side, side)
        self.positions = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, heads, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, *input_shape) to logits (batch, num_classes)."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.fc(self.norm(x).mean(1))
