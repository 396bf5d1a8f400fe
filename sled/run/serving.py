"""A server process from its settings to its end: node, target, metrics, directory, signals."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import edgebus
from edgebus.cli.serving import Access, ended_by_signals, read_access
from edgebus.daemon.announcing import reachable
from edgebus.daemon.daemon import version
from edgebus.daemon.exporter import Exporter
from edgebus.daemon.http import MetricsServer
from edgebus.errors import ConfigError
from sled.drain import Phase
from sled.messages import SERVICES
from sled.metrics import ServerReport, render
from sled.run.announcing import Presence
from sled.run.answers import ServedTarget
from sled.run.server import TargetServer
from sled.scheduler import Cost
from sled.server import Form, ServerLimits, WindowPolicy
from sled.settings import ServeSettings
from sled.types import Constraint

log = logging.getLogger("sled.server")

NODE_NAME = "sled-server"


class Loaded(NamedTuple):
    """What is served: the target, and what goes with it.

    `form_of` compiles constraints, `policy` says how many tokens a session may draft, `cost` what a forward takes;
    `close` is called when the server has ended.
    """

    target: ServedTarget
    form_of: Callable[[Constraint], Form] | None = None
    policy: WindowPolicy | None = None
    cost: Cost | None = None
    close: Callable[[], None] = lambda: None


class Ready(NamedTuple):
    """A server that takes sessions."""

    endpoint: str
    access: Access
    metrics: str


def run_server(
    settings: ServeSettings, load: Callable[[ServeSettings], Loaded], on_ready: Callable[[Ready], None]
) -> None:
    """Serve until SIGTERM or SIGINT has drained the server; a second signal ends it after the forward that runs.

    Args:
        settings: all of it.
        load: makes the target; the endpoint is bound by then, so that one that cannot be had is known at once.
        on_ready: called when devices are answered.

    Raises:
        EdgebusError: it could not start.
    """
    access = read_access(
        "sled serve",
        keys=Path(settings.keys) if settings.keys else None,
        allow=settings.allow,
        insecure=settings.insecure,
    )
    others = [_other(replica.endpoint, replica.server_key) for replica in settings.replicas]
    exporter = Exporter[ServerReport](lambda report: render(report, name=NODE_NAME, version=version()))
    limits = edgebus.Limits(max_peers=max(256, 2 * settings.max_sessions))
    with ExitStack() as stack:
        metrics = None
        if settings.metrics != "off":
            metrics = MetricsServer(settings.metrics, exporter.text)
            stack.callback(metrics.close)
        node = stack.enter_context(
            edgebus.Node(NODE_NAME, keys=access.own, allow=access.allow, insecure=settings.insecure, limits=limits)
        )
        inbox = node.serve(*SERVICES)
        endpoint = node.bind(settings.bind)
        where = _announced_endpoints(settings, endpoint)
        loaded = load(settings)
        stack.callback(loaded.close)
        presence: Presence | None = None

        def on_report(report: ServerReport) -> None:
            exporter.tell(report)
            if presence is None:
                return
            if report.phase == Phase.SERVING:
                presence.look(int(report.gauges["sessions"]))
            else:
                presence.withdraw()

        server = TargetServer(
            inbox,
            loaded.target,
            server_limits(settings),
            form_of=loaded.form_of,
            policy=loaded.policy,
            cost=loaded.cost,
            drain_s=settings.drain_s,
            others=others,
            on_report=on_report,
        )
        if settings.announce:
            presence = Presence(
                node,
                settings.announce,
                where,
                max_sessions=settings.max_sessions,
                target_id=loaded.target.described.target_id,
            )
            stack.callback(presence.withdraw)
        exporter.tell(server.report())
        with ended_by_signals(server.drain, server.stop):
            log.info("serving", extra={"endpoint": endpoint, "target": loaded.target.described.name})
            on_ready(Ready(endpoint, access, metrics.address if metrics else ""))
            server.run()


def server_limits(settings: ServeSettings) -> ServerLimits:
    """The machine's bounds; what settings do not name keeps its default."""
    default = ServerLimits()
    return ServerLimits(
        max_sessions=settings.max_sessions,
        max_sessions_per_owner=min(settings.max_sessions, settings.max_sessions_per_device),
        share=settings.share_prefixes,
        rate=settings.rate,
        max_rate=max(settings.rate, default.max_rate),
    )


def _announced_endpoints(settings: ServeSettings, bound: str) -> list[str]:
    where = reachable(settings.announce_at, [bound])
    if settings.announce and not where:
        raise ConfigError(f"announce: devices cannot dial {bound}; give announce_at, such as tcp://10.0.0.5:5555")
    return where


def _other(endpoint: str, server_key: str | None) -> tuple[str, str]:
    return endpoint, edgebus.read_public_key(server_key) if server_key is not None else ""
