"""Run the bus as plain Python although its hot path is compiled: for tests of both, and for debuggers.

EDGEBUS_PURE=1 asks for it, before edgebus is imported first.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType

COMPILED = (
    "answerer", "arrays", "attached", "bulk", "bulk_receiver", "calls", "desk", "engine",
    "express", "hub", "ids", "inbox", "link", "links", "near", "pace", "policy", "readiness", "requests", "runner",
    "sharing", "shm.arena", "shm.board", "shm.ledger", "shm.mapper", "shm.numbers", "shm.pipes", "shm.pool",
    "shm.ranges", "sockets", "turns", "unended", "wire",
)  # fmt: skip
"""Modules that setup.py compiles: all of them or none, they share the layout of their classes."""
IN_CYTHON = ("_port", "_tcp", "_views", "_waiting", "shm._files")
"""Modules that have no other source than Cython; what they do in Python stands where they are imported."""
_HERE = str(Path(__file__).parent)


class _Sources:
    """Finds the modules of this package by their sources alone."""

    def __init__(self) -> None:
        self._files = {
            package: FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES))
            for package, folder in (("edgebus", _HERE), ("edgebus.shm", os.path.join(_HERE, "shm")))
        }

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """What the import system asks for."""
        package = name.rpartition(".")[0]
        if package not in self._files:
            return None
        if name.removeprefix("edgebus.") in IN_CYTHON:
            raise ModuleNotFoundError(f"{name} is compiled, and EDGEBUS_PURE is set", name=name)
        return self._files[package].find_spec(name)


def is_partial() -> bool:
    """True if some modules are compiled and others are not: the compiler gave up on them."""
    files = {*os.listdir(_HERE), *(f"shm.{name}" for name in os.listdir(os.path.join(_HERE, "shm")))}
    names = (*COMPILED, *IN_CYTHON)
    compiled = sum(any(name + suffix in files for suffix in EXTENSION_SUFFIXES) for name in names)
    return 0 < compiled < len(names)


def use_sources() -> None:
    """Let every module of edgebus that is not imported yet come from its source."""
    sys.meta_path.insert(0, _Sources())
