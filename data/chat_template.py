"""How conversations become text: the two chat templates that this project brings along, in Jinja as tokenizers keep them.

Both mark the assistant's text and its end with `{% generation %}`, so that `apply_chat_template(..., return_assistant_tokens_mask=True)` and
trl's `assistant_only_loss` know which tokens an answer is. Neither writes a system prompt that nobody asked for.
"""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""For tokenizers whose special tokens are `<|im_start|>` and `<|im_end|>`, the latter their EOS."""

PLAIN = (
    "{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ message['role'].capitalize() + ':\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}"
    "{{ message['content'] }}"
    "{% endif %}"
    "{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""For any other tokenizer that has no template of its own: a label and a line break. An answer is tokenised apart from its prompt, and a word
that starts a line is written without a blank before it, as it is when it stands alone."""
