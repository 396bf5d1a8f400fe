"""Two runs of `sled distill` with one directory: the second is refused; a dead one is no hindrance."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from sled.distill.alone import alone_in
from sled.errors import DirectoryInUse, LockUnavailable

HOLD = """
import sys, time
from pathlib import Path
from sled.distill.alone import alone_in
with alone_in(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


def test_second_run_is_refused_and_told_who_is_first(tmp_path):
    with alone_in(tmp_path):
        with pytest.raises(DirectoryInUse, match=f"process {os.getpid()} .* another directory"), alone_in(tmp_path):
            pass
        with alone_in(tmp_path.parent):
            pass  # another directory
    with alone_in(tmp_path):
        pass


def without_locks(monkeypatch, *roots, code=errno.ENOLCK):
    """No file below these directories can be locked, as on network file systems without a lock service."""
    real = fcntl.flock

    def flock(fd, how):
        path = os.readlink(f"/proc/self/fd/{fd}")
        if any(path.startswith(f"{root}/") for root in roots):
            raise OSError(code, os.strerror(code))
        real(fd, how)

    monkeypatch.setattr("sled.distill.alone.fcntl.flock", flock)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_without_locks_there_runs_on_this_machine_still_see_each_other(tmp_path, monkeypatch, caplog, code):
    far, near = tmp_path / "far", tmp_path / "near"
    for directory in (far, far / "other", near):
        directory.mkdir()
    (tmp_path / "same").symlink_to(far)
    without_locks(monkeypatch, far, code=code)
    monkeypatch.setattr("tempfile.tempdir", str(near))
    with alone_in(far):
        assert "has no locks" in caplog.text
        for name in (far, tmp_path / "same"):  # it is the directory that counts, not what it is called
            with pytest.raises(DirectoryInUse, match=f"process {os.getpid()} "), alone_in(name):
                pass
        with alone_in(far / "other"):
            pass
    with alone_in(far):
        pass


def test_without_locks_anywhere_the_error_has_a_name_and_a_remedy(tmp_path, monkeypatch):
    without_locks(monkeypatch, tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(LockUnavailable, match=r"no lock on .*local disk, or set TMPDIR"), alone_in(tmp_path):
        pass


@pytest.mark.net
def test_directory_of_a_killed_run_is_free(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in\n"
        with pytest.raises(DirectoryInUse, match=f"process {process.pid} "), alone_in(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    with alone_in(tmp_path):
        assert (tmp_path / "running").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("what", ["somebody else's", "a pipe", "a link"])
def test_what_lies_in_the_temporary_directory_under_the_name_of_the_lock_is_not_trusted(tmp_path, monkeypatch, what):
    far, near = tmp_path / "far", tmp_path / "near"
    far.mkdir()
    near.mkdir()
    without_locks(monkeypatch, far)
    monkeypatch.setattr("tempfile.tempdir", str(near))
    with alone_in(far):
        (lock,) = near.iterdir()
    if what == "somebody else's":
        owner = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: owner + 1)
        lock.rename(near / lock.name.replace(f"-{owner}-", f"-{owner + 1}-"))
    else:
        lock.unlink()
        if what == "a pipe":
            os.mkfifo(lock)
        else:
            lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LockUnavailable, match="local disk, or set TMPDIR"), alone_in(far):
        pass
    assert not (tmp_path / "elsewhere").exists()
