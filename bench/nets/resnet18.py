"""ResNet-18, whose size calibration is timed with: 11 million parameters."""

from __future__ import annotations

import torch
from torch import nn

from qpart.demo.nets import Block

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))


class ResNet18(nn.Module):  # type: ignore[misc]  # torch is seen as untyped
    """Stem of stride 2 and a pool, four stages of two residual blocks, the mean and a linear layer.

    Args:
        num_classes: of the answer.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        channels = STAGES[0][0]
        self.conv = nn.Conv2d(3, channels, 7, 2, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        blocks = []
        for out_channels, stride in STAGES:
            blocks += [Block(channels, out_channels, stride), Block(out_channels, out_channels, 1)]
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, 3, height, width) to logits (batch, num_classes)."""
        x = self.blocks(self.pool(torch.relu(self.bn(self.conv(x)))))
        return self.fc(x.mean((2, 3)))
