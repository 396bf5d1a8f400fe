"""Forms: masks against stepping token by token and against the texts themselves; drafts, take-over, hostile ones."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time

import edgekernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sled.constraint import FormFactory
from sled.constraint_limits import MAX_LEVELS, MAX_MARKS, check_grammar, check_schema
from sled.errors import ConstraintUnavailable, FormBroken
from sled.types import Constraint

pytest.importorskip("llguidance")

STOP, PAD = 0, 300
WORDS = [
    b"true",
    b"false",
    b"null",
    b'{"',
    b'":',
    b'": ',
    b"}",
    b'",',
    b"12",
    b"ab",
    b"\xc3",
    b"\xc3\xa9",
    b"name",
    b"age",
    b"ab",
]
PIECES = [b"<end>", b"<other>", *(bytes([byte]) for byte in range(256)), *WORDS]
FIRST_WORD = 2 + 256


@pytest.fixture(scope="module")
def factory():
    return FormFactory(PIECES, [0, 1], [STOP], PAD)


def ids_of(text):
    """One token for each byte."""
    return [2 + byte for byte in text.encode()]


def text_of(tokens):
    return b"".join(PIECES[token] for token in tokens if token != STOP)


def flags(mask):
    return np.unpackbits(mask.view(np.uint8), bitorder="little").astype(bool)


def allowed_ids(form, draft=(), row=-1):
    return set(np.flatnonzero(flags(form.allowed(draft)[row])).tolist())


def grammar(text):
    return Constraint("grammar", text)


def schema(value):
    return Constraint("json_schema", json.dumps(value))


PERSON = schema(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
LISTS = grammar('start: "[" (item ("," item)*)? "]"\nitem: /[0-9]+/ | "ab" | start\n')
EXPRESSION = Constraint("regex", "(ab|é|12)+!?")
ALL = [PERSON, LISTS, EXPRESSION]


def test_masks_hand_worked(factory):
    form = factory(Constraint("regex", "ab|é"))
    a, b, ab, c3, e = ids_of("a")[0], ids_of("b")[0], [FIRST_WORD + 9, FIRST_WORD + 14], 2 + 0xC3, FIRST_WORD + 11
    first = {a, c3, e, FIRST_WORD + 10, *ab}  # both tokens that spell "ab", and both that begin "é"
    assert allowed_ids(form) == first
    masks = form.allowed([a, b, STOP])
    assert masks.shape == (4, 10)
    assert masks.dtype == np.uint32
    assert [set(np.flatnonzero(flags(row)).tolist()) for row in masks[:3]] == [first, {b}, {STOP}]
    assert allowed_ids(form) == first
    form.commit([a])
    assert not form.finished
    form.commit([b])
    assert form.finished
    assert allowed_ids(form) == {STOP}
    form.commit([STOP])
    assert form.finished
    with pytest.raises(ValueError, match="number 3 of the answer, is not allowed by its form"):
        form.commit([a])


def test_control_tokens_padding_and_empty_pieces_are_never_allowed():
    pieces = [b"<end>", b"<im>", b"", b"x", b"\xff", b"\xff<im>"]
    form = FormFactory(pieces, [1], [0], 40)(Constraint("regex", "(?s:.)*"))
    assert allowed_ids(form) == {0, 3}
    named = FormFactory(pieces, [1], [0], 40)(grammar('start: "x" (<[35]> | <[2]> | <im>)'))
    named.commit([3])
    assert allowed_ids(named) == {1}  # a grammar may name control tokens; ids without a piece it may not


def test_a_target_without_stop_tokens_says_finished():
    form = FormFactory([b"x", b"y"], [], [], 2)(Constraint("regex", "xy"))
    form.commit([0])
    assert allowed_ids(form) == {1}
    form.commit([1])
    assert form.finished
    assert allowed_ids(form) == set()


def test_several_stop_tokens_are_all_allowed_at_an_end():
    form = FormFactory([b"<a>", b"<b>", b"x"], [0, 1], [0, 1], 3)(Constraint("regex", "x+"))
    form.commit([2])
    assert allowed_ids(form) == {0, 1, 2}
    form.commit([1])
    assert form.finished


def walk(factory, constraint, choose, steps):
    """An answer of random allowed tokens, and the mask before each of them, stepping one by one without drafts."""
    form, tokens, masks = factory(constraint), [], []
    for _ in range(steps):
        masks.append(form.allowed([])[0])
        ids = np.flatnonzero(flags(masks[-1]))
        token = int(ids[choose(len(ids))])
        form.commit([token])
        tokens.append(token)
        if token == STOP:
            break
    return tokens, masks


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ALL), st.randoms(use_true_random=False), st.data())
def test_drafts_see_the_masks_of_stepping_and_leave_no_trace(factory, constraint, rng, data):
    tokens, masks = walk(factory, constraint, rng.randrange, 24)
    form, at = factory(constraint), 0
    while at < len(tokens):
        right = data.draw(st.integers(0, min(6, len(tokens) - at)))
        junk = data.draw(st.lists(st.integers(-1, PAD + 40), max_size=3))
        rows = form.allowed([*tokens[at : at + right], *junk])
        assert rows.shape == (right + len(junk) + 1, 10)
        for row in range(right + 1):
            if row == 0 or STOP not in tokens[at : at + row]:
                assert (rows[row] == masks[at + row]).all() if at + row < len(masks) else True
        step = max(1, data.draw(st.integers(0, right)))
        form.commit(tokens[at : at + step])
        at += step


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ALL), st.randoms(use_true_random=False), st.integers(0, 24))
def test_another_server_takes_over_where_the_first_stopped(factory, constraint, rng, cut):
    tokens, masks = walk(factory, constraint, rng.randrange, 24)
    cut = min(cut, len(tokens) - 1)
    other = FormFactory(PIECES, [0, 1], [STOP], PAD)(constraint)
    other.commit(tokens[:cut])
    assert (other.allowed([])[0] == masks[cut]).all()
    other.commit(tokens[cut:])
    assert other.finished == (tokens[-1] == STOP) or other.finished


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_masks_allow_exactly_the_prefixes_of_the_expression(factory, rng):
    """Held against Python's own re: a token is allowed if and only if some end of the text matches."""
    ends = ["", "!", "ab", "b", "2", "12"]
    tokens, masks = walk(factory, EXPRESSION, rng.randrange, 8)
    for at, mask in enumerate(masks):
        text = text_of(tokens[:at])
        for token in [*range(2 + 32, 2 + 127), *range(FIRST_WORD, len(PIECES))]:
            longer = text + PIECES[token]
            try:
                longer.decode()
            except UnicodeDecodeError:
                longer += b"\xa9"  # the other half of é
            expected = any(re.fullmatch("(ab|é|12)+!?", longer.decode("utf-8", "replace") + end) for end in ends)
            assert bool(flags(mask)[token]) == expected, (text, PIECES[token])
        assert bool(flags(mask)[STOP]) == bool(re.fullmatch(rb"(ab|\xc3\xa9|12)+!?", text))


def toy_answer(form, sampling, window, seed, length=120):
    """The coupled rule over fixed logits, masked; `window` drafts a round, most of them right, until the stop token."""
    answer: list[int] = []
    rng = np.random.default_rng(seed)
    rows = {}

    def logits(text):
        key = text[-1] if text else -1
        if key not in rows:
            rows[key] = np.random.default_rng([5, key + 1]).normal(size=PAD).astype(np.float32) * 2
            rows[key][[STOP, ids_of('"')[0], ids_of("}")[0]]] += 6  # so that answers end
        return rows[key]

    def masked(texts, masks):
        table = np.stack([logits(text) for text in texts])
        table[~np.stack([flags(mask)[:PAD] for mask in masks])] = -np.inf
        return table

    while len(answer) < length and STOP not in answer:
        draft: list[int] = []
        for _ in range(window):
            text = [*answer, *draft]
            token = int(edgekernels.sample(masked([text], form.allowed(draft)[-1:]), position=len(text), **sampling)[0])
            draft.append(token if rng.random() < 0.7 else int(rng.integers(PAD)))
        table = masked([[*answer, *draft[:i]] for i in range(len(draft) + 1)], form.allowed(draft))
        verdict = edgekernels.accept(
            table, np.array(draft, np.int32), np.array([0, len(draft) + 1]), position=len(answer), **sampling
        )
        tokens = [*draft[: int(verdict.accepted[0])], int(verdict.next_token[0])]
        tokens = tokens[: tokens.index(STOP) + 1] if STOP in tokens else tokens
        form.commit(tokens)
        answer += tokens
    return answer


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9, "seed": 7}])
def test_answers_under_a_schema_parse_and_do_not_depend_on_drafts(factory, sampling):
    answers = [toy_answer(factory(PERSON), sampling, window, seed) for window, seed in ((0, 0), (3, 1), (5, 2))]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][-1] == STOP
    value = json.loads(text_of(answers[0]))
    assert set(value) == {"name", "age"}
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 5
    assert value["age"] >= 0


def test_a_wrong_token_is_refused_and_none_of_its_company_committed(factory):
    form = factory(PERSON)
    before = form.allowed([])
    with pytest.raises(ValueError, match="number 1 of the answer"):
        form.commit([*ids_of("{"), *ids_of("}")])
    for token in (-1, PAD, 2**31 - 1, STOP, 1):
        with pytest.raises(ValueError, match=f"token {token}, number 0 of the answer, is not allowed"):
            form.commit([token])
    assert (form.allowed([]) == before).all()
    form.commit(ids_of("{"))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Constraint("json_schema", "{"), "is no JSON"),
        (Constraint("json_schema", "[]"), "is list; give an object"),
        (Constraint("json_schema", "[" * 60_000), "nested too deeply"),
        (schema({"type": "nonsense"}), "failed to compile JSON schema"),
        (schema({"$ref": "https://example.com/schema"}), "only references like"),
        (schema({"$ref": "#/$defs/missing"}), "which it does not hold"),
        (schema({"not": {"type": "string"}}), "Unimplemented keys"),
        (schema({"type": "integer", "minimum": 5, "maximum": 4}), "Unsatisfiable schema"),
        (Constraint("regex", "(a"), "invalid regex"),
        (grammar("nothing"), "correct or simplify"),
        (grammar('start: "ä\x00" end\n'), "correct or simplify"),
        (grammar('start: %json {"type": "string"}'), "'%json', which is not allowed"),
        (grammar('%llguidance {"no_forcing": false}\nstart: "a"'), "'%llguidance', which is not allowed"),
    ],
)  # fmt: skip
def test_bad_constraints_are_refused_with_the_reason(factory, bad, why):
    with pytest.raises(ValueError, match=why):
        factory(bad)


def test_what_the_vocabulary_cannot_spell_is_refused():
    with pytest.raises(ValueError, match="nothing that this vocabulary can spell"):
        FormFactory([b"<end>", b"a"], [0], [0], 2)(Constraint("regex", "b"))


def deep(n):
    definitions = {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(n)}
    return {"$defs": definitions | {str(n): {}}, "$ref": "#/$defs/0"}


def doubling(n):
    """Every definition holds the one before it twice."""
    definitions = {"0": {"type": "string"}}
    for i in range(1, n):
        before = {"$ref": f"#/$defs/{i - 1}"}
        definitions[str(i)] = {"properties": {"left": before, "right": before}, "required": ["left", "right"]}
    return {"$defs": definitions, "$ref": f"#/$defs/{n - 1}"}


def pattern_chain(n):
    """Every definition adds a pattern to the next."""
    definitions = {str(i): {"pattern": f"a{i}", "$ref": f"#/$defs/{i + 1}"} for i in range(n)}
    return {"$defs": definitions | {str(n): {}}, "$ref": "#/$defs/0"}


def chain(n):
    return "start: R0\n" + "\n".join(f'R{i}: "x" | ("y" R{i + 1})' for i in range(n)) + f'\nR{n}: "a"\n'


HOSTILE = {
    "references": schema(deep(1400)),
    "brackets": schema({"allOf": [{"anyOf": [{"const": i}, {"minimum": i}]} for i in range(40)]}),
    "many properties": schema({"properties": {f"k{i}": {} for i in range(2000)}}),
    "divisors": schema({"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 83)]}),
    "patterns": schema({"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(30)]}),
    "patterns of one property": schema({"allOf": [{"properties": {"k": {"pattern": f"a{i}"}}} for i in range(30)]}),
    "patterns in a chain": schema(pattern_chain(30)),
    "eight patterns": schema({"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(8)]}),
    "negations": grammar("start: A\nA: ~(" + " | ".join(f"~/(a|b)*a(a|b){{{i}}}/" for i in range(30)) + ")"),
    "alternatives": Constraint("regex", "|".join(f"(a|b)*a(a|b){{{i}}}" for i in range(300))),
    "lengths": schema({"allOf": [{"type": "string", "minLength": i, "maxLength": 900 - i} for i in range(60)]}),
    "doubling": schema(doubling(40)),
    "huge counts": schema({"type": "array", "items": {"type": "string", "minLength": 10**9}, "minItems": 10**9}),
    "nested counts": Constraint("regex", "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"),
    "states": Constraint("regex", "(.*a.{40}.*b.{50}){1,3}"),
    "parentheses": Constraint("regex", "(" * 30_000 + "a" + ")" * 30_000),
    "rules": grammar(chain(1900)),
    "rule parentheses": grammar("start: " + "(" * 16_000 + '"a"' + ")" * 16_000),
    "ambiguous": grammar('start: s\ns: s s s | s s | "a" | "b" | "ab" |\n'),
    "counted rules": grammar('start: (("a"{1,1000}){1,1000}){1,1000}\n'),
    "intersections": grammar("start: A\nA: " + " & ".join(f"/.*{chr(97 + i)}.{{{i}}}/" for i in range(6))),
    "many intersections": grammar("start: A\nA: " + " & ".join(f"/(a|b)*a(a|b){{{i}}}/" for i in range(30))),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_constraints_cost_little_or_are_refused(factory, name):
    """Refused, or broken off by name: and no call takes long, whichever tokens a hostile device has committed."""
    rng, longest = np.random.default_rng(1), 0.0

    def timed(call, *arguments):
        nonlocal longest
        before = time.thread_time()
        try:
            return call(*arguments)
        finally:
            longest = max(longest, time.thread_time() - before)

    with contextlib.suppress(ValueError):
        form = timed(factory, HOSTILE[name])
        for _ in range(60):
            ids = np.flatnonzero(flags(timed(form.allowed, [])[0]))
            ids = ids[ids != STOP]
            if not len(ids):
                break
            timed(form.commit, [int(rng.choice(ids))])
    assert longest < 1.0  # what it guards against takes minutes, gigabytes, or the process


def test_the_deepest_that_is_allowed_fits_a_small_stack(factory):
    """A quarter of a thread's usual stack; the library does not ask how much there is."""
    made = []

    def work():
        made.append(factory(schema(deep((MAX_LEVELS - 8) // 2))))
        made.append(factory(grammar(chain(MAX_MARKS // 2 - 2))))

    before = threading.stack_size(4 << 20)
    try:
        thread = threading.Thread(target=work)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert len(made) == 2


def test_bounds_say_the_number():
    with pytest.raises(ValueError, match=r"levels with its \d+ references followed; at most 500"):
        check_schema(json.dumps(deep(1400)))
    with pytest.raises(ValueError, match="common multiple 716539"):
        check_schema(HOSTILE["divisors"].text)
    with pytest.raises(ValueError, match="at most 1000 are allowed"):
        check_grammar(chain(1900))
    assert check_schema('{"multipleOf": 0.01, "items": {"multipleOf": 2500}}')
    assert check_schema('{"multipleOf": true, "items": {"multipleOf": NaN}}')
    for huge in ("9" * 400, "1" + "0" * 40 + "7"):  # no float has the one, and rounded the other would be 1
        with pytest.raises(ValueError, match="common multiple 1000000000000 "):
            check_schema('{"multipleOf": ' + huge + "}")
    assert check_schema('{"$defs": {"a/b%": {}}, "$ref": "#/$defs/a~1b%25", "items": {"$ref": "#"}}')
    with pytest.raises(ValueError, match="nested too deeply; at most 64"):
        check_schema('{"a":' * 70 + "1" + "}" * 70)


def test_a_draft_into_trouble_leaves_the_answer_whole(factory):
    """Where a row is too much work, the error names the drafts that can still be verified."""
    trouble = grammar('start: "x"* | "y" s\ns: (("a"{1,1000}){1,1000}){1,1000}\n')
    form, other = factory(trouble), factory(trouble)
    junk = ids_of("y" + "a" * 62)
    with pytest.raises(FormBroken, match="too complex here") as broken:
        form.allowed(junk)
    assert 0 < broken.value.usable < len(junk)
    usable = junk[: broken.value.usable]
    assert (form.allowed(usable) == other.allowed(usable)).all()
    form.commit(ids_of("xxx"))
    assert allowed_ids(form) == {STOP, *ids_of("x")}


def test_without_the_library_every_constraint_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConstraintUnavailable, match=r"pip install 'edgebus\[server\]'"):
        FormFactory(PIECES, [0, 1], [STOP], PAD)(PERSON)


def test_devices_never_import_it():
    code = "import sys, sled, sled.cli.app; assert not {'llguidance', 'sled.constraint'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
