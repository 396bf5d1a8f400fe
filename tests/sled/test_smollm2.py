"""The real small target and its drafter in one process: text, drafting, vocabularies."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from sled.acceptance import RoundRows
from sled.constraint import FormFactory
from sled.device import Generation, State
from sled.drafters import NoDrafter, open_drafter
from sled.errors import UnknownModel, VocabularyMismatch
from sled.server import Server
from sled.targets.catalog import find_model
from sled.targets.engines import load_engine
from sled.targets.native import NativeTarget
from sled.targets.text import codec_from_directory
from sled.types import Chunk, Constraint, Sampling
from sled.vocabulary import vocabulary_hash
from sled.window import Window
from tests.sled.drafting import drafts, submit

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def target():
    loaded = load_engine(find_model("smollm2-135m"))
    assert type(loaded) is NativeTarget
    return loaded


@pytest.fixture(scope="module")
def drafter(target):
    return open_drafter("smollm2-12m", target.described)


def greedy(target, prompt, num_tokens):
    text = list(prompt)
    while len(text) < len(prompt) + num_tokens:
        pages = tuple(range(len(text) // target.shape.page_tokens + 1))
        past = len(text) - 1 if len(text) > len(prompt) else 0
        chunk = Chunk(b"greedy", tuple(text[past:]), past, 1, pages)
        (decision,) = target.verify([chunk], [RoundRows([], Sampling(), len(text))])
        text.append(decision.next_token)
    return text[len(prompt) :]


def test_chat_template_gives_the_models_conversation_format(target):
    ids = target.codec.encode("Hi 12", chat=True)
    text = target.codec.tokenizer.decode(ids, skip_special_tokens=False)
    assert text.endswith("<|im_start|>user\nHi 12<|im_end|>\n<|im_start|>assistant\n")
    assert text.startswith("<|im_start|>system\n")
    digits = target.codec.encode("12", chat=False)
    assert len(digits) == 2  # SmolLM2 splits numbers into digits


@pytest.mark.parametrize("text", ["plain", "naïve café 你好 🙂", "tabs\tand\nlines  ", "x = [1, 2]"])
def test_vocabulary_pieces_spell_the_text(target, text):
    ids = target.codec.encode(text, chat=False)
    pieces = target.vocabulary.pieces
    assert b"".join(pieces[i] for i in ids).decode() == text


def test_vocabulary_marks_control_tokens(target):
    assert target.vocabulary.pieces[2] == b"<|im_end|>"
    assert 2 in target.vocabulary.special_ids
    assert target.described.stop_ids == [2]


def test_same_tokenizer_saved_as_directory_has_the_same_hash(target, tmp_path):
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=target.codec.tokenizer,
        eos_token="<|im_end|>",
        chat_template=target.codec.chat_template,
    )
    fast.save_pretrained(tmp_path)
    codec = codec_from_directory(tmp_path)
    assert vocabulary_hash(codec.vocabulary()) == target.described.vocab_hash
    assert codec.encode("Hi there 12", chat=True) == target.codec.encode("Hi there 12", chat=True)
    assert codec.stop_ids == [2]


def test_distilled_drafter_agrees_with_its_target(target, drafter):
    prompt = target.codec.encode("Write a short story about a fox who learns to swim.", chat=True)
    answer = greedy(target, prompt, 24)
    drafter.start(Sampling(), 0)
    agreed = 0
    for end in range(len(answer) - 1):
        text = prompt + answer[:end]
        agreed += drafts(drafter, text, 1, Window(4)) == answer[end : end + 1]
    assert agreed >= 10  # about .7 on stories; chance is 1 in 49,152


def test_rolled_back_drafter_drafts_like_a_fresh_one(target, drafter):
    """After rejected drafts the cache holds exactly the committed text."""
    prompt = target.codec.encode("The sea, once it casts its spell,", chat=False)
    drafter.start(Sampling(), 0)
    text = list(prompt)
    for step in range(4):
        drafts(drafter, text, 5, Window(8))
        text += [1000 + step, 2000 + step]  # the target said something else
    after_rollbacks = drafts(drafter, text, 5, Window(8))
    drafts(drafter, [7], 1)  # another text: nothing of the cache serves
    assert drafts(drafter, text, 5) == after_rollbacks


def test_drafts_depend_on_seed_and_temperature(target, drafter):
    prompt = target.codec.encode("Once upon a time", chat=True)

    def drafted(sampling):
        drafter.start(sampling, len(prompt))
        return drafts(drafter, prompt, 8)

    assert drafted(Sampling(1.0, seed=1)) == drafted(Sampling(1.0, seed=1))
    assert len({tuple(drafted(Sampling(1.0, seed=s))) for s in range(4)}) > 1


def test_confidence_threshold_shortens_drafts(target, drafter):
    prompt = target.codec.encode("Tell me something.", chat=True)
    lengths = []
    for threshold in (0.0, 0.5, 1.0):
        drafter.start(Sampling(), 0)
        lengths.append(len(drafts(drafter, prompt, 12, Window(16, threshold))))
    assert lengths[0] == 12
    assert lengths[0] >= lengths[1] >= lengths[2]
    assert lengths[2] < 12


def test_unknown_drafter_says_what_to_give(target):
    with pytest.raises(UnknownModel, match=r"none, ngram, smollm2-12m, a \.gguf file"):
        open_drafter("smollm3", target.described)


def test_gguf_drafter_of_the_same_vocabulary_is_accepted_and_of_another_refused(target):
    path = str(find_model("smollm2-135m").path)
    itself = open_drafter(path, target.described)
    itself.start(Sampling(), 0)
    prompt = target.codec.encode("Hi", chat=True)
    assert drafts(itself, prompt, 3, Window(4)) == greedy(target, prompt, 3)
    import msgspec

    other = msgspec.structs.replace(target.described, vocab_hash=bytes(16))
    with pytest.raises(VocabularyMismatch, match="use a drafter made for this target, or ngram"):
        open_drafter(path, other)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_under_a_schema_parse_whoever_drafts(target, drafter, temperature):
    """The whole path but the bus: both machines, the real target and its vocabulary, a schema."""
    pytest.importorskip("llguidance")
    form_of = FormFactory(
        target.vocabulary.pieces, target.vocabulary.special_ids, target.described.stop_ids, target.described.vocab_size
    )
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 1}},
        "required": ["name", "age"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    sampling = Sampling(temperature, seed=3, constraint=Constraint("json_schema", json.dumps(schema)))
    prompt = target.codec.encode("Invent a person. Answer in JSON.", chat=True)
    answers = [answer_in_process(target, chosen, sampling, prompt, form_of) for chosen in (NoDrafter(), drafter)]
    assert answers[0] == answers[1]
    value = json.loads(b"".join(target.vocabulary.pieces[token] for token in answers[0] if token != 2))
    assert set(value) == {"name", "age"}
    assert len(value["name"]) <= 12
    assert value["age"] >= 1


def answer_in_process(target, drafter, sampling, prompt, form_of):
    server = Server(target.shape, form_of=form_of)
    machine = Generation(b"12345678", prompt, chat=False, sampling=sampling, max_tokens=40, window=Window(4))
    machine.opened(server.open("device", machine.open_request(), prompt, now=0.0))
    drafter.start(sampling, 0)
    for _ in range(40):
        if machine.state is State.DONE:
            break
        draft = drafts(drafter, machine.history.tokens, machine.draft_limit(), machine.window)
        verdict = server.verify("device", submit(machine, draft), "ticket", now=0.0)
        while verdict is None:
            step = server.next_step(now=0.0)
            for told in server.complete(step, target.verify(step.chunks, step.rounds), now=0.0, took_s=0.05):
                assert told.refusal is None
                verdict = told.verdict
        machine.verdict(verdict)
    assert machine.finish == "stop"
    return machine.answer
