"""The networks of the demonstration. Inputs are pixels / 255; nothing else is expected of them."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import torch
from torch import nn

from qpart.ops import Shape

HIDDEN = (512, 256, 128, 64, 32)


class FullyConnected(nn.Module):  # type: ignore[misc]  # torch is seen as untyped
    """Six linear layers 512-256-128-64-32-classes with ReLU between them, which is the net of the paper.

    Args:
        input_shape: per sample, any.
        num_classes: of the answer.
    """

    def __init__(self, input_shape: Shape, num_classes: int) -> None:
        super().__init__()
        sizes = (prod(input_shape), *HIDDEN, num_classes)
        for i, (before, after) in enumerate(pairwise(sizes), 1):
            self.add_module(f"fc{i}", nn.Linear(before, after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, *input_shape) to logits (batch, classes)."""
        x = x.flatten(1)
        *hidden, last = self.children()
        for layer in hidden:
            x = torch.relu(layer(x))
        return last(x)


class Block(nn.Module):  # type: ignore[misc]  # torch is seen as untyped
    """Two 3 x 3 convolutions with a residual connection, projected where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.project: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.project = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, in_channels, height, width) to (batch, out_channels, height / stride, width / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.project is None else self.bn3(self.project(x))
        return torch.relu(y + shortcut)


class SmallResNet(nn.Module):  # type: ignore[misc]  # torch is seen as untyped
    """ResNet-8: a stem, three stages of one block each with width, 2 width and 4 width channels, and a linear layer.

    Args:
        input_shape: (channels, height, width), at least 8 x 8.
        num_classes: of the answer.
        width: channels of the stem; 16 makes 78 thousand parameters.
        stem_stride: 2 halves height and width at once, for a quarter of the work.
    """

    def __init__(self, input_shape: Shape, num_classes: int, width: int = 16, stem_stride: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], width, 3, stem_stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stage1 = Block(width, width, 1)
        self.stage2 = Block(width, 2 * width, 2)
        self.stage3 = Block(2 * width, 4 * width, 2)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, channels, height, width) to logits (batch, classes)."""
        x = torch.relu(self.bn(self.stem(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(x.mean((2, 3)))
