"""`sled swarm`: a fleet of paced devices in one process, to see what a server carries."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

import edgebus
from edgebus.cli.options import check_access, print_json, safe
from sled.drafters import Drafter, open_drafter
from sled.errors import ParameterError
from sled.messages import Described
from sled.swarm.fleet import MAX_DEVICES, Fleet, Plan
from sled.swarm.profiles import chosen
from sled.swarm.prompts import questions
from sled.swarm.report import Part, Report

REPLAY = "replay"


def swarm(
    server: Annotated[str, typer.Option(help="The server's endpoint, e.g. tcp://10.0.0.5:5555.")],
    devices: Annotated[int, typer.Option(min=1, max=MAX_DEVICES, help="How many.")] = 8,
    profile: Annotated[
        str, typer.Option(help="What boards they are, in turn: jetson-orin-nano, rpi5, rpi4b, laptop, sensor.")
    ] = "rpi5,jetson-orin-nano",
    profiles: Annotated[Path | None, typer.Option(help="TOML file with profiles of your own.")] = None,
    server_key: Annotated[str | None, typer.Option(help="The server's public key, file or 40 characters.")] = None,
    keys: Annotated[
        list[Path] | None, typer.Option(help="A key directory; may be repeated, links take them in turn.")
    ] = None,
    links: Annotated[int, typer.Option(min=1, max=MAX_DEVICES, help="Links that the devices share.")] = 1,
    window: Annotated[int, typer.Option(min=0, max=64, help="Drafts per round at most; 0 drafts nothing.")] = 4,
    drafts: Annotated[
        str, typer.Option(help="replay (answers learnt first, with a profile's errors), or a drafter that all share.")
    ] = REPLAY,
    rate: Annotated[float, typer.Option(help="Tokens per second promised to each session.")] = 10.0,
    seconds: Annotated[float, typer.Option(help="How long to measure, once every device has a token.")] = 20.0,
    answers: Annotated[int, typer.Option(min=0, help="End after so many answers, too; 0 is no limit.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Tokens in an answer at most.")] = 64,
    arrivals: Annotated[
        float, typer.Option(min=0, help="Questions per second over the fleet, by chance; 0: a device asks again.")
    ] = 0.0,
    think: Annotated[float, typer.Option(min=0, help="Share of the profiles' pauses between answers.")] = 1.0,
    prompts: Annotated[Path | None, typer.Option(help="Questions, one a line, instead of built-in ones.")] = None,
    num_prompts: Annotated[int, typer.Option(min=1, max=100_000, help="Built-in questions asked.")] = 32,
    learn: Annotated[float, typer.Option(help="Seconds the target gets to answer them first, without drafts.")] = 120.0,
    seed: Annotated[int, typer.Option(help="Of errors, pauses and arrivals.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each request.")] = 60.0,
    insecure: Annotated[bool, typer.Option("--insecure", help="No encryption, no authentication.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Load a server with devices that are as fast as real boards, and cost no processor time of their own.

    The target first answers every question without drafts; then devices draft these answers with the errors of their
    profile, and each answer is held against the first. Status 1 if one differs (of a float32 target).

    Example:

        sled swarm --devices 32 --profile rpi5,laptop --server tcp://10.0.0.5:5555 --server-key s.key --keys dev
    """
    check_access(server_key, keys[0] if keys else None, insecure)
    plan = Plan(
        devices=devices,
        profiles=tuple(chosen(profile, profiles)),
        seconds=seconds,
        answers=answers,
        window=window,
        rate=rate,
        max_tokens=max_tokens,
        arrivals=arrivals,
        think=think,
        seed=seed,
        timeout_s=timeout,
    )
    asked = _read(prompts) if prompts is not None else questions(num_prompts)
    where = _Where(server, server_key, tuple(keys or ()), links, timeout)
    report, target = asyncio.run(_swarm(where, plan, asked, drafts, learn, quiet=as_json))
    if report is None:
        raise typer.Exit(130)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(render(report, target))
    if report.different and target.dtype == "float32":
        raise typer.Exit(1)


class _Where(msgspec.Struct, frozen=True):
    server: str
    server_key: str | None
    keys: tuple[Path, ...]
    links: int
    timeout_s: float


async def _swarm(
    where: _Where, plan: Plan, prompts: Sequence[str], drafts: str, learn_s: float, *, quiet: bool
) -> tuple[Report | None, Described]:
    console = Console(stderr=True)
    key = edgebus.read_public_keys(where.server_key) if where.server_key else None
    fleet = await Fleet.connect(
        where.server,
        server_key=key,
        keys=where.keys,
        num_links=where.links,
        prompts=prompts,
        timeout_s=where.timeout_s,
    )
    interrupted = False

    def stop() -> None:
        nonlocal interrupted
        interrupted = True
        fleet.stop()

    async with fleet:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop)
        drafter: Drafter | None = None
        if drafts != REPLAY:
            drafter = open_drafter(drafts, fleet.target)
        else:
            if not quiet:
                console.print(f"{safe(fleet.target.name)} answers {len(prompts)} questions first", highlight=False)
            await fleet.learn(plan, learn_s)
            if interrupted:
                return None, fleet.target
        if quiet or not console.is_terminal:
            return await fleet.run(plan, drafter=drafter), fleet.target
        with Live(console=console, auto_refresh=False, transient=True) as live:

            def look(report: Report) -> None:
                live.update(render(report, fleet.target), refresh=True)

            return await fleet.run(plan, drafter=drafter, look=look), fleet.target


def render(report: Report, target: Described) -> Group:
    """A run as a table."""
    head = Text(f"{safe(target.name)} {safe(target.dtype)}", "bold")
    head.append(
        f"  {report.seconds:.0f} s, {report.answers} answers, {report.different} of them not as the first, "
        f"{report.bytes_per_token:.0f} bytes a token",
        "not bold",
    )
    if report.waiting:
        head.append(f", {report.waiting} questions wait", "yellow")
    columns = ("", "devices", "tokens/s", f"served at {report.promised:g}/s", "on time", "first token p50", "p99")
    table = Table(*columns, "accepted", "wasted", box=None, pad_edge=False, padding=(0, 2))
    for name, part in {**report.profiles, "all": report.all}.items():
        table.add_row(safe(name), *_row(part), style="bold" if name == "all" else "")
    return Group(head, table)


def _row(part: Part) -> list[str]:
    return [
        f"{part.devices}",
        f"{part.tokens_per_s:.1f}",
        f"{part.served}",
        f"{part.on_time:.0%}",
        f"{part.first_token_p50_s * 1e3:.0f} ms",
        f"{part.first_token_p99_s * 1e3:.0f} ms",
        f"{part.accepted / part.drafted:.0%}" if part.drafted else "-",
        f"{part.wasted}",
    ]


def _read(path: Path) -> list[str]:
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"cannot read {path}: {error}; give a text file, one question a line") from None
    if not found:
        raise ParameterError(f"there is no question in {path}; give one a line")
    return found
