"""`python -m sled.demo`: four devices, one shared target, and the proof that nothing changed the answers."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from edgebus.cli.demo import DemoFailed, KeyRing, demo_console
from edgebus.cli.environment import set_environment
from sled.demo.plan import MAX_TOKENS, MODEL, ROLES, Role
from sled.demo.processes import Devices, server
from sled.demo.screen import LEGEND, Column, Screen, results_table

if TYPE_CHECKING:
    from sled.reference import Comparison


def main() -> int:
    """Run the demo; 0 only if greedy answers equal the reference and the sampled one does not depend on drafts."""
    set_environment()
    console = demo_console()
    console.rule("sled: devices draft, one server verifies, and the answers stay exactly the server's")
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sled-demo-") as directory:
        root = Path(directory)
        repeat = Role("repeat", "none", ROLES[-1].prompt, ROLES[-1].sampling)
        keys = KeyRing.make(root / "keys", [*(role.name for role in ROLES), repeat.name])
        console.print(f"One server holds {MODEL}; {len(ROLES)} devices draft. tcp with CURVE, every key allow-listed.")
        with server(keys) as endpoint:
            console.print(f"server ready at {endpoint}")
            columns = _run_devices(console, keys, endpoint, root / "cache", ROLES)
            again = _run_devices(Console(quiet=True), keys, endpoint, root / "cache", [repeat])[0]
    console.print(results_table(columns))
    holds = _prove(console, columns, again)
    console.print(f"demo took {time.monotonic() - started_at:.0f} s")
    return 0 if holds else 1


def _run_devices(
    console: Console, keys: KeyRing, endpoint: str, cache: Path, roles: tuple[Role, ...] | list[Role]
) -> list[Column]:
    """Run every device to its end; those without a model start when the others have loaded theirs."""
    models = [role for role in roles if role.drafter not in ("none", "ngram")]
    light = [role for role in roles if role not in models]
    if not console.is_terminal:
        console.print(f"«...» = {LEGEND}")
    with Devices(keys, endpoint, cache) as devices, Screen(console, roles) as screen:
        for role in models or light:
            devices.start(role)
        loading, running = len(models), len(roles)
        while running:
            event = devices.next_event()
            column = screen.columns[event.device]
            if event.kind == "connected":
                column.state = "answering"
                loading -= 1
                if loading == 0 and models:
                    for role in light:
                        devices.start(role)
            elif event.kind == "token":
                column.pieces.append((event.values["text"], event.values["drafted"]))
            elif event.kind == "answer":
                column.answer = event.values
                column.state = f"done ({event.values['finish_reason']})"
            elif event.kind == "exit":
                running -= 1
                if event.values["status"]:
                    raise DemoFailed(f"device {event.device}: {event.values['stderr'] or event.values['status']}")
            screen.refresh(event.device)
        return list(screen.columns.values())


def _prove(console: Console, columns: list[Column], again: Column) -> bool:
    """Hold the greedy answers against transformers' generate, the sampled one against itself without drafts."""
    greedy = [column for column in columns if column.role.greedy]
    with console.status("proof: transformers loads the target from the same file and generates by itself"):
        results = _compare(greedy)
    for column, result in zip(greedy, results, strict=True):
        if not result.equal:
            kind = "numerical tie" if result.tie else "DIFFERENT"
            where = f"token {result.position}, the reference's margin is {result.margin:.2e}"
            console.print(f"{column.role.name}: {kind} at {where}")
    equal, ties = sum(r.equal for r in results), sum(r.tie for r in results)
    sampled = next(column for column in columns if not column.role.greedy)
    same = _tokens(sampled) == _tokens(again)
    tie_note = f" ({ties} numerical ties)" if ties else ""
    console.print(
        f"proof: {equal} of {len(greedy)} greedy answers equal transformers' generate token by token{tie_note}; "
        f"the sampled answer with drafts {'equals' if same else 'DIFFERS FROM'} the one without"
    )
    holds = equal + ties == len(greedy) and same
    console.print("PROOF HOLDS" if holds else "PROOF FAILED")
    return holds


def _compare(greedy: list[Column]) -> list[Comparison]:
    from sled.reference import Reference  # torch and transformers are heavy
    from sled.targets.catalog import find_model

    reference = Reference(find_model(MODEL))
    results = []
    for column in greedy:
        assert column.answer is not None
        results.append(reference.compare(column.answer["prompt_tokens"], _tokens(column), MAX_TOKENS))
    return results


def _tokens(column: Column) -> list[int]:
    assert column.answer is not None
    return list(column.answer["tokens"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DemoFailed as error:
        print(f"demo failed: {error}", file=sys.stderr)
        sys.exit(1)
