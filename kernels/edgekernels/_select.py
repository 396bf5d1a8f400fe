"""Choice of the backend: the compiled kernels, or the numpy reference where one of them cannot be had."""

import importlib
import importlib.util
import os
import warnings
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekernels import _bits_reference, _reference
from edgekernels._bits_backend import BitsBackend

BACKENDS = ("cython", "numpy")
ACCEPT, BITS = "edgekernels._accept", "edgekernels._bits"  # extension modules


class Backend(Protocol):
    """What a backend offers for acceptance, with checked arguments and one entry per sequence or row in every array."""

    NAME: str

    def accept(
        self,
        logits: npt.NDArray[np.float32],
        drafts: npt.NDArray[np.int32],
        row_starts: npt.NDArray[np.int64],
        *,
        temperature: npt.NDArray[np.float64],
        top_k: npt.NDArray[np.int64],
        top_p: npt.NDArray[np.float64],
        seed: npt.NDArray[np.uint64],
        position: npt.NDArray[np.uint64],
        accepted: npt.NDArray[np.int32],
        next_token: npt.NDArray[np.int32],
        num_threads: int,
    ) -> None: ...

    def sample(
        self,
        logits: npt.NDArray[np.float32],
        *,
        temperature: npt.NDArray[np.float64],
        top_k: npt.NDArray[np.int64],
        top_p: npt.NDArray[np.float64],
        seed: npt.NDArray[np.uint64],
        position: npt.NDArray[np.uint64],
        token_ids: npt.NDArray[np.int32] | None,
        chosen: npt.NDArray[np.int32],
        num_threads: int,
    ) -> None: ...

    def noise_bits(
        self, seed: int, position: int, token_ids: npt.NDArray[np.int32], words: npt.NDArray[np.uint32]
    ) -> None: ...


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
        name: "cython" or "numpy".

    Returns:
        The backend.

    Raises:
        ImportError: the name is unknown, the extension is not built, or EDGEKERNELS_LEVEL cannot be had here.
    """
    if name == "numpy":
        return _reference
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


def choose() -> Backend:
    """The backend which EDGEKERNELS_BACKEND names, else the compiled one, else numpy with a warning.

    Returns:
        The backend.

    Raises:
        ImportError: EDGEKERNELS_BACKEND or EDGEKERNELS_LEVEL asks for what cannot be had.
    """
    wanted = os.environ.get("EDGEKERNELS_BACKEND", "")
    if wanted:
        return load(wanted)
    missing = [module for module in (ACCEPT, BITS) if importlib.util.find_spec(module) is None]
    if missing:
        warnings.warn(
            f"edgekernels: no compiled kernels {' and '.join(missing)}, numpy takes their place and is many times "
            "slower; reinstall with a C compiler at hand, or set EDGEKERNELS_BACKEND=numpy to accept it",
            stacklevel=2,
        )
        return _reference
    return load("cython")


active: Backend = choose()
active_bits: BitsBackend = load_bits(active.NAME)


def use(chosen: Backend) -> None:
    """Let all later calls run on this backend, those for low-bit codes on its namesake."""
    global active, active_bits
    active, active_bits = chosen, load_bits(chosen.NAME)


def backend() -> str:
    """Name of the backend in use.

    Returns:
        "cython" or "numpy".
    """
    return active.NAME
