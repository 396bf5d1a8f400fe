"""Whatever happens to servers, devices and memory, every device gets the target's own answer."""

from __future__ import annotations

import pytest

from tests.sled.world import World


@pytest.mark.parametrize("share", ["all", "owner", "none"])
@pytest.mark.parametrize("seed", range(12))
def test_any_misfortune_gives_the_plain_answer(seed, share):
    world = World(seed, share=share)
    for _ in range(200):
        world.tick()
        world.check()
    world.settle()
    world.check()
    world.close()
