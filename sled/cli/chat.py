"""`sled chat`: talk with the server's model, and see what is drafted here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgebus.cli.progress import load_bar
from sled.chat.conversation import Settings
from sled.chat.reader import Reader
from sled.chat.screen import has_colour
from sled.chat.talk import Talk
from sled.cli.generate import parse_on_loss, parse_window, sampling_of
from sled.run.device import Device


def chat(
    server: Annotated[list[str], typer.Option(help="The server's endpoint; may be repeated for further servers.")],
    server_key: Annotated[
        list[str] | None, typer.Option(help="The server's public key, a file or 40 characters; one for each server.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="This device's key directory (`edgebus keygen DIR`).")] = None,
    drafter: Annotated[
        str, typer.Option(help="none, ngram, smollm2-12m, a .gguf file, or a model directory.")
    ] = "ngram",
    window: Annotated[str, typer.Option(help="Tokens drafted per round: 0 to 64, or auto (as many as pay).")] = "auto",
    confidence: Annotated[float | None, typer.Option(help="Stop drafting below this confidence, 0 to 1.")] = None,
    system: Annotated[str, typer.Option(help="What the model is told first.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, max=1 << 17, help="Tokens in an answer at most.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy; higher is more varied.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens of this mass; 1 is off.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer, whatever drafts.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads for a model drafter; 0 is one.")] = 0,
    on_loss: Annotated[
        str, typer.Option(help="Without a server: fail (after --timeout), wait, or release: show drafts, unverified.")
    ] = "fail",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the server.")] = 30.0,
    insecure: Annotated[bool, typer.Option("--insecure", help="No encryption, no authentication.")] = False,
) -> None:
    """Talk with the server's model; words drafted here, corrected ones and those without a verdict look different.

    In a pipe every line of the input is a question and the answers are plain text.

    Example:

        sled chat --server tcp://10.0.0.5:5555 --server-key server.key --keys device-keys --drafter smollm2-12m
    """
    settings = Settings(
        system=system,
        max_tokens=max_tokens,
        sampling=sampling_of(temperature=temperature, top_p=top_p, seed=seed),
    )
    size = parse_window(window, confidence)
    console = Console(highlight=False, soft_wrap=False)
    quiet = drafter in ("none", "ngram") or not console.is_terminal
    with load_bar(f"loading drafter {drafter}", quiet=quiet) as progress:
        device = Device(
            server[0] if len(server) == 1 else server,
            server_key=server_key,
            keys=keys,
            drafter=drafter,
            threads=threads,
            insecure=insecure,
            timeout_s=timeout,
            on_loss=parse_on_loss(on_loss),
            progress=progress,
        )
    terminal = sys.stdin.isatty() and console.is_terminal
    with device, Reader(terminal=terminal, colour=has_colour(console)) as reader:
        status = Talk(device, console, reader, settings, size).run()
    if status:
        raise typer.Exit(status)
