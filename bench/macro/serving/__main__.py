"""`python -m bench.macro.serving`: all systems and numbers of sessions in turns, about 12 minutes; writes the results.

`--only SYSTEM:SESSIONS` measures one cell and keeps it beside those measured before; `--report` writes the results of
what is kept. `scripts/serving_peers.sh` makes llama.cpp's server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from pathlib import Path
from typing import Any

from edgekernels.gguf import GgufFile

from bench import record
from bench.macro.serving import report
from bench.macro.serving.cells import MAX_TOKENS, SYSTEMS, TURNS, answers_needed, prompts
from bench.macro.serving.servers import Served, Setting, backends, sled
from bench.macro.serving.worker import ROOT, WorkerFailed
from bench.peers.stats import in_turn

MODEL = "smollm2-135m"
LEARNERS = 32
TRIES = 2  # of a turn beside which other processes ran


class Bench:
    """Measures cells and keeps them.

    Args:
        folder: where cells, answers and float weights are kept.
        peers: where scripts/serving_peers.sh put llama.cpp's server.
        root: the checkout whose `sled serve` is measured.
    """

    def __init__(self, folder: Path, peers: Path, root: Path) -> None:
        from sled.targets.catalog import find_model
        from sled.targets.text import codec_from_gguf

        folder.mkdir(parents=True, exist_ok=True)
        path = find_model(MODEL).path
        with GgufFile(path) as file:
            codec = codec_from_gguf(file.metadata)
        tokens = [codec.encode(text, chat=True) for text in prompts()]
        self._setting = Setting(MODEL, tokens, peers, root)
        self._backends = backends(path, lambda: _float32(path, folder))
        self._answers_at, self.cells_at = folder / "answers.json", folder / "cells.jsonl"

    def learn(self, limit_s: float) -> int:
        """Have the target answer prompts, as many as come in time; returns how many are known, from the first on."""
        known = self._answers()
        wanted = [number for number in range(len(self._setting.prompts)) if str(number) not in known]
        if wanted:
            with sled(self._setting, LEARNERS) as served:
                asked = {"wanted": wanted, "sessions": LEARNERS, "limit_s": limit_s}
                known |= served.load.ask(limit_s + 60.0, do="learn", **asked)["answers"]
            self._answers_at.write_text(json.dumps(known))
        return next(number for number in range(len(known) + 1) if str(number) not in known)

    def measure(self, sessions: int, names: list[str], rounds: int) -> None:
        """So many turns of each system, in turn, with all their servers up but idle."""
        with contextlib.ExitStack() as stack:
            served: dict[str, Served] = {}
            failed: dict[str, str] = {}
            for backend in dict.fromkeys(SYSTEMS[name].backend for name in names):
                try:
                    served[backend] = stack.enter_context(self._backends[backend](self._setting, sessions))
                except WorkerFailed as error:
                    failed[backend] = str(error)
            for name in in_turn(names, rounds):
                cell = self._turn(sessions, name, served, failed)
                for _ in range(TRIES - 1):
                    if cell.get("disturbed"):
                        again = self._turn(sessions, name, served, failed)
                        cell = min(cell, again, key=lambda turn: turn.get("others_cores", math.inf))
                with self.cells_at.open("a") as file:
                    file.write(json.dumps(cell) + "\n")

    def _turn(self, sessions: int, name: str, served: dict[str, Served], failed: dict[str, str]) -> dict[str, Any]:
        system, turn = SYSTEMS[name], TURNS[sessions]
        options = dict(system.options)
        cell: dict[str, Any] = {"system": name, "sessions": sessions}
        try:
            if system.backend in failed:
                raise WorkerFailed(failed[system.backend])
            if system.backend.startswith("sled"):
                options["answers"] = self._answers() if options["window"] else {}
                if options["window"] and len(options["answers"]) < answers_needed(turn):
                    raise WorkerFailed("too few answers are known to draft from: run with --learn")
            cell |= served[system.backend].turn(turn, **options)
            cell["about"] = served[system.backend].about
        except (WorkerFailed, ValueError) as error:
            cell["error"] = str(error)
        print(_line(cell), file=sys.stderr, flush=True)
        return cell

    def _answers(self) -> dict[str, list[int]]:
        return json.loads(self._answers_at.read_text()) if self._answers_at.is_file() else {}


def _float32(path: Path, folder: Path) -> Path:
    from bench.macro.serving.float_gguf import write_float32

    return write_float32(path, folder / f"{path.stem}.F32.gguf")


def _line(cell: dict[str, Any]) -> str:
    title = f"{cell['system']:13} {cell['sessions']:3}"
    if "error" in cell:
        return f"{title}  {cell['error'].splitlines()[-1]}"
    return (
        f"{title}  {cell['tokens_per_s']:7.1f} tokens/s  first token p50 {cell.get('first_token_p50_s', 0):.2f} s "
        f"p99 {cell.get('first_token_p99_s', 0):.2f} s  on time at {cell['rate_on_time']:.1f}/s  cores: server "
        f"{cell['server_cores']}, load {cell['load_cores']}, others {cell['others_cores']}"
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], help=f"SYSTEM:SESSIONS, of {', '.join(SYSTEMS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--learn", type=float, metavar="SECONDS", help="only have answers computed, to draft from")
    parser.add_argument("--report", action="store_true", help="only write the results of the cells that are kept")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "serving")
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "serving-peers")
    parser.add_argument("--sled", type=Path, default=ROOT, help="the checkout whose `sled serve` is measured")
    arguments = parser.parse_args()
    bench = Bench(arguments.folder.resolve(), arguments.peers.resolve(), arguments.sled.resolve())
    stamped = record.stamp()
    if arguments.learn:
        print(f"answers known: {bench.learn(arguments.learn)}, of at most {MAX_TOKENS} tokens", file=sys.stderr)
        return
    if arguments.only:
        for cell in arguments.only:
            name, _, sessions = cell.partition(":")
            bench.measure(int(sessions), [name], arguments.rounds)
        return
    if not arguments.report:
        bench.cells_at.unlink(missing_ok=True)
        bench.learn(120.0)
        for sessions in TURNS:
            bench.measure(sessions, list(SYSTEMS), arguments.rounds)
    cells = report.read(bench.cells_at)
    found = report.results(cells)
    record.write("serving", found, report.figures(report.gather(cells), stamped), stamped)
    print(report.table(found["rows"]))


if __name__ == "__main__":
    main()
