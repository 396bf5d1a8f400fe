"""What anybody may ask over HTTP: completions, forms that an answer must have, and the page of a node's metrics."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import msgspec

from edgebus.daemon.http import REQUEST_BYTES, _request_line
from sled.api.asks import Ask, Offer, chat_ask, completion_ask
from sled.api.errors import ApiError
from sled.api.requests import MAX_ANSWERS, ChatRequest, CompletionRequest, read_request
from sled.constraint_limits import MAX_DEPTH, MAX_DIVISOR, MAX_MARKS, check_grammar, check_regex, check_schema
from sled.types import MAX_CONSTRAINT_CHARS

MOST_TOKENS = 4096
OFFER = Offer(("model", "default"), MOST_TOKENS)


def completions(data: bytes) -> None:
    """A body of either kind of completion: refused with 4xx, or answers that can be asked of a device."""
    for kind in (ChatRequest, CompletionRequest):
        ask = _asked(kind, data)
        if isinstance(ask, ApiError):
            assert 400 <= ask.status < 500
            assert msgspec.json.decode(json.dumps(ask.body))
            continue
        assert 1 <= len(ask.wanted) <= MAX_ANSWERS
        for each in ask.wanted:
            assert 1 <= each.max_tokens <= MOST_TOKENS
            assert msgspec.convert(msgspec.to_builtins(each.sampling), type(each.sampling)) == each.sampling


def _asked(kind: type[ChatRequest | CompletionRequest], data: bytes) -> Ask | ApiError:
    try:
        request = read_request(kind, data)
        if isinstance(request, ChatRequest):
            return chat_ask(request, OFFER, 5)
        return completion_ask(request, OFFER, 5)
    except ApiError as refused:
        return refused


def forms(data: bytes) -> None:
    """A schema, expression or grammar: refused with a ValueError, or within the bounds on what is compiled of it."""
    text = data.decode("utf-8", "replace")
    for check in (check_schema, check_regex, check_grammar):
        try:
            schema = check(text)
        except ValueError:
            continue
        assert len(text) <= MAX_CONSTRAINT_CHARS
        if check is check_schema:
            assert isinstance(schema, dict)
            assert text.count("[") + text.count("{") <= MAX_DEPTH or _levels(schema) <= MAX_DEPTH
            divisor = schema.get("multipleOf")
            assert type(divisor) is not int or int(str(abs(divisor)).rstrip("0") or "0") <= MAX_DIVISOR
        elif check is check_grammar:
            assert sum(text.count(mark) for mark in ":([{~") <= MAX_MARKS


def _levels(node: object) -> int:
    """Levels of brackets, by going into them."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else None
    return 0 if inner is None else 1 + max(map(_levels, inner), default=0)


def metrics(data: bytes) -> None:
    """A connection to a node's metrics: nothing, or a method and a path."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(data[:REQUEST_BYTES])
        line = _request_line(ours, time.monotonic() + 5.0)
    if line is not None:
        method, path = (word.encode("latin-1") for word in line)
        assert method.split() == [method]
        assert path.split() == ([path] if path else [])


def completion_seeds() -> Iterator[bytes]:
    """Bodies with every field that means something."""
    common = {
        "model": "model",
        "n": 2,
        "seed": -3,
        "stop": ["a", "b"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "logit_bias": {"42": -100},
        "max_tokens": 9,
    }
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object", "multipleOf": 3}}}
    parts = [{"type": "text", "text": "hi"}, {"type": "input_text", "text": "ho"}]
    chat = {"messages": [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]}
    bodies = [
        {**common, **chat, "logprobs": True, "top_logprobs": 5, "response_format": schema},
        {**chat, "response_format": {"type": "json_object"}, "max_completion_tokens": 3, "tools": []},
        {**common, "prompt": ["one", "two"], "echo": True, "best_of": 2},
        {"prompt": [[1, 2], [3]], "logprobs": 3, "user": "u"},
        {"prompt": [1, 2, 3], "max_tokens": 5000},
        {**chat, "max_completion_tokens": 1 << 40},
    ]
    yield from (json.dumps(body).encode() for body in bodies)


def form_seeds() -> Iterator[bytes]:
    """Schemas with everything that is looked at, and a grammar."""
    schema = {
        "$defs": {"a": {"type": "integer", "multipleOf": 0.5}, "b/c": [{"pattern": "x+"}]},
        "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b~1c/0"}],
        "properties": {"p": {"multipleOf": 12, "format": "date", "$dynamicRef": "#"}},
        "patternProperties": {"^a": {"anyOf": [True, {}], "oneOf": []}},
    }
    yield json.dumps(schema).encode()
    yield b'{"multipleOf":1e300,"items":[{"multipleOf":7}]}'
    yield b'{"multipleOf":' + b"9" * 310 + b"}"
    yield b'{"multipleOf":4097}'
    yield b'{"items":' * 70 + b"1" + b"}" * 70
    yield b"start: " + b"(" * 1000
    yield b'start: "a" | b & ~c\nb: /x+/ {2} (c)\n%ignore " "\n'


def metrics_seeds() -> Iterator[bytes]:
    """Requests as they should be, and one that is not over."""
    yield b"GET /metrics?a=b HTTP/1.1\r\nHost: localhost\r\n\r\n"
    yield b"HEAD /healthy HTTP/1.0\n\n"
    yield b"GET / HTTP/1.1\r\nHost: x\r\n"


SEEDS = {"completions": completion_seeds, "forms": form_seeds, "metrics": metrics_seeds}
