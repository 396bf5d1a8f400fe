"""Where devices keep what they fetched, and files that are there whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from edgebus.errors import ConfigError
from edgebus.files import cache_dir, write_whole


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


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path, monkeypatch, step):
    path = tmp_path / "kept"
    write_whole(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(OSError, match="No space"):
            write_whole(path, b"new", durable=True)
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o640)])
def test_private_file_is_its_owners_alone_and_any_other_as_the_umask_says(tmp_path, private, mode):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "made" / "file", b"content", private=private)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "made" / "file").stat().st_mode) == mode
