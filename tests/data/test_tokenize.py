"""Token ids, against transformers' own rendering of the same conversation."""

import copy
from typing import Any

import pytest

from data.records import Prompt
from data.tokenize import count_answer_tokens, count_prompt_tokens, decode_completion, encode_completion, encode_prompt, pretraining_chunks

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    ("prompt", "rendered"),
    [
        ("Why?", "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
        (TURNS, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_a_prompt_ends_where_the_answer_starts(tiny_tokenizer: Any, prompt: Any, rendered: str) -> None:
    ids = encode_prompt(tiny_tokenizer, Prompt(prompt=prompt))
    assert all(type(token) is int for token in ids)
    assert tiny_tokenizer.decode(ids) == rendered


def test_prompt_and_answer_make_the_conversation_that_the_template_renders(tiny_tokenizer: Any) -> None:
    whole = tiny_tokenizer.apply_chat_template([*TURNS, {"role": "assistant", "content": "Because."}], tokenize=True, return_dict=False)
    ours = encode_prompt(tiny_tokenizer, Prompt(prompt=TURNS)) + encode_completion(tiny_tokenizer, "Because.")
    assert whole[: len(ours)] == ours, "what the template writes after EOS is no part of the answer"


def test_eos_closes_an_answer_only_if_it_ended(tiny_tokenizer: Any) -> None:
    ended, cut = encode_completion(tiny_tokenizer, "Because."), encode_completion(tiny_tokenizer, "Because.", ends=False)
    assert ended == [*cut, tiny_tokenizer.eos_token_id]
    assert tiny_tokenizer.eos_token_id not in cut
    assert encode_completion(tiny_tokenizer, "") == [tiny_tokenizer.eos_token_id]


def test_counting_many_at_once_gives_what_encoding_each_gives(tiny_tokenizer: Any) -> None:
    prompts = [Prompt(prompt="Why?"), Prompt(prompt=TURNS), Prompt(prompt="How is it that the sky is blue? " * 9)]
    assert count_prompt_tokens(tiny_tokenizer, prompts) == [len(encode_prompt(tiny_tokenizer, prompt)) for prompt in prompts]
    answers = ["Because.", "", "The quick brown fox"]
    assert count_answer_tokens(tiny_tokenizer, answers) == [len(encode_completion(tiny_tokenizer, answer)) for answer in answers]
    assert count_prompt_tokens(tiny_tokenizer, []) == []


def test_a_conversation_that_the_template_refuses_is_named(tiny_tokenizer: Any) -> None:
    strict = copy.deepcopy(tiny_tokenizer)
    strict.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    prompts = [Prompt(prompt="Why?"), Prompt(prompt=TURNS, prompt_id="p7", dataset="mine")]
    with pytest.raises(ValueError, match=r"^the model's chat template refuses prompt 'p7' of 'mine': no system role$"):
        count_prompt_tokens(strict, prompts)


@pytest.mark.parametrize("ends", [True, False])
def test_an_answer_comes_back_from_its_tokens(tiny_tokenizer: Any, ends: bool) -> None:
    text = "Ünïcode, two\nlines and 12."
    assert decode_completion(tiny_tokenizer, encode_completion(tiny_tokenizer, text, ends)) == (text, ends)


def test_an_answer_of_nothing_is_empty_and_not_an_error(tiny_tokenizer: Any) -> None:
    assert decode_completion(tiny_tokenizer, []) == ("", False)
    assert decode_completion(tiny_tokenizer, [tiny_tokenizer.eos_token_id]) == ("", True)


def test_chunks_cover_the_text_and_never_span_two_documents(tiny_tokenizer: Any) -> None:
    texts = ["a language model reads a text " * 9, "the sky is blue " * 7, "hm"]
    chunks = pretraining_chunks(tiny_tokenizer, texts, 16)
    expected = []
    for text in texts:
        ids, kept = tiny_tokenizer(text)["input_ids"], []
        while ids:
            kept.append(ids[:16])
            ids = ids[16:]
        expected += kept[:-1] if len(kept[-1]) < 4 else kept
    assert chunks == expected
    assert pretraining_chunks(tiny_tokenizer, texts, 16, limit=3) == expected[:3]


def test_a_chunk_has_at_least_two_tokens_or_there_would_be_nothing_to_predict(tiny_tokenizer: Any) -> None:
    for text in ("The capital of France is Paris.", "The capital of France is Paris. What", "Write a short poem about the sea."):
        count = len(tiny_tokenizer(text)["input_ids"])
        assert [len(chunk) for chunk in pretraining_chunks(tiny_tokenizer, [text], 2)] == [2] * (count // 2)


def test_too_little_text_is_refused(tiny_tokenizer: Any) -> None:
    for texts in ([], [""], ["hm"]):
        with pytest.raises(ValueError, match="too short for a single example of 64 tokens"):
            pretraining_chunks(tiny_tokenizer, texts, 64)
