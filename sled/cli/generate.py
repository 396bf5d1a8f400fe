"""`sled generate`: one answer, drafted here, decided by the server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from edgebus.cli.progress import load_bar
from sled.cli.showing import print_event, show
from sled.errors import ParameterError
from sled.loss import RELEASE_AFTER_S, OnLoss
from sled.run.device import Device
from sled.types import MAX_CONSTRAINT_CHARS, Constraint, Sampling
from sled.window import DEFAULT_SIZE, Window


def generate(
    server: Annotated[str, typer.Option(help="The server's endpoint, e.g. tcp://10.0.0.5:5555.")],
    prompt: Annotated[
        str | None, typer.Argument(help="The user's text; `-` reads it from standard input; none with --resume.")
    ] = None,
    server_key: Annotated[
        str | None, typer.Option(help="The server's public key: its node.key file or 40 characters.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="This device's key directory (`edgebus keygen DIR`).")] = None,
    drafter: Annotated[
        str,
        typer.Option(
            help="none, ngram, smollm2-12m, a .gguf file, a model directory, or a chain, e.g. ngram+smollm2-12m; "
            "`sled drafters` lists them."
        ),
    ] = "ngram",
    window: Annotated[str, typer.Option(help="Tokens drafted per round: 0 to 64, or auto (as many as pay).")] = "auto",
    confidence: Annotated[
        float | None,
        typer.Option(
            help="Stop drafting below this confidence, 0 to 1, with a window of 8 or the one given; default off."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens in the answer at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy; higher is more varied.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the K likeliest tokens; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens of this mass; 1 is off.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer, whatever drafts.")] = 0,
    min_p: Annotated[float, typer.Option(help="Only tokens of this share of the likeliest one's probability.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Over 1: tokens that have come are less likely.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Taken off once a token is in the answer, -2 to 2.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="Taken off each time it is in the answer, -2 to 2.")] = 0.0,
    bias: Annotated[
        list[str] | None, typer.Option(metavar="ID=VALUE", help="Add to a token's logit, -100 to 100; may be repeated.")
    ] = None,
    rule: Annotated[
        str, typer.Option(help="coupled, or rejection: drafts go with their law, and the seed decides less.")
    ] = "coupled",
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be repeated, up to 16 times.")
    ] = None,
    logprobs: Annotated[
        int, typer.Option(help="With each token (--json, --events) its log-probability and N likeliest; -1 is off.")
    ] = -1,
    json_schema: Annotated[
        Path | None, typer.Option(help="The answer is JSON of the schema in this file (`{}`: any JSON).")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="The answer matches this expression.")] = None,
    grammar: Annotated[Path | None, typer.Option(help="The answer follows the Lark grammar in this file.")] = None,
    rate: Annotated[float, typer.Option(help="Tokens per second you need; 0 leaves it to the server.")] = 0.0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads for a model drafter; 0 is one, or what torch decides.")
    ] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the server.")] = 30.0,
    on_loss: Annotated[
        str,
        typer.Option(
            help="Without a server: fail (after --timeout), wait, or release: show what is drafted, unverified."
        ),
    ] = "fail",
    wait: Annotated[
        float | None, typer.Option(help="Seconds to wait for a server; default: for ever, with release --timeout.")
    ] = None,
    release_after: Annotated[
        float, typer.Option(help="With release: seconds without a server before drafts are shown.")
    ] = RELEASE_AFTER_S,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the answer there while it comes, for --resume.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on with a saved answer; its sampling and terms are kept.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    events: Annotated[
        bool, typer.Option("--events", help="Print a JSON line per event: connected, each token, the answer.")
    ] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="No encryption, no authentication.")] = False,
) -> None:
    """Generate an answer; drafted tokens that the target accepted are shown in green on a terminal.

    The status is 1 if the answer ends with unverified text, which is yellow and told apart in JSON.

    Example:

        sled generate "Why is the sky blue?" --server tcp://10.0.0.5:5555 --server-key server.key --keys device-keys
    """
    if (prompt is None) == (resume is None):
        raise ParameterError("give a prompt, or --resume FILE, which has one")
    if resume is not None and save is not None:
        raise ParameterError("--resume goes on saving to its own file; leave --save out")
    text = sys.stdin.read() if prompt == "-" else prompt or ""
    sampling = sampling_of(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        bias=tuple(map(_bias, bias or [])),
        rule=_rule(rule),
        constraint=_constraint(json_schema, regex, grammar),
    )
    size = parse_window(window, confidence)
    is_model = drafter not in ("none", "ngram")
    quiet = as_json or events or not is_model
    with load_bar(f"loading drafter {drafter}", quiet=quiet) as progress:
        device = Device(
            server,
            server_key=server_key,
            keys=keys,
            drafter=drafter,
            threads=threads,
            insecure=insecure,
            timeout_s=timeout,
            progress=progress,
            on_loss=parse_on_loss(on_loss),
            wait_s=wait,
            release_after_s=release_after,
        )
    with device:
        if events:
            print_event("connected", {"target": device.target.name, "drafter": device.drafter.name})
        if resume is not None:
            stream = device.resume(resume, window=size)
        else:
            stream = device.generate(
                text,
                max_tokens=max_tokens,
                sampling=sampling,
                window=size,
                chat=not raw,
                stop=stop or [],
                logprobs=logprobs,
                rate=rate,
                save_to=save,
            )
        answer = show(stream, as_json=as_json, events=events)
    if not answer.finish_reason:
        raise typer.Exit(1)


def parse_on_loss(word: str) -> OnLoss:
    match word:
        case "fail" | "wait" | "release":
            return word
    raise ParameterError(f"on-loss is {word!r}, give fail, wait or release")


def sampling_of(**values: Any) -> Sampling:
    """How to sample, from options.

    Raises:
        ParameterError: a value out of range.
    """
    try:
        return Sampling(**values)
    except ValueError as error:
        raise ParameterError(str(error)) from None


def _rule(name: str) -> Literal["coupled", "rejection"]:
    if name == "coupled":
        return "coupled"
    if name == "rejection":
        return "rejection"
    raise ParameterError(f"rule is {name!r}, give coupled or rejection")


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise ParameterError(f"bias is {text!r}, give ID=VALUE, e.g. 2=-5.5") from None


def _constraint(json_schema: Path | None, regex: str | None, grammar: Path | None) -> Constraint | None:
    if [json_schema, regex, grammar].count(None) < 2:
        raise ParameterError("give one of --json-schema, --regex and --grammar: an answer has one form")
    if regex is not None:
        return _form("regex", regex)
    if json_schema is not None:
        return _form("json_schema", _read(json_schema))
    return _form("grammar", _read(grammar)) if grammar is not None else None


def _form(kind: Literal["json_schema", "regex", "grammar"], text: str) -> Constraint:
    if len(text) > MAX_CONSTRAINT_CHARS:
        raise ParameterError(f"the {kind} has {len(text)} characters, at most {MAX_CONSTRAINT_CHARS} are allowed")
    return Constraint(kind, text)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_CONSTRAINT_CHARS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"cannot read {path}: {error}; give a text file") from None


def parse_window(window: str, confidence: float | None) -> Window:
    """The window that options name.

    Raises:
        ParameterError: none.
    """
    if window == "auto":
        return Window.auto() if confidence is None else Window(DEFAULT_SIZE, confidence)
    try:
        size = int(window)
    except ValueError:
        raise ParameterError(f"window is {window!r}, give a number from 0 to 64, or auto") from None
    return Window(size, confidence or 0.0)
