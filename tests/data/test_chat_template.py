"""Portable chat templates, rendered by plain Jinja."""

import jinja2
import pytest

from data.chat_template import portable

CALLS = {
    "variable": "{% set f = '%Y-%m-%d' %}{{ strftime_now(f) }}",
    "another name": "{%- set now = strftime_now -%}{{ now('%Y-%m-%d') }}",
    "keyword": "{{ strftime_now(format='%Y-%m-%d') }}",
    "put together": "{{ strftime_now('%Y' + '-%m-' ~ '%d') }}",
    "where there is a clock": "{% if strftime_now is defined %}{{ strftime_now(f or '%Y-%m-%d') }}{% endif %}",
    "inside a macro": "{% macro day(f) %}{{ strftime_now(f) }}{% endmacro %}{{ day('%Y-%m-%d') }}",
    "literal": "{{ strftime_now('%Y-%m-%d') }}",
}


def rendered(template: str) -> str:
    def clock(format: str) -> str:
        raise AssertionError(f"the template asks the clock for {format}")

    return jinja2.Environment().from_string(template).render(strftime_now=clock)


@pytest.mark.parametrize("template", CALLS.values(), ids=CALLS)
def test_no_template_reads_the_clock(template: str) -> None:
    fixed = portable(template)
    assert rendered(fixed) == "2024-07-26"
    assert portable(fixed) == fixed, "an exported template is read again as it is"


@pytest.mark.parametrize(
    ("form", "date"),
    [
        ("%d %b %Y", "26 Jul 2024"),
        ("%B %-d, %Y", "July 26, 2024"),
        ("%A %d/%m/%y", "Friday 26/07/24"),
        ("%H:%M:%S", "00:00:00"),
    ],
)
def test_the_fixed_date_has_the_form_that_the_template_asks_for(form: str, date: str) -> None:
    assert rendered(portable("{% set f = '" + form + "' %}{{ strftime_now(f) }}")) == date


def test_a_template_without_a_date_is_left_as_it_is() -> None:
    for template in ("{{ messages }}", "{% if strftime_now is defined %}a clock{% endif %}"):
        assert portable(template) == template
