"""Options that make up a request: accuracy, a profile from a TOML file, and flags that override it."""

from __future__ import annotations

import functools
import inspect
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from qpart.errors import Infeasible, RequestError
from qpart.profile import Channel, DeviceProfile, Request, Weights

DEFAULTS: dict[str, dict[str, float]] = {
    "device": {"macs_per_s": 1e9, "joules_per_mac": 1e-9, "memory_bytes": 64 << 20},
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

_ANALYTIC = ("clock_hz", "cycles_per_mac", "kappa")
_KNOWN = {table: (*keys, *(_ANALYTIC if table == "device" else ())) for table, keys in DEFAULTS.items()}
Settings = dict[str, dict[str, float]]


def request_from(
    *,
    accuracy: Annotated[
        float, typer.Option(help="Largest accuracy drop, as a share of predictions: 0.01 is one in a hundred.")
    ],
    profile: Annotated[
        Path | None, typer.Option(help="TOML file with the tables device, channel and weights; flags override it.")
    ] = None,
    device_macs_per_s: Annotated[
        float | None, typer.Option(help="Multiply-accumulates per second of the device; default 1e9.")
    ] = None,
    joules_per_mac: Annotated[float | None, typer.Option(help="Energy of one of them; default 1e-9.")] = None,
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
    settings = read_profile(profile) if profile is not None else {}
    flags: dict[str, dict[str, float | None]] = {
        "device": {"macs_per_s": device_macs_per_s, "joules_per_mac": joules_per_mac, "memory_bytes": memory_bytes},
        "channel": {
            "up_bits_per_s": up_bits_per_s,
            "down_bits_per_s": down_bits_per_s,
            "round_trip_s": round_trip_s,
            "tx_watts": tx_watts,
            "rx_watts": rx_watts,
        },
        "weights": {"time": weight_time, "energy": weight_energy, "price": weight_price},
    }
    device, channel, weights = (
        {**DEFAULTS[table], **settings.get(table, {}), **{key: x for key, x in given.items() if x is not None}}
        for table, given in flags.items()
    )
    return Request(
        accuracy=accuracy,
        device=DeviceProfile(
            macs_per_s=device["macs_per_s"],
            joules_per_mac=device["joules_per_mac"],
            memory_bytes=_whole("memory_bytes", device["memory_bytes"]),
        ),
        channel=Channel(**channel),
        weights=Weights(**weights),
        raw_input_stays=raw_input_stays,
    )


def _whole(name: str, value: float) -> int:
    if value % 1 != 0:  # for infinities and what is not a number, too
        raise RequestError(f"{name} is {value}, give a whole number")
    return int(value)


def with_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `request_from` in place of its parameter `request`."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "request"]
    shared = list(inspect.signature(request_from, eval_str=True).parameters.values())
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


def read_profile(path: Path) -> Settings:
    """Tables and numbers of a profile file, with the analytic model of a device worked out.

    Raises:
        RequestError: see `request_from`.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"profile {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise RequestError(f"profile {path} is not TOML: {error}") from None
    _check_known(path, "table", found, _KNOWN)
    settings: Settings = {}
    for table, keys in found.items():
        if not isinstance(keys, dict):
            raise RequestError(f"{table} in {path} is {keys!r}, make it a table: [{table}]")
        _check_known(path, f"key of [{table}]", keys, _KNOWN[table])
        for key, value in keys.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise RequestError(f"{key} of [{table}] in {path} is {value!r}, give a number")
        settings[table] = keys
    if "device" in settings:
        settings["device"] = _worked_out(path, settings["device"])
    return settings


def _check_known(path: Path, what: str, found: Mapping[str, Any], known: Any) -> None:
    for name in found:
        if name not in known:
            raise RequestError(f"{name!r} in {path} is no {what}; known are {', '.join(known)}")


def _worked_out(path: Path, device: dict[str, float]) -> dict[str, float]:
    """A device by its clock becomes one by its speed."""
    given = [key for key in _ANALYTIC if key in device]
    if not given:
        return device
    if len(given) < len(_ANALYTIC) or "macs_per_s" in device or "joules_per_mac" in device:
        raise RequestError(f"[device] in {path}: give {', '.join(_ANALYTIC)}, or macs_per_s and joules_per_mac instead")
    found = DeviceProfile.from_clock(
        clock_hz=device["clock_hz"], cycles_per_mac=device["cycles_per_mac"], kappa=device["kappa"], memory_bytes=1
    )
    rest = {key: value for key, value in device.items() if key not in _ANALYTIC}
    return {"macs_per_s": found.macs_per_s, "joules_per_mac": found.joules_per_mac, **rest}
