"""What a device holds when it runs its part of a network."""

from __future__ import annotations

import pytest

from qpart.network import Node
from qpart.ops import Conv2d
from qpart.sizes import peak_items


@pytest.mark.parametrize(("channels", "filled"), [(288, 288), (290, 320)])
def test_memory_of_a_convolution_counts_the_columns_that_its_packed_matrix_fills_up(channels, filled):
    op = Conv2d((1, 1), (1, 1), (0, 0), channels, 300)
    shapes = ((channels, 7, 7), (300, 7, 7))
    scratch = op.scratch_items(shapes[0])
    assert peak_items((Node(op, (0,)),), shapes, (1,)) == (channels + 300) * 49 + scratch + 300 * filled
