"""Bodies of requests: what each field comes to, and what is refused, by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sled.api.asks import Offer, chat_ask, completion_ask
from sled.api.errors import ApiError
from sled.api.requests import ChatRequest, CompletionRequest, read_request
from sled.types import Constraint, Message, Sampling

OFFER = Offer(("toy", "gpt-4o"), 100)
MESSAGES = [{"role": "user", "content": "hi"}]


def ask_of(**fields):
    body = json.dumps({"messages": MESSAGES} | fields).encode()
    return chat_ask(read_request(ChatRequest, body), OFFER, 77)


def text_ask_of(**fields):
    body = json.dumps({"prompt": "hi"} | fields).encode()
    return completion_ask(read_request(CompletionRequest, body), OFFER, 77)


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({}, Sampling(temperature=1.0, seed=77)),
        ({"temperature": None, "top_p": None, "seed": None, "stop": None}, Sampling(temperature=1.0, seed=77)),
        ({"temperature": 0, "seed": 5}, Sampling(seed=5)),
        ({"temperature": 1e-5}, Sampling(seed=77)),
        ({"top_p": 0}, Sampling(seed=77)),
        ({"top_p": 0.5, "temperature": 2}, Sampling(temperature=2.0, top_p=0.5, seed=77)),
        ({"seed": -2}, Sampling(temperature=1.0, seed=2**64 - 2)),
        ({"presence_penalty": -2, "frequency_penalty": 2}, Sampling(1.0, 0, 1.0, 77, 0.0, 1.0, -2.0, 2.0)),
        ({"logit_bias": {"3": -100, "8": 1.5}}, Sampling(1.0, seed=77, bias=((3, -100.0), (8, 1.5)))),
        ({"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.2}, Sampling(1.0, 4, 1.0, 77, 0.1, 1.2)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}},
            Sampling(1.0, seed=77, constraint=Constraint("json_schema", '{"type":"array"}')),
        ),
        (
            {"response_format": {"type": "json_object"}},
            Sampling(1.0, seed=77, constraint=Constraint("json_schema", '{"type":"object"}')),
        ),
    ],
)
def test_sampling_is_what_the_fields_say(fields, sampling):
    assert ask_of(**fields).wanted[0].sampling == sampling


def test_other_fields_shape_the_answers():
    assert ask_of().wanted[0].max_tokens == 100
    assert ask_of(max_tokens=7).wanted[0].max_tokens == 7
    assert ask_of(max_tokens=7, max_completion_tokens=8).wanted[0].max_tokens == 8
    assert ask_of(max_tokens=10**6).wanted[0].max_tokens == 100
    assert text_ask_of().wanted[0].max_tokens == 16
    assert ask_of(stop="x").wanted[0].stop == ("x",)
    assert ask_of(stop=["x", "y"]).wanted[0].stop == ("x", "y")
    assert [ask_of(logprobs=a).wanted[0].logprobs for a in (None, False, True)] == [-1, -1, 0]
    assert ask_of(logprobs=True, top_logprobs=4).wanted[0].logprobs == 4
    assert text_ask_of(logprobs=0).wanted[0].logprobs == 0
    assert ask_of(stream=True, stream_options={"include_usage": True}).usage
    assert ask_of(user="me", metadata={"a": 1}, store=False, reasoning_effort="low", parallel_tool_calls=True).wanted
    assert ask_of(tools=[], tool_choice="none", model="gpt-4o").wanted


def test_messages_are_texts_of_known_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    given = [{"role": "developer", "content": "be good", "name": "x"}, {"role": "user", "content": parts}]
    given.append({"role": "assistant", "content": None, "refusal": None})
    told = [Message("system", "be good"), Message("user", "ab"), Message("assistant", "")]
    assert ask_of(messages=given).wanted[0].prompt.messages == told


def test_choices_count_seeds_up_and_prompts_keep_theirs():
    ask = text_ask_of(prompt=["a", "b"], n=2, seed=2**63)
    assert [(w.index, w.prompt, w.sampling.seed - 2**63) for w in ask.wanted] == [
        (0, "a", 0),
        (1, "a", 1),
        (2, "b", 0),
        (3, "b", 1),
    ]
    assert ask_of(n=2, seed=-1).wanted[1].sampling.seed == 0


BAD = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0]"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"n": 17}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"seed": 2**64}, "seed"),
    ({"seed": "x"}, "seed"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ["x" * 257]}, "stop"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "x" * 70_000}}}},
        "response_format.json_schema.schema",
    ),
    ({"modalities": ["audio"]}, "modalities"),
    ({"functions": [{}]}, "functions"),
    ({"frobnicate": 1}, "frobnicate"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda value: str(value)[:60])
def test_what_cannot_be_is_refused_with_the_fields_name(fields, param):
    with pytest.raises(ApiError) as refused:
        ask_of(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize("prompt", [None, [], 3, [[]], ["a", 1], [[1], "a"], [-1], [2**31], [1.5], {"a": 1}, [["a"]]])
def test_prompt_that_is_none_is_refused(prompt):
    with pytest.raises(ApiError) as refused:
        text_ask_of(prompt=prompt)
    assert (refused.value.status, refused.value.param) == (400, "prompt")


@pytest.mark.parametrize("fields", [{"best_of": 3}, {"suffix": "x"}, {"echo": True, "logprobs": 1}])
def test_legacy_fields_that_would_change_the_answer_are_refused(fields):
    with pytest.raises(ApiError) as refused:
        text_ask_of(**fields)
    assert refused.value.code == "unsupported_parameter"


def test_unknown_model_is_not_found():
    with pytest.raises(ApiError) as refused:
        ask_of(model="gpt-5")
    assert (refused.value.status, refused.value.code, refused.value.param) == (404, "model_not_found", "model")


def test_too_many_answers_are_refused():
    with pytest.raises(ApiError):
        text_ask_of(prompt=["x"] * 65)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'"x"',
        b"{" * 10_000,
        b'{"a":' * 10_000,
        b"\xff",
        b'{"model": "\\ud800"}',
        b'{"seed": 1e999}',
        b"\0",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_body_that_is_no_object_is_refused(body):
    with pytest.raises(ApiError) as refused:
        read_request(ChatRequest, body)
    assert refused.value.status == 400


_TEXTS = st.sampled_from(["", "a", "json_object", "text", "é", "type", "role", "content"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([0.5, -1e300]) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)
_FIELDS = st.sampled_from([*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__, "x"])


@settings(max_examples=60)
@given(st.dictionaries(_FIELDS, _VALUES, max_size=5))
def test_any_object_is_an_ask_or_a_bad_request(fields):
    body = json.dumps(fields).encode()
    for kind, ask in ((ChatRequest, chat_ask), (CompletionRequest, completion_ask)):
        assert status_of(lambda kind=kind, ask=ask: ask(read_request(kind, body), OFFER, 0)) in (200, 400, 404)


def status_of(asked):
    try:
        asked()
    except ApiError as error:
        return error.status
    return 200
