# SPDX-License-Identifier: Apache-2.0
"""Chat templates that want to hurt end at once, in one line."""

import pytest

from mindspeed_ms.data.tokenizers import chat_templates

TALK = [{"role": "user", "content": "hi"}]
HOSTILE = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ 10**(10**6) }}",
    "{{ 'x'|center(10**11) }}",
    "{{ 'x'.ljust(10**11) }}",
    "{{ 'a'|indent(10**11) }}",
    "{{ '%1000000000d' % 5 }}",
    "{{ '{:1000000000d}'.format(5) }}",
    "{{ messages|tojson(indent=10**9) }}",
    "{{ lipsum(n=10**6) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{" * 3000,
    "{{ " + "a." * 5000 + "b }}",
    "{{ raise_exception('two\nlines') }}",
    "{{ 'a'|wordwrap(-1) }}",
]


@pytest.mark.parametrize("template", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_template_is_one_line(template):
    with pytest.raises(ValueError, match="the chat template ") as caught:
        chat_templates.render(TALK, template)
    assert "\n" not in str(caught.value)


def test_what_honest_templates_do_stays():
    text = (
        "{% for m in messages %}{{ m.role ~ ': ' + m['content'] * 2 }}{% if not loop.last %},"
        "{% endif %}{% endfor %}{{ '%d' % 5 }}{{ 2 ** 3 }}{{ 'a b'|replace(' ', '-') }}"
    )
    assert chat_templates.render([*TALK, *TALK], text).text == "user: hihi,user: hihi58a-b"
