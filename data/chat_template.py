"""The chat template for tokenizers without one, and `portable`, which removes `{% generation %}` and the date."""

import datetime
import re

PLAIN = (
    "{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ message['role'].capitalize() + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""Plain Jinja without a system prompt. A word that starts a line is written without a blank before it, as it is when an
answer is tokenized alone."""
TODAY = datetime.date(2024, 7, 26)
"""The date in templates that ask for one: Llama 3's templates fall back to it when no clock is available."""
DATE_CODES = ("%Y", "%y", "%-m", "%m", "%B", "%b", "%-d", "%d", "%e", "%A", "%a", "%j", "%H", "%I", "%M", "%S", "%p")
FIXED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{code}', '{TODAY.strftime(code)}')" for code in DATE_CODES)
    + " }}{% endmacro %}"
)
"""`strftime_now` as a macro in plain Jinja: it writes `TODAY` and has no clock."""


def portable(template: str) -> str:
    """The template without `{% generation %}` tags, which only transformers knows, and with a fixed date.

    With today's date prompts would change from day to day, so `strftime_now` calls become the text for `TODAY`, and
    where their format is no literal, calls of a macro.
    """
    plain = re.sub(r"\{%([-+]?)\s*generation\s*([-+]?)%\}", r"{%\1 if true \2%}", template)
    plain = re.sub(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}", r"{%\1 endif \2%}", plain)
    literal = r"""strftime_now\(\s*(['"])((?:(?!\1).)*)\1\s*\)"""
    plain = re.sub(literal, lambda call: repr(TODAY.strftime(call[2])), plain)
    asks = re.search(r"\bstrftime_now\b(?!\s+is\b)", plain.replace(FIXED_CLOCK, ""))
    return FIXED_CLOCK + plain if asks and FIXED_CLOCK not in plain else plain
