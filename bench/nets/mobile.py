"""A MobileNet-style net for small images: depthwise convolutions between thin residual connections."""

from __future__ import annotations

import torch
from torch import nn

from qpart.ops import Shape

# Channels behind the block, its stride, and how many times wider it is inside.
BLOCKS = ((16, 1, 1), (32, 2, 4), (32, 1, 4), (96, 2, 6), (96, 1, 6))


def _layer(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU6."""
    padding = kernel // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):  # type: ignore[misc]  # torch is seen as untyped
    """Widen, convolve each channel by itself, narrow; the thin ends are added where they have the same shape.

    Source: Sandler et al., MobileNetV2, CVPR 2018.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.widen = _layer(in_channels, width, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _layer(width, width, 3, stride, groups=width)
        self.narrow = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, in_channels, height, width) to (batch, out_channels, height / stride, width / stride)."""
        y = self.bn(self.narrow(self.depthwise(self.widen(x))))
        return x + y if self.is_residual else y


class SmallMobileNet(nn.Module):  # type: ignore[misc]  # torch is seen as untyped
    """A stem of stride 2, five inverted residuals, a last 1 x 1 convolution, the mean and a linear layer.

    Args:
        input_shape: (channels, height, width), at least 8 x 8.
        num_classes: of the answer.
        features: channels before the mean.
    """

    def __init__(self, input_shape: Shape, num_classes: int, features: int = 320) -> None:
        super().__init__()
        channels = BLOCKS[0][0]
        self.stem = _layer(input_shape[0], channels, 3, 2)
        blocks = []
        for out_channels, stride, expansion in BLOCKS:
            blocks.append(InvertedResidual(channels, out_channels, stride, expansion))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.last = _layer(channels, features, 1)
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, *input_shape) to logits (batch, num_classes)."""
        return self.fc(self.last(self.blocks(self.stem(x))).mean((2, 3)))
