"""Compiled or as plain Python: where the modules of the hot path come from.

Compiled they are one shared object, so that code which runs together lies together. EDGEBUS_PURE=1, set before edgebus
is imported first, asks for plain Python, as it is where nothing could be compiled: for tests of both, and debuggers.
An object that cannot be loaded (cut short on its way here, built for another Python) leaves plain Python and a warning.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import machinery
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Literal

COMPILED = (
    "answerer", "arrays", "attached", "bulk", "bulk_receiver", "calls", "desk", "engine", "engine_delivering",
    "express", "express_sending", "handed", "hub", "hub_collecting", "hub_links", "ids", "inbox", "link",
    "link_receiving", "link_sending", "links", "liveness", "near", "pace", "policy", "readiness", "requests", "runner",
    "runner_calling", "runner_sections", "sharing", "sharing_numbers", "sharing_pool", "sharing_puts", "sharing_views",
    "shm.arena", "shm.board", "shm.ledger", "shm.mapper", "shm.numbers", "shm.pipes", "shm.pool", "shm.ranges",
    "sockets", "taps", "turns", "unended", "wire",
)  # fmt: skip
"""Modules that setup.py compiles: all of them or none, they share the layout of their classes."""
IN_CYTHON = ("_guard", "_handed", "_port", "_tcp", "_views", "_waiting", "shm._files")
"""Modules that have no other source than Cython; what they do in Python stands where they are imported."""
_HERE = str(Path(__file__).parent)
_NAMES = frozenset(f"edgebus.{name}" for name in (*COMPILED, *IN_CYTHON))
_IN_CYTHON = frozenset(f"edgebus.{name}" for name in IN_CYTHON)


class _Object:
    """Finds modules in the shared object.

    Args:
        path: of the object.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> machinery.ModuleSpec | None:
        """What the import system asks for."""
        if name not in _NAMES:
            return None
        return spec_from_file_location(name, self._path, loader=machinery.ExtensionFileLoader(name, self._path))


class _Sources:
    """Finds the modules of this package by their sources alone."""

    def __init__(self) -> None:
        self._files = {
            package: machinery.FileFinder(folder, (machinery.SourceFileLoader, machinery.SOURCE_SUFFIXES))
            for package, folder in (("edgebus", _HERE), ("edgebus.shm", os.path.join(_HERE, "shm")))
        }

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> machinery.ModuleSpec | None:
        """What the import system asks for."""
        package = name.rpartition(".")[0]
        if package not in self._files:
            return None
        if name in _IN_CYTHON:
            raise ModuleNotFoundError(f"{name} is compiled, and that was not, or EDGEBUS_PURE is set", name=name)
        return self._files[package].find_spec(name)


def _is_whole(path: str) -> bool:
    """False for an ELF file that has been cut short: mapped, it would end the process at the first page that is not
    there, without a word. Its last bytes are the table of its sections."""
    with open(path, "rb") as file:
        head = file.read(64)
        size = os.fstat(file.fileno()).st_size
    if head[:5] != b"\x7fELF\x02":  # of another system, or of 32 bits: left to the loader
        return size > 0
    order: Literal["big", "little"] = "big" if head[5:6] == b"\x02" else "little"
    at, each, count = (int.from_bytes(head[start:end], order) for start, end in ((40, 48), (58, 60), (60, 62)))
    return len(head) == 64 and at + each * count <= size


def _fault(path: str) -> str | None:
    """Why the object cannot be used, or None."""
    name = "edgebus._compiled"
    try:
        if not _is_whole(path):
            return "it has been cut short"
        loader = machinery.ExtensionFileLoader(name, path)
        spec = spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        module = module_from_spec(spec)
        loader.exec_module(module)
    except (ImportError, OSError) as error:
        return str(error)
    missing = module.lacks(os.fsencode(path), sorted(_NAMES)) if hasattr(module, "lacks") else sorted(_NAMES)
    return f"it is of another version, without {missing[0]}" if missing else None


def _choose() -> None:
    paths = (os.path.join(_HERE, "_compiled" + suffix) for suffix in machinery.EXTENSION_SUFFIXES)
    built = None if os.environ.get("EDGEBUS_PURE") else next(filter(os.path.exists, paths), None)
    if built is not None and (fault := _fault(built)):
        warnings.warn(
            f"edgebus runs as plain Python, which is slower: {built} cannot be loaded ({fault}). Install edgebus anew,"
            " or build it with `python setup.py build_ext --inplace`; EDGEBUS_PURE=1 says that plain Python is meant",
            RuntimeWarning,
            stacklevel=2,
        )
        built = None
    if built is not None:
        sys.meta_path.insert(0, _Object(built))
        return
    # Before what would find other forms of them, behind whoever instruments sources as they are loaded.
    known = machinery.PathFinder in sys.meta_path
    sys.meta_path.insert(sys.meta_path.index(machinery.PathFinder) if known else 0, _Sources())


_choose()
