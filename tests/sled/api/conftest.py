"""Fixtures: a whole `sled api` before a toy target."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import pytest

from sled import Window
from sled.testing import ToyDrafter
from tests.sled.api.serving import serving_http
from tests.sled.conftest import Served


@contextmanager
def starting(served, drafter=None, timeout_s=10.0, **options):
    """Bus server, devices and HTTP server; options as `serving_http` takes them."""

    def make():
        drafts = drafter() if drafter else ToyDrafter(served.target, error=0.3)
        device = served.device(endpoint, drafts, timeout_s)
        device.generate = partial(device.generate, window=Window(4))  # a toy target is too fast for drafting to pay
        return device

    with served.serving() as endpoint, serving_http(make, **options) as api:
        yield api


@pytest.fixture
def start_api(served):
    """`with start_api(...) as api`: one of its own."""
    return lambda drafter=None, **options: starting(served, drafter, **options)


@pytest.fixture(scope="session")
def api(tmp_path_factory):
    """One with one device for all tests: it must outlive everything they do to it."""
    with starting(Served(tmp_path_factory.mktemp("api"))) as running:
        yield running
