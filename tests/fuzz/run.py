"""Coverage-guided fuzzing with atheris: python -m tests.fuzz.run --seconds 60 [--label NAME] [--record] TARGET...

Each target runs in a process of its own, a fork of this one, which has everything loaded and instrumented, from the
committed seeds in tests/fuzz/corpus and what earlier runs have added in build/fuzz/corpus. What it found lies in
build/fuzz; `python -m tests.fuzz.run --once FILE TARGET` tries such a file again. With --record the run goes into
bench/results/fuzz.json. Ends 0 only if there was no finding.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
OUT = ROOT / "build" / "fuzz"
RECORD = ROOT / "bench" / "results" / "fuzz.json"
MAX_INPUT_BYTES = 8192


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--label", default="plain", help="what this run is called in the record")
    parser.add_argument("--built", default="", help="what was built how, for the record")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    parser.add_argument("--guided", action="store_true", help="fail if coverage guides none of them")
    parser.add_argument("--once", type=Path, help="only try this input")
    parser.add_argument("--write-corpus", action="store_true", help="write the seeds anew and end")
    parser.add_argument("--note", help="LABEL:WHAT=RESULT to add to the record of a run")
    options = parser.parse_args()
    if options.note:
        _note(options.note)
        return 0
    loaded = _targets(instrumented=options.once is None and not options.write_corpus)
    from tests.fuzz.targets import seeds

    targets = options.targets or list(loaded)
    if unknown := set(targets) - set(loaded):
        parser.error(f"no target {', '.join(sorted(unknown))}: there are {', '.join(loaded)}")
    if options.write_corpus:
        for target in targets:
            _write_corpus(CORPUS / target, list(seeds(target)))
        return 0
    if options.once is not None:
        for target in targets:
            loaded[target](options.once.read_bytes())
        return 0
    runs = {target: _run(target, loaded[target], options.seconds) for target in targets}
    if options.record:
        _record(options.label, options.built, runs)
    if options.guided and not any((run["covered_edges"] or 0) > 1 for run in runs.values()):
        print("coverage guided nothing: what is fuzzed was not instrumented as it was loaded", flush=True)
        return 1
    return int(any(run["findings"] for run in runs.values()))


def _write_corpus(folder: Path, inputs: list[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for number, data in enumerate(inputs):
        (folder / f"seed{number:02}").write_bytes(data)


def _targets(*, instrumented: bool) -> dict[str, Callable[[bytes], None]]:
    """All targets; what they call is instrumented as it is loaded."""
    if instrumented:
        import atheris

        context = atheris.instrument_imports(include=["edgebus", "edgekernels", "qpart", "sled"])
    else:
        context = contextlib.nullcontext()
    with context, contextlib.redirect_stderr(io.StringIO()):  # atheris names every module
        from tests.fuzz.targets import SOCKET_TARGETS, TARGETS
    return TARGETS | SOCKET_TARGETS


def _run(target: str, function: Callable[[bytes], None], seconds: int) -> dict[str, Any]:
    """Fuzz one target; returns what the record says of it."""
    OUT.mkdir(parents=True, exist_ok=True)
    before = set(OUT.glob(f"{target}-*"))
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            _fuzz(target, function, seconds)
            sys.exit()  # not reached: atheris ends the process, after a finding by SystemExit, at which it is written
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        elapsed_s = time.monotonic() - started
        output.seek(0)
        said = output.read().decode(errors="replace")
    executed = re.search(r"stat::number_of_executed_units:\s+(\d+)", said)
    covered = re.findall(r"cov: (\d+)", said)
    num_inputs = len(list((OUT / "corpus" / target).glob("*")))
    findings = sorted(path.name for path in set(OUT.glob(f"{target}-*")) - before)
    if status and not findings:
        findings = [f"exit status {status}: {said.strip().splitlines()[-1] if said.strip() else ''}"]
    if findings:
        (OUT / f"{target}.log").write_text(said)
    run = {
        "executed": int(executed[1]) if executed else None,
        "seconds": round(elapsed_s, 1),
        "covered_edges": int(covered[-1]) if covered else None,
        "corpus": num_inputs,
        "findings": findings,
    }
    edges = run["covered_edges"]
    # One edge is the fuzzer's own: compiled modules are not instrumented, scripts/fuzz.sh runs without them.
    guided = f"{edges} edges covered" if edges and edges > 1 else "not guided by coverage"
    print(f"{target}: {run['executed']} inputs in {run['seconds']} s, {guided}, {len(findings)} findings", flush=True)
    return run


def _fuzz(target: str, function: Callable[[bytes], None], seconds: int) -> None:
    """In a process of its own: atheris ends it."""
    import atheris

    # What reached something new is kept for the next run: under a sanitizer of gcc libFuzzer sees no coverage itself.
    grown = OUT / "corpus" / target
    grown.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-artifact_prefix={OUT}/{target}-",
        "-print_final_stats=1",
        "-timeout=20",
        "-rss_limit_mb=4096",
        str(grown),
        str(CORPUS / target),
    ]
    atheris.Setup(arguments, function)
    atheris.Fuzz()


def _note(text: str) -> None:
    label, _, rest = text.partition(":")
    what, _, result = rest.partition("=")
    kept = json.loads(RECORD.read_text())
    kept[label][what] = result
    RECORD.write_text(json.dumps(kept, indent=1) + "\n")


def _record(label: str, built: str, runs: dict[str, dict[str, Any]]) -> None:
    from bench.record import stamp

    kept = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    command = f"python -m tests.fuzz.run --record --label {label}"
    stamped = stamp()
    targets = kept.get(label, {}).get("targets", {})  # of an earlier run, if this one had only some
    targets |= {target: run | {"commit": stamped["commit"]} for target, run in runs.items()}
    entry: dict[str, Any] = {
        "stamp": stamped,
        "command": command,
        "sanitizer": os.environ.get("EDGEBUS_FUZZ_SANITIZER"),
        "built": built or None,
        "executed": sum(run["executed"] or 0 for run in targets.values()),
        "seconds": round(sum(run["seconds"] for run in targets.values()), 1),
        "findings": sum(len(run["findings"]) for run in targets.values()),
        "targets": targets,
    }
    kept[label] = kept.get(label, {}) | entry  # with its notes
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
