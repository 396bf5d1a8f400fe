"""`sled serve`: one target for every device that may connect."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from edgebus.cli.serving import ready_line
from edgebus.daemon.logs import remove_logs, set_up_logs
from sled.cli.loading import follow, load
from sled.run.ranks import rank_of
from sled.run.serving import Ready, run_server
from sled.settings import ServeSettings, load_settings


class Dtype(StrEnum):
    """Arithmetic of the target."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Engine(StrEnum):
    """What computes the target."""

    AUTO = "auto"
    NATIVE = "native"
    TORCH = "torch"


class Activations(StrEnum):
    """What is multiplied with packed weights."""

    FLOAT = "float"
    INT8 = "int8"


class Attention(StrEnum):
    """How attention over pages is computed."""

    AUTO = "auto"
    TORCH = "torch"
    CPU = "cpu"
    TRITON = "triton"


class Windows(StrEnum):
    """What limits the drafts of a device."""

    GOODPUT = "goodput"
    FIXED = "fixed"


class Share(StrEnum):
    """Whose prompts share pages."""

    ALL = "all"
    OWNER = "owner"
    NONE = "none"


_Toggle = Annotated[bool | None, typer.Option("--insecure", help="No encryption, no authentication.")]


def serve(
    model: Annotated[str | None, typer.Option(help="smollm2-135m, a .gguf file, or a model directory.")] = None,
    bind: Annotated[
        str | None, typer.Option(help="Endpoint, e.g. tcp://0.0.0.0:5555; port 0 takes a free one.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings: a TOML file; options go over it.")] = None,
    keys: Annotated[Path | None, typer.Option(help="Key directory made by `edgebus keygen DIR`.")] = None,
    allow: Annotated[
        str | None, typer.Option(help="Allow-list file, or `any` for every key; default KEYS/allowed_keys.")
    ] = None,
    engine: Annotated[
        Engine | None, typer.Option(help="auto (the default): native where it runs the model on the CPU, else torch.")
    ] = None,
    activations: Annotated[
        Activations | None, typer.Option(help="Of the native engine: float (the default) is exact, int8 is faster.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="float32 (the default) is exact, the others are faster.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu (the default), cuda, or cuda:1.")] = None,
    attention: Annotated[Attention | None, typer.Option(help="How attention over pages is computed.")] = None,
    max_window: Annotated[
        int | None, typer.Option(min=0, max=64, help="Drafts a device may send per round; default 16.")
    ] = None,
    windows: Annotated[
        Windows | None, typer.Option(help="goodput (default): as many drafts as pay at this load; fixed: max-window.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=0, help="CPU threads of the target; 0 takes all there are.")
    ] = None,
    kv_bytes: Annotated[str | None, typer.Option(help="Memory of keys and values, e.g. 2GiB; default auto.")] = None,
    page_tokens: Annotated[int | None, typer.Option(help="Positions in one page of it; 0 suits the device.")] = None,
    max_sessions: Annotated[int | None, typer.Option(min=1, help="Sessions held; default 256.")] = None,
    max_sessions_per_device: Annotated[
        int | None, typer.Option(min=1, help="Of them for one key, such as a gateway's; default 32.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Tokens per second promised to a session; default 10.")] = None,
    share_prefixes: Annotated[
        Share | None, typer.Option(help="Whose prompts share pages: all (default), owner or none.")
    ] = None,
    drain_s: Annotated[
        float | None, typer.Option(min=0, help="After SIGTERM sessions go on for so long; default 30.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus; default off.")] = None,
    announce: Annotated[str | None, typer.Option(help="Name in the directory of services, e.g. sled.")] = None,
    announce_at: Annotated[
        list[str] | None, typer.Option(help="Where devices reach us, if not at --bind; may be repeated.")
    ] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes that share the target, started by torchrun.")
    ] = None,
    insecure: _Toggle = None,
    log_json: Annotated[bool | None, typer.Option("--log-json", help="Log lines as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ready line as JSON.")] = False,
) -> None:
    """Serve a target model; prints one line with endpoint and public key when it is ready, drains on SIGTERM.

    Settings come from the file, then from SLED_SERVE_... in the environment, then from these options.

    Example:

        edgebus keygen server-keys && edgebus allow server-keys device-keys/node.key

        sled serve --model smollm2-135m --bind tcp://0.0.0.0:5555 --keys server-keys
    """
    given: dict[str, Any] = {
        "model": model,
        "bind": bind,
        "keys": str(keys) if keys is not None else None,
        "allow": allow,
        "engine": engine,
        "activations": activations,
        "dtype": dtype,
        "device": device,
        "attention": attention,
        "max_window": max_window,
        "windows": windows,
        "threads": threads,
        "kv_bytes": kv_bytes,
        "page_tokens": page_tokens,
        "max_sessions": max_sessions,
        "max_sessions_per_device": max_sessions_per_device,
        "rate": rate,
        "share_prefixes": share_prefixes,
        "drain_s": drain_s,
        "metrics": metrics,
        "announce": announce,
        "announce_at": announce_at,
        "tensor_parallel": tensor_parallel,
        "insecure": insecure,
        "log_json": log_json,
    }
    overrides = {
        name: value.value if isinstance(value, StrEnum) else value for name, value in given.items() if value is not None
    }
    settings = load_settings(config, os.environ, overrides)
    rank = rank_of(os.environ, settings.tensor_parallel)
    handler = set_up_logs(settings.log_level, "json" if settings.log_json else "console")
    try:
        if rank:
            follow(settings)
        else:
            run_server(settings, load, lambda ready: _print_ready(settings, ready, as_json))
    finally:
        remove_logs(handler)


def _print_ready(settings: ServeSettings, ready: Ready, as_json: bool) -> None:
    if not as_json:
        print(ready_line(ready.endpoint, ready.access), flush=True)
        return
    line = {
        "endpoint": ready.endpoint,
        "public_key": ready.access.public_key,
        "model": settings.model,
        "dtype": settings.dtype,
        "metrics": ready.metrics or None,
    }
    print(json.dumps(line), flush=True)
