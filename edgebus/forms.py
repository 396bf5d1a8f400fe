"""Compiled or as plain Python: where the modules of the hot path come from.

Compiled they are one shared object, so that code which runs together lies together. EDGEBUS_PURE=1, set before edgebus
is imported first, asks for plain Python, as it is where nothing could be compiled: for tests of both, and debuggers.
"""

from __future__ import annotations

import os
import sys
from importlib import machinery
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

COMPILED = (
    "answerer", "arrays", "attached", "bulk", "bulk_receiver", "calls", "desk", "engine", "express", "handed", "hub",
    "ids", "inbox", "link", "links", "near", "pace", "policy", "readiness", "requests", "runner", "sharing",
    "shm.arena", "shm.board", "shm.ledger", "shm.mapper", "shm.numbers", "shm.pipes", "shm.pool", "shm.ranges",
    "sockets", "turns", "unended", "wire",
)  # fmt: skip
"""Modules that setup.py compiles: all of them or none, they share the layout of their classes."""
IN_CYTHON = ("_handed", "_port", "_tcp", "_views", "_waiting", "shm._files")
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


def _choose() -> None:
    paths = (os.path.join(_HERE, "_compiled" + suffix) for suffix in machinery.EXTENSION_SUFFIXES)
    built = None if os.environ.get("EDGEBUS_PURE") else next(filter(os.path.exists, paths), None)
    if built is not None:
        sys.meta_path.insert(0, _Object(built))
        return
    # Before what would find other forms of them, behind whoever instruments sources as they are loaded.
    known = machinery.PathFinder in sys.meta_path
    sys.meta_path.insert(sys.meta_path.index(machinery.PathFinder) if known else 0, _Sources())


_choose()
