"""Parts of `sled distill`, each against something simpler: autograd, chance, the model's own forward, other readers."""

from __future__ import annotations

import io
import random
import zipfile
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgekernels.decoder import load_decoder
from edgekernels.gguf import GgufFile

from sled.distill import checkpoint, report
from sled.distill.acceptance import Acceptance, coupled_chance, rounds_of
from sled.distill.checkpoint import Clock
from sled.distill.conversation import conversation_of
from sled.distill.corpus import Corpus
from sled.distill.export import gguf_of, write_directory
from sled.distill.gguf_file import encode, gguf_bytes
from sled.distill.learner import low_rank
from sled.distill.loss import chunk_loss, chunk_size, distillation_loss
from sled.distill.prompts import FilePrompts, TemplatePrompts
from sled.distill.remembered import Remembered
from sled.distill.sampler import Sampler, Texts, likeliest
from sled.distill.settings import Settings
from sled.distill.shapes import PRESETS, Shape, shape_of
from sled.distill.student import Student
from sled.distill.teacher import Head, Teacher
from sled.errors import ParameterError, UnknownModel
from sled.targets.text import TextCodec
from tests.sled.distilling import TEMPLATE, tokenizer
from tests.sled.tiny_models import FAMILIES, VOCAB, FakeCodec, tiny


def npy(out, texts):
    np.save(out, texts["tokens"])


def with_many_seconds(out, texts):
    np.savez(out, **texts | {"seconds": np.zeros(3)})


def with_codes_of_floats(out, texts):
    np.savez(out, **texts | {"written": texts["written"].astype(np.float32)})


def packed_by_a_method_that_is_none(out, texts):
    np.savez(out, **texts)
    raw = bytearray(out.getvalue())
    raw[raw.index(b"PK\x01\x02") + 10] = 77
    out.seek(0)
    out.write(raw)


def deflated_and_damaged(out, texts):
    np.savez_compressed(out, **texts)
    raw = bytearray(out.getvalue())
    raw[80:90] = b"\xff" * 10
    out.seek(0)
    out.write(raw)


def saying(shape):
    """Of tokens whose header says so, with the right checksum."""

    def write(out, texts):
        head = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        with zipfile.ZipFile(out, "w") as archive:
            for name in texts:
                archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)

    return write


@pytest.mark.parametrize(
    "write",
    [
        npy,
        with_many_seconds,
        with_codes_of_floats,
        packed_by_a_method_that_is_none,
        deflated_and_damaged,
        saying("(1000000000000, 32)"),
        saying("(99999999999999999999, 32)"),
        saying("(2, 32"),
    ],
)
def test_rounds_that_are_none_are_refused(tmp_path, write):
    corpus = Corpus(tmp_path, 32, 100)
    corpus.add(Texts(np.ones((2, 32), np.int64), np.ones((2, 32), np.bool_), np.ones(2, np.float32)), 1.0)
    with np.load(tmp_path / "00000.npz") as found:
        texts = dict(found)
    assert Corpus(tmp_path, 32, 100).num_rounds == 1
    write(out := io.BytesIO(), texts)
    (tmp_path / "00000.npz").write_bytes(out.getvalue())
    with pytest.raises(ParameterError, match="damaged"):
        Corpus(tmp_path, 32, 100)


def test_files_that_cannot_be_written_are_the_machine_s_fault(tmp_path):
    """As on a full disk: what safetensors says of it becomes an OSError."""
    (tmp_path / "checkpoint.part").mkdir()
    with pytest.raises(OSError, match=r"checkpoint\.part"):
        checkpoint.save(tmp_path / "checkpoint.safetensors", {}, Clock(0, 0.0), {})
    (tmp_path / "x" / ".model.part").mkdir(parents=True)
    with pytest.raises(OSError, match=r"\.model\.part"):
        write_directory(tmp_path / "x", {}, None, {})


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def codec(template=TEMPLATE):
    found = tokenizer()
    found.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    stop = found.token_to_id("<|im_end|>")
    return TextCodec(found, template, {"eos_token": "<|im_end|>"}, [stop])


class VocabOf(FakeCodec):
    """As many ids as the tiny models have, each its own piece."""

    def vocabulary(self):
        from sled.messages import Vocabulary

        return Vocabulary([bytes([i]) for i in range(VOCAB)], [])


# loss


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [4, 64])
def test_gradients_are_those_of_the_plain_formula(share, size):
    torch.manual_seed(1)
    hidden = torch.randn(11, 6, requires_grad=True)
    head = torch.randn(9, 6, requires_grad=True)
    target_hidden, target_head = torch.randn(11, 5), torch.randn(9, 5)
    weights, part = torch.rand(11), torch.tensor(share)

    def target(given):
        return given @ target_head.T

    loss, kl, tv = distillation_loss(hidden, head, target_hidden, target, weights=weights, share=part, size=size)
    loss.backward()
    ours = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    p, q = target(target_hidden).softmax(-1), (hidden @ head.T).softmax(-1)
    plain_kl = (weights * (p * (p / q).log()).sum(-1)).sum()
    plain_tv = (weights * 0.5 * (p - q).abs().sum(-1)).sum()
    plain = (1 - share) * plain_kl + share * plain_tv
    plain.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((kl, tv), (plain_kl.detach(), plain_tv.detach()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours, (hidden.grad, head.grad), rtol=1e-4, atol=1e-6)


def test_the_loss_by_hand():
    """p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2, TV = 1/4."""
    target = torch.tensor([[np.log(3.0), 0.0]])
    kl, tv, by_hidden, _ = chunk_loss(torch.zeros(1, 1), torch.ones(2, 1), target, torch.ones(1), torch.tensor(0.0))
    assert kl.item() == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert tv.item() == pytest.approx(0.25)
    assert by_hidden.item() == pytest.approx(0.0, abs=1e-6)  # both ids have the same row


def test_ids_that_the_target_rules_out_cost_nothing():
    target = torch.tensor([[0.0, float("-inf")]])
    kl, tv, *gradients = chunk_loss(torch.ones(1, 2), torch.eye(2), target, torch.ones(1), torch.tensor(0.5))
    assert kl.item() == pytest.approx(np.log(2))
    assert tv.item() == pytest.approx(0.5)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(("vocab", "size"), [(16384, 512), (151_936, 32), (1 << 23, 16)])
def test_chunks_fit_the_device(vocab, size):
    assert chunk_size(vocab, torch.device("cpu")) == size


# acceptance


def test_coupled_chance_is_what_happens():
    """Both sides take argmax(log-probability + the same noise); the student lacks id 4."""
    rng = np.random.default_rng(3)
    every, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(4))
    noise = rng.gumbel(size=(40_000, 5))
    y = (np.log(every) + noise).argmax(1)
    hit = (np.log(q) + noise[:, :4]).argmax(1) == y
    has = torch.arange(5) < 4
    q_y = torch.tensor([*q, 1e-9])
    chances = coupled_chance(
        torch.tensor(every[:4]).expand(5, 4), torch.tensor(q).expand(5, 4), has, torch.tensor(every), q_y
    ).numpy()
    assert chances[4] == 0
    for token in range(4):
        count, mean = (y == token).sum(), hit[y == token].mean()
        assert abs(mean - chances[token]) < 4.5 * np.sqrt(0.25 / count)


def test_a_student_like_the_target_is_always_accepted():
    p = torch.tensor([[0.2, 0.8], [0.999999, 1e-6]])
    y = torch.tensor([0, 1])
    own = p.gather(1, y[:, None])[:, 0]
    assert coupled_chance(p, p, torch.tensor([True, True]), own, own).tolist() == pytest.approx([1, 1], abs=1e-5)


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 9))
def test_rounds_take_the_answer_apart(hits, window):
    rounds = rounds_of(hits, window)
    assert sum(length + 1 for length, _ in rounds) >= len(hits) >= sum(length for length, _ in rounds)
    assert sum(length for length, _ in rounds) <= sum(hits)
    assert all(0 <= length <= limit <= window for length, limit in rounds)


def test_figures_by_hand():
    """Hits 1101: rounds of 8 are (2 of 4), then (1 of 1); places 0 and 1 hold, the third fails once."""
    acceptance = Acceptance()
    acceptance.add(np.array([1.0, 1.0, 0.0, 1.0]), 3.5, [True, True, False, True])
    figures = acceptance.figures()
    assert figures["acceptance"] == 0.75
    assert figures["rejection_rule"] == 0.875
    assert figures["mean_accepted"] == {"1": 0.667, "2": 1.5, "4": 1.5, "8": 1.5}
    assert figures["by_place"] == [1.0, 1.0, 0.0, None, None, None, None, None]


# the target


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_can_teach(family):
    """The constructor holds both ways of ours against the model's own forward; here a head of some ids, too."""
    teacher = Teacher(tiny(family), VocabOf(), family)
    ids = torch.tensor([3, 96, 0, 41])
    tokens = torch.arange(20)[None] * 5 % VOCAB
    with torch.no_grad():
        hidden = teacher.hidden(tokens)[0]
        torch.testing.assert_close(Head(teacher.model, ids)(hidden), teacher.head(hidden)[:, ids])


def test_a_target_that_computes_something_else_is_refused():
    model = tiny("llama")
    right = model.model.norm.forward
    model.model.norm.forward = lambda x: right(x) * (1 + 0.5 * (x.shape[1] == 1))
    with pytest.raises(UnknownModel, match="llama computes something besides plain attention and a head"):
        Teacher(model, VocabOf(), "strange")


@pytest.mark.parametrize("most_bytes", [0, 3 * 20 * 32 * 4, 1 << 20])
def test_states_are_remembered_as_far_as_they_fit(most_bytes):
    teacher = Teacher(tiny("llama"), VocabOf(), "tiny")
    tokens = np.arange(6 * 20).reshape(6, 20) * 7 % VOCAB
    remembered = Remembered(teacher, most_bytes)
    asked, right = [], teacher.hidden(torch.from_numpy(tokens))
    compute = teacher.hidden
    teacher.hidden = lambda given: asked.append(len(given)) or compute(given)
    for numbers in ([0, 1], [1, 2, 3], [5, 0, 2], [3, 0, 1]):
        found = remembered.hidden(numbers, torch.from_numpy(tokens[numbers]))
        torch.testing.assert_close(found, right[numbers])
    assert asked == {0: [2, 3, 3, 3], 3 * 20 * 32 * 4: [2, 2, 1, 1], 1 << 20: [2, 2, 1]}[most_bytes]


# texts


def test_turns_come_from_the_template():
    found = codec()
    conversation = conversation_of(found)
    text = found.tokenizer.decode(
        [
            *conversation.first("hello"),
            *conversation.encode("yes"),
            *conversation.stop_ids,
            *conversation.following("and"),
        ],
        skip_special_tokens=False,
    )
    assert text.replace(" ", "") == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nand<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert conversation.answering() == conversation.to_answer[1:]


def test_without_a_template_prompts_stand_alone():
    conversation = conversation_of(codec(None))
    assert conversation.first("ab") == conversation.following("ab") == conversation.encode("ab")


@pytest.mark.parametrize("template", ["{{ nothing() }}", "fixed text"])
def test_templates_that_do_not_show_the_turn_are_refused(template):
    with pytest.raises(UnknownModel, match="chat template"):
        conversation_of(codec(template))


def test_a_template_of_one_turn_begins_anew():
    """It raises where an answer is in the history; the next turn is then a conversation of its own."""
    once = "{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}Q{{ messages[0]['content'] }}A"
    conversation = conversation_of(codec(once))
    assert conversation.to_user == conversation.opening == conversation.encode("Q")


def sampler(rows=6, length=40, open_turns=0.5):
    teacher = Teacher(tiny("llama", vocab_size=97), codec(), "tiny")

    class Words:
        def draw(self, chance, *, held_out):
            return chance.choice(["held"] if held_out else ["a", "bc", "def"])

    return teacher, Sampler(
        teacher, conversation_of(teacher.codec), Words(), rows=rows, length=length, open_turns=open_turns
    )


def test_greedy_texts_are_the_target_s_own():
    teacher, writer = sampler()
    texts = writer.write(3, held_out=True, stopped=lambda: False)
    writer.close()
    assert texts.temperatures.tolist() == pytest.approx([0.0, 0.7, 1.0, 0.0, 0.7, 1.0])
    with torch.no_grad():
        likely = teacher.model(torch.from_numpy(texts.tokens)).logits.argmax(-1).numpy()
    greedy = texts.temperatures == 0
    written = texts.written[greedy, 1:]
    assert written.sum() > 20
    assert (texts.tokens[greedy, 1:] == likely[greedy, :-1])[written].all()
    assert not (texts.tokens[~greedy, 1:] == likely[~greedy, :-1])[texts.written[~greedy, 1:]].all()


def test_the_same_seed_writes_the_same():
    _, writer = sampler()
    first, second, other = (writer.write(seed, held_out=False, stopped=lambda: False) for seed in (5, 5, 6))
    assert (first.tokens == second.tokens).all()
    assert (first.written == second.written).all()
    assert (first.tokens != other.tokens).any()


def test_what_is_given_is_not_what_is_written():
    teacher, writer = sampler(rows=12, length=64, open_turns=0.0)
    texts = writer.write(1, held_out=False, stopped=lambda: False)
    conversation = conversation_of(teacher.codec)
    firsts = [conversation.first(word) for word in ("a", "bc", "def")]
    for tokens, written in zip(texts.tokens.tolist(), texts.written, strict=True):
        given = next(first for first in firsts if tokens[: len(first)] == first)
        assert not written[: len(given)].any()
        assert written[len(given)]
        for end in [i for i in range(64) if tokens[i] in conversation.stop_ids and written[i]]:
            assert not written[end + 1 : end + 1 + len(conversation.following("a"))].any()


def test_sampling_follows_the_law():
    """Token frequencies at a temperature against softmax(logits / T): chi-square of 4 degrees, 1 in 10,000."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    count, temperature = 20_000, 0.7
    torch.manual_seed(0)
    noise = torch.empty(count, 5).exponential_()
    column = torch.full((count, 1), 1.0)
    found = likeliest(logits.expand(count, 5), noise, column / temperature, column)
    expected = (logits / temperature).softmax(-1) * count
    observed = torch.bincount(found, minlength=5)
    assert ((observed - expected) ** 2 / expected).sum() < 23.5
    assert (likeliest(logits.expand(count, 5), noise, column, column * 0) == 3).all()


# prompts and settings


def test_held_out_prompts_are_never_learned():
    prompts, chance = TemplatePrompts(), random.Random(0)
    learned = {prompts.draw(chance, held_out=False) for _ in range(2000)}
    held = {prompts.draw(chance, held_out=True) for _ in range(2000)}
    assert len(learned) > 1500
    assert not learned & held
    assert "{" not in "".join(learned | held)


def test_prompts_from_a_file(tmp_path):
    path = tmp_path / "prompts"
    path.write_text('a\nb\n"two\\nlines"\nc\nheld\n')
    prompts, chance = FilePrompts(path), random.Random(0)
    assert {prompts.draw(chance, held_out=True) for _ in range(20)} == {"held"}
    assert {prompts.draw(chance, held_out=False) for _ in range(99)} == {"a", "b", "two\nlines", "c"}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"a\nb\nc\nd", "has 4 prompts; 5 or more are needed"),
        (b"a\nb\nc\nd\na", "repeats its prompts"),
        (b"a\nb\nc\nd\n\xff", "cannot be read: .*; give one a line, as UTF-8"),
        (b'a\nb\nc\nd\n"e', "cannot be read"),
        (b'a\nb\nc\nd\n""', "is no JSON string"),
    ],
)
def test_files_without_sound_prompts_are_refused(tmp_path, content, what):
    (tmp_path / "prompts").write_bytes(content)
    with pytest.raises(ParameterError, match=what):
        FilePrompts(tmp_path / "prompts")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({}, "give either minutes or steps"),
        ({"minutes": 1.0, "steps": 3}, "give either minutes or steps"),
        ({"steps": 0}, "steps is 0; give 1 .."),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"steps": 1, "students": ("12m", "12m")}, "give each once"),
        ({"steps": 1, "students": ()}, "students are none"),
        ({"steps": 1, "students": ("12m", "3m"), "sizes": (("width", 32),)}, "sizes are for one of them"),
        ({"steps": 1, "sample_share": 1.0}, "sample_share is 1.0; give 0.01 .. 0.95"),
        ({"steps": 1, "length": 8}, "length is 8; give 32 .."),
    ],
)
def test_settings_out_of_range_are_refused(change, what):
    with pytest.raises(ParameterError, match=what):
        Settings("target", **change)


LIKE = {"vocab": 97, "theta": 500.0, "positions": 64}


def test_shapes_by_name():
    shape = shape_of("12m", {}, None, LIKE | {"vocab": 49152})
    assert (shape.vocab, shape.theta, shape.positions) == (16384, 500.0, 64)
    assert 11.7e6 < shape.num_parameters < 11.9e6
    assert shape_of("1m", {"vocab": 0}, None, LIKE).vocab == 97  # no more than there are
    assert shape_of("1m", {"width": 64}, None, LIKE).width == 64
    target = Shape(97, 32, 4, 4, 2, 8, 48, tied=False)
    pruned = shape_of("prune:0,3", {"vocab": 50}, target, LIKE)
    assert (pruned.layers, pruned.kept, pruned.vocab, pruned.width, pruned.tied) == (2, (0, 3), 50, 32, False)


@pytest.mark.parametrize(
    ("student", "sizes", "target", "what"),
    [
        ("prune:0", {}, None, "needs a target of the plain Llama family"),
        ("prune:0", {"width": 8}, Shape(97, 32, 4, 4, 2, 8, 48), "width of 'prune:0' are the target's"),
        ("1m", {"heads": 3}, None, "heads 3, kv_heads 2 .* do not go together"),
        ("1m", {"layers": 0}, None, "layers is 0; a student needs 1"),
        ("prune:", {}, None, "no student 'prune:'"),
    ],
)
def test_shapes_that_cannot_be_are_refused(student, sizes, target, what):
    with pytest.raises(ParameterError, match=what):
        shape_of(student, sizes, target, LIKE)


def test_presets_have_the_size_in_their_names():
    for name, shape in PRESETS.items():
        assert shape.num_parameters == pytest.approx(int(name.removesuffix("m")) * 1e6, rel=0.12)
    assert sum(w.numel() for w in Student(PRESETS["1m"], 8).parameters()) == PRESETS["1m"].num_parameters


def test_an_embedding_keeps_its_main_directions():
    torch.manual_seed(0)
    plane = torch.linalg.qr(torch.randn(16, 3))[0].T
    embedding = torch.randn(50, 3) @ plane
    small = low_rank(embedding, torch.ones(50), 3)
    distances = torch.cdist(embedding, embedding)
    ratio = torch.cdist(small, small)[distances > 0.1] / distances[distances > 0.1]
    assert ratio.std() / ratio.mean() < 1e-3
    assert low_rank(embedding, torch.ones(50), 20).shape == (50, 20)


# files


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1 << 30), st.sampled_from(["q8_0", "q4_0"]))
def test_blocks_are_those_of_the_reference(seed, kind):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(3, 64)) * 10.0 ** rng.integers(-6, 3)).astype(np.float32)
    values[1, :32] = 0
    theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind.upper()])
    assert encode(values, kind) == theirs.tobytes()


def test_halves_are_rounded_away_from_zero_as_the_reference_does():
    values = np.zeros((1, 32), np.float32)
    values[0, :6] = [127, 0.5, 1.5, 2.5, -0.5, -2.5]
    theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    assert np.frombuffer(encode(values, "q8_0")[2:], np.int8)[:6].tolist() == [127, 1, 2, 3, -1, -3]
    assert encode(values, "q8_0") == theirs.tobytes()


def test_files_are_read_by_others(tmp_path):
    values = np.arange(128, dtype=np.float32).reshape(2, 64)
    metadata = {"general.architecture": "llama", "a": 7, "b": 0.5, "c": True, "d": [3, 1, 2], "e": "text é"}
    tensors = {"one": (values, "q8_0"), "two": (values[0], "f32"), "three": (values, "f16")}
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(metadata, tensors))
    theirs = gguf.GGUFReader(tmp_path / "x.gguf")
    assert {name: theirs.get_field(name).contents() for name in metadata} == metadata
    assert [tensor.name for tensor in theirs.tensors] == list(tensors)
    with GgufFile(tmp_path / "x.gguf") as ours:
        assert ours.metadata == metadata
        for tensor in theirs.tensors:
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(ours.read(tensor.name), expected.reshape(ours.tensors[tensor.name].shape))
        np.testing.assert_allclose(ours.read("one"), values, atol=0.51)


@pytest.mark.parametrize("tied", [True, False])
def test_the_native_decoder_computes_the_student(tmp_path, tied):
    torch.manual_seed(2)
    shape = Shape(48, 64, 2, 4, 2, 16, 96, theta=700.0, positions=64, tied=tied)
    student = Student(shape, 32)
    weights = {name: weight.numpy() for name, weight in student.hugging_face().items()}
    path = tmp_path / "student.gguf"
    path.write_bytes(gguf_of("student", shape, weights, None, bytes(16), "f16"))
    decoder = load_decoder(path, activations="float")
    tokens = np.arange(30) * 7 % 48
    found = decoder.forward(tokens, decoder.new_cache(dtype="float32"), num_logits=30)
    with torch.no_grad():
        expected = student(torch.from_numpy(tokens)[None])[0].numpy()
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert np.abs(expected).max() > 0.5


def test_a_card_gives_no_figure_where_nothing_was_measured():
    shape = Shape(97, 64, 2, 4, 2, 16, 96)
    learner = SimpleNamespace(name="tiny", shape=shape, coverage=1.0)
    means = {str(window): 0.0 for window in (1, 2, 4, 8)}
    nothing = {"positions": 0, "acceptance": 0.0, "rejection_rule": 0.0, "mean_accepted": means}
    some = nothing | {"positions": 9, "acceptance": 0.5}
    lines = report._section(learner, {"greedy": some, "1.0": nothing}, ["tiny/"])
    assert lines[-2:] == [
        "| greedy | 9 | 0.500 | 0.000 | 0.00 / 0.00 / 0.00 / 0.00 |",
        "| T=1.0 | 0 | not measured | - | - |",
    ]
