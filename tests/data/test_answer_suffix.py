"""Text that a chat template writes between an answer and EOS: part of the training text, never of the answer."""

import copy
from typing import Any

import pytest

from data.records import Demonstration, Ranking
from data.tokenize import check_prompt, count_answer_tokens, decode_completion, encode_completion, layout
from demo.assets import CHATML
from reward.batches import ranking_example

SUFFIXES = ["</answer>", " ", "\\n[done]", "\\n\\n"]


def ending(tokenizer: Any, expression: str) -> Any:
    """The tokenizer with ChatML in which `expression` follows an assistant's message."""
    made, said = copy.deepcopy(tokenizer), f"({expression} if message['role'] == 'assistant' else '')"
    made.chat_template = CHATML.replace("message['content'] +", f"message['content'] + {said} +")
    return made


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("text", ["It is blue.", "", "Two\n\nparagraphs of it", "an </answer> in it"])
def test_the_answer_of_a_model_that_writes_the_whole_turn_is_the_plain_answer(
    tiny_tokenizer: Any, suffix: str, text: str
) -> None:
    tokenizer = ending(tiny_tokenizer, f"'{suffix}'")
    turn = text + suffix.encode().decode("unicode_escape") + "<|im_end|>"
    sampled = tokenizer(turn, add_special_tokens=False)["input_ids"]
    assert decode_completion(tokenizer, sampled, True) == text
    assert encode_completion(tokenizer, text) == sampled, "the reward model scores what the policy was trained to write"
    assert count_answer_tokens(tokenizer, [text]) == [len(sampled)]
    assert decode_completion(tokenizer, encode_completion(tokenizer, text, False), False) == text
    before_eos = decode_completion(tokenizer, sampled[:-1], False)
    assert before_eos == text, "cut off by the token limit before EOS"


def test_rankings_are_scored_at_eos_behind_the_text_that_the_template_adds(tiny_tokenizer: Any) -> None:
    tokenizer = ending(tiny_tokenizer, "'</answer>'")
    ranking = Ranking(prompt="Why?", completions=["Blue.", "Red."], ranks=[1, 2], complete=[True, False])
    ended, cut = ranking_example(tokenizer, ranking).answers
    assert tokenizer.decode(ended) == "Blue.</answer><|im_end|>"
    assert tokenizer.decode(cut) == "Red."


@pytest.mark.parametrize(
    "expression", ["message['content'] | length", "'' if message['content'].endswith('.') else '.'"]
)
def test_a_template_whose_ending_depends_on_the_answer_is_refused(tiny_tokenizer: Any, expression: str) -> None:
    tokenizer = ending(tiny_tokenizer, f"({expression}) | string")
    with pytest.raises(ValueError, match=r"^the text that the chat template writes around an answer depends on the"):
        layout(tokenizer)


def test_an_answer_that_the_template_ends_otherwise_is_refused_at_its_row(tiny_tokenizer: Any) -> None:
    tokenizer = ending(tiny_tokenizer, "('</rare>' if 'zebra' in message['content'] else '</answer>')")
    check_prompt(tokenizer, Demonstration(prompt="Why?", completion="It is blue."))
    with pytest.raises(ValueError, match="writes other text around it than around others"):
        check_prompt(tokenizer, Demonstration(prompt="Why?", completion="A zebra."))
