"""Settings of `sled serve`: TOML, environment and flags become one frozen struct; unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from edgebus.errors import ConfigError
from edgebus.grants import size_in
from edgebus.settings import PeerSettings, convert, from_environment, put, read_toml, refuse_unknown

PREFIX = "SLED_SERVE_"
Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["auto", "torch", "cpu", "triton"]
Engine = Literal["auto", "native", "torch"]
Activations = Literal["float", "int8"]
Share = Literal["all", "owner", "none"]

_Text = Annotated[str, Meta(min_length=1, max_length=1024)]
_Name = Annotated[str, Meta(min_length=1, max_length=64)]


class ServeSettings(Struct, frozen=True, kw_only=True):
    """Everything `sled serve` is told. Paths are relative to the file they stand in.

    Attributes:
        model: a known name, a .gguf file, or a model directory.
        bind: endpoint to listen at.
        keys: key directory, made by `edgebus keygen`.
        allow: allow-list file, or "any"; by default KEYS/allowed_keys.
        insecure: plaintext, no keys.
        engine: what computes the target; "auto" takes the native decoder for models it runs, on the CPU in float32.
        activations: of the native engine; "float" is exact, "int8" is faster and rounds as llama.cpp does.
        dtype: arithmetic of the target; float32 is exact.
        device: "cpu", "cuda", or "cuda:1".
        attention: how attention over pages is computed; "auto" takes the fastest that is exact enough for the dtype.
        max_window: drafts that a device may send per round.
        windows: "goodput" tells devices how many drafts pay at this load; "fixed" always allows max_window.
        threads: of the target on CPUs; 0 takes all processors, or what torch decides.
        kv_bytes: memory of keys and values, as "2GiB"; "auto" takes what the target proposes.
        page_tokens: positions in one page of keys and values; 0 takes what suits the device.
        max_sessions: sessions held.
        max_sessions_per_device: of them for one key, such as that of a gateway.
        rate: tokens per second promised to a session that names no rate.
        share_prefixes: whose prompts share pages: all devices', those of one owner, none.
        drain_s: after SIGTERM sessions go on for so long.
        metrics: HOST:PORT for Prometheus, or "off".
        log_json: log lines as JSON.
        log_level: what is logged.
        announce: name in the directory of services; "" announces nothing.
        announce_at: endpoints told there; by default `bind`, if it can be dialled.
        replicas: further servers of the same target, told to devices that have to go elsewhere.
        tensor_parallel: processes that share the target, started by torchrun; only the first one binds.
    """

    model: str = ""
    bind: str = ""
    keys: str | None = None
    allow: str | None = None
    insecure: bool = False
    engine: Engine = "auto"
    activations: Activations = "float"
    dtype: Dtype = "float32"
    device: Annotated[str, Meta(pattern=r"^(cpu|cuda(:[0-9]{1,2})?)\Z")] = "cpu"
    attention: Attention = "auto"
    max_window: Annotated[int, Meta(ge=0, le=64)] = 16
    windows: Literal["goodput", "fixed"] = "goodput"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    kv_bytes: _Text = "auto"
    page_tokens: Annotated[int, Meta(ge=0, le=1024)] = 0
    max_sessions: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    max_sessions_per_device: Annotated[int, Meta(ge=1, le=1_000_000)] = 32
    rate: Annotated[float, Meta(gt=0, le=1e6)] = 10.0
    share_prefixes: Share = "all"
    drain_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    metrics: _Text = "off"
    log_json: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    announce: Annotated[str, Meta(max_length=64)] = ""
    announce_at: Annotated[tuple[_Text, ...], Meta(max_length=8)] = ()
    replicas: Annotated[tuple[PeerSettings, ...], Meta(max_length=16)] = ()
    tensor_parallel: Annotated[int, Meta(ge=1, le=64)] = 1

    @property
    def num_kv_bytes(self) -> int | None:
        """`kv_bytes` as a number, None for "auto"."""
        return None if self.kv_bytes == "auto" else int(size_in(self.kv_bytes))


def load_settings(
    file: Path | None, environment: Mapping[str, str], overrides: Mapping[str, object] | None = None
) -> ServeSettings:
    """The effective settings of a server.

    Args:
        file: TOML; None for none.
        environment: variables SLED_SERVE_..., over the file; the rest is left alone.
        overrides: values by name, over both.

    Raises:
        ConfigError: unreadable, an unknown key (with the nearest known one), or a value that does not fit.
    """
    source = str(file) if file is not None else "settings"
    values = read_toml(file, "docs/guide/server.md has an example") if file is not None else {}
    refuse_unknown(values, ServeSettings, source)
    if file is not None:
        _anchor(values, file.resolve().parent)
    for name, value in [*from_environment(environment, ServeSettings, PREFIX).items(), *(overrides or {}).items()]:
        put(values, name, value)
    settings = convert(values, ServeSettings, source)
    _check(settings)
    return settings


def _anchor(values: dict[str, Any], folder: Path) -> None:
    """Make paths absolute that are relative to the file they stand in; names of models stay names."""
    for key in ("keys", "allow"):
        if isinstance(values.get(key), str) and values[key] != "any":
            values[key] = str(folder / values[key])
    model = values.get("model")
    if isinstance(model, str) and model and (folder / model).exists():
        values["model"] = str(folder / model)
    replicas = values.get("replicas")
    for replica in replicas if isinstance(replicas, list) else ():
        file = replica.get("server_key") if isinstance(replica, dict) else None
        if isinstance(file, str) and (folder / file).is_file():
            replica["server_key"] = str(folder / file)


def _check(settings: ServeSettings) -> None:
    for name, example in (("model", "smollm2-135m"), ("bind", "tcp://0.0.0.0:5555")):
        if not getattr(settings, name):
            raise ConfigError(f"give --{name}, or {name} in the settings file, such as {example}")
    if settings.insecure and (settings.keys or settings.allow):
        raise ConfigError("insecure sends plaintext without keys: drop it, or drop keys and allow")
    if settings.num_kv_bytes is not None and settings.num_kv_bytes < 1:
        raise ConfigError(f"kv_bytes is {settings.kv_bytes!a}, give a size such as 512MiB or 2GiB, or auto")
    if settings.page_tokens & (settings.page_tokens - 1):
        raise ConfigError(f"page_tokens is {settings.page_tokens}, give a power of two, or 0")
    if settings.dtype == "float16" and settings.device == "cpu":
        raise ConfigError("float16 has no fast arithmetic on CPUs: take bfloat16 or float32, or device cuda")
    if settings.attention == "triton" and settings.device == "cpu":
        raise ConfigError("attention triton needs device cuda: take auto, torch or cpu")
    if settings.attention == "cpu" and settings.device != "cpu":
        raise ConfigError(f"attention cpu does not run on device {settings.device}: take auto, torch or triton")
    _check_engine(settings)
    if settings.announce_at and not settings.announce:
        raise ConfigError("announce_at without announce: give the name that is announced, sled say")
    for replica in settings.replicas:
        if settings.insecure == (replica.server_key is not None):
            need = "drops server_key, for nothing is encrypted" if settings.insecure else "needs server_key"
            raise ConfigError(f"replicas: {replica.endpoint!a} {need}")


def _check_engine(settings: ServeSettings) -> None:
    """What only one engine computes is not asked of the other."""
    only_torch = {"dtype": "float32", "device": "cpu", "attention": "auto", "tensor_parallel": 1}
    for name, default in only_torch.items():
        value = getattr(settings, name)
        if value == default:
            continue
        if settings.engine == "native":
            raise ConfigError(f"engine native has {name} {default} only, not {value}: take engine auto or torch")
        if settings.activations != "float":
            raise ConfigError(
                f"activations {settings.activations} needs the native engine, which has no {name} {value}"
            )
    if settings.engine == "torch" and settings.activations != "float":
        raise ConfigError(f"activations {settings.activations} needs the native engine: take engine auto or native")
