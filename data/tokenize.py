"""From records to token ids. Every stage renders prompts with this module, so that all see the same tokens.

A sequence is `prompt_ids + completion_ids`; the prompt ends where the assistant's answer starts, the completion ends
with EOS. A special token in user text is tokenized as ordinary characters: only the chat template and this file write
control tokens.
"""

import json
import logging
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from jinja2 import TemplateError

from data.chat_template import PLAIN
from data.control_tokens import (
    TAG,
    control_pattern,
    control_tokens,
    normalizes_to_control,
    spelling,
    takes_text_for_control,
    text_ids,
    user_text_ids,
)
from data.records import Demonstration, Message, Prompt, Ranking
from data.sets import evenly

log = logging.getLogger(__name__)

QUESTION: Message = {"role": "user", "content": "A question"}
ANSWER: Message = {"role": "assistant", "content": "An answer"}
OTHER_ANSWER: Message = {"role": "assistant", "content": "This one is longer.\n\nIt has two paragraphs."}
START, END = "\ufdd0", "\ufdd1"
"""Marks of control tokens in user text: noncharacters, which Unicode reserves for use within a program."""


@dataclass(frozen=True)
class Layout:
    """The text that a chat template puts around an answer, found by rendering a question with and without one."""

    asks: bool
    """Whether a finished conversation starts with the generation prompt; if not, with the conversation without it."""
    opening: str
    """Text between that and the answer, such as an empty think block."""
    lead: str
    """Spaces before the answer, which tokenizers join with its first word."""
    closing: str
    """Text after the answer: the end of the turn."""
    suffix: str
    """The part of `closing` before EOS, such as `</answer>`: training answers contain it. "" where there is no EOS."""
    joined: tuple[bool, bool] = (False, False)
    """Whether the opening and the answer are tokenized as a continuation of the text before, see `text_ids`."""


def layout(tokenizer: Any) -> Layout:
    """The layout of the tokenizer's chat template. Raises ValueError, with the line, for a template that training
    cannot use."""
    return _layout(tokenizer, tokenizer.chat_template, tokenizer.eos_token)


def untrained_prompt(tokenizer: Any) -> tuple[str, str] | None:
    """(a question with the template's generation prompt, the same question as training renders it) if they differ, as
    with templates of reasoning models that open `<think>`; None if training uses the generation prompt.
    """
    found = layout(tokenizer)
    if found.asks:
        return None
    asked, plain = (_probe(tokenizer, [QUESTION], add_generation_prompt=asks) for asks in (True, False))
    return asked, plain + found.opening


@lru_cache(maxsize=16)
def _layout(tokenizer: Any, template: str, eos: str) -> Layout:
    before, closing = _around(tokenizer, ANSWER)
    if (before, closing) != _around(tokenizer, OTHER_ANSWER):
        raise ValueError(
            "the text that the chat template writes around an answer depends on the answer, so the two cannot be told "
            "apart: give another template in model.chat_template"
        )
    suffix = closing.partition(eos)[0] if eos in closing else ""
    for asks in (True, False):
        start = _probe(tokenizer, [QUESTION], add_generation_prompt=asks)
        if QUESTION["content"] in start and before.startswith(start):
            opening = before.removeprefix(start).rstrip(" ")
            lead = before.removeprefix(start + opening)
            joined = _joined(tokenizer, start, opening, lead + ANSWER["content"])
            return Layout(asks, opening, lead, closing, suffix, joined)
    raise ValueError(
        "the chat template renders a question without its answer differently from the same question with its "
        "answer, so no prompt matches the training text: give another template in model.chat_template"
    )


def _around(tokenizer: Any, answer: Message) -> tuple[str, str]:
    """The text that the chat template writes before and after an answer to a question."""
    before, found, closing = _probe(tokenizer, [QUESTION, answer]).rpartition(answer["content"])
    if not found or QUESTION["content"] not in before:
        raise ValueError(
            "the chat template does not show the user's message and the assistant's answer as they are: give a "
            "template that does in model.chat_template"
        )
    return before, closing


def _joined(tokenizer: Any, start: str, opening: str, answer: str) -> tuple[bool, bool]:
    """How opening and answer become their tokens in the whole conversation; as separate texts if no way does."""
    whole, asked = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (start + opening + answer, start)
    )
    for first, second in product((False, True), repeat=2):
        if [*asked, *text_ids(tokenizer, [opening], first)[0], *text_ids(tokenizer, [answer], second)[0]] == whole:
            return first, second
    return False, False


def _probe(tokenizer: Any, messages: Sequence[Message], **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # a template may raise whatever Python raises
        place = line_of(error)
        raise ValueError(f"the chat template cannot render a question and its answer{place}: {_said(error)}") from None


def line_of(error: Exception) -> str:
    """Where in a template an error was raised: ` (line 3)`, or "" if the error has no line."""
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    number = getattr(error, "lineno", None) or (frames[-1] if frames else None)
    return f" (line {number})" if number else ""


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _rendered(tokenizer: Any, messages: Sequence[Message], asks: bool) -> str:
    """The text of a conversation. Raises ValueError, in one sentence, when the template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=asks, tokenize=False))
    except Exception as error:  # a template may raise whatever Python raises
        raise ValueError(_refusal(tokenizer, messages, error)) from None


def _refusal(tokenizer: Any, messages: Sequence[Message], error: Exception) -> str:
    """Why the chat template refuses a conversation: an unknown role, if it renders the rest, or its own message."""
    for role in dict.fromkeys(message["role"] for message in messages):
        rest = [message for message in messages if message["role"] != role]
        if rest and role not in ("user", "assistant") and _rendered_if(tokenizer, rest, asks=False) is not None:
            keys = "; only `role` and `content` of each message are used" if role == "tool" else ""
            return f"the chat template refuses the role {role!r} ({_said(error)}{keys})"
    roles = ", ".join(message["role"] for message in messages)
    return f"the chat template refuses a conversation of {roles}{line_of(error)}: {_said(error)}"


def _rendered_if(tokenizer: Any, messages: Sequence[Message], asks: bool) -> str | None:
    """The text of a conversation, or None when the template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=asks, tokenize=False))
    except Exception:  # a template may raise whatever Python raises
        return None


def check_prompt(tokenizer: Any, prompt: Prompt) -> None:
    """Raises ValueError, in one sentence without the place, when the chat template refuses the conversation, leaves out
    a message or changes the answer, or when a control token in user text cannot be written as text.
    """
    around, messages = layout(tokenizer), prompt.messages
    text = _rendered(tokenizer, messages, around.asks)
    for place, message in reversed(list(enumerate(messages))):
        if message["role"] == "assistant":  # templates may drop the reasoning of earlier answers
            continue
        said, rest = message["content"].strip(), [*messages[:place], *messages[place + 1 :]]
        as_json = json.dumps(said, ensure_ascii=False)[1:-1]  # Llama 3 renders tools as JSON
        # Text that other messages have too must appear once more. The comparison below decides the doubtful cases.
        elsewhere = sum(other["content"].count(said) for other in rest)
        if max(text.count(said), text.count(as_json)) > elsewhere:
            continue
        if message is messages[-1] and said not in text and as_json not in text:
            raise ValueError("the chat template leaves out the last message of the prompt, so it has no question")
        if _rendered_if(tokenizer, rest, around.asks) == text:
            raise ValueError(f"the chat template leaves out the message of role {message['role']!r}: {said[:40]!r}")
    for completion in _answers(prompt):
        answer: Message = {"role": "assistant", "content": completion.strip()}
        whole = _rendered(tokenizer, [*messages, answer], asks=False)
        if around.opening + around.lead + answer["content"] + around.suffix not in whole:
            raise ValueError(
                "the chat template changes the answer (it may move or drop its reasoning), or writes other text around "
                "it than around others: leave out what the template does not show"
            )
    if takes_text_for_control(tokenizer) or normalizes_to_control(tokenizer):
        _check_spelling(tokenizer, prompt)


def _check_spelling(tokenizer: Any, prompt: Prompt) -> None:
    """Raises ValueError when user text cannot be written without control tokens.

    In a prompt these are also characters that the tokenizer normalizes to a control token's spelling: full-width ones.
    """
    control = control_tokens(tokenizer)
    texts = [control_pattern(tokenizer).sub(" ", message["content"]) for message in prompt.messages]
    for ids in text_ids(tokenizer, texts, False):
        if (token := next((token for token in ids if token in control), None)) is not None:
            taken = f"takes for {control[token]!r}, its control token"
            raise ValueError(f"the prompt has characters that the model's tokenizer {taken}: reword it")
    user_text_ids(tokenizer, [*_answers(prompt), *(message["content"] for message in prompt.messages)])


def _answers(prompt: Prompt) -> Sequence[str]:
    """The answers of a demonstration or a ranking; none of a prompt alone."""
    if isinstance(prompt, Ranking):
        return prompt.completions
    return [prompt.completion] if isinstance(prompt, Demonstration) else []


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of the conversation up to where the answer starts, as the chat template renders it with its answer.

    Raises ValueError when the template refuses the conversation: some have no system role or require alternating turns.
    """
    return [*_rendered_ids(tokenizer, [prompt])[0], *_opening(tokenizer)]


def generation_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The same without the text that the template writes between the generation prompt and an answer, such as an empty
    think block, which SFT trains on.
    """
    return _rendered_ids(tokenizer, [prompt])[0] if layout(tokenizer).asks else encode_prompt(tokenizer, prompt)


def _opening(tokenizer: Any) -> list[int]:
    found = layout(tokenizer)
    return list(text_ids(tokenizer, [found.opening], found.joined[0])[0]) if found.opening else []


def _rendered_ids(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Control tokens in user text are marked by transformers before rendering, and tokenized as ordinary text."""
    conversations, asks = [prompt.messages for prompt in prompts], layout(tokenizer).asks
    options = {"tokenize": True, "return_dict": False, "sanitize_control_tokens": True}
    try:
        if takes_text_for_control(tokenizer):
            return [_marked_ids(tokenizer, conversation) for conversation in conversations]
        found = tokenizer.apply_chat_template(conversations, add_generation_prompt=asks, **options)
        return [[int(token) for token in ids] for ids in found]
    except (TemplateError, TypeError, KeyError, AttributeError) as error:
        if len(prompts) > 1:
            return [_rendered_ids(tokenizer, [prompt])[0] for prompt in prompts]
        sentence = _refusal(tokenizer, conversations[0], error)
        raise ValueError(f"prompt {prompts[0].prompt_id!r} of {prompts[0].dataset!r}: {sentence}") from None


def _marked_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation for tokenizers that make control tokens of plain text too.

    transformers refuses to tokenize what these mark. Control tokens in user text are marked before rendering, and
    spelled out between the tokens of the other text.
    """
    pattern = control_pattern(tokenizer)
    marked: list[Message] = []
    for message in messages:
        text = message["content"].replace(START, "").replace(END, "")
        marked.append({**message, "content": pattern.sub(rf"{START}\g<0>{END}", text)})
    asks = layout(tokenizer).asks
    rendered = str(tokenizer.apply_chat_template(marked, add_generation_prompt=asks, tokenize=False))
    # Text and marked control tokens in turn; None where the template has torn the marks apart.
    parts = re.split(f"{START}({pattern.pattern}){END}|[{START}{END}]", rendered)
    ids = list[int](tokenizer(parts[0], add_special_tokens=False)["input_ids"])
    for word, text in zip(parts[1::2], parts[2::2], strict=True):
        ids += spelling(tokenizer, word) if word else ()
        ids += text_ids(tokenizer, [text], goes_on=bool(ids))[0]
    return [int(token) for token in ids]


def encode_completion(tokenizer: Any, completion: str, ends: bool = True) -> list[int]:
    """Token ids of an answer, with what the chat template puts between it and EOS, and EOS.

    Both are left out unless `ends`, as for an answer that was cut off. White space around an answer is stripped: many
    templates trim it, and decoding does.
    """
    return _answer_ids(tokenizer, [completion], ends)[0] + ([tokenizer.eos_token_id] if ends else [])


def _answer_ids(tokenizer: Any, completions: Sequence[str], ends: bool) -> list[list[int]]:
    """Token ids of answers without EOS; control tokens in their text become ordinary text."""
    found = layout(tokenizer)
    texts = [found.lead + text if (text := completion.strip()) else "" for completion in completions]
    return user_text_ids(tokenizer, [text + found.suffix * ends for text in texts], found.joined[1])


def template_closing(tokenizer: Any) -> list[int]:
    """Token ids that the chat template puts after an answer's text: EOS, often with a line break behind it.

    EOS alone where the tokenizer came without a template of its own, or where that puts nothing. Raises ValueError when
    it does not show the answer.
    """
    eos = [int(tokenizer.eos_token_id)]
    if tokenizer.chat_template == PLAIN:
        return eos
    return list(tokenizer(layout(tokenizer).closing, add_special_tokens=False)["input_ids"]) or eos


def end_of_turn(tokenizer: Any) -> str | None:
    """The special token with which the chat template ends an answer; if there is none, the first added token of the
    form of a `TAG` there, such as `</assistant>`; else None. `flag_control_tokens` decides what is special.
    """
    known = tokenizer.added_tokens_decoder
    behind = [known[token] for token in template_closing(tokenizer) if token in known]
    tags = [token for token in behind if TAG.fullmatch(token.content)]
    return next((str(token.content) for token in [*filter(lambda token: token.special, behind), *tags]), None)


def count_prompt_tokens(tokenizer: Any, prompts: Sequence[Prompt]) -> list[int]:
    """Tokens of each prompt, as `encode_prompt` gives them and refuses them; many at a time are counted faster."""
    opening = len(_opening(tokenizer))
    return [len(ids) + opening for ids in _rendered_ids(tokenizer, prompts)] if prompts else []


def count_answer_tokens(tokenizer: Any, completions: Sequence[str]) -> list[int]:
    """Tokens of each answer with its EOS, as `encode_completion` gives them."""
    return [len(ids) + 1 for ids in _answer_ids(tokenizer, completions, ends=True)]


def decode_completion(tokenizer: Any, ids: Sequence[int], ended: bool) -> str:
    """The text of a sampled answer, without what the chat template puts between an answer and EOS.

    If the answer ended by itself, its last token, any of the model's end tokens, is not part of the text.
    """
    shown = ids[:-1] if ended else ids
    text = str(tokenizer.decode(shown, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()
    return text.removesuffix(layout(tokenizer).suffix.strip()).strip()


def pretraining_chunks(tokenizer: Any, texts: Iterable[str], length: int, limit: int | None = None) -> list[list[int]]:
    """At most `limit` chunks of `length` tokens of plain text, none across two documents; a tail shorter than a quarter
    is dropped. Logs a warning about documents that give no chunk. Raises ValueError when there is no chunk at all.
    """
    chunks: list[list[int]] = []
    documents = unused = 0
    for found in _chunks_by_document(tokenizer, texts, length):
        documents += 1
        unused += not found
        chunks += found
        if limit is not None and len(chunks) >= limit:
            return chunks[:limit]
    if not chunks:
        raise ValueError(f"the pretraining text is too short for a single example of {length} tokens")
    if unused:
        log.warning(
            "%d of %d documents of the pretraining text are not used: they are shorter than a quarter of "
            "data.pretraining_tokens=%d, which could be lower",
            unused,
            documents,
            length,
        )
    return chunks


def _chunks_by_document(tokenizer: Any, texts: Iterable[str], length: int) -> Iterator[list[list[int]]]:
    """The chunks of `length` tokens of each document in turn, without a tail shorter than a quarter."""
    first, last = _around_text(tokenizer)
    for text in texts:
        ids = [*first, *user_text_ids(tokenizer, [text])[0], *last]
        parts = [ids[start : start + length] for start in range(0, len(ids), length)]
        yield [part for part in parts if len(part) >= max(2, length // 4)]


def chunks_of_documents(
    tokenizer: Any, texts: Iterable[str], length: int, count: int
) -> tuple[list[list[int]], list[int]]:
    """(`count` chunks of `length` tokens spread evenly over the texts, the number of the document of each).

    Raises ValueError if no text is long enough.
    """
    found: list[tuple[int, list[int]]] = []
    for number, chunks in enumerate(_chunks_by_document(tokenizer, texts, length)):
        found += [(number, chunk) for chunk in chunks]
    if not found:
        raise ValueError(f"the held-out pretraining text is too short for a single example of {length} tokens")
    kept = evenly(found, count)
    return [chunk for _, chunk in kept], [number for number, _ in kept]


def start_of_text(tokenizer: Any) -> list[int]:
    """Token ids that the tokenizer puts before a text by itself, such as BOS; [] if there are none."""
    return _around_text(tokenizer)[0]


def _around_text(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids that the tokenizer puts before and after a text by itself, such as BOS."""
    (inner,), whole = text_ids(tokenizer, ["a"], False), tokenizer("a")["input_ids"]
    start = next(start for start in range(len(whole)) if whole[start : start + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]
