"""The demonstration: two nets, one server, three devices with plans of their own, and the proof of all figures."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from edgebus.cli.demo import KeyRing, demo_console
from qpart import artefact as files
from qpart.demo import prepare, processes, proof, screen
from qpart.demo.held_out import HeldOut, load_images
from qpart.demo.proof import Finding, Outcome
from qpart.demo.roles import CLOSER_ACCURACY, HOPELESS_ACCURACY, NETS, NUM_IMAGES, ROLES, Role
from qpart.profile import ServerProfile
from qpart.run.models import make_served
from qpart.run.served import ServedModel

OUT = Path("demo-out")
NETS_DIR, PICTURE = OUT / "qpart", OUT / "payload-accuracy.png"


def main() -> int:
    """Run the demo; 0 only if bytes, accuracy, answers and refusals are what was planned and promised."""
    console = demo_console()
    started_at = time.monotonic()
    console.rule("qpart: a part of the network for each device, at the bits that its request allows")
    _train(console)
    artefacts = prepare.artefacts(NETS_DIR, lambda line: _say(console, line))
    _say(console, f"prepared after {time.monotonic() - started_at:.0f} s")
    with tempfile.TemporaryDirectory(prefix="qpart-demo-") as directory:
        root = Path(directory)
        keys = KeyRing.make(root / "keys", [role.name for role in ROLES])
        with processes.server(keys, list(artefacts.values())) as ready:
            _say(console, f"server ready at {ready['endpoint']} with both nets; tcp with CURVE, every key allow-listed")
            site = processes.Site(ready["endpoint"], keys, NETS_DIR, root)
            outcomes = _run(site, ROLES)
            again = _run(site, ROLES[:1])[0]
            closer = _run(site, [ROLES[0].asking(CLOSER_ACCURACY)])[0]
            refusal = site.refusal(ROLES[0], HOPELESS_ACCURACY)
        holds = _report(console, artefacts, ready["models"], outcomes, [again, closer], refusal)
    _say(console, f"demo took {time.monotonic() - started_at:.0f} s")
    return 0 if holds else 1


def _train(console: Console) -> None:
    """Train the nets, or find them; what every epoch says is for a terminal only."""
    from qpart.demo.train import train_all

    def say(line: str) -> None:
        if ": epoch " in line:
            status.update(line)
        else:
            _say(console, line.partition("; --force")[0])

    with console.status("reading images") as status:
        train_all(NETS_DIR, list(NETS), say=say)


def _run(site: processes.Site, roles: Sequence[Role]) -> list[Outcome]:
    printed = site.run(roles)
    return [Outcome(role, printed[role.name], np.load(site.logits(role))) for role in roles]


def _report(
    console: Console,
    artefacts: dict[str, Path],
    models: list[dict[str, Any]],
    outcomes: list[Outcome],
    later: list[Outcome],
    refusal: str,
) -> bool:
    """Show plans and figures, draw the picture, and hold everything against what it should be."""
    speeds = {model["name"]: float(model["macs_per_s"]) for model in models}
    images, labels = load_images(NETS_DIR)
    nets: dict[str, tuple[ServedModel, HeldOut]] = {}
    few: dict[str, HeldOut] = {}
    for name, path in artefacts.items():
        served, _ = make_served(files.load(path), macs_per_s=speeds[name], price_per_s=0.0, threads=1)
        nets[name] = served, HeldOut(served, images, labels)
        few[name] = HeldOut(served, images[:NUM_IMAGES], labels[:NUM_IMAGES])
    for outcome in outcomes:
        screen.show_plan(console, outcome, few[outcome.role.net])
    rows = []
    for outcome in outcomes:
        held, server = few[outcome.role.net], ServerProfile(macs_per_s=speeds[outcome.role.net])
        rows.append((outcome, held, screen.ways(outcome, held, server)))
    console.print(screen.comparison(rows))
    findings = _findings(outcomes, few)
    again, closer = later
    findings += [proof.fetched_once(outcomes[0], again), proof.planes_alone(outcomes[0], closer)]
    findings += [proof.accuracy_as_promised(closer, few[closer.role.net])]
    findings += [proof.refusal_helps(refusal, ROLES[0], nets[ROLES[0].net][0])]
    for finding in findings:
        console.print(
            f"{'proof:' if finding.holds else '[bold red]FAILED:[/bold red]'} {finding.text}", highlight=False
        )
    _draw(console, nets, artefacts)
    holds = all(finding.holds for finding in findings)
    console.print("PROOF HOLDS" if holds else "PROOF FAILED")
    return holds


def _findings(outcomes: list[Outcome], few: dict[str, HeldOut]) -> list[Finding]:
    found = [proof.bytes_as_planned(outcome) for outcome in outcomes]
    accuracy = [proof.accuracy_as_promised(outcome, few[outcome.role.net]) for outcome in outcomes]
    violated = sum(not finding.holds for finding in accuracy)
    total = Finding(f"{violated} of {len(accuracy)} plans lost more accuracy than promised", violated == 0)
    answers = [proof.answers_as_simulated(outcome, few[outcome.role.net]) for outcome in outcomes]
    return [*found, *accuracy, total, *answers]


def _draw(console: Console, nets: dict[str, tuple[ServedModel, HeldOut]], artefacts: dict[str, Path]) -> None:
    from qpart.demo import curve

    with console.status("drawing payload against accuracy: every level planned, and run on all held-out images"):
        try:
            plans, violated = curve.draw(PICTURE, nets)
        except ModuleNotFoundError as error:
            _say(console, f"no picture: {error.name} is not installed (pip install 'edgebus[plots]')")
            return
    _say(console, f"picture: {PICTURE}, {plans} plans, {violated} of them lost more on held-out images than promised")
    for role in ROLES[:1]:
        with console.status(f"drawing what {role.name} pays at other rates, and its bits by layer"):
            drawn = processes.plot(artefacts[role.net], role, OUT)
        _say(console, f"pictures of what {role.name} asks for: {', '.join(drawn)}")


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False)
