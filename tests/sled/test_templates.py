"""Chat templates: rendered as transformers does, in a sandbox which they cannot leave."""

from __future__ import annotations

import time

import pytest
from jinja2.exceptions import SecurityError, TemplateError

from sled.targets import sandbox
from sled.targets.templates import render

TALK = [{"role": "system", "content": "be <brief>"}, {"role": "user", "content": 'é "quoted"\n'}]
TEMPLATES = [
    "{% for m in messages %}\n    {{- m.role }}: {{ m.content | trim }}\n{% endfor %}{{ eos_token }}",
    "{%- set ns = namespace(self=1) %}{% for m in messages %}{% set ns.last = m.role %}{% endfor %}{{ ns.last }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson(indent=2) }}{% endfor %}",
    "{% generation %}{{ messages[0]['content'] | tojson }}{% endgeneration %}{{ dict(a=1).items() | list }}",
    "{{ tools is none and documents is none and add_generation_prompt }}{{ missing }}",
]


@pytest.mark.model
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_conversation_is_what_transformers_makes_of_it(template):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    special = {"eos_token": "<end>"}
    wanted, _ = utils.render_jinja_template([TALK], chat_template=template, add_generation_prompt=True, **special)
    assert render(template, TALK, special) == wanted[0]


def test_a_conversation_by_hand():
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ strftime_now('%%') }}{{ bos_token }}"
    assert render(template, [{"role": "user", "content": "Hi"}], {"bos_token": "<s>"}) == "<user>Hi%<s>"


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ raise_exception('no system here') }}", TemplateError),
        ("{% for %}", TemplateError),
        ("{{ messages.__class__.__mro__ }}", SecurityError),
        ("{{ messages.append(1) }}", SecurityError),
        ("{{ dict.__call__.__globals__ }}", SecurityError),
        ("{{ namespace(__class__=1) }}", SecurityError),
        ("{% set n = namespace() %}{% set n._x = 1 %}", SecurityError),
        ("{{ 1 // (messages | length - 2) }}", TemplateError),
        ("{{ messages + 1 }}", TemplateError),
        ("{{ '%d' % 'x' }}", TemplateError),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", TemplateError),
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", TemplateError),
        ("{{ 9 ** (9 ** 9) }}", SecurityError),
        ("{{ (messages | length) ** 9000000000 }}", SecurityError),
        ("{{ 'x' * 99999999999 }}", SecurityError),
        ("{{ 99999999999 * messages }}", SecurityError),
    ],
)
def test_what_templates_may_not_do_is_refused(template, kind):
    with pytest.raises(kind):
        render(template, TALK, {})


def test_products_and_powers_of_small_things_are_computed():
    template = "{{ 'ab' * 3 }} {{ 2 ** 10 }} {{ 1.5 * 2 }} {{ 4.0 ** 0.5 }} {{ (messages * 2) | length }} {{ -3 * 4 }}"
    assert render(template, TALK, {}) == "ababab 1024 3.0 2.0 4 -12"


def doubled(first, again):
    """What has itself in it 2**26 times: 300 MB of text, made by a template of 26 lines."""
    lines = [again.replace("NEW", f"a{line + 1}").replace("OLD", f"a{line}") for line in range(26)]
    return "{% set a0 = " + first + " %}" + "".join(lines)


MACRO = "{% macro f(n) %}{% if n %}{{ f(n - 1, GIVEN) }}{% else %}{{ MADE }}{% endif %}{% endmacro %}"
HUGE = "{% set n = namespace(x='0123456789' * 100000) %}"
NESTED = "{% set n = namespace(x=[]) %}{% for _ in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in [1] recursive %}{{ loop(range(99999)) }}{% endfor %}",
        "{{ range(99999) | map('abs') | map('abs') | map('abs') | map('abs') | list }}",
        HUGE + "{% for _ in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        HUGE + "{% for _ in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        HUGE + "{% for _ in range(60) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
        HUGE + "{% for _ in range(99999) %}{{ n.x }}{% endfor %}",
        HUGE + "{{ n.x | replace('0', n.x) }}",
        HUGE + "{{ n.x.replace('0', n.x) }}",
        HUGE + "{{ n.x | list | join(n.x) }}",
        HUGE + "{{ n.x.join(range(99999) | map('string')) }}",
        HUGE + "{{ ('a\n' * 1000) | indent(n.x) }}",
        HUGE + "{{ [n.x, n.x, n.x, n.x, n.x] | string }}",
        NESTED + "{{ n.x }}",
        NESTED.replace("[n.x, n.x]", "(n.x, n.x)") + "{{ n.x | string }}",
        NESTED.replace("[n.x, n.x]", "{'a': n.x, 'b': n.x}") + "{{ n.x | tojson }}",
        NESTED.replace("[n.x, n.x]", "dict(a=n.x, b=n.x)") + "{{ n.x | tojson }}",
        doubled("{'a': 1}", "{% set NEW = {'a': OLD.items(), 'b': OLD.items()} %}") + "{{ a26 }}",
        doubled("{'a': 1}", "{% set NEW = {'a': OLD.values(), 'b': OLD.values()} %}") + "{{ a26 | string }}",
        doubled("cycler(1, 1)", "{% set NEW = cycler(OLD.items, OLD.items) %}") + "{{ a26.items }}",
        MACRO.replace("GIVEN", "varargs, varargs").replace("MADE", "varargs") + "{{ f(26, 1) }}",
        MACRO.replace("GIVEN", "a=kwargs, b=kwargs").replace("MADE", "kwargs") + "{{ f(26, a=1) }}",
        "{% set x = 'x' * 1000000 %}{{ ('%(a)s' * 300) % {'a': x ~ x ~ x} }}",
        NESTED.replace("[n.x, n.x]", "n.x + [n.x]").replace("x=[]", "x=[1]") + "{{ n.x }}",
        "{{ 'x'.center(9999999999) }}",
        "{{ 'x'.ljust(9999999999) }}",
        "{{ 'x' | center(9999999999) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 9999999999) }}",
        "{{ messages | tojson(indent=9999999999) }}",
        "{{ messages | tojson(separators=('x' * 999999, 'y')) }}",
        "{{ 'a' | indent(9999999999) }}",
        "{{ [1] | batch(9999999999, 1) | list }}",
        "{{ lipsum(999999999) }}",
    ],
)
def test_template_that_would_not_end_or_takes_all_memory_is_refused(template, monkeypatch):
    monkeypatch.setattr(sandbox, "MOST_STEPS", 20_000)
    began = time.thread_time()
    with pytest.raises(TemplateError):
        render(template, TALK, {})
    assert time.thread_time() - began < 4.0


def test_variables_within_each_other_are_no_text():
    template = (
        doubled("namespace(x=1)", "{% set NEW = namespace(a=OLD, b=OLD) %}") + "{{ a26 }}{{ a26.a.b.a is defined }}"
    )
    assert render(template, TALK, {}) == "<Namespace>True"


def test_what_macros_are_given_beside_their_arguments():
    template = (
        "{% macro f(n) %}{{ n }}{{ varargs[0] }}{{ kwargs.b }}{{ varargs | length }}{% endmacro %}{{ f(1, 2, b=3) }}"
    )
    assert render(template + "{% set c = cycler('x', 'y') %}{{ c.next() }}{{ c.next() }}", TALK, {}) == "1231xy"


def test_steps_that_take_long_each_end_by_the_clock(monkeypatch):
    monkeypatch.setattr(sandbox, "MOST_S", 0.1)
    compares = "{% if n.x ~ 'a' == n.x ~ 'b' %}{% endif %}" * 20
    with pytest.raises(SecurityError, match="takes more than"):
        render(HUGE + "{% for _ in range(99999) %}" + compares + "{% endfor %}", TALK, {})


def test_long_conversations_are_within_the_bounds_of_templates():
    turns = [{"role": ("user", "assistant")[index % 2], "content": "word " * 200} for index in range(2000)]
    template = (
        "{% for m in messages %}{% if loop.index0 % 2 == (m['role'] == 'user') and not loop.last %}{% endif %}"
        "{{ '<|' + m.role + '|>' }}\n{{ m.content | trim }}{% if '</think>' in m.content %}"
        "{{ m.content.split('</think>')[-1] }}{% endif %}{{ loop.length }}{{ '%s' % m.role }}{{ ' ' ~ loop.index }}"
        "{% endfor %}{{ [1, 2] | join(', ') }}{{ 'a-{}'.format(123456) }}{{ messages | length }}"
    )
    text = render(template, turns, {})
    assert text.count("<|assistant|>") == 1000
    assert text.endswith("1, 2a-1234562000")
