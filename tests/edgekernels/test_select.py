"""Choice of backend and level through the environment, each in a fresh interpreter."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

EXTENSIONS = tuple(f"edgekernels._{family}" for family in ("accept", "bits", "gemm", "decode", "attend"))
built = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in EXTENSIONS), reason="the compiled kernels are not built"
)

HIDE = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest, find=find: None if name in {hidden} else find(name, *rest)
sys.modules.update(dict.fromkeys({hidden}))
"""
hidings = pytest.mark.parametrize(
    "hide",
    [HIDE.format(hidden=names) for names in (EXTENSIONS, *((name,) for name in EXTENSIONS))],
    ids=("all", *EXTENSIONS),
)
SHOW = "import edgekernels; print(edgekernels.backend())"


def run(script, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKERNELS_")}
    clean |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} | environment
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60, check=False)


def test_numpy_can_be_forced_and_is_silent():
    result = run(SHOW, EDGEKERNELS_BACKEND="numpy")
    assert (result.stdout, result.stderr) == ("numpy\n", "")


@built
@pytest.mark.native
def test_compiled_kernels_are_the_default():
    result = run(SHOW)
    assert (result.stdout, result.stderr) == ("cython\n", "")


@built
@pytest.mark.native
def test_level_can_be_forced():
    result = run(
        "from edgekernels import _accept as a, _bits as b, _gemm as g, _decode as d; "
        "print(a.level(), b.level(), g.level(), d.level())",
        EDGEKERNELS_LEVEL="base",
    )
    assert result.stdout == "base base base base\n"


@built
@pytest.mark.native
def test_all_parts_switch_together():
    script = (
        "from edgekernels import _accept, _select as s; import edgekernels._reference as r; "
        "s.use(r); print(s.active.NAME, s.active_bits.NAME, s.active_gemm.NAME); "
        "s.use(_accept); print(s.active.NAME, s.active_bits.NAME, s.active_gemm.NAME)"
    )
    assert run(script).stdout == "numpy numpy numpy\ncython cython cython\n"


@built
@pytest.mark.native
def test_unknown_level_is_an_error():
    result = run(SHOW, EDGEKERNELS_LEVEL="mmx")
    assert result.returncode == 1
    assert "ImportError: EDGEKERNELS_LEVEL: level 'mmx' is not available here; use one of" in result.stderr


def test_unknown_backend_is_an_error():
    result = run(SHOW, EDGEKERNELS_BACKEND="fortran")
    assert result.returncode == 1
    assert "ImportError: EDGEKERNELS_BACKEND='fortran' is unknown; set one of cython, numba, numpy" in result.stderr


NO_NUMBA = HIDE.format(hidden=("numba",))


@hidings
def test_without_compiled_kernels_numba_serves_with_one_warning(hide):
    pytest.importorskip("numba")
    result = run(hide + SHOW)
    assert result.stdout == "numba\n"
    assert result.stderr.count("no compiled kernels") == 1
    assert "numba takes their place" in result.stderr


def test_numba_can_be_forced_and_is_silent():
    pytest.importorskip("numba")
    result = run(SHOW, EDGEKERNELS_BACKEND="numba")
    assert (result.stdout, result.stderr) == ("numba\n", "")


def test_numba_forced_without_it_is_an_error():
    result = run(NO_NUMBA + SHOW, EDGEKERNELS_BACKEND="numba")
    assert result.returncode == 1
    assert "pip install edgebus[numba]" in result.stderr


@hidings
def test_without_compiled_kernels_and_numba_numpy_serves_with_one_warning(hide):
    result = run(hide + NO_NUMBA + SHOW)
    assert result.stdout == "numpy\n"
    assert result.stderr.count("no compiled kernels") == 1
    assert "RuntimeWarning" not in result.stderr


@hidings
def test_without_compiled_kernels_forcing_them_is_an_error(hide):
    result = run(hide + SHOW, EDGEKERNELS_BACKEND="cython")
    assert result.returncode == 1
    assert "are not built" in result.stderr


def test_import_is_light_and_sets_no_version():
    script = (
        "import sys, edgekernels; "
        "print(hasattr(edgekernels, '__version__'), {'torch', 'zmq', 'scipy'} & set(sys.modules))"
    )
    assert run(script, EDGEKERNELS_BACKEND="numpy").stdout == "False set()\n"


def test_compiled_kernels_are_there_wherever_a_compiler_is() -> None:
    """Native tests skip without the extension; this one does not let that pass unnoticed."""
    if shutil.which("cc"):
        for name in EXTENSIONS:
            assert importlib.util.find_spec(name) is not None, f"no {name}, install again: pip install -e ."


@built
@pytest.mark.native
def test_first_call_after_import_is_quick(tmp_path):
    """Nothing is compiled or built lazily: importing costs less than numpy does, and the first call next to nothing."""
    script = (
        "import time; start = time.thread_time(); import numpy as np; numpy_s = time.thread_time() - start; "
        "logits = np.zeros((2, 32000), np.float32); start = time.thread_time(); "
        "import edgekernels; loaded = time.thread_time(); "
        "edgekernels.sample(logits, temperature=0.8, top_p=0.9); "
        "print((loaded - start) / numpy_s, (time.thread_time() - loaded) * 1e3)"
    )
    byte_code = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}  # the first run compiles it
    runs = [run(script, **byte_code).stdout.split() for _ in range(4)]
    assert min(float(ratio) for ratio, _ in runs[1:]) < 1, "about 0.15"
    assert min(float(first_ms) for _, first_ms in runs[1:]) < 50, "about 0.4"
