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
    "answerer", "arrays", "attached", "bulk", "bulk_receiver", "calls", "desk", "express", "ids",
    "inbox", "link", "links", "pace", "policy", "requests", "runner", "sockets", "wire",
)  # fmt: skip
"""Modules that setup.py compiles: all of them or none, they share the layout of their classes."""
_HERE = str(Path(__file__).parent)


class _Sources:
    """Finds the modules of this package by their sources alone."""

    def __init__(self) -> None:
        self._files = FileFinder(_HERE, (SourceFileLoader, SOURCE_SUFFIXES))

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """What the import system asks for."""
        package, _, module = name.rpartition(".")
        if package != "edgebus":
            return None
        if module == "_port":
            raise ModuleNotFoundError(f"{name} is compiled, and EDGEBUS_PURE is set", name=name)
        return self._files.find_spec(name)


def is_partial() -> bool:
    """True if some modules are compiled and others are not: the compiler gave up on them."""
    files = set(os.listdir(_HERE))
    names = (*COMPILED, "_port")
    compiled = sum(any(name + suffix in files for suffix in EXTENSION_SUFFIXES) for name in names)
    return 0 < compiled < len(names)


def use_sources() -> None:
    """Let every module of edgebus that is not imported yet come from its source."""
    sys.meta_path.insert(0, _Sources())
