"""Choice of the backend: the compiled kernels, or Numba or the numpy reference where one of them cannot be had."""

import importlib
import importlib.util
import os
import warnings
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekernels import _attention_reference, _bits_reference, _gemm_reference, _reference
from edgekernels._bits_backend import BitsBackend
from edgekernels._task import Task

if TYPE_CHECKING:
    from edgekernels._matrix import PackedMatrix

BACKENDS = ("cython", "numba", "numpy")
MODULES = ACCEPT, BITS, GEMM, DECODE, ATTEND = tuple(
    f"edgekernels._{family}" for family in ("accept", "bits", "gemm", "decode", "attend")
)  # extension modules


class Backend(Protocol):
    """What a backend offers for acceptance, with checked arguments and one entry per sequence or row in every array."""

    NAME: str

    def decide(self, task: Task) -> None: ...

    def noise_bits(
        self, seed: int, position: int, token_ids: npt.NDArray[np.int32], words: npt.NDArray[np.uint32]
    ) -> None: ...


class GemmBackend(Protocol):
    """What a backend offers for packed matrices, with checked arguments."""

    NAME: str

    def pack(self, codes: npt.NDArray[np.uint8], bits: int, data: npt.NDArray[np.uint8]) -> int: ...

    def row_codes(self, matrix: "PackedMatrix", rows: npt.NDArray[np.int64], codes: npt.NDArray[np.uint8]) -> None: ...

    def row_values(
        self, matrix: "PackedMatrix", rows: npt.NDArray[np.int64], values: npt.NDArray[np.float32]
    ) -> None: ...

    def values(self, matrix: "PackedMatrix", values: npt.NDArray[np.float32]) -> None: ...

    def multiply(
        self,
        matrix: "PackedMatrix",
        x: npt.NDArray[np.float32],
        *,
        bias: npt.NDArray[np.float32] | None,
        y: npt.NDArray[np.float32],
        quantised: bool,
        num_threads: int,
    ) -> None: ...


class AttendBackend(Protocol):
    """What a backend offers for paged attention, with checked shapes and dtypes."""

    NAME: str

    def attend(
        self,
        query: npt.NDArray[Any],
        keys: npt.NDArray[Any],
        values: npt.NDArray[Any],
        page_table: npt.NDArray[np.int32],
        page_starts: npt.NDArray[np.int64],
        token_starts: npt.NDArray[np.int64],
        past: npt.NDArray[np.int64],
        *,
        scale: float,
        window: int,
        softcap: float,
        out: npt.NDArray[Any],
        num_threads: int,
    ) -> bool: ...


def load_compiled(module: str) -> Any:
    """Import one extension module.

    Args:
        module: its name in the package.

    Returns:
        The module.

    Raises:
        ImportError: it is not built, or EDGEKERNELS_LEVEL cannot be had here.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the compiled kernels {module} are not built; install with a C compiler at hand "
            "or set EDGEKERNELS_BACKEND=numpy"
        ) from error
    except ValueError as error:
        raise ImportError(f"EDGEKERNELS_LEVEL: {error}") from error


def load(name: str) -> Backend:
    """Import the acceptance part of one backend by name.

    Args:
        name: one of BACKENDS.

    Returns:
        The backend.

    Raises:
        ImportError: the name is unknown, the extension is not built, EDGEKERNELS_LEVEL cannot be had here, or Numba is
            not installed.
    """
    if name == "numpy":
        return _reference
    if name == "numba":
        try:
            from edgekernels import _numba
        except ImportError as error:
            raise ImportError("EDGEKERNELS_BACKEND='numba' needs Numba; pip install edgebus[numba]") from error
        return _numba
    if name != "cython":
        raise ImportError(f"EDGEKERNELS_BACKEND={name!r} is unknown; set one of {', '.join(BACKENDS)}")
    compiled: Backend = load_compiled(ACCEPT)
    return compiled


def load_bits(name: str) -> BitsBackend:
    """Import the part for low-bit codes of one backend by name.

    Args:
        name: of a backend which `load` knows.

    Returns:
        The backend.

    Raises:
        ImportError: the extension is not built, or EDGEKERNELS_LEVEL cannot be had here.
    """
    if name == "numpy":
        return _bits_reference
    if name == "numba":
        from edgekernels import _bits_numba

        return _bits_numba
    compiled: BitsBackend = load_compiled(BITS)
    return compiled


def load_gemm(name: str) -> GemmBackend:
    """Import the part for packed matrices of one backend by name.

    Args:
        name: of a backend which `load` knows.

    Returns:
        The backend.

    Raises:
        ImportError: the extension is not built, or EDGEKERNELS_LEVEL cannot be had here.
    """
    if name in ("numba", "numpy"):
        return _gemm_reference
    compiled: GemmBackend = load_compiled(GEMM)
    return compiled


def load_decode(name: str) -> Any:
    """Import the decoder of one backend by name.

    Args:
        name: of a backend which `load` knows.

    Returns:
        The module, or None where edgekernels.decoder computes in numpy.

    Raises:
        ImportError: the extension is not built, or EDGEKERNELS_LEVEL cannot be had here.
    """
    return load_compiled(DECODE) if name == "cython" else None


def load_attend(name: str) -> AttendBackend:
    """Import the part for paged attention of one backend by name.

    Args:
        name: of a backend which `load` knows.

    Returns:
        The backend.

    Raises:
        ImportError: the extension is not built, or EDGEKERNELS_LEVEL cannot be had here.
    """
    if name in ("numba", "numpy"):
        return _attention_reference
    compiled: AttendBackend = load_compiled(ATTEND)
    return compiled


def choose() -> Backend:
    """The backend which EDGEKERNELS_BACKEND names, else the compiled one, else Numba or numpy with a warning.

    Returns:
        The backend.

    Raises:
        ImportError: EDGEKERNELS_BACKEND or EDGEKERNELS_LEVEL asks for what cannot be had.
    """
    wanted = os.environ.get("EDGEKERNELS_BACKEND", "")
    if wanted:
        return load(wanted)
    missing = [module for module in MODULES if importlib.util.find_spec(module) is None]
    if not missing:
        return load("cython")
    instead = "numba" if importlib.util.find_spec("numba") is not None else "numpy"
    hint = "" if instead == "numba" else ", install Numba (pip install edgebus[numba])"
    warnings.warn(
        f"edgekernels: no compiled kernels {' and '.join(missing)}, {instead} takes their place and is many times "
        f"slower; reinstall with a C compiler at hand{hint}, or set EDGEKERNELS_BACKEND={instead} to accept it",
        stacklevel=2,
    )
    return load(instead)


active: Backend = choose()
active_bits: BitsBackend = load_bits(active.NAME)
active_gemm: GemmBackend = load_gemm(active.NAME)
active_decode: Any = load_decode(active.NAME)
active_attend: AttendBackend = load_attend(active.NAME)


def use(chosen: Backend) -> None:
    """Let all later calls run on this backend, those of the other families on its namesakes."""
    global active, active_bits, active_gemm, active_decode, active_attend
    name = chosen.NAME
    active, active_bits, active_gemm = chosen, load_bits(name), load_gemm(name)
    active_decode, active_attend = load_decode(name), load_attend(name)


def backend() -> str:
    """Name of the backend in use.

    Returns:
        one of "cython", "numba", "numpy".
    """
    return active.NAME
