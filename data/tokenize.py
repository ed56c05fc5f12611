"""From records to token ids. The one place where a prompt is rendered, so that every stage sees the same tokens.

A sequence is `prompt_ids + completion_ids`; the prompt ends where the template asks for the assistant's turn, the completion ends in EOS.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import TemplateError

from data.chat_template import PLAIN
from data.records import Prompt


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of the conversation up to where the answer starts, through the tokenizer's chat template.

    Raises ValueError when the template takes no such conversation: some know no system role, or want turns to alternate.
    """
    try:
        ids = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses prompt {prompt.prompt_id!r} of {prompt.dataset!r}: {error}") from None
    return [int(token) for token in ids]


def encode_completion(tokenizer: Any, completion: str, ends: bool = True) -> list[int]:
    """Token ids of an answer; EOS closes it unless `ends` is false, as for an answer that was cut off."""
    ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id] if ends else list(ids)


def template_closing(tokenizer: Any) -> list[int]:
    """Token ids that the chat template puts after an answer's text: EOS, often with a line break behind it. Most reward models read there.

    EOS alone where the tokenizer came without a template of its own, or where that puts nothing. Raises ValueError when it does not show the answer.
    """
    eos = [int(tokenizer.eos_token_id)]
    if tokenizer.chat_template == PLAIN:
        return eos
    answer = "An answer"
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "A question"}, {"role": "assistant", "content": answer}], tokenize=False)
    except TemplateError as error:
        raise ValueError(f"the reward model's chat template refuses a question with its answer: {error}") from None
    _, found, after = text.rpartition(answer)
    if not found:
        raise ValueError("the reward model's chat template does not show an answer as it is, so nobody can tell where its score is to be read")
    return [int(token) for token in tokenizer(after, add_special_tokens=False)["input_ids"]] or eos


def count_prompt_tokens(tokenizer: Any, prompts: Sequence[Prompt]) -> list[int]:
    """Tokens of each prompt, as `encode_prompt` gives them and refuses them; many at a time are counted faster."""
    if not prompts:
        return []
    conversations = [prompt.messages for prompt in prompts]
    try:
        return [len(ids) for ids in tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=True, return_dict=False)]
    except TemplateError:
        return [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]


def count_answer_tokens(tokenizer: Any, completions: Sequence[str]) -> list[int]:
    """Tokens of each answer with its EOS, as `encode_completion` gives them."""
    return [len(ids) + 1 for ids in tokenizer(list(completions), add_special_tokens=False)["input_ids"]]


def decode_completion(tokenizer: Any, ids: Sequence[int]) -> tuple[str, bool]:
    """(text, whether it ended by itself) of a sampled answer; EOS is not part of the text."""
    ended = bool(ids) and ids[-1] == tokenizer.eos_token_id
    return tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True).strip(), ended


def pretraining_chunks(tokenizer: Any, texts: Iterable[str], length: int, limit: int | None = None) -> list[list[int]]:
    """Plain text as token ids in chunks of `length`, none across two documents; a tail shorter than a quarter is dropped.

    Stops after `limit` chunks. Raises ValueError when there is no chunk at all.
    """
    chunks: list[list[int]] = []
    for text in texts:
        ids = tokenizer(text, verbose=False)["input_ids"]
        chunks += [ids[start : start + length] for start in range(0, len(ids), length) if len(ids) - start >= max(2, length // 4)]
        if limit is not None and len(chunks) >= limit:
            return chunks[:limit]
    if not chunks:
        raise ValueError(f"the pretraining text is too short for a single example of {length} tokens")
    return chunks
