"""The verdict on PPO and the checks of the reward model, on hand-made intervals."""

from typing import Any

import pytest

from data.intervals import interval
from reports.formats import change, percent, points, signed
from reports.verdict import checks, labeler_note, side, too_few, verdict
from stages.pipeline import summary


def rate(mean: float, low: float, high: float, n: int = 137) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high, "n": n}


WIN, LOSS = rate(0.6, 0.55, 0.65), rate(0.4, 0.35, 0.45)
EVEN = rate(0.526, 0.471, 0.583)
PARTS = ("closeness", "complete", "repetition", "copying", "profanity")


def evaluation(whole: dict[str, float], without: dict[str, dict[str, float]] | None = None) -> dict[str, Any]:
    parts = dict.fromkeys(PARTS, whole) | (without or {})
    judges = [{"name": "rubric", "taught": True}]
    return {"win_rate": {"sft": whole}, "win_rate_without": parts, "prompts": 137, "users": 20, "judges": judges}


@pytest.mark.parametrize(("mean", "kind"), [(0.6, "better"), (0.4, "worse"), (0.55, "even"), (0.45, "even")])
def test_the_verdict_follows_the_interval(mean: float, kind: str) -> None:
    found = rate(mean, round(mean - 0.05, 6), round(mean + 0.05, 6))
    assert verdict(evaluation(found))["kind"] == kind


def test_the_verdict_counts_pairs_without_one() -> None:
    found = evaluation(WIN) | {"judges": [{"name": "llm"}], "comparisons": {"ppo": {"llm": {"no_verdict": 330}}}}
    assert verdict(found)["text"].endswith("137 held-out prompts); 330 pairs without a verdict are not counted.")


NUMBERS = "(95% interval 55.0% to 65.0%, 137 held-out prompts)"


@pytest.mark.parametrize(
    ("found", "ending"),
    [
        (
            evaluation(WIN, {"complete": EVEN}),
            "; the win comes from the bonus for ending: without it no difference is shown (52.6%, 47.1% to 58.3%).",
        ),
        (
            evaluation(WIN, {"closeness": LOSS}),
            "; the win comes from closeness to the reference: without it PPO is worse (40.0%, 35.0% to 45.0%).",
        ),
        (
            evaluation(WIN, {"complete": EVEN, "profanity": LOSS}),
            "; the win depends on 2 parts of the rubric: without the bonus for ending no difference is shown "
            "(52.6%, 47.1% to 58.3%), without the penalty for profanity PPO is worse (40.0%, 35.0% to 45.0%).",
        ),
        (evaluation(WIN), "; no single part of the rubric carries the win: it remains without each of them."),
    ],
    ids=["one", "flips", "several", "none"],
)
def test_the_verdict_names_the_parts_that_carry_the_win(found: dict[str, Any], ending: str) -> None:
    text = verdict(found)["text"]
    assert verdict(found | {"win_rate_without": {}})["text"].endswith("held-out prompts)."), "one part has no others"
    assert text.startswith(f"PPO is better than SFT by the rubric: PPO won 60.0% of comparisons {NUMBERS}")
    assert text.endswith(ending)


@pytest.mark.parametrize(("kl", "kind"), [((0.0, 0.0), "even"), ((-0.01, 0.02), "even"), ((0.01, 0.03), "better")])
def test_a_policy_that_did_not_move_neither_wins_nor_loses(kl: tuple[float, float], kind: str) -> None:
    """Two samples of the same policy differ by chance, and one of twenty intervals excludes 50%."""
    found = verdict(evaluation(WIN) | {"kl": rate(sum(kl) / 2, *kl)})
    assert found["kind"] == kind
    assert ("PPO is not shown to differ from SFT (KL" in found["text"]) == (kind == "even")


def test_a_win_by_another_judge_is_not_explained_by_the_rubric() -> None:
    found = verdict(evaluation(WIN, {"complete": EVEN}) | {"judges": [{"name": "llm", "taught": False}]})
    assert found["text"] == f"PPO is better than SFT by a language model: PPO won 60.0% of comparisons {NUMBERS}."


@pytest.mark.parametrize(("prompts", "kind"), [(1, "even"), (9, "even"), (10, "better")])
def test_a_handful_of_prompts_shows_nothing_whatever_their_interval(prompts: int, kind: str) -> None:
    found = verdict(evaluation({"mean": 1.0, "low": 1.0, "high": 1.0, "n": prompts}))
    assert found["kind"] == kind
    assert f", {prompts} held-out prompt{'s' if prompts > 1 else ''})" in found["text"]
    equal = interval([1.0] * prompts)
    marks = [row["mark"] for row in checks({"win_rate_both_end": equal}, {})]
    assert marks == ["holds" if kind == "better" else "open"]


def test_differences_to_sft_are_checked_against_zero() -> None:
    found = checks({"chrf_difference": rate(-0.02, -0.03, -0.01), "complete_difference": rate(0.1, 0.05, 0.15)}, {})
    assert [(row["mark"], row["numbers"]) for row in found] == [
        ("fails", "chrF, PPO minus SFT on the same prompts: -0.0200 (-0.0300 to -0.0100)"),
        ("holds", "Complete (ends by itself), PPO minus SFT on the same prompts: +0.1000 (+0.0500 to +0.1500)"),
    ]


def test_a_loss_is_attributed_to_its_part_and_no_difference_to_none() -> None:
    text = verdict(evaluation(LOSS, {"complete": WIN}))["text"]
    assert text.endswith("the loss comes from the bonus for ending: without it PPO is better (60.0%, 55.0% to 65.0%).")
    text = verdict(evaluation(EVEN, {"complete": LOSS}))["text"]
    assert text.startswith("No difference shown between PPO and SFT by the rubric: PPO won 52.6%")
    assert text.endswith("137 held-out prompts).")


def test_the_pipeline_ends_with_the_verdict_of_the_report() -> None:
    found = evaluation(WIN, {"complete": EVEN})
    headline = {
        "reward_accuracy": 0.645, "reward_accuracy_best_baseline": 0.639, "kl": 0.92, "perplexity_sft": 68.4,
        "perplexity_ppo": 65.7,
    }  # fmt: skip
    assert summary(headline, found).startswith(verdict(found)["text"])
    assert "64.5%, best baseline 63.9%" in summary(headline, found)
    assert "not estimated, since answers are greedy" in summary(headline | {"kl": None}, found)


def judged(**baselines: dict[str, Any]) -> dict[str, Any]:
    """A reward model of 64.5%."""
    return {"accuracy": rate(0.645, 0.59, 0.7), "baselines": baselines, "prompts": 40, "users": 20}


def baseline(mean: float, low: float, high: float) -> dict[str, Any]:
    """A baseline with accuracy 64.5% minus `mean`; the paired difference is `mean`, between `low` and `high`."""
    return {"accuracy": rate(mean, mean - 0.05, mean + 0.05), "difference": rate(0.645 - mean, low, high)}


LONGEST, SHORTEST = baseline(0.361, 0.2, 0.36), baseline(0.639, -0.05, 0.06)
LIKELIHOOD, BETTER = baseline(0.673, -0.09, 0.034), baseline(0.8, -0.2, -0.1)


@pytest.mark.parametrize(
    ("baselines", "best", "mark"),
    [
        ({"longest": LONGEST}, "longest", "holds"),
        ({"longest": LONGEST, "shortest": SHORTEST}, "shortest", "open"),
        ({"longest": LONGEST, "shortest": SHORTEST, "sft_likelihood": LIKELIHOOD}, "sft_likelihood", "open"),
        ({"longest": LONGEST, "random": baseline(0.7, -0.1, -0.01)}, "longest", "holds"),
        ({"shortest": SHORTEST, "sft_likelihood_per_token": BETTER}, "sft_likelihood_per_token", "fails"),
    ],
)
def test_the_reward_model_is_compared_with_the_best_baseline(baselines: dict[str, Any], best: str, mark: str) -> None:
    (found,) = checks({}, {"test": judged(**baselines) | {"best_baseline": best}})
    assert (found["claim"], found["mark"]) == ("The reward model beats the best simple baseline", mark)
    assert "The best baseline is chosen on these same pairs" in found["numbers"]


@pytest.mark.parametrize(
    ("prompts", "users", "rankings", "said"),
    [
        (50, 20, 50, ""),
        (
            18,
            13,
            25,
            "the comparison has 18 prompts of 13 users and the reward model was tested on rankings of 25 prompts.",
        ),
        (137, 19, 50, "the comparison has 137 prompts of 19 users."),
        (50, 20, 7, "the reward model was tested on rankings of 7 prompts."),
    ],
)
def test_a_small_test_set_is_named_beside_the_checks(prompts: int, users: int, rankings: int, said: str) -> None:
    found = too_few({"prompts": prompts, "users": users}, {"test": {"prompts": rankings}})
    assert (said in found) if said else (found == "")


def test_a_judge_that_saw_a_few_of_many_prompts_is_named() -> None:
    evaluation = {"prompts": 191, "users": 28, "win_rate": {"sft": {"mean": 0.9, "n": 12, "users": 11}}}
    assert "the comparison has 12 prompts of 11 users." in too_few(evaluation, {})


def test_zero_has_no_sign() -> None:
    assert change(50_171.0, 50_170.0) == "0.0%"
    assert points(rate(-0.0001, -0.02, 0.0)) == ("0.0 points", "-2.0 to 0.0")
    assert [percent(-0.0001), signed(-0.00001), signed(0.0), signed(0.0005)] == ["0.0%", "0.0000", "0.0000", "+0.0005"]


@pytest.mark.parametrize("units", ["n", "users", "clusters"])
def test_an_interval_of_fewer_than_ten_resampled_units_shows_nothing(units: str) -> None:
    found = {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 100}
    assert side(found | {units: 10}, 0.0) == "better"
    assert side(found | {units: 9}, 0.0) == "even"


def test_who_ranked_is_the_labeler_of_the_run() -> None:
    chrf = {"judges": [{"name": "chrf", "taught": False}]}

    def note(labeler: str, *rankings: str) -> str:
        labels = {"labeler": labeler, "llm": {"model": "org/judge"}}
        return labeler_note({"labels": labels, "data": {"rankings": list(rankings)}}, chrf)

    assert note("llm").startswith("A language model (org/judge), not a person, ranked the answers")
    assert "rubric" not in note("llm") + note("human")
    assert note("human").startswith("People ranked")
    assert note("simulated").startswith("No person ranked")
    assert note("simulated", "mine.jsonl").startswith("A simulated labeler, a rubric (")
    for labeler in ("human", "llm", "simulated"):
        assert ("data.rankings" in note(labeler), "data.rankings" in note(labeler, "oasst")) == (False, True)


def test_who_judged_is_the_first_judge() -> None:
    note = labeler_note({"labels": {"labeler": "simulated"}}, {"judges": [{"name": "llm", "taught": False}]})
    assert note.endswith("The win rates are by a language model.")
    assert "by that rubric only" not in note


def test_a_judge_without_any_verdict_is_named() -> None:
    found = {"judges": [{"name": "human", "taught": False}], "win_rate": {"sft": None}}
    found |= {"comparisons": {"ppo": {"human": {"win_rate": None, "no_verdict": 116}}}}
    assert verdict(found)["text"] == "PPO and SFT were not compared: none of the 116 pairs has a verdict by people."
    by_llm = {"judges": [{"name": "llm"}], "win_rate": {"sft": None}, "llm_judge": {"reason": "it refused"}}
    by_llm |= {"comparisons": {"ppo": {"llm": {"win_rate": None, "no_verdict": 9}}}}
    assert verdict(by_llm)["text"].endswith(
        "none of the 9 pairs has a verdict by a language model, because it refused."
    )
    note = labeler_note({"labels": {"labeler": "human"}}, found)
    assert note.strip() == "People ranked the answers on which the reward model was trained."
