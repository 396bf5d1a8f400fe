"""`edgebus doctor`: looks at an endpoint, or at a node's settings and everything they name, and says what is wrong."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.text import Text

from edgebus.allowedit import list_file, read_list
from edgebus.cli.options import Insecure, Json, OwnKeys, ServerKey, print_json, safe
from edgebus.cli.probe import key_facts, probe
from edgebus.config import check_transport
from edgebus.counting import count
from edgebus.doctor import Finding, Verdict, check_keys, diagnose
from edgebus.errors import ConfigError, EdgebusError
from edgebus.files import cure
from edgebus.keyfiles import read_public_keys
from edgebus.settings import NodeSettings, load_settings

_COLOURS = {Verdict.OK: "green", Verdict.HINT: "yellow", Verdict.FAIL: "red", Verdict.SKIP: "bright_black"}
_MAX_PORTS_TRIED = 64


class Patient(NamedTuple):
    """What was looked at, and what came of it."""

    what: str
    findings: list[Finding]


def doctor(
    target: Annotated[str, typer.Argument(help="tcp://HOST:PORT, ipc://PATH, or a node.toml.")],
    server_key: ServerKey = None,
    keys: OwnKeys = None,
    insecure: Insecure = False,
    timeout_s: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds to wait at each layer.")] = 3.0,
    as_json: Json = False,
) -> None:
    """Say what is wrong between here and a node, layer by layer, each with its cause and the command that mends it.

    Given a node.toml it looks at the keys, the allow-list, the addresses to bind, and every peer in it.
    Exit status 1 if anything fails.

    Example: edgebus doctor tcp://server:7000 --server-key server.key --keys ./device
    """
    if "://" in target:
        patients = [_endpoint(target, server_key, keys, insecure, timeout_s)]
    else:
        if ":/" in target:
            check_transport(target)
        if server_key or keys or insecure:
            raise typer.BadParameter(
                "a node.toml says itself which keys are used: drop --server-key, --keys, --insecure"
            )
        patients = _settings(Path(target), timeout_s)
    failed = any(finding.verdict is Verdict.FAIL for patient in patients for finding in patient.findings)
    if as_json:
        print_json({"ok": not failed, "looked_at": [_plain(patient) for patient in patients]})
    else:
        _print(patients, failed)
    if failed:
        raise typer.Exit(1)


def _endpoint(endpoint: str, server_key: str | None, keys: Path | None, insecure: bool, timeout_s: float) -> Patient:
    if insecure and (server_key or keys):
        raise typer.BadParameter("--insecure looks in plaintext: drop --server-key and --keys")
    if not insecure and not (server_key and keys):
        raise typer.BadParameter("give --server-key and --keys, or --insecure")
    public = read_public_keys(server_key) if server_key else ()
    facts = probe(endpoint, keys=keys, server_keys=public, insecure=insecure, timeout_s=timeout_s)
    return Patient(endpoint, diagnose(facts))


def _settings(file: Path, timeout_s: float) -> list[Patient]:
    try:
        settings = load_settings(file, os.environ)
    except ConfigError as error:
        return [Patient(str(file), [Finding("settings", Verdict.FAIL, str(error), _settings_cure(file, error))])]
    findings = [Finding("settings", Verdict.OK, f"{file} reads well"), *_own(settings)]
    findings += [_bindable(endpoint) for endpoint in settings.bind[:_MAX_PORTS_TRIED]]
    patients = [Patient(str(file), findings)]
    for peer in settings.peers:
        try:
            public = read_public_keys(peer.server_key) if peer.server_key else ()
            keys = Path(settings.keys) if settings.keys else None
            facts = probe(peer.endpoint, keys=keys, server_keys=public, insecure=settings.insecure, timeout_s=timeout_s)
            patients.append(Patient(peer.endpoint, diagnose(facts)))
        except EdgebusError as error:
            remedy = str(error).rpartition(": ")[2]
            patients.append(Patient(peer.endpoint, [Finding("settings", Verdict.FAIL, str(error), remedy)]))
    return patients


def _settings_cure(file: Path, error: ConfigError) -> str:
    if not os.path.lexists(file):
        return f"check the path; there is no {file}"
    cause = error.__cause__ or error.__context__
    return cure(cause) if isinstance(cause, OSError) else "mend that line"


def _own(settings: NodeSettings) -> list[Finding]:
    if settings.keys is None:
        return [Finding("our keys", Verdict.HINT, "plaintext: anybody who reaches it may call", "edgebus keygen DIR")]
    found = [Finding("our keys", *check_keys(key_facts(Path(settings.keys))))]
    if settings.allow == "any" or not settings.bind:
        return found
    return [*found, _allow_list(Path(settings.allow or settings.keys))]


def _allow_list(path: Path) -> Finding:
    """Whom the list lets in, and which of its lines say nothing."""
    step, file, cure = "allow-list", list_file(path), f"edgebus allow {path} NODE_KEY"
    try:
        _, parsed = read_list(path)
    except EdgebusError as error:
        return Finding(step, Verdict.FAIL, str(error), cure)
    valid = [grant for grant in parsed.grants.values() if time.time() < grant.until]
    if not valid:
        return Finding(step, Verdict.FAIL, f"{file} lets nobody in ({count(len(parsed.grants), 'key')} expired)", cure)
    if parsed.problems:
        number, why = next(iter(parsed.problems.items()))
        text = f"{file}: {count(len(valid), 'key')}; line {number} allows nobody: {why}"
        return Finding(step, Verdict.HINT, text, f"edgebus keys {path}")
    return Finding(step, Verdict.OK, f"{file}: {len(valid)} of {count(len(parsed.grants), 'key')} may connect")


def _bindable(endpoint: str) -> Finding:
    """Whether an address of ours can be bound; a node that runs already looks like any other holder."""
    step = f"bind {endpoint}"
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://"):
        return Finding(step, Verdict.SKIP, "not tried: a bind would put a socket there")
    if not colon or not port.isdecimal():
        return Finding(step, Verdict.FAIL, "not tcp://HOST:PORT", "mend it")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("" if host == "*" else host, int(port)))
    except (OSError, OverflowError) as error:
        text = f"cannot be bound: {getattr(error, 'strerror', None) or error}"
        cure = f"if it is not this node that runs already: ss -ltnp | grep {port}"
        return Finding(step, Verdict.HINT if "in use" in text else Verdict.FAIL, text, cure)
    return Finding(step, Verdict.OK, "free")


def _plain(patient: Patient) -> dict[str, object]:
    return {"what": patient.what, "findings": [finding._asdict() for finding in patient.findings]}


def _print(patients: list[Patient], failed: bool) -> None:
    console = Console(soft_wrap=True)
    for patient in patients:
        console.print(Text(safe(patient.what), style="bold"))
        for finding in patient.findings:
            line = Text(f"  {finding.verdict.value:5}", style=_COLOURS[finding.verdict])
            line.append(f"{safe(finding.step)}: {safe(finding.text, 600)}", style="default")
            console.print(line)
            if finding.remedy:
                console.print(Text(f"       → {safe(finding.remedy, 400)}"))
    if failed:
        console.print(
            Text("Something is wrong: mend the first line that says fail, then look again.", style="bold red")
        )
