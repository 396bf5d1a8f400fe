"""Chat templates: rendered as transformers does, in a sandbox which they cannot leave."""

from __future__ import annotations

import pytest
from jinja2.exceptions import SecurityError, TemplateError

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
