"""`sled generate`: one answer, drafted here, decided by the server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from edgebus.cli.progress import load_bar
from sled.errors import ParameterError
from sled.run.device import Answer, Device, Stream
from sled.types import MAX_CONSTRAINT_CHARS, Constraint, Sampling, Token
from sled.window import AUTO_CONFIDENCE, Window

_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"


def generate(
    prompt: Annotated[str, typer.Argument(help="The user's text; `-` reads it from standard input.")],
    server: Annotated[str, typer.Option(help="The server's endpoint, e.g. tcp://10.0.0.5:5555.")],
    server_key: Annotated[
        str | None, typer.Option(help="The server's public key: its node.key file or 40 characters.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="This device's key directory (`edgebus keygen DIR`).")] = None,
    drafter: Annotated[
        str,
        typer.Option(
            help="none, ngram, smollm2-12m, a .gguf file, or a model directory; torch:PATH runs a model in torch."
        ),
    ] = "ngram",
    window: Annotated[
        str, typer.Option(help="Tokens drafted per round: 0 to 64, or auto (confidence decides).")
    ] = "auto",
    confidence: Annotated[
        float | None,
        typer.Option(help="Stop drafting below this confidence, 0 to 1; default 0.4 with auto, else off."),
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    events: Annotated[
        bool, typer.Option("--events", help="Print a JSON line per event: connected, each token, the answer.")
    ] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="No encryption, no authentication.")] = False,
) -> None:
    """Generate an answer; drafted tokens that the target accepted are shown in green on a terminal.

    Example:

        sled generate "Why is the sky blue?" --server tcp://10.0.0.5:5555 --server-key server.key --keys device-keys
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    sampling = _sampling(
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
    size = _window(window, confidence)
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
        )
    with device:
        if events:
            _print_event("connected", {"target": device.target.name, "drafter": device.drafter.name})
        stream = device.generate(
            text,
            max_tokens=max_tokens,
            sampling=sampling,
            window=size,
            chat=not raw,
            stop=stop or [],
            logprobs=logprobs,
            rate=rate,
        )
        _show(stream, as_json=as_json, events=events)


def _sampling(**values: Any) -> Sampling:
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


def _window(window: str, confidence: float | None) -> Window:
    if window == "auto":
        return Window.auto(AUTO_CONFIDENCE if confidence is None else confidence)
    try:
        size = int(window)
    except ValueError:
        raise ParameterError(f"window is {window!r}, give a number from 0 to 64, or auto") from None
    return Window(size, confidence or 0.0)


def _show(stream: Stream, *, as_json: bool, events: bool) -> None:
    colour = sys.stdout.isatty()
    for token in stream:
        if events:
            values = {"token": token.id, "drafted": token.drafted, "text": token.text}
            logprob = {"logprob": msgspec.to_builtins(token.logprob)} if token.logprob is not None else {}
            _print_event("token", values | logprob)
        elif not as_json:
            print(_coloured(token) if colour else token.text, end="", flush=True)
    answer = stream.answer()
    if events:
        _print_event("answer", msgspec.to_builtins(answer))
    elif as_json:
        print(json.dumps(msgspec.to_builtins(answer)), flush=True)
    else:
        _print_figures(answer)


def _print_figures(answer: Answer) -> None:
    s = answer.stats
    print(flush=True)
    print(
        f"{len(answer.tokens)} tokens ({answer.finish_reason}), {s.tokens_per_s:.1f} tokens/s, "
        f"{s.accepted} of {s.drafted} drafts accepted, {s.mean_accepted_length:.2f} tokens a round, "
        f"{s.bytes_per_token:.0f} bytes a token",
        file=sys.stderr,
    )


def _print_event(kind: str, values: dict[str, Any]) -> None:
    print(json.dumps({"event": kind, **values}), flush=True)


def _coloured(token: Token) -> str:
    """The token for a terminal: green if drafted, and nothing in it that could drive the terminal."""
    text = "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in token.text)
    return f"{_GREEN}{text}{_PLAIN}" if token.drafted and text else text
