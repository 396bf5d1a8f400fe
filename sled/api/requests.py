"""Bodies of requests, read and checked field by field: what is wrong is named by its path.

Pure. Fields of OpenAI's that mean nothing here are taken and ignored; those that would change the answer and cannot be
honoured, and fields that nobody knows, are refused.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from sled.api.errors import ApiError, bad_request

MAX_CHOICES = 16
MAX_ANSWERS = 64

_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Temperature = Annotated[float, msgspec.Meta(ge=0, le=100)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Id = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Ids = Annotated[list[_Id], msgspec.Meta(min_length=1)]


class StreamOptions(msgspec.Struct, frozen=True):
    """What else a stream tells."""

    include_usage: bool | None = None


class JsonSchema(msgspec.Struct, frozen=True):
    """The schema an answer has to follow."""

    schema: dict[str, Any]
    name: str = ""
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Common(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields of both kinds of completion; `top_k`, `min_p` and `repetition_penalty` are no fields of OpenAI's."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: _Count | None = None
    temperature: _Temperature | None = None
    top_p: _Share | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] | None = None
    min_p: _Share | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(ge=0.01, le=100)] | None = None
    # taken and ignored: they say who asks, what to keep, or how a service with more models should go about it
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    parallel_tool_calls: Any = None


class Part(msgspec.Struct, frozen=True):
    """A part of a message; only text is understood."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """A message as clients write it."""

    role: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    content: str | list[Part] | None = None
    tool_calls: Any = None


class ChatRequest(Common, kw_only=True, forbid_unknown_fields=True):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    modalities: list[str] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    audio: Any = None
    web_search_options: Any = None


class CompletionRequest(Common, kw_only=True, forbid_unknown_fields=True):
    """Body of /v1/completions."""

    prompt: Any  # text, texts, or lists of token ids: see `_plain_prompt`
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, msgspec.Meta(ge=1)] | None = None


_R = TypeVar("_R", bound=Common)
_PATH = re.compile(r" - at `\$\.?(.*)`$")
_UNKNOWN = re.compile(r"unknown field `(.*)`")


def read_request(kind: type[_R], body: bytes) -> _R:
    """A body as a request.

    Raises:
        ApiError: 400; it is no JSON, or a field is not as it should be.
    """
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise bad_request("the body is nested too deeply; give plain JSON") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"the body is no JSON: {error}; give one JSON object in UTF-8") from None
    if not isinstance(value, dict):
        raise bad_request("the body is no JSON object; give an object with the request's fields")
    try:
        if kind is CompletionRequest:
            value = {**value, "prompt": _plain_prompt(value.get("prompt"))}
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except RecursionError:
        raise bad_request("the body is nested too deeply; give plain JSON") from None


def _plain_prompt(prompt: Any) -> Any:
    """A prompt of one of the four forms, looked at by hand: a union of lists says badly what is wrong."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not prompt:
        raise bad_request("prompt is text, token ids, or a list of either, and not empty", "prompt")
    if all(isinstance(each, str) for each in prompt):
        return prompt
    lists = prompt if all(isinstance(each, list) for each in prompt) else [prompt]
    try:
        found = [msgspec.convert(each, _Ids) for each in lists]
    except msgspec.ValidationError as error:
        raise bad_request(f"prompt: {error}; give text, token ids, or a list of either", "prompt") from None
    return found


def _refusal(text: str) -> ApiError:
    found = _PATH.search(text)
    param = found.group(1) if found else None
    unknown = _UNKNOWN.search(text)
    if unknown and not param:
        return bad_request(f"Unrecognized request argument supplied: {unknown.group(1)}", unknown.group(1))
    what = _PATH.sub("", text)
    missing = re.search(r"missing required field `(.*)`", what)
    if missing:
        param = f"{param}.{missing.group(1)}" if param else missing.group(1)
        return bad_request(f"Missing required parameter: {param}", param, "missing_required_parameter")
    return bad_request(f"{param}: {what}" if param else what, param, "invalid_type" if "Expected" in what else None)
