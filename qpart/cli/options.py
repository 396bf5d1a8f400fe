"""Options that make up a request: accuracy, a profile from a TOML file, and flags that override it."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from qpart import profiles
from qpart.errors import Infeasible, RequestError
from qpart.heuristics import KINDS, Kind
from qpart.profile import Channel, DeviceProfile, Request, ServerProfile, Weights


class Computes(StrEnum):
    """What a device computes with."""

    NUMPY = "numpy"
    TORCH = "torch"


DEFAULTS: dict[str, dict[str, float]] = {
    "device": {"macs_per_s": 1e9, "joules_per_mac": 1e-9, "memory_bytes": 64 << 20, "watts": 0.0},
    "channel": {
        "up_bits_per_s": 1e7,
        "down_bits_per_s": 5e7,
        "round_trip_s": 0.02,
        "tx_watts": 1.0,
        "rx_watts": 0.5,
    },
    "weights": {"time": 1.0, "energy": 0.0, "price": 0.0},
}
"""A phone on a middling mobile network that minds time only."""
read_profile = profiles.read


def request_from(
    *,
    accuracy: Annotated[
        float, typer.Option(help="Largest accuracy drop, as a share of predictions: 0.01 is one in a hundred.")
    ],
    device: Annotated[
        str | None, typer.Option(help=f"A board whose profile is known: {', '.join(profiles.names())}.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="TOML file with tables device, channel, weights, as of `qpart profile`; flags override it."),
    ] = None,
    device_macs_per_s: Annotated[
        float | None, typer.Option(help="Multiply-accumulates per second of the device; default 1e9.")
    ] = None,
    joules_per_mac: Annotated[float | None, typer.Option(help="Energy of one of them; default 1e-9.")] = None,
    watts: Annotated[float | None, typer.Option(help="Power of the device while it computes; default 0.")] = None,
    memory_bytes: Annotated[int | None, typer.Option(help="What the device gives to its part; default 64 MiB.")] = None,
    up_bits_per_s: Annotated[float | None, typer.Option(help="Rate to the server; default 1e7.")] = None,
    down_bits_per_s: Annotated[float | None, typer.Option(help="Rate from the server; default 5e7.")] = None,
    round_trip_s: Annotated[float | None, typer.Option(help="Seconds there and back; default 0.02.")] = None,
    tx_watts: Annotated[float | None, typer.Option(help="Radio power while sending; default 1.")] = None,
    rx_watts: Annotated[float | None, typer.Option(help="Radio power while receiving; default 0.5.")] = None,
    weight_time: Annotated[float | None, typer.Option(help="What a second counts; default 1.")] = None,
    weight_energy: Annotated[float | None, typer.Option(help="What a joule counts; default 0.")] = None,
    weight_price: Annotated[float | None, typer.Option(help="What a unit of money counts; default 0.")] = None,
    raw_input_stays: Annotated[
        bool, typer.Option("--raw-input-stays", help="The input must not leave the device.")
    ] = False,
) -> Request:
    """The request which these options describe.

    Raises:
        RequestError: the file cannot be read, says what nobody knows, or a number is out of range.
    """
    known = profiles.board(device) if device is not None else {}
    settings = read_profile(profile) if profile is not None else {}
    flags: dict[str, dict[str, float | None]] = {
        "device": {
            "macs_per_s": device_macs_per_s,
            "joules_per_mac": joules_per_mac,
            "memory_bytes": memory_bytes,
            "watts": watts,
        },
        "channel": {
            "up_bits_per_s": up_bits_per_s,
            "down_bits_per_s": down_bits_per_s,
            "round_trip_s": round_trip_s,
            "tx_watts": tx_watts,
            "rx_watts": rx_watts,
        },
        "weights": {"time": weight_time, "energy": weight_energy, "price": weight_price},
    }
    asked = {
        table: {
            **DEFAULTS[table],
            **known.get(table, {}),
            **settings.get(table, {}),
            **{key: x for key, x in given.items() if x is not None},
        }
        for table, given in flags.items()
    }
    if device_macs_per_s is not None:
        asked["device"].pop("layer_s", None)  # who says a speed does not mean the measured seconds
    return Request(
        accuracy=accuracy,
        device=DeviceProfile(
            **{**asked["device"], "memory_bytes": _whole("memory_bytes", asked["device"]["memory_bytes"])}
        ),
        channel=Channel(**asked["channel"]),
        weights=Weights(**asked["weights"]),
        raw_input_stays=raw_input_stays,
    )


ServerFile = Annotated[
    Path | None, typer.Option(help="TOML file with a table server, as of `qpart profile --server`; flags override it.")
]
ServerSpeed = Annotated[float | None, typer.Option(help="Multiply-accumulates per second of the server; default 1e10.")]
ServerPrice = Annotated[float | None, typer.Option(help="What a second of the server costs; default 0.")]


def server_from(path: Path | None, macs_per_s: float | None, price_per_s: float | None) -> ServerProfile:
    """The server which these options describe; errors as of `request_from`."""
    settings = profiles.read(path).get("server", {}) if path is not None else {}
    given = {"macs_per_s": macs_per_s, "price_per_s": price_per_s}
    asked = {"macs_per_s": 1e10, **settings, **{key: x for key, x in given.items() if x is not None}}
    if macs_per_s is not None:
        asked.pop("layer_s", None)
    return ServerProfile(**asked)


SOLVER_HELP = f"How widths are chosen: {', '.join(KINDS)}."


def check_solver(name: str) -> Kind:
    """The solver of this name.

    Raises:
        RequestError: there is none.
    """
    for kind in KINDS:
        if name == kind:
            return kind
    raise RequestError(f"there is no solver {name!r}; known are {', '.join(KINDS)}")


def _whole(name: str, value: float) -> int:
    if value % 1 != 0:  # for infinities and what is not a number, too
        raise RequestError(f"{name} is {value}, give a whole number")
    return int(value)


def with_request(command: Callable[..., None], *, accuracy: float | None = None) -> Callable[..., None]:
    """Give a command the options of `request_from` in place of its parameter `request`.

    Args:
        command: that has this parameter.
        accuracy: its default; None to have it demanded.
    """
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "request"]
    shared = list(inspect.signature(request_from, eval_str=True).parameters.values())
    if accuracy is not None:
        shared = [p.replace(default=accuracy) if p.name == "accuracy" else p for p in shared]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared)]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = {p.name: given.pop(p.name) for p in shared}
        try:
            command(request=request_from(**options), **given)
        except Infeasible as error:
            raise Infeasible(
                f"infeasible ({error.constraint}): {error}",
                constraint=error.constraint,
                nearest_accuracy=error.nearest_accuracy,
            ) from None

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    del run.__wrapped__
    return run


def check_writable(out: Path) -> None:
    """That a result can be written, known before the work and not after it.

    Raises:
        RequestError: it is a directory or a device, or in a directory of somebody else or where there cannot be one.
        OSError: the directory cannot be made for another reason.
    """
    with suppress(FileExistsError, NotADirectoryError):  # then it is no directory to write to either
        out.parent.mkdir(parents=True, exist_ok=True)
    is_other = out.exists() and not out.is_file()  # a result takes a file's place, and must not a device's
    if is_other or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise RequestError(f"{out} cannot be written; name a file in a directory of yours (--out)")
