"""Trains the four nets: `python -m bench.nets.train --out DIR`, or one of them with `--net`."""

from __future__ import annotations

import sys

from bench.nets.recipes import RECIPES
from qpart.demo import train

if __name__ == "__main__":
    sys.exit(train.main(recipes=RECIPES, prog="python -m bench.nets.train"))
