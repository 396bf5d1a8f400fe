"""Where devices keep what they fetched."""

from pathlib import Path

import pytest

from edgebus.errors import ConfigError
from edgebus.files import cache_dir


def test_cache_dir_is_as_the_environment_says(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere/edgebus")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/of-ours")
    assert cache_dir() == Path("/home/of-ours/.cache/edgebus")


def test_cache_dir_of_a_user_without_a_home_names_the_remedy(monkeypatch):
    # A container that runs under a number that no user has, and sets no HOME.
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    with pytest.raises(ConfigError, match="set XDG_CACHE_HOME"):
        cache_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere/edgebus")
