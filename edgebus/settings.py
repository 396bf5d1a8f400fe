"""Settings of a node: TOML, environment and flags become one frozen struct; unknown keys are refused."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, inspect

from edgebus.config import Limits, check_transport
from edgebus.errors import ConfigError

PREFIX = "EDGEBUS_NODE_"
METRICS_ADDRESS = "127.0.0.1:9464"
MAX_FILE_BYTES = 1 << 20

_Text = Annotated[str, Meta(min_length=1, max_length=1024)]
_Name = Annotated[str, Meta(min_length=1, max_length=64)]
Level = Literal["debug", "info", "warning", "error"]
T = TypeVar("T")


class LogSettings(Struct, frozen=True, kw_only=True):
    """What is logged and how; "auto" is the console format on a terminal, JSON lines elsewhere."""

    level: Level = "info"
    format: Literal["auto", "json", "console"] = "auto"


class PeerSettings(Struct, frozen=True, kw_only=True):
    """A node that this one dials and keeps dialling; `server_key` is a file or 40 characters."""

    endpoint: _Text
    server_key: str | None = None


class ServiceSettings(Struct, frozen=True, kw_only=True):
    """A service of the user's own: `module` is "package.module:function", called with each request."""

    name: _Name
    module: Annotated[str, Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")]
    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    depth: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024


class NodeSettings(Struct, frozen=True, kw_only=True):
    """Everything `edgebus node` is told. Paths are relative to the file they stand in.

    Attributes:
        name: told to peers.
        bind: endpoints to listen at.
        keys: key directory, made by `edgebus keygen`.
        allow: allow-list file, or "any"; by default KEYS/allowed_keys.
        insecure: plaintext, no keys.
        plaintext_services: with insecure, services of the bus that anybody may call; edgebus.tap is one to add.
        metrics: "auto" (127.0.0.1:9464 unless that is taken), "off", or HOST:PORT.
        tap: the most that `edgebus tap` may see here: nothing, headers and sizes, or contents too. The allow-list says
            who may.
        announce: endpoints that the directory of services tells peers; by default those of `bind` that can be dialled.
        state: directory for what has to survive a restart.
        stop_within_s: the end takes this long at most.
    """

    name: _Name = "node"
    bind: Annotated[tuple[_Text, ...], Meta(max_length=64)] = ()
    keys: str | None = None
    allow: str | None = None
    insecure: bool = False
    plaintext_services: Annotated[tuple[_Name, ...], Meta(max_length=64)] = ("edgebus.stats",)
    metrics: _Text = "auto"
    tap: Literal["off", "headers", "content"] = "content"
    announce: Annotated[tuple[_Text, ...], Meta(max_length=8)] = ()
    state: str | None = None
    stop_within_s: Annotated[float, Meta(ge=0.1, le=300)] = 5.0
    log: LogSettings = LogSettings()
    limits: Limits = Limits()
    peers: Annotated[tuple[PeerSettings, ...], Meta(max_length=256)] = ()
    services: Annotated[tuple[ServiceSettings, ...], Meta(max_length=256)] = ()


def load_settings(
    file: Path | None,
    environment: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
    *,
    complete: bool = True,
) -> NodeSettings:
    """The effective settings of a node.

    Args:
        file: TOML; None for none.
        environment: variables EDGEBUS_NODE_..., over the file; the rest is left alone.
        overrides: values by dotted path ("log.level"), over both.
        complete: False accepts settings that no node could run with, to be shown.

    Raises:
        ConfigError: unreadable, an unknown key (with the nearest known one), or a value that does not fit.
    """
    values = read_toml(file) if file is not None else {}
    refuse_unknown(values, NodeSettings, str(file))
    if file is not None:
        _anchor(values, file.resolve().parent)
    for path, value in [*from_environment(environment, NodeSettings).items(), *(overrides or {}).items()]:
        put(values, path, value)
    settings = convert(values, NodeSettings, str(file) if file is not None else "settings")
    if complete:
        _check(settings)
    return settings


def convert(values: Mapping[str, object], kind: type[T], source: str) -> T:
    """Values to a typed struct.

    Raises:
        ConfigError: with the path of the value that does not fit.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        path = where.strip("`").removeprefix("$.").removeprefix("$") or "the file"
        raise ConfigError(f"{source}: {path}: {what[:1].lower()}{what[1:]}") from None
    except ConfigError as error:  # Limits checks how its bounds go together
        raise ConfigError(f"{source}: limits: {error}") from None


def refuse_unknown(values: object, kind: Any, source: str) -> None:
    """Refuse keys that the struct does not have, each with its path and the nearest key there is.

    Raises:
        ConfigError: the first one, by the order in the file.
    """
    everything = {path for path, _ in leaves(kind)}

    def walk(value: object, node: inspect.Type, path: str) -> None:
        node = _bare(node)
        if isinstance(node, inspect.VarTupleType) and isinstance(value, list):
            for index, item in enumerate(value):
                walk(item, node.item_type, f"{path}[{index}]")
        elif isinstance(node, inspect.StructType | inspect.DataclassType) and isinstance(value, dict):
            known = {field.encode_name: field.type for field in node.fields}
            for key, item in value.items():
                here = f"{path}.{key}" if path else str(key)
                if key not in known:
                    raise ConfigError(f"{source}: unknown key {here!a}{_hint(str(key), path, known, everything)}")
                walk(item, known[key], here)

    walk(values, inspect.type_info(kind), "")


def from_environment(environment: Mapping[str, str], kind: Any, prefix: str = PREFIX) -> dict[str, object]:
    """Values by dotted path from variables PREFIX + PATH: EDGEBUS_NODE_LOG_LEVEL is log.level, lists have commas.

    Raises:
        ConfigError: a variable with the prefix that names nothing, or a value of the wrong type.
    """
    names = {prefix + path.replace(".", "_").upper(): (path, node) for path, node in leaves(kind)}
    found: dict[str, object] = {}
    for name, text in environment.items():
        if not name.startswith(prefix):
            continue
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, 0.6)
            raise ConfigError(f"environment: unknown variable {name!a}" + (f", is {near[0]} meant?" if near else ""))
        path, node = names[name]
        found[path] = _from_text(text, node, name)
    return found


def leaves(kind: Any) -> Iterator[tuple[str, inspect.Type]]:
    """Dotted paths of all values that are not sections themselves; lists of sections are left out."""

    def walk(node: inspect.Type, path: str) -> Iterator[tuple[str, inspect.Type]]:
        node = _bare(node)
        if isinstance(node, inspect.StructType | inspect.DataclassType):
            for field in node.fields:
                yield from walk(field.type, f"{path}.{field.encode_name}" if path else field.encode_name)
        elif not (isinstance(node, inspect.VarTupleType) and isinstance(_bare(node.item_type), inspect.StructType)):
            yield path, node

    return walk(inspect.type_info(kind), "")


def to_toml(settings: NodeSettings) -> str:
    """The settings as a file that reads back the same; None is left out."""
    values: dict[str, Any] = msgspec.to_builtins(settings)
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not _is_section(value) and value is not None]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *(f"{name} = {_toml(item)}" for name, item in value.items())]
        elif _is_section(value):
            for each in value:
                pairs = (f"{name} = {_toml(item)}" for name, item in each.items() if item is not None)
                lines += ["", f"[[{key}]]", *pairs]
    return "\n".join(lines) + "\n"


def read_toml(file: Path, example: str = "`edgebus node --print-config` writes one") -> dict[str, Any]:
    """The values in a settings file.

    Args:
        file: TOML, at most 1 MiB.
        example: where to find one, for who has none.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError(f"{file} has over {MAX_FILE_BYTES} B: that is no settings file")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; {example}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file} is not TOML: {' '.join(str(error).split())[:200]}") from None


def _anchor(values: dict[str, Any], folder: Path) -> None:
    """Make paths absolute that are relative to the file they stand in."""
    for key in ("keys", "allow", "state"):
        if isinstance(values.get(key), str) and values[key] != "any":
            values[key] = str(folder / values[key])
    peers = values.get("peers")
    for peer in peers if isinstance(peers, list) else ():
        file = peer.get("server_key") if isinstance(peer, dict) else None
        if isinstance(file, str) and _is_file(folder / file):
            peer["server_key"] = str(folder / file)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # longer than any file's name, say
        return False


def _check(settings: NodeSettings) -> None:
    if settings.insecure and (settings.keys or settings.allow):
        raise ConfigError("insecure = true sends plaintext without keys: drop it, or drop keys and allow")
    if not settings.insecure and settings.keys is None:
        raise ConfigError("give keys = DIR (made by `edgebus keygen DIR`), or insecure = true to go without")
    if not (settings.bind or settings.peers):
        raise ConfigError('nothing to do: give bind = ["tcp://0.0.0.0:7000"], or [[peers]] to dial')
    for section, endpoint in [
        *(("bind", each) for each in settings.bind),
        *(("peers", each.endpoint) for each in settings.peers),
    ]:
        try:
            check_transport(endpoint)
        except ConfigError as error:
            raise ConfigError(f"{section}: {error}") from None
    for peer in settings.peers:
        if settings.insecure == (peer.server_key is not None):
            need = "drops server_key, for nothing is encrypted" if settings.insecure else "needs server_key = FILE"
            raise ConfigError(f"peers: {peer.endpoint!a} {need}")
    names = [service.name for service in settings.services]
    for name in names:
        if name.startswith("edgebus."):
            raise ConfigError(f"services: {name!a} is a name of the bus's own: choose one without edgebus.")
        if names.count(name) > 1:
            raise ConfigError(f"services: {name!a} is there twice: one function per service")


def _bare(node: inspect.Type) -> inspect.Type:
    """The type without its metadata."""
    return _bare(node.type) if isinstance(node, inspect.Metadata) else node


def _hint(key: str, path: str, known: Mapping[str, object], everything: set[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.6)
    if near:
        return f", is {(path + '.' if path else '') + near[0]} meant?"
    elsewhere = sorted(each for each in everything if each.rpartition(".")[2] == key)
    return f", is {elsewhere[0]} meant?" if elsewhere else f"; known here are {', '.join(sorted(known))}"


def _from_text(text: str, node: inspect.Type, name: str) -> object:
    if isinstance(node, inspect.VarTupleType):
        return [part.strip() for part in text.split(",") if part.strip()]
    kinds: dict[type, type] = {inspect.BoolType: bool, inspect.IntType: int, inspect.FloatType: float}
    kind = kinds.get(type(node))
    if kind is None:
        return text
    try:
        return msgspec.convert(text.strip().lower() if kind is bool else text.strip(), kind, strict=False)
    except msgspec.ValidationError:
        raise ConfigError(f"environment: {name} must be {kind.__name__}, got {text[:100]!a}") from None


def put(values: dict[str, Any], path: str, value: object) -> None:
    """Set a value by its dotted path.

    Raises:
        ConfigError: something else stands where a section should.
    """
    *sections, key = path.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{section} must be a section [{section}], got {type(inner).__name__}")
        values = inner
    values[key] = value


def _is_section(value: object) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list | tuple) and any(isinstance(each, dict) for each in value)
    )


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match[0]):04x}", escaped) + '"'
    return repr(value)
