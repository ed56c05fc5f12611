"""Control tokens: which added tokens of a tokenizer they are, and how user text that spells them stays text."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from transformers import AddedToken

TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""The form of a control token: `<|im_end|>`, `<end_of_turn>`, `[INST]`."""
ANCHORS = ("\n", "x", ".")
"""Characters before a text that goes on: the first that keeps its own tokens there."""


def flag_control_tokens(tokenizer: Any, ends: Collection[str] = ()) -> None:
    """Flags all control tokens as special, so that transformers encodes and decodes them as such.

    An added token is a control token if it is flagged special, is one of the tokenizer's named special tokens, is in
    `ends` (the model's end tokens) or in the tokenizer's `chat_control_tokens`, or has the form of a `TAG` and is
    written by the chat template.
    Exceptions, unless flagged: white space, and tags written in pairs, such as `<think>` and `</think>`, since models
    write them in answers. Other added tokens are ordinary vocabulary. Sets `chat_control_tokens` to []: if it is None,
    transformers treats every added token in the template as a control token of prompts.
    """
    added = [token for token in tokenizer.added_tokens_decoder.values() if not token.special]
    named = {*tokenizer.all_special_tokens, *ends}
    listed = getattr(tokenizer, "chat_control_tokens", None) or ()
    words = {token.content for token in added} - named  # a tag whose other half is a control token is one too
    template = _template_text(tokenizer) if added else ""

    def is_control(word: str) -> bool:
        paired = word.startswith("<") and ("<" + word[2:] if word[1:2] == "/" else "</" + word[1:]) in words
        written = word in listed or (word in template and TAG.fullmatch(word) is not None)
        return not word.isspace() and (word in named or (written and not paired))

    def flagged(token: AddedToken) -> AddedToken:
        kept = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
        return AddedToken(token.content, special=True, **kept)

    tokenizer.add_tokens([flagged(token) for token in added if is_control(token.content)], special_tokens=True)
    tokenizer.chat_control_tokens = []


def _template_text(tokenizer: Any) -> str:
    """The chat template and conversations that it renders: it may put tokens together, as `'<|' + role + '|>'` does."""
    talk = [{"role": role, "content": "Hi"} for role in ("system", "user", "assistant")]
    texts = [tokenizer.chat_template]
    for messages in (talk, talk[1:]):
        with suppress(Exception):  # a template may raise whatever Python raises
            texts.append(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    return "\n".join(texts)


def spelled(tokenizer: Any, texts: Iterable[str]) -> dict[str, int]:
    """How often texts spell each of the tokenizer's named special tokens but `<unk>`, of those that occur."""
    found, unknown = Counter[str](), {tokenizer.unk_token} - {tokenizer.eos_token}  # `<unk>` separates nothing
    words = [word for word in tokenizer.all_special_tokens if word not in unknown]
    for text in texts:
        found.update({word: count for word in words if (count := text.count(word))})
    return dict(found)


def text_ids(tokenizer: Any, texts: Sequence[str], goes_on: bool, **options: Any) -> list[list[int]]:
    """Token ids of texts, no special ones added.

    Many tokenizers write a space before a text, but not where a text `goes_on` behind other characters.
    """
    found: list[list[int]] = tokenizer([*texts], add_special_tokens=False, **options)["input_ids"]
    left = [number for number, text in enumerate(texts) if text] if goes_on else []
    for anchor in ANCHORS:
        if not left:
            break
        anchored = [anchor, *(anchor + texts[number] for number in left)]
        before, *behind = tokenizer(anchored, add_special_tokens=False, **options)["input_ids"]
        if tokenizer.decode(before).strip(" ") != anchor:  # a space or unknown text, which join with others
            continue
        clean = {n: ids[len(before) :] for n, ids in zip(left, behind, strict=True) if ids[: len(before)] == before}
        for number, ids in clean.items():
            found[number] = ids
        left = [number for number in left if number not in clean]
    return found


def user_text_ids(tokenizer: Any, texts: Sequence[str], goes_on: bool = False) -> list[list[int]]:
    """Token ids of user text, in which spelled control tokens are ordinary text.

    Tokenizers that have control tokens among the pieces of their model, as Unigram ones do, give their ids for plain
    text too; each of these ids is replaced by pieces of its spelling. The token for unknown text may occur.
    """
    control = control_tokens(tokenizer)
    encoded = text_ids(tokenizer, texts, goes_on, split_special_tokens=True, verbose=False)
    for row, ids in enumerate(encoded):
        if not control.keys().isdisjoint(ids):
            parts = [spelling(tokenizer, control[token]) if token in control else (token,) for token in ids]
            encoded[row] = [token for part in parts for token in part]
    return encoded


@lru_cache(maxsize=16)
def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Special tokens by id, without the one for unknown text."""
    unknown = {tokenizer.unk_token_id, *text_ids(tokenizer, ["\U0010fffd"], False, split_special_tokens=True)[0]}
    known = tokenizer.added_tokens_decoder.items()
    return {number: token.content for number, token in known if token.special and number not in unknown}


@lru_cache(maxsize=256)
def spelling(tokenizer: Any, word: str) -> tuple[int, ...]:
    """Ids of the longest pieces that write a control token as text, from left to right.

    A character without a piece becomes its bytes or the token for unknown text. Raises ValueError if there is neither.
    """
    known, control = tokenizer.get_vocab(), control_tokens(tokenizer)
    pieces = {piece: number for piece, number in known.items() if number not in control}
    ids, rest = list[int](), word.replace(" ", "\u2581")
    while rest:
        size = next((size for size in range(len(rest), 0, -1) if rest[:size] in pieces), 0)
        as_bytes = [pieces.get(f"<0x{byte:02X}>", tokenizer.unk_token_id) for byte in rest[0].encode()]
        if size:
            ids.append(pieces[rest[:size]])
        elif None in as_bytes:
            raise ValueError(f"the text spells {word!r}, which the model's tokenizer cannot write as text: reword it")
        else:
            ids += as_bytes if tokenizer.unk_token_id not in as_bytes else [tokenizer.unk_token_id]
        rest = rest[size or 1 :]
    return tuple(ids)


@lru_cache(maxsize=16)
def takes_text_for_control(tokenizer: Any) -> bool:
    """Whether the tokenizer makes control tokens of plain text too, as Unigram ones do. Most do not."""
    control = control_tokens(tokenizer)
    encoded = text_ids(tokenizer, list(control.values()), False, split_special_tokens=True) if control else []
    return any(number in ids for number, ids in zip(control, encoded, strict=True))


@lru_cache(maxsize=16)
def normalizes_to_control(tokenizer: Any) -> bool:
    """Whether the tokenizer looks for control tokens in normalized text, where full-width characters may be plain."""
    known = tokenizer.added_tokens_decoder
    return any(known[number].normalized for number in control_tokens(tokenizer))


def control_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches any control token, of two the longer one."""
    words = sorted(control_tokens(tokenizer).values(), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words)) or "(?!)")
