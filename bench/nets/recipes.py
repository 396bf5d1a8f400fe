"""The four nets and how they are trained: seeds, epochs and learning rates, minutes on one core."""

from __future__ import annotations

from bench.nets.mobile import SmallMobileNet
from bench.nets.transformer import SmallTransformer
from qpart.demo import train
from qpart.demo.train import Recipe

RECIPES = {
    **train.RECIPES,
    "mobilenet": Recipe(SmallMobileNet, 6, 1, 1e-2, bfloat16=False),
    "transformer": Recipe(SmallTransformer, 10, 2, 2e-3, bfloat16=False),
}
TITLES = {
    "fc": "6-layer fully connected net",
    "resnet": "ResNet-8",
    "mobilenet": "MobileNet-style net",
    "transformer": "transformer encoder",
}
