"""What holds for all tests: threads of torch sleep while they wait, no hub is asked, and nobody's caches are used."""

from collections.abc import Iterator

import pytest

from edgebus.cli.environment import set_environment

set_environment()


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a device learned or fetched in one run of the tests is not known in the next, nor to the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield
