"""`sled drafters`: what can draft here, and what is missing."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import typer

from edgebus.cli.options import Json, print_json, safe
from sled.drafters.opening import PACKAGED
from sled.drafters.plugins import plugins
from sled.errors import UnknownModel
from sled.targets.catalog import PACKAGED as TARGETS
from sled.targets.catalog import find_model


class Row(NamedTuple):
    """A drafter, or a kind of them; `missing` says what to install, and is empty where nothing is."""

    name: str
    what: str
    missing: str = ""


def drafters(as_json: Json = False) -> None:
    """List the drafters of this device: built in, packaged, from plug-ins, and what an extra would add.

    Example: sled drafters
    """
    rows = found()
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        missing = f"  (missing: {row.missing})" if row.missing else ""
        typer.echo(f"{safe(row.name):{width}}  {safe(row.what)}{missing}")


def found() -> list[Row]:
    """All there is to know."""
    return [
        Row("none", "nothing: the server decodes"),
        Row("ngram", "looks up where the last tokens stood before; no model"),
        *(Row(name, "model that comes with sled, distilled for its target") for name in PACKAGED),
        *(Row(name, "packaged target, with @skip=, @bits= as a drafter for itself", _lacks(name)) for name in TARGETS),
        *(Row(plugin.name, f"plug-in of {plugin.origin}") for plugin in plugins()),
        Row("FILE.gguf, DIRECTORY", "a model; Llama, Mistral and Qwen on the native decoder"),
        Row("torch:PATH", "any model of transformers", _without("torch", "torch", "transformers")),
        Row("llama:FILE.gguf", "any model of llama.cpp", _without("llama", "llama_cpp")),
        Row("FIRST+SECOND", "a chain, e.g. ngram+smollm2-12m"),
    ]


def _lacks(target: str) -> str:
    try:
        find_model(target)
    except UnknownModel as error:
        return str(error).partition(": ")[2]
    return ""


def _without(extra: str, *modules: str) -> str:
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"pip install 'edgebus[{extra}]'" if absent else ""
