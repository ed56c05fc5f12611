"""Which tokens of a training sequence count, token by token, and how much plain text is mixed in."""

from typing import Any

import pytest

from data.records import Demonstration
from sft.examples import demonstration_examples, mix, text_examples

DEMONSTRATIONS = [
    Demonstration(prompt="Why?", completion="Because."),
    Demonstration(
        prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say so twice."}],
        completion="So.\nSo.",
    ),
]


def test_the_answer_and_its_eos_count_and_nothing_of_the_prompt(tiny_tokenizer: Any) -> None:
    opened = [
        "<|im_start|>user\nWhy?<|im_end|>\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay so twice.<|im_end|>\n",
    ]
    for example, demonstration, start in zip(
        demonstration_examples(tiny_tokenizer, DEMONSTRATIONS, 512), DEMONSTRATIONS, opened, strict=True
    ):
        ids, mask = example["input_ids"], example["completion_mask"]
        assert len(ids) == len(mask)
        assert set(mask) == {0, 1}
        assert mask == sorted(mask), "a prompt, then an answer"
        asked, answered = ([token for token, mark in zip(ids, mask, strict=True) if mark == side] for side in (0, 1))
        assert tiny_tokenizer.decode(asked) == start + "<|im_start|>assistant\n"
        assert tiny_tokenizer.decode(answered) == demonstration.completion + "<|im_end|>"
        assert answered[-1] == tiny_tokenizer.eos_token_id
        assert answered.count(tiny_tokenizer.eos_token_id) == 1


def test_a_demonstration_that_fills_the_context_is_taken_and_one_token_more_refused(tiny_tokenizer: Any) -> None:
    [short, long] = demonstration_examples(tiny_tokenizer, DEMONSTRATIONS, 512)
    length = len(long["input_ids"])
    assert demonstration_examples(tiny_tokenizer, DEMONSTRATIONS, length) == [short, long]
    with pytest.raises(
        ValueError,
        match=f"demonstration {DEMONSTRATIONS[1].prompt_id} has {length} tokens, more than the model's context of "
        f"{length - 1}",
    ):
        demonstration_examples(tiny_tokenizer, DEMONSTRATIONS, length - 1)


def test_every_token_of_plain_text_counts() -> None:
    assert text_examples([[5, 6, 7], [8]]) == [
        {"input_ids": [5, 6, 7], "completion_mask": [1, 1, 1]},
        {"input_ids": [8], "completion_mask": [1]},
    ]


@pytest.mark.parametrize(
    ("examples", "fraction", "texts"),
    [(90, 0.1, 10), (45, 0.1, 5), (100, 0.5, 100), (30, 0.25, 10), (90, 0.0, 0), (3, 0.1, 0)],
)
@pytest.mark.parametrize("available", [4, 300])
def test_plain_text_makes_up_its_share_of_the_whole(examples: int, fraction: float, texts: int, available: int) -> None:
    own = [{"input_ids": [number], "completion_mask": [0]} for number in range(examples)]
    plain = text_examples([[1000 + number] for number in range(available)])
    mixed = mix(own, plain, fraction, seed=0)
    assert mixed[:examples] == own, "no demonstration is lost"
    drawn = [example["input_ids"][0] for example in mixed[examples:]]
    assert len(drawn) == texts
    uses = [drawn.count(1000 + number) for number in range(available)]
    assert max(uses) - min(uses) <= 1, "in turn: none twice before all have been there"
    assert mix(own, plain, fraction, seed=0) == mixed


def test_without_plain_text_nothing_is_mixed_in() -> None:
    own = [{"input_ids": [1], "completion_mask": [1]}]
    assert mix(own, [], 0.5, seed=0) == own
