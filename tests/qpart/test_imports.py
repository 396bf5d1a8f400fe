"""What importing qpart costs a device script."""

import os
import subprocess
import sys


def test_import_is_fast_and_brings_no_model_library(tmp_path):
    code = (
        "import sys, time, numpy; start = time.thread_time(); import qpart; took = time.thread_time() - start; "
        "print(took, [m for m in ('zmq', 'torch', 'scipy', 'safetensors', 'typer') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    outputs = [  # the first compiles it
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout.split(maxsplit=1)
        for _ in range(4)
    ]
    assert min(float(took) for took, _ in outputs) < 0.2
    assert outputs[0][1].strip() == "[]"


def test_threads_of_the_command_line_do_not_spin_while_they_wait():
    """OpenMP reads its environment when it is loaded: nothing may load it before the commands have set that."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-m", "qpart.cli", "calibrate", "--help"],
        env={**environment, "OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    said = [line.split("=")[1].strip() for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert said
    assert set(said) == {"'0'"}


def test_calibrating_quantises_layers_side_by_side_and_not_each_with_several_threads():
    """Products of both threads that each wake threads of their own take five times as long as one after the other."""
    code = (
        "import os, sys, qpart.cli, edgebus.cli.environment; assert 'numpy' not in sys.modules; "
        "sys.argv = ['qpart', sys.argv[1], '--help']\n"
        "try: qpart.cli.main()\n"
        "finally: print('threads', os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    said = [
        subprocess.run(
            [sys.executable, "-c", code, command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.split()[-1]
        for command in ("calibrate", "infer")
    ]
    assert said == ["1", "None"]
