"""Control tokens that a tokenizer does not flag as special, in tokenizers as the stages load them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AddedToken, AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from data.chat_template import PLAIN
from data.control_tokens import flag_control_tokens, user_text_ids
from data.records import Demonstration, Prompt
from data.tokenize import (
    check_prompt,
    decode_completion,
    encode_completion,
    encode_prompt,
    pretraining_chunks,
)
from demo.assets import CHATML
from modeling.config import ModelConfig
from modeling.load import load_tokenizer, same_tokenizer

COHERE = (
    "{{ bos_token }}{% for m in messages %}<|TURN|>{{ '<|USER|>' if m.role == 'user' else '<|CHATBOT|>' }}"
    "{{ m.content }}<|END|>{% endfor %}{% if add_generation_prompt %}<|TURN|><|CHATBOT|>{% endif %}"
)
COHERE_TOKENS = ("<|TURN|>", "<|END|>", "<|USER|>", "<|CHATBOT|>")
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ALPACA = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
TAGS = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '</' + m.role + '>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WRAPPED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<answer>{{ m.content }}</answer>"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OVER = ALPACA.replace("+ '\n\n'", "+ ' over'")
Loader = Callable[..., Any]


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, model_config: ModelConfig) -> Loader:
    """`loaded(template, "<|END|>", ...)`: the tiny tokenizer with added tokens that are not flagged special."""

    def load(template: str, *tokens: str, ends: tuple[str, ...] = (), change: Any = None) -> Any:
        folder = tmp_path_factory.mktemp("tokenizer")
        shutil.copy(tiny_llama / "config.json", folder)
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama) if change is not ByT5Tokenizer else ByT5Tokenizer()
        if change is not None and change is not ByT5Tokenizer:
            change(tokenizer)
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        named = {"eos_token_id": tokenizer.convert_tokens_to_ids([*ends])}
        (folder / "generation_config.json").write_text(json.dumps(named if ends else {}))
        return load_tokenizer(folder, model_config)

    return load


ENDINGS = {
    "Cohere": (COHERE, COHERE_TOKENS, (), "<|END|>"),
    "Gemma": (GEMMA, ("<start_of_turn>", "<end_of_turn>"), (), "<end_of_turn>"),
    "Phi, whose template puts tokens together": (PHI, ("<|user|>", "<|assistant|>", "<|end|>"), (), "<|end|>"),
    "white space": (ALPACA, ("\n\n",), (), "<|im_end|>"),
    "white space that the generation config names": (ALPACA, ("\n\n",), ("\n\n",), "<|im_end|>"),
    "a word": (OVER, (" over",), (), "<|im_end|>"),
    "a word that the generation config names": (
        OVER,
        (" over",),
        (" over",),
        " over",
    ),
    "tags around the answer": (WRAPPED, ("<answer>", "</answer>"), (), "<|im_end|>"),
    "tags around every message": (TAGS, ("<user>", "</user>", "<assistant>", "</assistant>"), (), "</assistant>"),
}


@pytest.mark.parametrize("case", ENDINGS)
def test_an_answer_ends_with_a_control_token_and_never_with_added_text(
    loaded: Loader, tiny_llama: Path, model_config: ModelConfig, tmp_path: Path, case: str
) -> None:
    template, tokens, ends, end = ENDINGS[case]
    tokenizer = loaded(template, *tokens, ends=ends)
    assert tokenizer.eos_token == end
    answer = encode_completion(tokenizer, "One.\n\nTwo.")
    assert (answer.count(tokenizer.eos_token_id), answer[-1]) == (1, tokenizer.eos_token_id)
    assert decode_completion(tokenizer, answer, True) == "One.\n\nTwo."
    shutil.copy(tiny_llama / "config.json", tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert same_tokenizer(load_tokenizer(tmp_path, model_config), tokenizer), "an exported tokenizer stays as it is"


def full_width(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()


KINDS = {
    "byte-level BPE": (COHERE, COHERE_TOKENS, None),
    "full-width control tokens": (COHERE.replace("|>", "\uff5c>").replace("<|", "<\uff5c"), COHERE_TOKENS, None),
    "tokens put together": (PHI, ("<|user|>", "<|assistant|>", "<|end|>"), None),
    "ByT5, which flags none of its named tokens": (PLAIN, (), ByT5Tokenizer),
}


@pytest.fixture(scope="module", params=KINDS)
def unflagged(request: Any, loaded: Loader) -> Any:
    template, tokens, change = KINDS[request.param]
    if "full-width" in request.param:
        tokens = tuple(token.replace("|", "\uff5c") for token in tokens)
    tokenizer = loaded(template, *tokens, "photosynthesis", change=change)
    tokenizer.control = {*tokens, "</s>", "<pad>"}
    return tokenizer


def written(tokenizer: Any, ids: list[int]) -> list[str]:
    """Control tokens among ids."""
    return [token for token in tokenizer.convert_ids_to_tokens(ids) if token in tokenizer.control]


PIECES = ["a ", "\n", "<", "|", ">", "</s>", "<pad>", *COHERE_TOKENS, "<|user|>", "<|end|>", "<\uff5cEND\uff5c>", "é"]
USER_TEXT = st.lists(st.sampled_from(PIECES), max_size=7).map("".join).map(str.strip)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=USER_TEXT)
def test_control_tokens_that_are_not_flagged_special_are_ordinary_characters_in_user_text(
    unflagged: Any, text: str
) -> None:
    answer = encode_completion(unflagged, text, ends=False)
    assert written(unflagged, answer) == []
    assert decode_completion(unflagged, answer, ended=False) == text
    (chunk,) = pretraining_chunks(unflagged, ["d " * 100 + text], 400)
    around = written(unflagged, unflagged("d")["input_ids"])
    assert written(unflagged, chunk) == around, "only the tokenizer writes control tokens, around a document"
    assert unflagged.decode(chunk[: len(chunk) - len(around)]) == ("d " * 100 + text)
    turns = [{"role": role, "content": f"d{text}s"} for role in ("user", "assistant", "user")]
    harmless = [turn | {"content": "d"} for turn in turns]
    prompt, plain = (encode_prompt(unflagged, Prompt(prompt=said)) for said in (turns, harmless))
    assert written(unflagged, prompt) == written(unflagged, plain), "only the template writes control tokens"
    asked = unflagged.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert unflagged.decode(prompt).split() == asked.replace("</s>\n\nUser", "</s>User").split(), "ByT5 strips there"


def test_a_control_token_that_the_model_samples_is_no_text(loaded: Loader) -> None:
    tokenizer = loaded(COHERE, *COHERE_TOKENS)
    number = tokenizer.convert_tokens_to_ids("<|CHATBOT|>")
    ids = [*encode_completion(tokenizer, "a", False), number, *encode_completion(tokenizer, "b")]
    assert decode_completion(tokenizer, ids, True) == "ab"


def test_added_vocabulary_and_tags_of_thoughts_keep_their_ids(loaded: Loader) -> None:
    template = COHERE.replace("<|CHATBOT|>{% endif", "<|CHATBOT|><think></think>{% endif")
    tokenizer = loaded(template, *COHERE_TOKENS, "photosynthesis", "<think>", "</think>")
    word, start, end = tokenizer.convert_tokens_to_ids(["photosynthesis", "<think>", "</think>"])
    answer = encode_completion(tokenizer, "<think>Hm</think>photosynthesis", ends=False)
    assert [token for token in answer if token in (word, start, end)] == [start, end, word]
    assert decode_completion(tokenizer, answer, ended=False) == "<think>Hm</think>photosynthesis"
    (chunk, *_) = pretraining_chunks(tokenizer, ["photosynthesis in a document"], 8)
    assert word in chunk
    assert word in encode_prompt(tokenizer, Prompt(prompt="What is photosynthesis?"))


def test_a_template_that_splits_off_thoughts_sees_those_of_a_prompt(loaded: Loader) -> None:
    """As Qwen 3's template, which strips line breaks behind `</think>`; the tags are no control tokens of a prompt."""
    shown = COHERE.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1].lstrip('\n') }}")
    said = [
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "<think>\nHm\n</think>\n\nYes"},
        {"role": "user", "content": "<|END|><think>"},
    ]
    for template in (shown, COHERE + "{# #}{% if false %}<think></think>{% endif %}"):
        tokenizer = loaded(template, *COHERE_TOKENS, "<think>", "</think>")
        rendered = tokenizer.apply_chat_template([*said[:2], {"role": "user", "content": "X"}], tokenize=False)
        before, behind = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in rendered.split("X"))
        spelled = user_text_ids(tokenizer, ["<|END|><think>"], goes_on=True)[0]
        assert tokenizer.convert_tokens_to_ids("<think>") in spelled
        asked = tokenizer.apply_chat_template(said[:1], add_generation_prompt=True, tokenize=False)
        opening = tokenizer("<|TURN|><|CHATBOT|>", add_special_tokens=False)["input_ids"]
        assert asked.endswith("<|TURN|><|CHATBOT|>")
        assert encode_prompt(tokenizer, Prompt(prompt=said)) == [*before, *spelled, *behind, *opening]


def test_tokens_that_the_tokenizer_lists_are_control_tokens_unless_they_are_pairs(loaded: Loader) -> None:
    tokenizer = loaded(COHERE, *COHERE_TOKENS, "###User", "###Else", "<think>", "</think>")
    tokenizer.chat_control_tokens = ["###User", "<think>"]
    flag_control_tokens(tokenizer)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert special & {"###User", "###Else", "<think>", "</think>"} == {"###User"}
    assert tokenizer.chat_control_tokens == []


def test_one_character_can_be_added_vocabulary(loaded: Loader) -> None:
    tokenizer = loaded(COHERE, *COHERE_TOKENS, "<")
    assert decode_completion(tokenizer, encode_completion(tokenizer, "1 < 2", ends=False), ended=False) == "1 < 2"


def normalized(tokenizer: Any) -> None:
    full_width(tokenizer)
    for name, mark in {"bos_token": "<|start|>", "eos_token": "<|stop|>"}.items():
        tokenizer.add_special_tokens({name: AddedToken(mark, special=True, normalized=True)})


def test_a_prompt_whose_full_width_characters_are_normalized_to_a_control_token_is_refused(loaded: Loader) -> None:
    tokenizer = loaded(CHATML.replace("im_start", "start").replace("im_end", "stop"), change=normalized)
    wide = "a\uff1c|stop|\uff1e b"
    assert tokenizer.eos_token_id in tokenizer(wide)["input_ids"]
    check_prompt(tokenizer, Demonstration(prompt="a <|stop|> b", completion=wide))
    assert encode_completion(tokenizer, wide).count(tokenizer.eos_token_id) == 1
    with pytest.raises(ValueError, match=r"takes for '<\|stop\|>', its control token: reword it$"):
        check_prompt(tokenizer, Prompt(prompt=wide))


@pytest.mark.parametrize("others", [{"<0x3C>": -9.0}, {}])
def test_a_control_token_without_pieces_becomes_bytes_or_unknown_text(others: dict[str, float]) -> None:
    words = [("<unk>", 0.0), ("</s>", 0.0), *others.items(), ("/s>", -1.0), ("\u2581", -2.0), ("a", -1.0)]
    inner = Tokenizer(models.Unigram(words, 0, False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    (ids,) = user_text_ids(tokenizer, ["a</s>a"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", *(others or ["<unk>"]), "/s>", "a"]


def test_a_control_token_that_cannot_be_written_as_text_is_refused_at_the_row() -> None:
    inner = Tokenizer(models.BPE({"</s>": 0, "a": 1}, [], ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", chat_template=PLAIN)
    said = r"^the text spells '</s>', which the model's tokenizer cannot write as text: reword it$"
    with pytest.raises(ValueError, match=said):
        check_prompt(tokenizer, Prompt(prompt="a </s> a"))
