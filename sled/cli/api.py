"""`sled api`: an OpenAI-compatible server and a chat page on the device."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgebus.daemon.logs import remove_logs, set_up_logs
from edgebus.errors import ConfigError
from sled.cli.generate import parse_on_loss
from sled.run.device import Device

if TYPE_CHECKING:
    from sled.api.serve import Listening


def api(
    server: Annotated[list[str], typer.Option(help="The server's endpoint; may be repeated, for several servers.")],
    server_key: Annotated[
        list[str] | None, typer.Option(help="Its public key: node.key file or 40 characters; one for each server.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="This device's key directory (`edgebus keygen DIR`).")] = None,
    drafter: Annotated[
        str, typer.Option(help="none, ngram, smollm2-12m, a .gguf file, or a model directory.")
    ] = "ngram",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads for a model drafter; 0 lets it decide.")] = 0,
    http: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0 takes a free one.")] = "127.0.0.1:8000",
    token_file: Annotated[
        Path | None, typer.Option(help="Bearer tokens, one a line; needed beyond loopback (chmod 600).")
    ] = None,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Pages of this origin may ask; may be repeated.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A name this is asked by, besides localhost.")
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name of the model, for apps that insist.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Answers at once, each with a drafter of its own.")] = 1,
    queue: Annotated[int, typer.Option(min=0, max=4096, help="Requests that may wait; more get status 429.")] = 16,
    on_loss: Annotated[
        str, typer.Option(help="Without a server: fail (after --timeout), wait, or release: show drafts, unverified.")
    ] = "fail",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the server.")] = 30.0,
    drain_s: Annotated[float, typer.Option(min=0, max=3600, help="After SIGTERM answers go on for so long.")] = 10.0,
    insecure: Annotated[bool, typer.Option("--insecure", help="No encryption to the server.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log lines as JSON.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ready line as JSON.")] = False,
) -> None:
    """Answer OpenAI's HTTP API from this device, and serve a chat page at /; ends on SIGTERM.

    Example:

        sled api --server tcp://10.0.0.5:5555 --server-key server.key --keys device-keys --drafter smollm2-12m

        curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \
            -d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}]}'
    """
    try:
        from sled.api.serve import run_api
    except ModuleNotFoundError as error:
        raise ConfigError(f"sled api needs {error.name}: pip install 'edgebus[api]'") from None
    open_device = partial(
        Device,
        server[0] if len(server) == 1 else server,
        server_key=_one_or_more(server_key),
        keys=keys,
        drafter=drafter,
        threads=threads,
        insecure=insecure,
        timeout_s=timeout,
        on_loss=parse_on_loss(on_loss),
    )
    handler = set_up_logs("info", "json" if log_json else "console")
    try:
        run_api(
            open_device,
            http=http,
            token_file=token_file,
            origins=cors or [],
            hosts=allow_host or [],
            aliases=alias or [],
            parallel=parallel,
            queue=queue,
            drain_s=drain_s,
            ready=lambda listening, _: _print_ready(listening, as_json),
        )
    finally:
        remove_logs(handler)


def _one_or_more(keys: list[str] | None) -> str | list[str] | None:
    return keys[0] if keys and len(keys) == 1 else keys


def _print_ready(listening: Listening, as_json: bool) -> None:
    if as_json:
        print(json.dumps(listening._asdict()), flush=True)
        return
    print(f"ready {listening.url} model {listening.model} drafter {listening.drafter}", flush=True)
    if sys.stdout.isatty():
        print(f"chat at {listening.url}/ and give apps {listening.url}/v1 as OpenAI's base URL", flush=True)
