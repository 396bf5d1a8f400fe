"""The openai package against `sled api`: what it reads is what the target says."""

from __future__ import annotations

import numpy as np
import openai
import pytest

from sled.api.guard import Access
from sled.types import Message, Sampling

pytestmark = pytest.mark.net

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello there"}]
KEY = "a-token-of-thirty-two-characters"


@pytest.fixture
def client(api):
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


def chat(client, messages=MESSAGES, **options):
    return client.chat.completions.create(model="toy", messages=messages, **{"max_tokens": 24} | options)


def right(served, sampling, num_tokens=24, messages=MESSAGES):
    prompt = served.target.codec.encode_chat([Message(**each) for each in messages])
    return served.target.plain_answer(prompt, sampling, num_tokens), prompt


def text_of(tokens):
    return "".join(f"<{token}>" for token in tokens if token)


def test_chat_says_what_the_target_says_and_counts_tokens(served, client):
    expected, prompt = right(served, Sampling())
    reply = chat(client, temperature=0)
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.content == text_of(expected)
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == ("stop" if expected[-1] == 0 else "length")
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), len(expected))
    assert usage.total_tokens == len(prompt) + len(expected)
    details = usage.completion_tokens_details
    assert 0 < details.accepted_prediction_tokens < len(expected)
    assert details.rejected_prediction_tokens > 0


def test_stream_is_the_whole_answer_in_pieces(client):
    whole = chat(client, seed=5)
    pieces = list(chat(client, seed=5, stream=True, stream_options={"include_usage": True}))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == whole.choices[0].message.content
    assert len(pieces) > 5
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert pieces[-1].choices == []
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {piece.id for piece in pieces} == {pieces[0].id}
    assert {piece.object for piece in pieces} == {"chat.completion.chunk"}
    assert all(piece.usage is None for piece in chat(client, stream=True))


def test_same_seed_same_answer_other_seed_another(served, client):
    first, again, other = (chat(client, seed=seed).choices[0].message.content for seed in (7, 7, 8))
    assert first == again == text_of(right(served, Sampling(temperature=1.0, seed=7))[0])
    assert first != other
    negative = chat(client, seed=-1).choices[0].message.content
    assert negative == text_of(right(served, Sampling(temperature=1.0, seed=2**64 - 1))[0])


def test_without_seed_answers_vary_and_the_seed_that_was_drawn_is_told(client):
    replies = [chat(client) for _ in range(3)]
    assert len({reply.choices[0].message.content for reply in replies}) > 1
    seed = replies[0].sled["seed"]
    assert chat(client, seed=seed).choices[0].message.content == replies[0].choices[0].message.content


def test_n_choices_are_the_answers_of_the_next_seeds(client):
    reply = chat(client, seed=20, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    alone = [chat(client, seed=20 + i) for i in range(3)]
    assert [c.message.content for c in reply.choices] == [each.choices[0].message.content for each in alone]
    assert reply.usage.completion_tokens == sum(each.usage.completion_tokens for each in alone)
    texts = ["", "", ""]
    for piece in chat(client, seed=20, n=3, stream=True):
        texts[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in reply.choices]


def test_stop_text_ends_the_answer_before_it_even_across_tokens(client):
    text = chat(client, temperature=0).choices[0].message.content
    third = text.index("<", text.index("<", 1) + 1)
    stop = text[third - 2 : third + 2]  # the end of one token and the beginning of the next
    for given in (stop, ["never", stop]):
        reply = chat(client, temperature=0, stop=given)
        assert reply.choices[0].message.content == text[: text.index(stop)]
        assert reply.choices[0].finish_reason == "stop"
        pieces = list(chat(client, temperature=0, stop=given, stream=True))
        assert "".join(p.choices[0].delta.content or "" for p in pieces) == text[: text.index(stop)]


def test_logprobs_are_the_targets_own(served, client):
    expected, prompt = right(served, Sampling(temperature=1.0, seed=3), 6)
    told = chat(client, seed=3, max_tokens=6, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [each.token for each in told] == [f"<{token}>" for token in expected if token]
    for position, each in enumerate(told):
        row = served.target.row(prompt + expected[:position]).astype(float)
        laws = row - np.logaddexp.reduce(row)
        assert each.logprob == pytest.approx(laws[expected[position]], abs=1e-5)
        assert bytes(each.bytes) == each.token.encode()
        likeliest = sorted(laws)[::-1][:2]
        assert [top.logprob for top in each.top_logprobs] == pytest.approx(likeliest, abs=1e-5)
    streamed = chat(client, seed=3, max_tokens=6, logprobs=True, top_logprobs=2, stream=True)
    again = [entry for piece in streamed for entry in (piece.choices[0].logprobs or NONE).content]
    assert again == told


class NONE:
    content = ()


def test_penalties_and_bias_shape_the_answer(served, client):
    sampling = Sampling(
        temperature=0.5, top_p=0.9, seed=1, presence_penalty=1.0, frequency_penalty=-0.5, bias=((9, 3.0),)
    )
    options = {"temperature": 0.5, "top_p": 0.9, "seed": 1, "presence_penalty": 1, "frequency_penalty": -0.5}
    reply = chat(client, **options, logit_bias={"9": 3})
    assert reply.choices[0].message.content == text_of(right(served, sampling)[0])


def test_completions_take_texts_and_tokens_without_a_template(served, client):
    def create(prompt, **options):
        return client.completions.create(model="toy", prompt=prompt, temperature=0, **{"max_tokens": 8} | options)

    ids = served.target.codec.encode("ab", chat=False)
    expected = text_of(served.target.plain_answer(ids, Sampling(), 8))
    assert create("ab").choices[0].text == expected
    assert create(ids).choices[0].text == expected
    assert create("ab").object == "text_completion"
    other = text_of(served.target.plain_answer(served.target.codec.encode("cd", chat=False), Sampling(), 8))
    assert [choice.text for choice in create(["ab", "cd"], n=2).choices] == [expected, expected, other, other]
    assert [choice.text for choice in create([ids, ids]).choices] == [expected, expected]
    assert create("ab", echo=True).choices[0].text == "ab" + expected
    assert create(ids, echo=True).choices[0].text == text_of(ids) + expected
    assert "".join(piece.choices[0].text for piece in create("ab", stream=True)) == expected
    assert "".join(piece.choices[0].text for piece in create("ab", stream=True, echo=True)) == "ab" + expected
    assert create("ab", max_tokens=None).usage.completion_tokens <= 16


def test_legacy_logprobs_say_where_each_token_stands(client):
    reply = client.completions.create(model="toy", prompt="ab", temperature=0, max_tokens=4, logprobs=2)
    choice = reply.choices[0]
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert all(choice.text[at:].startswith(token) for at, token in zip(told.text_offset, told.tokens, strict=True))
    assert all(len(top) == 2 and token in top for token, top in zip(told.tokens, told.top_logprobs, strict=True))
    pieces = client.completions.create(model="toy", prompt="ab", temperature=0, max_tokens=4, logprobs=2, stream=True)
    again = [p.choices[0].logprobs for p in pieces if p.choices[0].logprobs]
    assert [token for each in again for token in each.tokens] == told.tokens
    assert [at for each in again for at in each.text_offset] == told.text_offset


def test_models_are_the_target_and_its_aliases(start_api):
    with start_api(aliases=["gpt-4o"]) as api, openai.OpenAI(base_url=f"{api.url}/v1", api_key="x") as client:
        assert [model.id for model in client.models.list()] == ["toy", "gpt-4o"]
        assert client.models.retrieve("toy").owned_by == "sled"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("a/b")
        reply = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_tokens=2)
        assert reply.model == "toy"


def test_mistakes_are_errors_that_name_the_field(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as hot:
        chat(client, temperature=200)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as tools:
        chat(client, tools=[{"type": "function", "function": {"name": "f"}}])
    assert tools.value.param == "tools"
    with pytest.raises(openai.BadRequestError, match="temprature"):
        chat(client, extra_body={"temprature": 1})


def test_prompt_over_the_context_is_a_bad_request_in_either_form(client):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as long:
            chat(client, [{"role": "user", "content": "x" * 5000}], stream=stream)
        assert long.value.code == "context_length_exceeded"


def test_more_messages_or_tokens_than_can_be_asked_are_a_bad_request_that_says_so(client):
    many = [{"role": "user", "content": "hello"}] * 1025
    with pytest.raises(openai.BadRequestError, match="1025 messages, at most 1024"):
        client.chat.completions.create(model="toy", messages=many)
    with pytest.raises(openai.BadRequestError, match="131073 tokens, at most 131072"):
        client.completions.create(model="toy", prompt=[5] * 131_073)


def test_form_that_the_server_cannot_hold_to_is_a_bad_request(client):
    with pytest.raises(openai.BadRequestError):  # the toy server has no library for forms
        chat(client, response_format={"type": "json_object"})
    assert chat(client, response_format={"type": "text"}).choices


def test_token_is_asked_for_where_there_is_one(start_api):
    with start_api(access=Access((KEY, "another-token-of-some-length"))) as api:
        for key, good in (("wrong-token-wrong-token", False), (KEY[:-1], False), (KEY, True)):
            with openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0) as client:
                if good:
                    assert chat(client).choices
                    continue
                with pytest.raises(openai.AuthenticationError) as error:
                    chat(client)
                assert error.value.code == "invalid_api_key"


def test_server_that_is_gone_is_unavailable_for_now(served, start_api):
    with start_api(timeout_s=0.5) as api, openai.OpenAI(base_url=f"{api.url}/v1", api_key="x", max_retries=0) as client:
        chat(client)
        served.server.stop()
        with pytest.raises(openai.InternalServerError) as gone:
            chat(client)
        assert gone.value.status_code == 503
        assert gone.value.response.headers["retry-after"]
