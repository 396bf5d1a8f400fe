"""What importing qpart costs a device script."""

import os
import subprocess
import sys


def test_import_is_fast_and_brings_no_model_library():
    code = (
        "import sys, time, numpy; start = time.thread_time(); import qpart; took = time.thread_time() - start; "
        "print(took, [m for m in ('zmq', 'torch', 'scipy', 'safetensors', 'typer') if m in sys.modules])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    outputs = [  # the first may have to compile it
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout.split(maxsplit=1)
        for _ in range(4)
    ]
    assert min(float(took) for took, _ in outputs) < 0.2
    assert outputs[0][1].strip() == "[]"
