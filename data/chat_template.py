"""Chat templates, in Jinja as tokenizers keep them: the two that this project brings along, and what it makes of others.

Neither of the two writes a system prompt that nobody asked for. Both are plain Jinja, so that every reader of templates can parse them.
"""

import datetime
import re

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""For tokenizers whose special tokens are `<|im_start|>` and `<|im_end|>`, the latter their EOS."""

PLAIN = (
    "{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ message['role'].capitalize() + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""For any other tokenizer that has no template of its own: a label and a line break. An answer is tokenised apart from its prompt, and a word
that starts a line is written without a blank before it, as it is when it stands alone."""

TODAY = datetime.date(2024, 7, 26)
"""What templates that ask for the date are given: the date that Llama 3's templates fall back to where a reader has no clock."""


def portable(template: str) -> str:
    """The template without what only transformers understands, and without today's date.

    `{% generation %}` marks the assistant's text for transformers alone; other Jinja readers stop at the unknown tag. A date read from the clock
    would change the prompts from one day to the next, so `strftime_now` calls become the text for `TODAY`.
    """
    plain = re.sub(r"\{%([-+]?)\s*generation\s*([-+]?)%\}", r"{%\1 if true \2%}", template)
    plain = re.sub(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}", r"{%\1 endif \2%}", plain)
    return re.sub(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", lambda call: repr(TODAY.strftime(call[2])), plain)
