"""The systemd unit that comes with the package, with the paths of this installation."""

from __future__ import annotations

import re
import shutil
import sys
from importlib import resources
from pathlib import Path

UNIT_FILE = "edgebus-node.service"
_CONFIG = "/etc/edgebus/node.toml"
_HOMES = ("/home/", "/root/", "/run/user/")  # what ProtectHome hides


def unit_text(config: Path | None = None, program: str | None = None) -> str:
    """The unit.

    Args:
        config: settings file; /etc/edgebus/node.toml by default.
        program: what to start; by default the `edgebus` of this environment.
    """
    text = (resources.files("edgebus.daemon") / UNIT_FILE).read_text()
    where: list[str] = []
    if program is None:
        where = [sys.base_prefix, __file__]
        found = Path(sys.executable).with_name("edgebus")
        program = str(found) if found.exists() else shutil.which("edgebus") or f"{sys.executable} -m edgebus.cli"
    path = _CONFIG if config is None else str(config.resolve())
    command = f"{_quoted(program)} node --config {_quoted(path)}"
    if any(part.startswith(_HOMES) for part in (program, path, *where)):
        text = text.replace(
            "ProtectHome=yes", "# Read, since this installation or its settings lie there.\nProtectHome=read-only"
        )
    return re.sub(r"^ExecStart=.*$", lambda _: f"ExecStart={command}", text, flags=re.MULTILINE)


def _quoted(text: str) -> str:
    """A word of a command line as systemd reads it: % and $ are its own."""
    text = text.replace("%", "%%").replace("$", "$$")
    return text if re.fullmatch(r"[\w./:@%$+-]+( -m edgebus\.cli)?", text) else '"' + text.replace('"', '\\"') + '"'
