"""Processes that a test starts, and stops where they are."""

from __future__ import annotations

import os
import signal
import subprocess


def freeze(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Stop a child as SIGSTOP does, and return when each of its threads stands still.

    `kill` only sends the signal: until the thread that takes it is scheduled, the others go on and may answer.
    """
    os.kill(process.pid, signal.SIGSTOP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"ended instead of stopping: {status}"
