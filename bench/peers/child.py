"""A process that is a server or a device: `python -m bench.peers.child server|device CONFIG`.

Its first line says where it is; then it takes one command a line as JSON and answers it as JSON, until its input ends.
Anything else it prints goes to stderr, so that a chatty library cannot break the talk.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import sys
import threading
import traceback
from types import ModuleType
from typing import Any, TextIO

import msgspec

from bench.peers import usage
from bench.peers.contract import Config

START_S = 30.0


class _Server:
    """Serves on a thread of its own; the main thread only listens for commands."""

    def __init__(self, lib: ModuleType, config: Config) -> None:
        self._lib = lib
        self._places: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=(lib, config), daemon=True).start()
        place = self._places.get(timeout=START_S)
        if isinstance(place, BaseException):
            raise place
        self.place = place

    def _serve(self, lib: ModuleType, config: Config) -> None:
        try:
            lib.serve(config, self._places.put)
        except BaseException as error:
            self._places.put(error)
            raise

    def close(self) -> None:
        """Let it leave in order if it has to; daemon threads of the others end with the process."""
        getattr(self._lib, "end", lambda: None)()


def _answer(target: Any, line: str) -> dict[str, Any]:
    command = msgspec.json.decode(line, type=dict[str, Any])
    name = command.pop("do")
    try:
        if name == "usage":
            return {"result": usage.own()}
        return {"result": getattr(target, name)(**command)}
    except Exception:
        return {"error": traceback.format_exc(limit=6)}


def talk(target: Any, place: str, source: TextIO, out: TextIO) -> None:
    """Say where we are, then answer one command a line until the input ends."""
    print(msgspec.json.encode({"result": place}).decode(), file=out, flush=True)
    for line in source:
        print(msgspec.json.encode(_answer(target, line)).decode(), file=out, flush=True)


def main() -> None:
    """Be what the arguments say."""
    role, config = sys.argv[1], msgspec.json.decode(sys.argv[2], type=Config)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if config.core is not None:
        os.sched_setaffinity(0, {config.core})
    usage.raise_file_limit()
    lib = importlib.import_module(f"bench.peers.libs.{config.lib}")
    target: Any = _Server(lib, config) if role == "server" else lib.connect(config)
    try:
        with contextlib.suppress(BrokenPipeError):  # whoever asked is gone
            talk(target, target.place if role == "server" else "", sys.stdin, out)
    finally:
        target.close()
        out.close()
    if not hasattr(lib, "end"):
        # daemon threads inside native libraries may crash an orderly end; all that had to be closed is
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
