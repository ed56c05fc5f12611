"""From rankings to training examples, and their grouping by computed tokens.

pytest tests/reward/test_batches.py
"""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.records import Demonstration, Ranking, parse
from reward.batches import (
    RankingExample,
    as_pairs,
    demonstrations,
    example_sets,
    micro_batches,
    ranking_example,
    ranking_examples,
    some_answers,
)

COMPLETIONS = ["Paris.", "I do not know", "It is Paris, of course", ""]


def pairs(item: RankingExample) -> set[tuple[int, int]]:
    return {(i, j) for i, j in item.preference_mask_KK.nonzero().tolist()}


def test_ranks_become_their_strict_pairs(tiny_tokenizer: Any) -> None:
    ranking = Ranking(prompt="Capital of France?", completions=["a", "b", "c", "d", "e"], ranks=[2, None, 1, 2, 3])
    item = ranking_example(tiny_tokenizer, ranking)
    assert pairs(item) == {(2, 0), (2, 3), (2, 4), (0, 4), (3, 4)}
    assert item.pairs == 5


def test_preferences_are_taken_as_given_even_in_a_cycle(tiny_tokenizer: Any) -> None:
    cycle = [[0, 1], [1, 2], [2, 0], [3, 1]]
    item = ranking_example(tiny_tokenizer, Ranking(prompt="?", completions=["a", "b", "c", "d"], preferences=cycle))
    assert pairs(item) == {(0, 1), (1, 2), (2, 0), (3, 1)}, (
        "no more and no fewer: 0 over 2 and 3 over 2 were never judged"
    )


def test_prompt_and_answers_are_the_text_of_a_conversation(tiny_tokenizer: Any) -> None:
    item = ranking_example(
        tiny_tokenizer, Ranking(prompt="Capital of France?", completions=COMPLETIONS, ranks=[1, 4, 2, 3])
    )
    assert (
        tiny_tokenizer.decode(item.prompt) == "<|im_start|>user\nCapital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [tiny_tokenizer.decode(ids) for ids in item.answers] == [text + "<|im_end|>" for text in COMPLETIONS]


def test_an_answer_that_was_cut_off_gets_no_eos_and_none_is_left_without_tokens(tiny_tokenizer: Any) -> None:
    ranking = Ranking(prompt="?", completions=COMPLETIONS, ranks=[1, 4, 2, 3], complete=[True, False, False, False])
    decoded = [tiny_tokenizer.decode(ids) for ids in ranking_example(tiny_tokenizer, ranking).answers]
    assert decoded == ["Paris.<|im_end|>", "I do not know", "It is Paris, of course", "<|im_end|>"]


def test_what_cannot_be_learnt_from_is_left_out_and_counted(tiny_tokenizer: Any) -> None:
    good = Ranking(prompt="A", completions=["x", "y"], ranks=[1, 2])
    tied = Ranking(prompt="B", completions=["x", "y"], ranks=[2, 2])
    alone = Ranking(prompt="C", completions=["x", "y"], ranks=[1, None])
    long = Ranking(prompt="D", completions=["x", "word " * 90], ranks=[1, 2])
    kept, left_out = ranking_examples(tiny_tokenizer, [tied, good, long, alone], context=100)
    assert [tiny_tokenizer.decode(item.prompt).count("A") for item in kept] == [1]
    assert left_out == {"all_tied": 2, "identical_answers": 0, "too_long": 1, "long_answers": 0}


@pytest.mark.parametrize(
    ("judged", "strict", "ties"),
    [
        ({"ranks": [1, 2, 3, 3]}, {(0, 2), (0, 3), (1, 2), (1, 3)}, ((2, 3),)),
        ({"ranks": [1, 2, 2, None]}, set(), ((0, 2), (1, 2))),
        ({"preferences": [[0, 1], [2, 1], [3, 2]], "ties": [[0, 1], [1, 3]]}, {(2, 1), (3, 2)}, ((1, 3),)),
        ({"ranks": [1, 2, 2, None], "complete": [True, False, True, True]}, {(0, 1), (0, 2)}, ((1, 2),)),
    ],
)
def test_an_answer_is_not_compared_with_an_identical_one(
    tiny_tokenizer: Any, judged: dict[str, Any], strict: Any, ties: Any
) -> None:
    """The first two are identical, since decoding strips white space; an ended and a cut-off answer are different."""
    item = ranking_example(
        tiny_tokenizer, Ranking(prompt="Capital?", completions=["Paris.", " Paris.\n", "Rome.", ""], **judged)
    )
    assert (pairs(item), item.ties) == (strict, ties)


@pytest.mark.parametrize("text", ["Paris.", "", "\n"])
def test_rankings_of_identical_answers_are_left_out_and_counted(tiny_tokenizer: Any, text: str) -> None:
    same = Ranking(prompt="A", completions=[text, text.strip()], ranks=[1, 2])
    good = Ranking(prompt="B", completions=["x", ""], ranks=[1, 2])
    kept, left_out = ranking_examples(tiny_tokenizer, [same, good, same], context=100)
    assert [item.ranking for item in kept] == [good], "an empty answer is an answer"
    assert left_out == {"all_tied": 0, "identical_answers": 2, "too_long": 0, "long_answers": 0}
    with pytest.raises(ValueError, match="of 2, 0 tie all their answers, 2 compare identical answers"):
        ranking_examples(tiny_tokenizer, [same, same], context=100)


def test_an_answer_that_is_too_long_leaves_its_ranking_and_the_others_stay(tiny_tokenizer: Any) -> None:
    long = "word " * 90
    ranked = Ranking(
        prompt="A", completions=["x", long, "y", "z"], ranks=[3, 1, 2, 2], complete=[True, True, False, True]
    )
    judged = Ranking(prompt="B", completions=[long, "x", "y"], preferences=[[2, 0], [2, 1]], ties=[[0, 1]])
    nothing_left = Ranking(prompt="C", completions=[long, "x", "y"], ranks=[1, 2, 2])
    kept, left_out = ranking_examples(tiny_tokenizer, [ranked, judged, nothing_left], context=100)
    assert left_out == {"all_tied": 0, "identical_answers": 0, "too_long": 1, "long_answers": 2}
    shorter = Ranking(prompt="A", completions=["x", "y", "z"], ranks=[3, 2, 2], complete=[True, False, True])
    others = Ranking(prompt="B", completions=["x", "y"], preferences=[[1, 0]], ties=[])
    for found, expected in zip(kept, (shorter, others), strict=True):
        oracle = ranking_example(tiny_tokenizer, expected)
        assert found.ranking == expected
        assert (found.prompt, found.answers, found.ties, found.ranks) == (
            oracle.prompt,
            oracle.answers,
            oracle.ties,
            oracle.ranks,
        )
        assert pairs(found) == pairs(oracle)


def test_the_context_counts_prompt_and_longest_answer_to_the_token(tiny_tokenizer: Any) -> None:
    ranking = Ranking(prompt="A", completions=["x", "a longer answer"], ranks=[1, 2])
    item = ranking_example(tiny_tokenizer, ranking)
    length = len(item.prompt) + len(item.answers[1])
    assert ranking_examples(tiny_tokenizer, [ranking], length)[1]["too_long"] == 0
    with pytest.raises(ValueError, match=f"1 are longer than the model's context of {length - 1} tokens"):
        ranking_examples(tiny_tokenizer, [ranking], length - 1)


def test_demonstrations_that_do_not_fit_the_context_are_left_out(tiny_tokenizer: Any) -> None:
    """A whole conversation, and the line break behind its last turn, which is no part of an answer."""
    shown = [Demonstration(prompt="A", completion=text) for text in ("a longer answer", "x", "another long answer")]
    lengths = [
        len(
            tiny_tokenizer.apply_chat_template(
                [*one.messages, {"role": "assistant", "content": one.completion}], return_dict=False
            )
        )
        - 1
        for one in shown
    ]
    assert [len(demonstrations(tiny_tokenizer, shown, context)) for context in sorted(lengths)] == [1, 2, 3]
    (only,) = demonstrations(tiny_tokenizer, shown, min(lengths))
    assert "x<|im_end|>" in tiny_tokenizer.decode(only.answers[0])
    with pytest.raises(ValueError, match=f"none of the 3 demonstrations .* fits its context of {min(lengths) - 1} tok"):
        demonstrations(tiny_tokenizer, shown, min(lengths) - 1)


def test_nothing_left_to_learn_from_is_refused_with_the_reasons(tiny_tokenizer: Any) -> None:
    tied = [Ranking(prompt=str(i), completions=["x", "y", "z"], ranks=[1, 1, 1]) for i in range(3)]
    good = Ranking(prompt="x", completions=["x", "y"], ranks=[1, 2])
    sentence = "no test ranking is left: of 3, 3 tie all their answers, 0 compare identical answers and 0 are longer"
    with pytest.raises(ValueError, match=sentence):
        example_sets(tiny_tokenizer, {"train": [good], "test": tied}, 100)


def test_a_single_answer_is_no_ranking() -> None:
    with pytest.raises(ValueError, match="a ranking needs at least 2 completions, found 1"):
        parse({"prompt": "?", "completions": ["only"], "ranks": [1]}, Ranking)


def random_examples(seed: int, count: int) -> list[RankingExample]:
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        answers = chance.randint(2, 9)
        lengths = [chance.randint(1, 30) for _ in range(answers)]
        made.append(
            RankingExample(
                [7] * chance.randint(1, 40), [[8] * n for n in lengths], torch.zeros(answers, answers, dtype=torch.bool)
            )
        )
    return made


def tokens(item: RankingExample, shared: bool) -> int:
    return len(item.prompt) * (1 if shared else len(item.answers)) + sum(map(len, item.answers))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 300, 700, 10**9])
def test_micro_batches_hold_every_element_once_within_the_limit(max_tokens: int, shared: bool) -> None:
    """Where a prompt's answers share its pass, its tokens count once; otherwise once for each answer."""
    batch = random_examples(0, 40)
    groups = micro_batches(batch, max_tokens, shared)
    assert sorted(id(item) for group in groups for item in group) == sorted(id(item) for item in batch)
    sizes = [sum(tokens(item, shared) for item in group) for group in groups]
    assert all(len(group) == 1 or size <= max_tokens for group, size in zip(groups, sizes, strict=True))
    assert len(groups) == {1: 40, 10**9: 1}.get(max_tokens, len(groups))
    if max_tokens == 700:
        assert 3 < len(groups) < 40
        # A group is closed only where the next example does not fit.
        assert all(
            size + tokens(following[0], shared) > max_tokens for size, following in zip(sizes, groups[1:], strict=False)
        )


def test_pairs_are_each_strict_comparison_once_with_the_better_answer_first() -> None:
    cycle = torch.tensor([[False, True, False], [False, False, True], [True, False, False]])
    items = [
        RankingExample([1], [[10], [11], [12]], cycle),
        RankingExample([2], [[20], [21]], torch.zeros(2, 2, dtype=torch.bool)),
    ]
    pairs = as_pairs(items)
    assert [(pair.prompt, pair.answers) for pair in pairs] == [
        ([1], [[10], [11]]),
        ([1], [[11], [12]]),
        ([1], [[12], [10]]),
    ]
    assert all(pair.preference_mask_KK.nonzero().tolist() == [[0, 1]] for pair in pairs)


def test_ties_and_ranks_stay_known(tiny_tokenizer: Any) -> None:
    ranked = ranking_example(
        tiny_tokenizer, Ranking(prompt="p", completions=["a", "b", "c", "d"], ranks=[2, 1, None, 2])
    )
    assert (ranked.ties, ranked.ranks) == (((0, 3),), (2, 1, None, 2))
    judged = ranking_example(
        tiny_tokenizer, Ranking(prompt="p", completions=["a", "b", "c"], preferences=[[2, 0]], ties=[[1, 0]])
    )
    assert (judged.ties, judged.ranks, judged.preference_mask_KK.nonzero().tolist()) == (((0, 1),), None, [[2, 0]])


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_some_answers_keep_their_judgments(count: int, limit: int, seed: int) -> None:
    names = [f"answer {index}" for index in range(count)]
    pairs = [[i, j] for i in range(count) for j in range(count) if (3 * i + j) % 4 == 1 and i != j]
    ties = [[i, j] for i in range(count) for j in range(i) if (i + j) % 3 == 0]
    judged = Ranking(
        prompt="p", completions=names, preferences=pairs, ties=ties, complete=[i % 2 == 0 for i in range(count)]
    )
    ranked = Ranking(prompt="p", completions=names, ranks=[1 + i % 3 for i in range(count)])
    fewer, few = some_answers(judged, limit, seed), some_answers(ranked, limit, seed)
    for found in (fewer.completions, few.completions):
        assert found == sorted(set(found), key=names.index)
        assert len(found) == min(limit, count)

    def named(found: list[list[int]] | None, completions: list[str]) -> set[tuple[str, str]]:
        return {(completions[i], completions[j]) for i, j in found or []}

    kept = set(fewer.completions)
    for key in ("preferences", "ties"):
        whole = {pair for pair in named(getattr(judged, key), names) if set(pair) <= kept}
        assert named(getattr(fewer, key), fewer.completions) == whole
    assert few.ranks == [1 + names.index(name) % 3 for name in few.completions]
    assert fewer.complete == [names.index(name) % 2 == 0 for name in fewer.completions]
    assert some_answers(judged, None, seed) is judged


def test_answers_that_were_compared_are_chosen_before_others() -> None:
    names = [f"answer {index}" for index in range(30)]
    few = Ranking(prompt="p", completions=names, preferences=[[3, 20], [29, 7], [11, 3]])
    chosen = some_answers(few, 8, 0)
    assert len(chosen.completions) == 8
    assert len(chosen.preferences or []) == 3
    many = Ranking(prompt="p", completions=names, preferences=[[2 * index, 2 * index + 1] for index in range(15)])
    assert len(some_answers(many, 8, 0).preferences or []) == 4
    twins = Ranking(prompt="p", completions=["same", "same", "x", "y"], preferences=[[0, 1], [2, 3]])
    assert all(some_answers(twins, 2, seed).completions == ["x", "y"] for seed in range(16))
    ranked = Ranking(prompt="p", completions=names, ranks=[None] * 25 + [1, 2, 3, 4, 5])
    assert [rank for rank in some_answers(ranked, 8, 0).ranks or [] if rank] == [1, 2, 3, 4, 5]
    one_better = Ranking(prompt="p", completions=names, ranks=[2] * 29 + [1])
    assert all(some_answers(one_better, 2, seed).ranks == [2, 1] for seed in range(16))


def test_other_peoples_closing_stands_after_every_answer(tiny_tokenizer: Any) -> None:
    ranking = Ranking(prompt="p", completions=["yes", "no, but", ""], ranks=[1, 2, 3], complete=[True, False, True])
    plain = [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] for text in ranking.completions]
    assert ranking_example(tiny_tokenizer, ranking, [2, 9]).answers == [[*ids, 2, 9] for ids in plain]


def test_an_empty_batch_has_no_micro_batches() -> None:
    assert micro_batches([], 100) == []
