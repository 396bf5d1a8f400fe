"""A process, a pool and a mapper for each test of shared memory."""

from __future__ import annotations

import pytest

from edgebus import shm
from tests.edgebus.shm.tools import MIB, Child


@pytest.fixture
def child():
    process = Child()
    yield process
    process.close()


@pytest.fixture
def pool():
    made = shm.Pool(4 * MIB, MIB)
    yield made
    made.close()


@pytest.fixture
def mapper():
    made = shm.Mapper()
    yield made
    made.close()
