"""The base kernels answer alike on x86-64 and on aarch64, here under qemu."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "kernels" / "csrc"
FLAGS = ["-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-unknown-pragmas", f"-I{CSRC}"]


def answers(compiler, out, *runner):
    """The hash which the program prints, built by this compiler."""
    sources = [*sorted(CSRC.glob("accept_*.c")), CSRC / "cpu.c", HERE / "portable_accept.c"]
    command = [compiler, *FLAGS, *map(str, sources), "-static", "-lm", "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return subprocess.run([*runner, str(out)], check=True, capture_output=True, text=True, timeout=100).stdout


@pytest.mark.native
@pytest.mark.slow
def test_acceptance_is_the_same_on_both_architectures(tmp_path):
    tools = ("gcc", "aarch64-linux-gnu-gcc", "qemu-aarch64")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    here = answers("gcc", tmp_path / "here")
    assert len(here) == 17
    assert answers("aarch64-linux-gnu-gcc", tmp_path / "there", "qemu-aarch64") == here
