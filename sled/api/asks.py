"""What a request asks of a device: prompts and options in sled's words.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from sled.api.errors import ApiError, bad_request
from sled.api.requests import MAX_ANSWERS, ChatMessage, ChatRequest, Common, CompletionRequest, ResponseFormat
from sled.device import Conversation, Prompt
from sled.types import MAX_CONSTRAINT_CHARS, MAX_SEED, Constraint, Message, Sampling, Terms

_GREEDY_BELOW = 0.001  # sampling takes 0 or more than this
_TEXT_TOKENS = 16  # what OpenAI's completions give when nothing is said


@dataclass(frozen=True, slots=True)
class Wanted:
    """One answer that is wanted: choice `index` of the reply."""

    index: int
    prompt: Prompt
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...]
    logprobs: int


@dataclass(frozen=True, slots=True)
class Ask:
    """A whole request: its answers, and how they are to be told."""

    wanted: tuple[Wanted, ...]
    seed: int
    stream: bool
    usage: bool
    logprobs: bool
    echo: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """What can be asked for here.

    Args:
        names: names of the one model, the first of which is its own.
        max_positions: its context in tokens.
    """

    names: tuple[str, ...]
    max_positions: int


def chat_ask(request: ChatRequest, offer: Offer, seed: int) -> Ask:
    """The answers that a chat request wants.

    Args:
        request: as it was read.
        offer: what there is.
        seed: taken if the request names none, 0 .. 2**64 - 1.

    Raises:
        ApiError: 400 or 404.
    """
    _check_model(request, offer)
    for name in ("tools", "functions", "audio", "web_search_options"):
        if getattr(request, name):
            raise bad_request(f"{name} are not served here; ask without", name, "unsupported_parameter")
    if request.modalities not in (None, ["text"]):
        raise bad_request("modalities: only text is served here", "modalities", "unsupported_parameter")
    if request.top_logprobs and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    prompt = Conversation([_message(message, index) for index, message in enumerate(request.messages)])
    limit = request.max_completion_tokens or request.max_tokens or offer.max_positions
    logprobs = (request.top_logprobs or 0) if request.logprobs else -1
    return _ask(request, [prompt], seed, limit=min(limit, offer.max_positions), logprobs=logprobs)


def completion_ask(request: CompletionRequest, offer: Offer, seed: int) -> Ask:
    """The answers that a completion request wants; see `chat_ask`."""
    _check_model(request, offer)
    if request.suffix:
        raise bad_request("suffix is not served here; ask without", "suffix", "unsupported_parameter")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise bad_request("best_of is served only where it equals n", "best_of", "unsupported_parameter")
    if request.echo and request.logprobs is not None:
        raise bad_request(
            "echo is not served together with logprobs: prompts have none here", "echo", "unsupported_parameter"
        )
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    limit = min(request.max_tokens or _TEXT_TOKENS, offer.max_positions)
    logprobs = -1 if request.logprobs is None else request.logprobs
    return _ask(request, prompts, seed, limit=limit, logprobs=logprobs, echo=bool(request.echo))


def _ask(request: Common, prompts: list[Prompt], seed: int, *, limit: int, logprobs: int, echo: bool = False) -> Ask:
    choices = request.n or 1
    if choices * len(prompts) > MAX_ANSWERS:
        raise bad_request(f"{choices * len(prompts)} answers are asked for, at most {MAX_ANSWERS} are given", "n")
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options go with stream only", "stream_options")
    if request.seed is not None and not -(2**63) <= request.seed <= MAX_SEED:
        raise bad_request("seed is an integer of 64 bits", "seed")
    seed = seed if request.seed is None else request.seed % (MAX_SEED + 1)
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    try:
        Terms(stop=stop)
    except ValueError as error:
        raise bad_request(str(error), "stop") from None
    wanted = [
        Wanted(index, prompts[index // choices], _sampling(request, seed + index % choices), limit, stop, logprobs)
        for index in range(choices * len(prompts))
    ]
    usage = bool(request.stream_options and request.stream_options.include_usage)
    return Ask(tuple(wanted), seed, bool(request.stream), usage, logprobs >= 0, echo)


def _sampling(request: Common, seed: int) -> Sampling:
    """Sampling as OpenAI means it: temperature 1 unless said otherwise; next to 0 is greedy, top_p 0 the likeliest."""
    temperature = 1.0 if request.temperature is None else request.temperature
    top_p = 1.0 if request.top_p is None else request.top_p
    greedy = temperature < _GREEDY_BELOW or top_p == 0.0
    try:
        return Sampling(
            temperature=0.0 if greedy else temperature,
            top_k=request.top_k or 0,
            top_p=top_p or 1.0,
            seed=seed % (MAX_SEED + 1),
            min_p=request.min_p or 0.0,
            repetition_penalty=request.repetition_penalty or 1.0,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            bias=_bias(request.logit_bias or {}),
            constraint=_constraint(request.response_format),
        )
    except ValueError as error:
        raise bad_request(str(error)) from None


def _bias(given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    if not all(text.isascii() and text.isdigit() and len(text) <= 10 for text in given):
        raise bad_request('logit_bias: keys are token ids, e.g. {"42": -100}', "logit_bias")
    if not all(-100 <= value <= 100 for value in given.values()):
        raise bad_request("logit_bias: values are -100 to 100", "logit_bias")
    return tuple((int(text), value) for text, value in given.items())


def _constraint(form: ResponseFormat | None) -> Constraint | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return Constraint("json_schema", '{"type":"object"}')
    if form.json_schema is None:
        raise bad_request(
            "Missing required parameter: response_format.json_schema",
            "response_format.json_schema",
            "missing_required_parameter",
        )
    text = msgspec.json.encode(form.json_schema.schema).decode()
    if len(text) > MAX_CONSTRAINT_CHARS:
        raise bad_request(
            f"the schema has {len(text)} characters, at most {MAX_CONSTRAINT_CHARS} are taken",
            "response_format.json_schema.schema",
        )
    return Constraint("json_schema", text)


def _message(message: ChatMessage, index: int) -> Message:
    where = f"messages[{index}]"
    if message.tool_calls:
        raise bad_request(f"{where}.tool_calls: tools are not served here", where, "unsupported_parameter")
    role = "system" if message.role == "developer" else message.role
    if message.content is None or isinstance(message.content, str):
        return Message(role, message.content or "")
    for part in message.content:
        if part.type not in ("text", "input_text") or part.text is None:
            raise bad_request(
                f"{where}.content: a part of type {part.type!r}, the model reads text only",
                f"{where}.content",
                "unsupported_parameter",
            )
    return Message(role, "".join(part.text or "" for part in message.content))


def _check_model(request: Common, offer: Offer) -> None:
    if request.model is not None and request.model not in offer.names:
        raise no_such_model(request.model, offer)


def no_such_model(name: str, offer: Offer) -> ApiError:
    """404, with the name of the model that there is."""
    return ApiError(
        404,
        f"The model {name[:100]!r} does not exist here; there is {offer.names[0]!r}",
        param="model",
        code="model_not_found",
    )
