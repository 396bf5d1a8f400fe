"""A node run from settings: it listens, dials its static peers, serves, shows its metrics, and ends in bounded time."""

from __future__ import annotations

import logging
import os
import time
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import edgebus
from edgebus import serving
from edgebus.daemon.announcing import Announcer, reachable
from edgebus.daemon.dialler import Dialler
from edgebus.daemon.http import MetricsServer
from edgebus.daemon.metrics import render
from edgebus.daemon.reports import STATS_SERVICE, answer_stats, make_report
from edgebus.daemon.tapping import TAP_SERVICE, TapService
from edgebus.daemon.user_services import Workers, find_function
from edgebus.errors import BindError, ConfigError
from edgebus.inbox import Request
from edgebus.keys import ALLOW_FILE, AllowList, Keys
from edgebus.settings import METRICS_ADDRESS, NodeSettings, ServiceSettings

_log = logging.getLogger("edgebus.node")
_STATS_DEPTH = 16


def read_keys(settings: NodeSettings) -> tuple[Keys | None, AllowList | None]:
    """Keys and allow-list of a node.

    Raises:
        KeyFileError: the keys cannot be read.
        ConfigError: the allow-list that was named is not there.
    """
    if settings.keys is None:
        return None, None
    own = edgebus.load_keys(settings.keys)
    if settings.allow == "any":
        return own, AllowList.any()
    path = Path(settings.allow or Path(settings.keys) / ALLOW_FILE)
    if not path.is_file():
        if settings.allow is not None:
            raise ConfigError(f"allow: no file {path}; `edgebus allow {settings.keys} NODE_KEY` makes one, or say any")
        _log.warning(f"nobody may connect yet: let nodes in with `edgebus allow {settings.keys} NODE_KEY`")
    return own, AllowList.from_file(path)


def check_state(settings: NodeSettings) -> Path | None:
    """The directory for state, which is there and ours to write, or could be made; None if there is none.

    Raises:
        ConfigError: neither.
    """
    if settings.state is None:
        return None
    path = Path(settings.state)
    place = path if path.exists() else path.parent
    if not place.is_dir():
        raise ConfigError(f"state: {place} is no directory: make it, or name another one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"state: {place} is not ours to write: chown it to this user, or name another one")
    return path


class NodeDaemon:
    """Use as a context manager: entered it is up, left it has said goodbye.

    Args:
        settings: all of it.
        beside: where modules of services are looked for last: the directory of the settings file.

    Raises:
        ConfigError, KeyFileError: the settings do not work.
        BindError: an address is taken.
    """

    def __init__(self, settings: NodeSettings, beside: Path | None = None) -> None:
        self._settings = settings
        self._started_at = time.monotonic()
        self.version = version()
        functions = [find_function(service.module, beside) for service in settings.services]
        own, allow = read_keys(settings)
        self._allow = allow
        self.public_key = own.public if own else None
        self._state = check_state(settings)
        if self._state is not None:
            self._state.mkdir(mode=0o700, exist_ok=True)
        self.node = edgebus.Node(
            settings.name, keys=own, allow=allow, insecure=settings.insecure, limits=settings.limits
        )
        self.services: list[str] = []
        self.endpoints: list[str] = []
        self._workers: list[Workers] = []
        self._metrics: MetricsServer | None = None
        self._dialler: Dialler | None = None
        self._announcer: Announcer | None = None
        self._taps = TapService(self.node.tap, contents=settings.tap == "content")
        try:
            self._start(functions)
        except BaseException:
            self.close()
            raise

    @property
    def metrics_address(self) -> str:
        """Where the metrics are, "" if they are off."""
        return self._metrics.address if self._metrics else ""

    def is_well(self) -> bool:
        """True if the node's own thread answers."""
        try:
            self.node.stats()
        except edgebus.EdgebusError as error:
            _log.error(f"the node does not answer: {error}")
            return False
        return True

    def metrics_text(self) -> str:
        """What Prometheus reads."""
        return render(
            self.node.stats(),
            name=self._settings.name,
            version=self.version,
            uptime_s=time.monotonic() - self._started_at,
        )

    def close(self) -> None:
        """Goodbye to every peer; takes stop_within_s at most, unless a service's function does not return."""
        until = time.monotonic() + self._settings.stop_within_s
        if self._dialler is not None:
            self._dialler.stop()
        if self._announcer is not None:
            self._announcer.close()
        if self._metrics is not None:
            self._metrics.close()
        # Node.close takes its linger and 2 s at most.
        self.node.close(linger_s=max(0.1, self._settings.stop_within_s - 2.5))
        self._taps.close(max(0.1, until - time.monotonic()))
        if self._dialler is not None:
            self._dialler.join(max(0.1, until - time.monotonic()))
        for workers in self._workers:
            if not workers.join(max(0.1, until - time.monotonic())):
                _log.warning("a service's function has not returned: its thread is left behind")

    def __enter__(self) -> NodeDaemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------

    def _start(self, functions: list[Any]) -> None:
        settings = self._settings
        own = ServiceSettings(name=STATS_SERVICE, module="edgebus.daemon.daemon:stats", depth=_STATS_DEPTH)
        for service, function in ((own, self._stats), *zip(settings.services, functions, strict=True)):
            self._workers.append(Workers(self.node.serve(service.name, depth=service.depth), service, function))
            self.services.append(service.name)
        if settings.tap != "off":
            self.node.handle(TAP_SERVICE, self._tap)
            self.services.append(TAP_SERVICE)
        self._metrics = self._serve_metrics()
        self.endpoints = [self.node.bind(endpoint) for endpoint in settings.bind]
        self._announcer = self._announce()
        if settings.peers:
            self._dialler = Dialler(self.node, settings.peers)
        _log.info(
            "node is up",
            extra={
                "node": settings.name,
                "version": self.version,
                "endpoints": self.endpoints,
                "public_key": self.public_key or "none (plaintext)",
                "services": self.services,
                "metrics": self.metrics_address or "off",
            },
        )

    def _announce(self) -> Announcer | None:
        own = dict(zip((service.name for service in self._settings.services), self._workers[1:], strict=True))
        where = reachable(self._settings.announce, self.endpoints)
        if not own:
            return None
        if not where:
            _log.warning('services are not announced: no address that peers could dial; give announce = ["tcp://..."]')
            return None
        return Announcer(self.node, own, where, self._state)

    def _serve_metrics(self) -> MetricsServer | None:
        where = self._settings.metrics
        if where == "off":
            return None
        try:
            return MetricsServer(METRICS_ADDRESS if where == "auto" else where, self.metrics_text)
        except BindError as error:
            if where != "auto":
                raise
            _log.warning(str(error))
            return None

    def _tap(self, request: Request) -> None:
        if self._is_granted(request):
            self._taps.handle(request)

    def _is_granted(self, request: Request) -> bool:
        """Whether a peer may see what others do; if not, it is refused.

        Asked here besides by the node's policy: what shows the traffic of others is to fail closed on its own.
        """
        if self._settings.insecure:
            granted = request.service in self._settings.plaintext_services
            cure = f"add {request.service} to plaintext_services in its settings"
        else:
            grant = self._allow.grant(request.peer.key or "") if self._allow is not None else None
            granted = grant is not None and grant.covers(request.service) and time.time() < grant.until
            cure = f"on the node: edgebus allow KEYDIR NODE_KEY --services '*,{request.service}'"
        if not granted:
            serving.refuse(request, "forbidden", f"{request.service} is not granted to this peer: {cure}")
        return granted

    def _stats(self, request: Request) -> bytes | None:
        if not self._is_granted(request):
            return None
        report = make_report(
            self.node.stats(),
            name=self._settings.name,
            version=self.version,
            uptime_s=time.monotonic() - self._started_at,
            limits=self._settings.limits,
            services=self.services,
        )
        return answer_stats(report, 1 << 20)


def version() -> str:
    """Of the installed package."""
    try:
        return metadata.version("edgebus")
    except metadata.PackageNotFoundError:
        return "unknown"
