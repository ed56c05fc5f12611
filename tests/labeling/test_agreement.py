"""Agreement against numbers counted by hand."""

import random

import pytest
from scipy.stats import kendalltau

from data.records import Ranking
from labeling.agreement import agreement, judged_prompts, judgment, krippendorff_alpha, tau_b
from tests.data.making import made, rankings


def ranking(completions: list[str], ranks: list[int | None] | None = None, **more) -> Ranking:
    return Ranking(prompt="why", completions=completions, ranks=ranks, **more)


def test_a_judgment_is_the_same_whatever_the_order_of_the_answers():
    assert (
        judgment(ranking(["b", "a", "c"], [1, 2, 2]))
        == judgment(ranking(["c", "b", "a"], [2, 1, 2]))
        == {("a", "b"): -1, ("b", "c"): 1, ("a", "c"): 0}
    )


def test_what_was_not_ranked_or_put_both_ways_was_not_judged():
    assert judgment(ranking(["a", "b", "c"], [1, None, 2])) == {("a", "c"): 1}
    both = ranking(["a", "b", "c"], preferences=[[0, 1], [1, 0], [2, 0]], ties=[[2, 1]])
    assert judgment(both) == {("a", "c"): -1, ("b", "c"): 0}
    assert judgment(ranking(["a", "a", "b"], [1, 2, 1])) == {}, "a above b, and level with b"


def test_the_votes_of_several_labelers_in_one_record_are_counted():
    votes = ranking(["a", "b", "c"], preferences=[[0, 1], [1, 0], [0, 1], [2, 1]], ties=[[1, 2], [2, 1]])
    assert judgment(votes) == {("a", "b"): 1, ("b", "c"): 0}


def test_agreement_counted_by_hand():
    # One prompt: anna a > b > c; ben a > b, a > c, b = c; cleo judged other answers. Of anna's and ben's pairs two are
    # the same, bc is not strict.
    anna, ben = {("a", "b"): 1, ("a", "c"): 1, ("b", "c"): 1}, {("a", "b"): 1, ("a", "c"): 1, ("b", "c"): 0}
    first = [("anna", anna), ("ben", ben), ("cleo", {("d", "e"): 1})]
    # Another: anna and cleo contradict each other on the one pair.
    second = [("anna", {("x", "y"): 1}), ("cleo", {("x", "y"): -1})]
    # The same labeler twice is no pair of labelers, and one alone is none either.
    third = [("ben", {("x", "y"): 1}), ("ben", {("x", "y"): 1})]
    found = agreement([first, second, third, [("anna", anna)]])
    assert found is not None
    assert found["strict"] is not None
    assert found["three_way"] is not None
    assert (found["prompts"], found["labelers"]) == (2, 3)
    assert (found["strict"]["mean"], found["strict"]["n"]) == (pytest.approx(2 / 3), 3)
    assert (found["three_way"]["mean"], found["three_way"]["n"]) == (pytest.approx(2 / 4), 4)
    assert found["three_way"]["low"] == 0.0, "the interval is over prompts: a draw may hold the second one only"
    assert found["tau"] == pytest.approx((2 / (3 * 2) ** 0.5 - 1) / 2)


def test_three_labelers_are_three_pairs():
    found = agreement([[("a", {("x", "y"): 1}), ("b", {("x", "y"): 1}), ("c", {("x", "y"): -1})]])
    assert found is not None
    assert found["strict"] is not None
    assert (found["strict"]["mean"], found["strict"]["n"]) == (pytest.approx(1 / 3), 3)


def test_without_strict_pairs_there_is_no_strict_agreement():
    found = agreement([[("a", {("x", "y"): 0}), ("b", {("x", "y"): 0})]])
    assert found is not None
    assert found["strict"] is None
    assert found["tau"] is None
    assert found["three_way"] is not None
    assert found["three_way"]["mean"] == 1.0
    assert agreement([]) is None


def test_tau_is_kendalls():
    noise = random.Random(1)
    for _ in range(20):
        one, two = ([noise.randint(1, 4) for _ in range(6)] for _ in range(2))
        names = list("abcdef")
        first, second = judgment(ranking(names, one)), judgment(ranking(names, two))
        assert tau_b([(first[pair], second[pair]) for pair in first]) == pytest.approx(kendalltau(one, two).statistic)


def test_labelers_are_found_in_the_data(tmp_path):
    several = [
        rankings(6)[number] | {"labeler_id": who, "ranks": ranks}
        for number in range(6)
        for who, ranks in (("anna", [1, 2]), ("ben", [1, 2]))
    ]
    several[1]["ranks"] = [2, 1]
    nameless = [{key: value for key, value in row.items() if key != "labeler_id"} for row in rankings(3, ranks=[2, 1])]
    alone = [row | {"prompt": f"alone {row['prompt']}"} for row in rankings(4)]
    built, _ = made(tmp_path, {"rankings": [*several, *nameless, *alone]})
    found = agreement(judged_prompts(built))
    assert found is not None
    assert found["strict"] is not None
    assert (found["prompts"], found["labelers"], found["strict"]["mean"], found["strict"]["n"]) == (
        6,
        2,
        pytest.approx(5 / 6),
        6,
    )
    assert agreement(judged_prompts(made(tmp_path / "other", {"rankings": alone})[0])) is None


def test_alpha_does_not_depend_on_which_answer_comes_first():
    """Two labelers prefer one model in nine of ten prompts, and disagree once; perfect agreement is 1."""
    votes = [(1, 1)] * 8 + [(-1, -1), (1, -1)]
    for flipped in ([1] * 10, [1, -1] * 5):
        prompts = [
            [("anna", {("x", "y"): a * sign}), ("ben", {("x", "y"): b * sign})]
            for (a, b), sign in zip(votes, flipped, strict=True)
        ]
        # Of 20 votes in both orders 18 agree: observed 0.4 of squared differences 4; expected 2 * 40 / 39.
        assert agreement(prompts)["alpha"] == pytest.approx(1 - 0.4 * 39 / 80)
    assert agreement([[("a", {("x", "y"): 1}), ("b", {("x", "y"): 1})]])["alpha"] == 1.0


def test_alpha_is_krippendorffs():
    # Krippendorff (2011): his example with missing data, four observers and twelve units; interval alpha 0.849.
    unknown = None
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, unknown, unknown, unknown],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, unknown, 3],
        [unknown, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, unknown],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, unknown],
    ]
    units = [[value for value in unit if value is not None] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha([[1, 1], [-1, -1], [0]]) == 1.0
    assert krippendorff_alpha([[1, -1], [-1, 1]]) == pytest.approx(-0.5)
    assert krippendorff_alpha([[1], [1, 1]]) is None
