"""Terms and all of Sampling from a device over the bus to a toy target: stop texts, logprobs, penalties, forms."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from edgebus.payloads import decode, encode
from sled.cli.app import app
from sled.device import Generation
from sled.errors import ParameterError, ServerBusy
from sled.messages import Open, Opened, Verdict
from sled.server import ServerLimits
from sled.stop_text import AnswerText
from sled.testing import ToyDrafter
from sled.types import Constraint, Logprob, Sampling, Terms
from sled.window import Window
from tests.sled.drafting import submit

PROMPT = [5, 6, 7, 8, 5, 6]
SAMPLED = Sampling(temperature=0.8, seed=3)
SHAPED = Sampling(
    temperature=0.9,
    seed=4,
    top_k=30,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.3,
    presence_penalty=0.5,
    frequency_penalty=0.3,
    bias=((7, 1.5), (9, -2.0)),
)


def text_of(tokens):
    return "".join(f"<{token}>" for token in tokens if token)


def test_stop_text_hand_worked():
    text = AnswerText(["\n\n", "END"])
    shown = [text.add(piece) for piece in (b"one\n", b"two E", b"N", b"d\xc3", b"\xa9EN", b"D!", b"lost")]
    assert shown == ["one", "\ntwo ", "", "ENd", "é", "", ""]
    assert text.stopped
    assert text.add(b"", last=True) == ""


def test_what_was_held_back_comes_with_the_last_token():
    text = AnswerText(["END"])
    assert [text.add(b"the EN"), text.add(b" E", last=True)] == ["the ", "EN E"]
    cut = AnswerText()
    assert [cut.add(b"a\xe2\x82"), cut.add(b"", last=True)] == ["a", "\ufffd"]


@given(
    st.lists(st.text("abé\n", min_size=1, max_size=4), max_size=3),
    st.text("abé\n", max_size=40),
    st.lists(st.integers(1, 3), max_size=60),
)
def test_text_ends_before_the_first_stop_text_however_it_is_cut(stop, whole, sizes):
    raw, pieces, at = whole.encode(), [], 0
    for size in [*sizes, len(raw)]:
        pieces.append(raw[at : at + size])
        at += size
    text = AnswerText(stop)
    shown = "".join(text.add(piece, last=index == len(pieces) - 1) for index, piece in enumerate(pieces))
    expected = whole
    for end in range(len(pieces) + 1):  # the first token that completes one of them ends the text
        so_far = b"".join(pieces[:end]).decode("utf-8", "ignore")
        if any(one in so_far for one in stop):
            expected = so_far[: min(so_far.index(one) for one in stop if one in so_far)]
            break
    assert shown == expected


def test_terms_and_logprobs_through_the_machine():
    machine = Generation(
        b"12345678", [5], chat=False, sampling=Sampling(), max_tokens=3, window=Window(2),
        terms=Terms(stop=("x",), logprobs=1, rate=4.0),
    )  # fmt: skip
    opened = decode(Open, encode(machine.open_request()))
    assert opened.terms == Terms(3, ("x",), 1, 4.0)
    machine.opened(Opened([5], 1, 16))
    submit(machine, [7])
    logprobs = [Logprob(-0.5, [(7, -0.5)]), Logprob(-1.0, [(9, -0.25)])]
    committed = machine.verdict(Verdict(1, [7, 8], 1, "", 16, 1, logprobs))
    assert [c.logprob for c in committed] == logprobs
    submit(machine, [])
    assert machine.verdict(Verdict(3, [4], 0, "stop", 16, 1))[0].logprob is None  # asked for, not told
    assert machine.finish == "stop"


@pytest.mark.net
@pytest.mark.parametrize("window", [0, 4])
def test_an_answer_ends_with_the_token_that_completes_a_stop_text(served, window):
    whole = served.target.plain_answer(PROMPT, SAMPLED, 30)
    cut = 12
    stop = text_of(whole[cut - 2 : cut + 1])[2:-2]  # begins and ends in the middle of tokens
    end = next(i for i in range(len(whole)) if stop in text_of(whole[: i + 1]))
    with served.serving() as endpoint, served.device(endpoint, ToyDrafter(served.target)) as device:
        stream = device.generate(PROMPT, max_tokens=30, sampling=SAMPLED, window=Window(window), stop=["never", stop])
        shown = [token.text for token in stream]
        answer = stream.answer()
        assert answer.tokens == whole[: end + 1]
        assert answer.finish_reason == "stop"
        assert answer.text == "".join(shown) == text_of(answer.tokens).split(stop)[0]
        again = device.generate(PROMPT, max_tokens=30, sampling=SAMPLED, window=Window(window), stop="never")
        assert again.answer().text == text_of(whole)


@pytest.mark.net
def test_logprobs_are_those_of_the_targets_own_logits(served):
    with served.serving() as endpoint, served.device(endpoint, ToyDrafter(served.target)) as device:
        stream = device.generate(PROMPT, max_tokens=12, sampling=SHAPED, window=Window(3), logprobs=2)
        tokens = list(stream)
        text = list(PROMPT)
        for token in tokens:
            row = served.target.row(text).astype(np.float64)
            logs = row - np.log(np.exp(row).sum())
            assert token.logprob.value == pytest.approx(logs[token.id], abs=1e-5)
            assert [i for i, _ in token.logprob.top] == np.argsort(-logs)[:2].tolist()
            text.append(token.id)
        assert stream.answer().logprobs == [token.logprob for token in tokens]
        plain = device.generate(PROMPT, max_tokens=3).answer()
        assert plain.logprobs == []


@pytest.mark.net
@pytest.mark.parametrize("drafter", ["none", "ngram", "toy"])
def test_every_parameter_shapes_the_answer_whoever_drafts(served, drafter):
    expected = served.target.plain_answer(PROMPT, SHAPED, 30)
    assert expected != served.target.plain_answer(PROMPT, Sampling(temperature=0.9, seed=4), 30)
    chosen = ToyDrafter(served.target) if drafter == "toy" else drafter
    with served.serving() as endpoint, served.device(endpoint, chosen) as device:
        for window in (0, 3, 8):
            answer = device.generate(PROMPT, max_tokens=30, sampling=SHAPED, window=Window(window)).answer()
            assert answer.tokens == expected


@pytest.mark.net
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED])
def test_an_answer_has_its_form_whoever_drafts(served, sampling):
    pytest.importorskip("llguidance")
    from msgspec.structs import replace

    from sled.constraint import FormFactory

    vocabulary, shape = served.target.vocabulary, served.target.shape
    forms = FormFactory(vocabulary.pieces, vocabulary.special_ids, shape.stop_ids, shape.vocab_size)
    expression = "(<1[0-9]>|<2>){3,9}<3>"
    formed = replace(sampling, constraint=Constraint("regex", expression))
    with served.serving(form_of=forms) as endpoint:
        answers = []
        for drafter, window in (("none", 0), ("ngram", 4), (ToyDrafter(served.target), 6)):
            with served.device(endpoint, drafter) as device:
                stream = device.generate(PROMPT, max_tokens=30, sampling=formed, window=Window(window))
                answers.append(stream.answer())
        assert answers[0].tokens == answers[1].tokens == answers[2].tokens
        assert answers[0].finish_reason == "stop"
        assert re.fullmatch(expression, answers[0].text)
        bad = replace(sampling, constraint=Constraint("json_schema", "{"))
        with served.device(endpoint) as device, pytest.raises(Exception, match="is no JSON"):
            device.generate(PROMPT, sampling=bad).answer()


class Attentive(ToyDrafter):
    """Remembers what it is told."""

    def start(self, sampling, num_prompt):
        super().start(sampling, num_prompt)
        self.num_prompt = num_prompt


@pytest.mark.net
def test_drafters_are_told_where_the_prompt_ends(served):
    with served.serving() as endpoint:
        drafter = Attentive(served.target)
        with served.device(endpoint, drafter) as device:
            device.generate("hello", max_tokens=3, sampling=SHAPED).answer()
        assert drafter.num_prompt == 6  # one for the chat, one for each character


@pytest.mark.net
def test_busy_says_when_to_come_back(served):
    limits = ServerLimits(max_sessions_per_owner=1)
    with (
        served.serving(limits=limits) as endpoint,
        served.device(endpoint) as device,
        served.device(endpoint, timeout_s=0.5) as other,
    ):
        first = device.generate(PROMPT, max_tokens=10)
        next(iter(first))
        with pytest.raises(ServerBusy) as busy:
            other.generate(PROMPT, max_tokens=10).answer()
        assert busy.value.retry_after_s > 0
        first.close()


@pytest.mark.net
def test_bad_terms_are_refused_before_anything_is_sent(served):
    with served.serving() as endpoint, served.device(endpoint) as device:
        for bad in ({"stop": [""]}, {"stop": ["x"] * 17}, {"logprobs": 21}, {"rate": -1.0}):
            with pytest.raises(ParameterError):
                device.generate(PROMPT, **bad)
    assert served.target.steps == []


@pytest.mark.net
def test_options_of_generate_reach_the_target(served, tmp_path):
    pytest.importorskip("llguidance")
    from sled.constraint import FormFactory

    vocabulary, shape = served.target.vocabulary, served.target.shape
    forms = FormFactory(vocabulary.pieces, vocabulary.special_ids, shape.stop_ids, shape.vocab_size)
    grammar = tmp_path / "form.lark"
    grammar.write_text('start: ("<11>" | "<12>")+ "<3>"\n')
    with served.serving(form_of=forms) as endpoint:
        common = [
            "generate", "hello", "--server", endpoint, "--server-key", str(served.directory / "server" / "node.key"),
            "--keys", str(served.directory / "device"), "--drafter", "none", "--raw", "--json",
        ]  # fmt: skip
        formed = ["--grammar", str(grammar), "--logprobs", "1", "--bias", "3=1.5", "--max-tokens", "40"]
        result = CliRunner().invoke(app, [*common, *formed], catch_exceptions=False)
        answer = json.loads(result.stdout)
        assert re.fullmatch("(<11>|<12>)+<3>", answer["text"])
        assert len(answer["logprobs"]) == len(answer["tokens"])
        shaped = ["--temperature", "0.9", "--seed", "2", "--min-p", "0.05", "--repetition-penalty", "1.2"]
        shaped += ["--presence-penalty", "0.5", "--frequency-penalty", "0.1", "--rule", "rejection", "--stop", "<7>"]
        result = CliRunner().invoke(app, [*common, *shaped], catch_exceptions=False)
        assert "<7>" not in json.loads(result.stdout)["text"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--bias", "x=1"], "ID=VALUE"),
        (["--bias", "1=1000"], "-100 .. 100"),
        (["--rule", "other"], "coupled or rejection"),
        (["--min-p", "2"], "min_p is 2"),
        (["--regex", "a", "--grammar", "b"], "one of --json-schema"),
        (["--json-schema", "/nowhere/schema.json"], "cannot read /nowhere/schema.json"),
        (["--regex", "a" * 70_000], "at most 65536"),
    ],
)
def test_bad_options_are_refused_before_a_server_is_asked(options, why):
    with pytest.raises(ParameterError, match=re.escape(why)):
        CliRunner().invoke(
            app, ["generate", "hello", "--server", "tcp://127.0.0.1:1", "--insecure", *options], catch_exceptions=False
        )
