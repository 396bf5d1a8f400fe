"""Two runs of `sled distill` with one directory: the second is refused; a dead one is no hindrance."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from sled.distill.alone import alone_in
from sled.errors import DirectoryInUse

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


@pytest.mark.net
def test_directory_of_a_killed_run_is_free(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in\n"
        with pytest.raises(DirectoryInUse, match=f"process {process.pid} "), alone_in(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    with alone_in(tmp_path):
        assert (tmp_path / "running").read_text() == f"{os.getpid()}\n"
