"""`edgebus node`: the daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from edgebus.cli.options import Json, print_json
from edgebus.daemon.daemon import NodeDaemon, check_state, read_keys
from edgebus.daemon.http import split_address
from edgebus.daemon.logs import remove_logs, set_up_logs
from edgebus.daemon.running import run_daemon
from edgebus.daemon.unit import unit_text
from edgebus.daemon.user_services import find_function
from edgebus.settings import NodeSettings, load_settings, to_toml

Toggle = Annotated[bool | None, typer.Option("--insecure", help="Plaintext, no authentication; no keys then.")]


def node(
    config: Annotated[Path | None, typer.Option(help="Settings: a TOML file.")] = None,
    bind: Annotated[list[str] | None, typer.Option(help="tcp://HOST:PORT or ipc://PATH; may be repeated.")] = None,
    name: Annotated[str | None, typer.Option(help="What peers are told.")] = None,
    keys: Annotated[Path | None, typer.Option(help="Key directory, made by `edgebus keygen`.")] = None,
    allow: Annotated[str | None, typer.Option(help="Allow-list file, or any; by default KEYS/allowed_keys.")] = None,
    insecure: Toggle = None,
    metrics: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus, off, or auto.")] = None,
    tap: Annotated[str | None, typer.Option(help="The most a tap may see: off, headers or content.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, json or console.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether the settings work.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Only print the effective settings.")] = False,
    print_unit: Annotated[bool, typer.Option("--print-unit", help="Only print a systemd unit.")] = False,
    as_json: Json = False,
) -> None:
    """Run a node: it listens, dials its peers, serves functions of yours, and shows its counters to Prometheus.

    Settings come from the file, then from EDGEBUS_NODE_... in the environment, then from these options.
    SIGTERM and SIGINT end it with a goodbye; SIGHUP reads the log level again; the allow-list is always followed.

    Example: edgebus node --bind tcp://127.0.0.1:7000 --insecure

    Example: edgebus node --config node.toml --check
    """
    if print_unit:
        typer.echo(unit_text(config), nl=False)
        return
    given: dict[str, Any] = {
        "bind": bind,
        "name": name,
        "keys": str(keys) if keys else None,
        "allow": allow,
        "insecure": insecure,
        "metrics": metrics,
        "tap": tap,
        "log.level": log_level,
        "log.format": log_format,
    }
    overrides = {path: value for path, value in given.items() if value is not None}

    def read() -> NodeSettings:
        return load_settings(config, os.environ, overrides, complete=not print_config)

    settings = read()
    beside = config.resolve().parent if config is not None else None
    if print_config:
        typer.echo(to_toml(settings), nl=False)
    elif check:
        _check(settings, beside, as_json)
    else:
        handler = set_up_logs(settings.log.level, settings.log.format)
        try:
            run_daemon(
                settings,
                environment=os.environ,
                beside=beside,
                reload=read,
                on_ready=lambda daemon: _ready(daemon, as_json),
            )
        finally:
            remove_logs(handler)


def _check(settings: NodeSettings, beside: Path | None, as_json: bool) -> None:
    own, _ = read_keys(settings)
    check_state(settings)
    if settings.metrics not in ("auto", "off"):
        split_address(settings.metrics)
    for service in settings.services:
        find_function(service.module, beside)
    if as_json:
        print_json({"ok": True, "name": settings.name, "public_key": own.public if own else None})
    else:
        typer.echo(f"settings of {settings.name!a} work; key {own.public if own else 'none (plaintext)'}")


def _ready(daemon: NodeDaemon, as_json: bool) -> None:
    """One line per address on stdout, for people and for whoever started us; logs go to stderr."""
    if as_json:
        print_json(
            {"endpoints": daemon.endpoints, "public_key": daemon.public_key, "metrics": daemon.metrics_address or None}
        )
        return
    for endpoint in daemon.endpoints or ["(dials only)"]:
        typer.echo(f"ready {endpoint} key {daemon.public_key or 'none (insecure)'}")
