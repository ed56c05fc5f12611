"""The reward model's report: small cases counted by hand, and any case counted again by loops and by scipy.

pytest tests/evaluation/test_reward_model.py
"""

import json
import math
import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, spearmanr

import data.intervals
from data.intervals import interval
from data.records import Ranking
from evaluation import reward_evaluation, reward_model
from evaluation.reward_evaluation import RewardEvaluation
from evaluation.reward_model import by_prompt, prompts_of, report, some_prompts
from modeling.config import ModelConfig
from modeling.run import Run
from reward.batches import RankingExample
from reward.config import RewardConfig
from tests.evaluation.rankings import Case, cases, is_about, mean, pairs_of, ranked, ranking_example, right, simulated
from tests.fakes import FakeAccelerator

ALONE = FakeAccelerator()


def test_every_accuracy_by_hand() -> None:
    items = [
        ranked([5, 4, 3], [1, 2, 3]),
        ranking_example([2, 2, 9, 1], [(0, 2), (1, 2)]),
        ranking_example([1, 7], [(0, 1)]),
    ]
    scores = [[3.0, 1.0, 2.0], [0.0, 0.0, 0.0, 5.0], [-1.0, 1.0]]
    found = report(scores, items, {"mine": [[0.0, 1.0, 2.0], [4.0, 5.0, 0.0, 0.0], [1.0, 0.0]]})
    # right, right, wrong; two ties; wrong: 1 + 1 + 0 + 1/2 + 1/2 + 0 of six pairs
    assert found["accuracy"]["mean"] == pytest.approx(3 / 6)
    # 3 against 2, 0 against 0, -1 against 1
    assert found["best_vs_worst"]["mean"] == pytest.approx((1 + 0.5 + 0) / 3)
    # the longer is better in three of three; 2 against 9 twice wrong; 1 against 7 wrong
    assert found["baselines"]["longest"]["accuracy"]["mean"] == pytest.approx(3 / 6)
    assert found["baselines"]["longest"]["best_vs_worst"]["mean"] == pytest.approx(1 / 3)
    assert found["baselines"]["shortest"]["best_vs_worst"]["mean"] == pytest.approx(2 / 3)
    # wrong three times, right twice, right
    assert found["baselines"]["mine"]["accuracy"]["mean"] == pytest.approx(3 / 6)
    assert found["baselines"]["mine"]["best_vs_worst"]["mean"] == pytest.approx(2 / 3)
    assert list(found["baselines"]) == ["longest", "shortest", "random", "mine"]
    flat = [value for row in scores for value in row]
    average = sum(flat) / 9
    assert found["score_mean"] == pytest.approx(average)
    assert found["score_std"] == pytest.approx((sum((value - average) ** 2 for value in flat) / 9) ** 0.5)
    assert (found["prompts"], found["pairs"]) == (3, 6)
    assert found["accuracy"]["n"] == 6
    assert found["accuracy"]["low"] < found["accuracy"]["mean"] < found["accuracy"]["high"]
    assert [(row["k"], row["pairs"], row["accuracy"]["mean"]) for row in found["by_k"]] == [
        (2, 1, 0.0),
        (3, 3, pytest.approx(2 / 3)),
        (4, 2, 0.5),
    ]
    # Only the first prompt has ranks: 0 against 1 and 1 against 2, then 0 against 2.
    assert [(row["distance"], row["pairs"], row["accuracy"]["mean"]) for row in found["by_distance"]] == [
        (1, 2, 0.5),
        (2, 1, 1.0),
    ]


def test_the_difference_to_a_baseline_is_paired_and_resamples_prompts() -> None:
    items = [ranked([5, 4, 3], [1, 2, 3]), ranked([1, 2], [1, 2]), ranked([4, 2], [1, 2])]
    scores, mine = [[3.0, 1.0, 2.0], [1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0, 2.0], [1.0, 0.0], [1.0, 0.0]]
    found = report(scores, items, {"mine": mine, "same": [[value - 7 for value in row] for row in scores]})["baselines"]
    # The model: 2 of 3, 1, 1/2 of one; mine: 0 of 3, 1, 1; longest: 3 of 3, 0, 1.
    assert found["mine"]["difference"]["mean"] == pytest.approx((2 + 0 - 0.5) / 5)
    assert found["longest"]["difference"]["mean"] == pytest.approx((-1 + 1 - 0.5) / 5)
    assert found["mine"]["difference"]["low"] < 0 < found["mine"]["difference"]["high"]
    # In every resample a judge with the same order has a difference of 0, though its accuracy has an interval.
    assert found["same"]["difference"] == {"mean": 0, "low": 0, "high": 0, "n": 5}
    assert found["same"]["accuracy"]["low"] < found["same"]["accuracy"]["high"]
    # One prompt of three pairs: resampling prompts has one outcome, resampling pairs would have several.
    alone = report(scores[:1], items[:1], {"mine": mine[:1]})["baselines"]["mine"]["difference"]
    assert alone == pytest.approx({"mean": 2 / 3, "low": 2 / 3, "high": 2 / 3, "n": 3})


def test_distances_are_steps_of_the_order_not_differences_of_ranks() -> None:
    found = report([[4.0, 3.0, 2.0, 9.0, 1.0]], [ranked([1] * 5, [1, 1, 40, None, 7])])
    # Steps: 1, 1 | 7 | 40. Judged: two of 1 over 7 right, 7 over 40 wrong, two of 1 over 40 right.
    assert [(row["distance"], row["pairs"], row["accuracy"]["mean"]) for row in found["by_distance"]] == [
        (1, 3, pytest.approx(2 / 3)),
        (2, 2, 1.0),
    ]


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_every_mean_is_that_of_a_loop(case: Case) -> None:
    scores, items = case
    found = report(scores, items, resamples=20)
    json.dumps(found, allow_nan=False)
    simple = {name: judge["accuracy"]["mean"] for name, judge in found["baselines"].items() if name != "random"}
    assert simple[found["best_baseline"]] == max(simple.values())
    pairs = [(n, i, j) for n, item in enumerate(items) for i, j in pairs_of(item)]

    def judged(of: Any, chosen: Any = lambda n, i, j: True) -> float | None:
        return mean(right(of(n, i), of(n, j)) for n, i, j in pairs if chosen(n, i, j))

    def score(n: int, i: int) -> float:
        return scores[n][i]

    def tokens(n: int, i: int) -> int:
        return len(items[n].answers[i])

    assert found["pairs"] == len(pairs)
    assert is_about(found["accuracy"], judged(score))
    assert is_about(found["baselines"]["longest"]["accuracy"], judged(tokens))
    assert is_about(found["baselines"]["shortest"]["accuracy"], judged(lambda n, i: -tokens(n, i)))
    assert is_about(
        found["length"]["accuracy_longer_is_better"], judged(score, lambda n, i, j: tokens(n, i) > tokens(n, j))
    )
    assert is_about(
        found["length"]["accuracy_shorter_is_better"], judged(score, lambda n, i, j: tokens(n, i) < tokens(n, j))
    )

    sizes = sorted({len(items[n].answers) for n, _, _ in pairs})
    assert [row["k"] for row in found["by_k"]] == sizes
    for row in found["by_k"]:
        assert is_about(row["accuracy"], judged(score, lambda n, i, j, k=row["k"]: len(items[n].answers) == k))
        assert row["pairs"] == sum(len(items[n].answers) == row["k"] for n, _, _ in pairs)

    def apart(n: int, i: int, j: int) -> int | None:
        ranks = items[n].ranks
        if ranks is None:
            return None
        high, low = ranks[i], ranks[j]
        assert high is not None
        assert low is not None
        return len({rank for rank in ranks if rank is not None and high < rank <= low})

    distances = sorted({step for pair in pairs if (step := apart(*pair)) is not None})
    assert [row["distance"] for row in found["by_distance"]] == distances
    for row in found["by_distance"]:
        assert is_about(row["accuracy"], judged(score, lambda n, i, j, step=row["distance"]: apart(n, i, j) == step))
        assert row["pairs"] == sum(apart(*pair) == row["distance"] for pair in pairs)

    tied = [abs(score(n, i) - score(n, j)) for n, item in enumerate(items) for i, j in item.ties]
    strict = [abs(score(n, i) - score(n, j)) for n, i, j in pairs]
    if tied:
        assert found["ties"]["pairs"] == len(tied)
        assert found["ties"]["mean_margin_tied"] == pytest.approx(mean(tied))
        assert found["ties"]["mean_margin_strict"] == pytest.approx(mean(strict))
        assert found["ties"]["auc"] == pytest.approx(mean(right(a, b) for a in strict for b in tied))
        assert found["ties"]["auc"] == pytest.approx(mannwhitneyu(strict, tied).statistic / (len(strict) * len(tied)))
    else:
        assert found["ties"] is None


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_correlations_with_length_are_scipys(case: Case) -> None:
    scores, items = case
    of_scores, of_labeler = [], []
    for row, item in zip(scores, items, strict=True):
        lengths = [len(answer) for answer in item.answers]
        known = [
            (-rank, length)
            for rank, length in zip(item.ranks or [], lengths, strict=item.ranks is not None)
            if rank is not None
        ]
        for pairs, into in ((list(zip(row, lengths, strict=True)), of_scores), (known, of_labeler)):
            if all(len(set(column)) > 1 for column in zip(*pairs, strict=True)) and pairs:
                into.append(spearmanr(*zip(*pairs, strict=True)).statistic)
    found = report(scores, items, resamples=20)["length"]
    assert is_about(found["spearman"], mean(of_scores))
    assert is_about(found["labeler_spearman"], mean(of_labeler))


@settings(max_examples=40, deadline=None)
@given(case=cases(), seed=st.integers(0, 99))
def test_the_order_of_prompts_and_answers_changes_no_mean(case: Case, seed: int) -> None:
    scores, items = case
    moved, chance = [], random.Random(seed)
    for row, item in zip(scores, items, strict=True):
        order = chance.sample(range(len(row)), len(row))
        place = {old: new for new, old in enumerate(order)}
        turned = RankingExample(
            item.prompt,
            [item.answers[old] for old in order],
            item.preference_mask_KK[order][:, order],
            tuple((place[i], place[j]) for i, j in item.ties),
            None if item.ranks is None else tuple(item.ranks[old] for old in order),
        )
        moved.append(([row[old] for old in order], turned))
    chance.shuffle(moved)
    before = report(scores, items, resamples=20)
    after = report([row for row, _ in moved], [item for _, item in moved], resamples=20)

    assert [row["pairs"] for row in before["by_k"]] == [row["pairs"] for row in after["by_k"]]
    assert [row["pairs"] for row in before["by_distance"]] == [row["pairs"] for row in after["by_distance"]]
    for path in (
        "accuracy mean",
        "baselines longest accuracy mean",
        "calibration loss",
        "ties auc",
        "length spearman mean",
    ):
        one, other = before, after
        for key in path.split():
            one, other = (one or {}).get(key), (other or {}).get(key)
        assert (one is None) == (other is None)
        assert one is None or one == pytest.approx(other, abs=1e-12)
    for one, other in zip(before["calibration"]["bins"], after["calibration"]["bins"], strict=True):
        assert (one["pairs"], one["observed"]) == (other["pairs"], pytest.approx(other["observed"]))


def test_a_constant_reward_model_is_right_half_the_time() -> None:
    items = [ranking_example([1, 2, 3], [(0, 1), (2, 1)], ((0, 2),)), ranking_example([1, 2], [(1, 0)])]
    found = report([[2.0] * 3, [2.0] * 2], items)
    assert (found["accuracy"]["mean"], found["best_vs_worst"]["mean"], found["score_std"], found["score_mean"]) == (
        0.5,
        0.5,
        0,
        2,
    )
    assert found["calibration"] == {
        "bins": [
            {
                "low": 0.5,
                "high": 0.5,
                "predicted": 0.5,
                "observed": 0.5,
                "observed_low": 0.5,
                "observed_high": 0.5,
                "pairs": 3,
            }
        ],
        "expected_calibration_error": 0,
        "loss": pytest.approx(math.log(2)),
        "temperature": None,
    }
    assert found["ties"] == {"pairs": 1, "mean_margin_tied": 0, "mean_margin_strict": 0, "auc": 0.5}
    assert found["length"]["spearman"] is None


def test_all_that_accuracy_counts_is_the_order_of_scores() -> None:
    items = [ranking_example([5, 4, 3], [(0, 1), (0, 2), (1, 2)]), ranking_example([2, 2], [(1, 0)])]
    scores = [[0.3, 0.1, 0.2], [0.9, -0.4]]
    moved = [[100 + 7 * value for value in row] for row in scores]
    assert report(moved, items)["accuracy"] == report(scores, items)["accuracy"]
    turned = report([[-value for value in row] for row in scores], items)
    assert turned["accuracy"]["mean"] == pytest.approx(1 - report(scores, items)["accuracy"]["mean"])


def test_judgments_in_a_circle_have_an_accuracy_but_no_best_and_worst() -> None:
    circle = ranking_example([1, 2, 3], [(0, 1), (1, 2), (2, 0)])
    found = report([[3.0, 2.0, 1.0]], [circle])
    assert found["best_vs_worst"] is None
    assert found["accuracy"]["mean"] == pytest.approx(2 / 3)
    assert (found["by_distance"], found["length"]["labeler_spearman"], found["ties"]) == ([], None, None)
    assert report([[3.0, 2.0, 1.0], [1.0, 0.0]], [circle, ranking_example([1, 1], [(0, 1)])])["best_vs_worst"]["n"] == 1


def test_choosing_at_random_is_right_in_half_of_the_pairs_however_few() -> None:
    items = [ranking_example([1, 2], [(0, 1)])]
    found = report([[1.0, 0.0]], items)["baselines"]["random"]
    assert found["accuracy"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 1}
    assert found["difference"]["mean"] == 0.5


def test_intervals_resample_prompts_not_pairs() -> None:
    ten = [(i, j) for i, j in combinations(range(5), 2)]
    found = report([[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]], [ranking_example([1] * 5, ten)] * 2)
    # One prompt all right, the other all wrong: a quarter of resamples holds only the first, a quarter only the second.
    assert (found["accuracy"]["low"], found["accuracy"]["mean"], found["accuracy"]["high"]) == (0, 0.5, 1)


def of_prompt(prompt: str) -> RankingExample:
    """A ranking of two answers to a prompt."""
    return replace(ranked([1, 2], [1, 2]), ranking=Ranking(prompt=prompt, completions=["a", "b"], ranks=[1, 2]))


def test_a_count_of_prompts_takes_all_rankings_of_each() -> None:
    items = [of_prompt(prompt) for prompt in "abcadbabcd"]
    assert ["".join(map(str, prompts_of(group))) for group in by_prompt(items)] == ["aaa", "bbb", "cc", "dd"]
    assert prompts_of(some_prompts(items, 2)) == [*"aaacc"]
    assert some_prompts(items, None) == some_prompts(items, 4) == items


def test_the_learning_curve_is_over_prompts_with_all_their_rankings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[list[str | int]] = []

    def trainer(config: Any, model: Any, items: Any, run: Any) -> Any:
        trained.append(prompts_of(items))
        return SimpleNamespace(train=lambda: None)

    monkeypatch.setattr(reward_evaluation, "RewardTrainer", trainer)
    monkeypatch.setattr(reward_evaluation, "sharded_model", lambda *given: None)
    monkeypatch.setattr(reward_evaluation, "score_all", lambda model, items, *more: [[1.0, 0.0]] * len(items))
    items = [of_prompt(prompt) for prompt in "abcd" * 3]
    run = Run(ALONE, 0, tmp_path)
    curve = RewardEvaluation(run, 8, 10, ModelConfig()).learning_curve(
        RewardConfig(learning_curve=[0.25, 0.5]), SimpleNamespace(tokenizer=lambda: None),  # type: ignore[arg-type]
        {"train": items, "test": items},
    )  # fmt: skip
    assert [part["prompts"] for part in curve] == [1, 2]
    assert [(len(set(part)), len(part)) for part in trained] == [(1, 3), (2, 6)]


def test_prompts_without_such_a_pair_do_not_widen_its_interval() -> None:
    items = [ranked([1, 1], [1, 2]), ranked([1, 1], [1, 2]), ranked([1, 1, 1], [1, 2, 3])]
    found = report([[1.0, 0.0], [1.0, 0.0], [3.0, 2.0, 1.0]], items)
    far = found["by_distance"][1]
    assert (far["distance"], far["accuracy"]) == (2, {"mean": 1, "low": 1, "high": 1, "n": 1})


def test_resamples_and_seed_reach_every_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for module, name in ((data.intervals, "interval"), (reward_model, "ratio_interval")):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, plain=plain: asked.append(given[-2:]) or plain(*given))
    report(*simulated(1, 40, 1.0), resamples=37, seed=5)
    assert len(asked) > 20
    assert set(asked) == {(37, 5)}


def test_a_model_that_merely_likes_length_is_seen_through() -> None:
    items = [ranked([9, 5, 2], [1, 2, 3]), ranked([2, 7, 3], [1, 2, 3])]
    found = report([[9.0, 5.0, 2.0], [2.0, 7.0, 3.0]], items)["length"]
    assert found["accuracy_longer_is_better"]["mean"] == 1
    assert found["accuracy_shorter_is_better"]["mean"] == 0
    assert found["spearman"]["mean"] == pytest.approx(1)
    # The labeler: 1 on the first; ranks 1 2 3 turned over against lengths 2 7 3, that is 3 2 1 with 1 3 2: -1/2.
    assert found["labeler_spearman"]["mean"] == pytest.approx((1 - 0.5) / 2)


@pytest.mark.parametrize(
    ("scores", "baselines", "sentence"),
    [
        (
            [[1.0, math.nan], [0.0, 1.0]],
            None,
            r"the reward model has a score that is not finite for prompt 0: \[1.0, nan\]",
        ),
        ([[1.0, 0.0], [0.0, -math.inf]], None, "not finite for prompt 1"),
        ([[1.0, 0.0]], None, "the reward model has scores of 1 prompts, and there are 2"),
        ([[1.0, 0.0], [1.0, 0.0, 2.0]], None, "3 scores of prompt 1, which has 2 answers"),
        (
            [[1.0, 0.0], [1.0, 0.0]],
            {"sft_likelihood": [[math.nan, 0.0], [0.0, 0.0]]},
            "sft_likelihood has a score that is not finite",
        ),
        ([[1.0, 0.0], [1.0, 0.0]], {"sft_likelihood": [[0.0, 0.0]]}, "sft_likelihood has scores of 1 prompts"),
    ],
)
def test_what_cannot_be_judged_is_refused(scores: list[list[float]], baselines: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        report(scores, [ranking_example([1, 1], [(0, 1)])] * 2, baselines)


@pytest.mark.parametrize("items", [[], [ranking_example([1, 1], [], ((0, 1),))]])
def test_without_a_comparison_there_is_no_report(items: list[RankingExample]) -> None:
    with pytest.raises(ValueError, match="no strict pair"):
        report([[0.0, 0.0]] * len(items), items)


def test_rankings_of_a_user_and_of_a_prompt_are_resampled_together() -> None:
    """Six labelers rank each prompt alike, and each user has two prompts."""
    generator = np.random.default_rng(8)
    items, scores = [], []
    for user in range(30):
        right = generator.random() < 0.6
        for prompt in range(2):
            for _ in range(6):
                record = Ranking(
                    prompt=f"{user} {prompt}", completions=["a", "b"], ranks=[1, 2], user_id=f"user {user}"
                )
                items.append(replace(ranked([3, 5], [1, 2]), ranking=record))
                scores.append([1.0, 0.0] if right else [0.0, 1.0])
    found = report(scores, items, resamples=2000)
    assert (found["prompts"], found["users"], found["pairs"]) == (60, 30, 360)
    right_by_user = [float(scores[12 * user][0]) for user in range(30)]
    expected = interval(right_by_user, 2000)
    assert found["accuracy"]["mean"] == pytest.approx(expected["mean"])
    for end in ("low", "high"):
        assert found["accuracy"][end] == pytest.approx(expected[end], abs=0.035)
        assert found["best_vs_worst"][end] == pytest.approx(expected[end], abs=0.035)


def test_prompts_of_an_only_user_are_resampled() -> None:
    """Each of her ten prompts is ranked by two labelers."""
    items, right = [], [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    for number in range(20):
        record = Ranking(prompt=f"{number // 2}", completions=["a", "b"], ranks=[1, 2], user_id="ann")
        items.append(replace(ranked([3, 5], [1, 2]), ranking=record))
    found = report([[right[number // 2], 0.5] for number in range(20)], items, resamples=2000)
    expected = interval(right, 2000)
    assert (found["users"], found["prompts"], expected["low"] < 0.7 < expected["high"]) == (1, 10, True)
    for measure in ("accuracy", "best_vs_worst"):
        assert [found[measure][end] for end in ("mean", "low", "high")] == pytest.approx(
            [expected[end] for end in ("mean", "low", "high")]
        )


def test_a_subset_with_one_user_resamples_her_prompts() -> None:
    """Twelve users rank two answers each, and one user ranks three answers to each of ten prompts."""
    items, scores = [], []
    for number in range(22):
        k = 2 if number < 12 else 3
        user = f"user {number}" if number < 12 else "ann"
        record = Ranking(prompt=f"{number}", completions=["a", "b", "c"][:k], ranks=[1, 2, 3][:k], user_id=user)
        items.append(replace(ranked([3, 5, 7][:k], [1, 2, 3][:k]), ranking=record))
        scores.append([float(place if number % 3 else -place) for place in range(k)])
    (of_ann,) = [found for found in report(scores, items, resamples=500)["by_k"] if found["k"] == 3]
    assert of_ann["accuracy"]["low"] < of_ann["accuracy"]["mean"] < of_ann["accuracy"]["high"]


def test_several_rankings_of_a_prompt_count_as_one_prompt() -> None:
    record = Ranking(prompt="Why?", completions=["a", "b"], ranks=[1, 2], user_id="ann")
    found = report([[1.0, 0.0]] * 3, [replace(ranked([3, 5], [1, 2]), ranking=record)] * 3, resamples=5)
    assert (found["prompts"], found["pairs"]) == (1, 3)
