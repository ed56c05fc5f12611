"""The simulated labeler: ranks with ties, errors at the rate that the config says, and nothing that hangs on the order
of the rows.
"""

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.records import Samples
from labeling.config import LabelsConfig, SamplesConfig
from labeling.judges import WordOverlap
from labeling.simulated import misjudge, rank, ranks_of

SCORES = st.lists(st.integers(-40, 40).map(lambda n: n / 32), min_size=2, max_size=9)


@pytest.mark.parametrize(
    ("scores", "width", "ranks"),
    [
        ([0.3, 0.9, 0.1], 0.0, [2, 1, 3]),
        ([0.3, 0.9, 0.3], 0.0, [2, 1, 2]),
        ([0.3, 0.3000001], 0.0, [2, 1]),
        ([0.3, 0.1 + 0.2, 1.0 - 0.7], 0.0, [1, 1, 1]),
        ([0.3, 0.1 + 0.2, 0.34, 0.29, 0.25], 0.05, [1, 1, 1, 2, 2]),
        ([0.15, 0.7 - 0.55, 0.19, 0.14], 0.05, [1, 1, 1, 2]),
        ([0.30, 0.34, 0.36, 0.10], 0.0625, [2, 1, 1, 3]),
        ([0.5, 0.5, 0.5], 0.25, [1, 1, 1]),
        ([-0.1, 0.1], 0.25, [2, 1]),
        ([-0.1, -0.2, -0.3], 0.25, [1, 1, 2]),
        ([1.0, 5.0], 100.0, [1, 1]),
    ],
)
def test_ranks_by_hand(scores: list[float], width: float, ranks: list[int]) -> None:
    assert ranks_of(scores, width) == ranks


@settings(max_examples=100, deadline=None)
@given(scores=SCORES, width=st.sampled_from([0.0, 0.0625, 0.25, 1.0]))
def test_a_rank_is_one_more_than_the_number_of_better_bins(scores: list[float], width: float) -> None:
    """Sixteenths and thirty-seconds are exact in binary, so the oracle may count bins in whole numbers."""
    bins = [round(score * 32) // round(width * 32) if width else round(score * 32) for score in scores]
    assert ranks_of(scores, width) == [1 + len({other for other in bins if other > mine}) for mine in bins]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), scores=SCORES, width=st.sampled_from([0.0, 0.05, 0.3]))
def test_an_answers_rank_does_not_depend_on_where_it_stands(
    data: st.DataObject, scores: list[float], width: float
) -> None:
    order = data.draw(st.permutations(range(len(scores))))
    ranks = ranks_of(scores, width)
    assert ranks_of([scores[i] for i in order], width) == [ranks[i] for i in order]


def test_a_labeler_without_errors_changes_no_score() -> None:
    scores = [0.3, 0.9, 0.1, 0.4]
    assert misjudge(scores, 0.0, random.Random(0)) == scores


def test_errors_come_at_their_rate_and_lie_evenly_between_lowest_and_highest() -> None:
    generator, rate, rounds = random.Random(0), 0.3, 5_000
    scores = [-1.0, 0.25, 0.5, 3.0]
    wrong = [
        new
        for _ in range(rounds)
        for old, new in zip(scores, misjudge(scores, rate, generator), strict=True)
        if new != old
    ]
    draws = rounds * len(scores)
    assert abs(len(wrong) - draws * rate) < 4 * math.sqrt(draws * rate * (1 - rate))
    assert -1 <= min(wrong) < -0.98
    assert 2.98 < max(wrong) <= 3
    spread = 4 / math.sqrt(12)
    mean = sum(wrong) / len(wrong)
    assert abs(mean - 1) < 4 * spread / math.sqrt(len(wrong))
    variance = sum((value - mean) ** 2 for value in wrong) / len(wrong)
    # The fourth moment of a uniform variable is 9/5 of its squared variance, so the variance's own error is sqrt(4/5 /
    # n) of it.
    assert abs(variance / spread**2 - 1) < 4 * math.sqrt(0.8 / len(wrong))


def sampled(
    prompt_id: str,
    completions: Sequence[str],
    reference: str | None = "the red house",
    complete: Sequence[bool] | None = None,
) -> Samples:
    return Samples(
        prompt="Which house?", prompt_id=prompt_id, user_id="u", kind="plain", completions=list(completions),
        complete=list(complete or [True] * len(completions)), reference=reference,
    )  # fmt: skip


def careful(**changes: float) -> LabelsConfig:
    return LabelsConfig(closeness="words", **{"disagreement": 0.0} | changes)  # type: ignore[arg-type]


def test_the_nearer_answer_ranks_higher_and_unfinished_ones_lower() -> None:
    row = sampled(
        "p", ["a boat", "the red house", "house the red", "the red house "], complete=[True, True, True, False]
    )
    [ranking] = rank([row], careful(), WordOverlap(), seed=0)
    assert ranking.ranks == [3, 1, 1, 2], "1.0 - 0.7, complete and near, its words in another order, near but cut off"
    assert (ranking.labeler, ranking.completions, ranking.complete) == ("simulated", row.completions, row.complete)
    assert (ranking.prompt, ranking.prompt_id, ranking.user_id, ranking.kind) == (row.prompt, "p", "u", "plain")
    assert ranking.ratings is not None
    assert [set(parts) for parts in ranking.ratings] == [
        {"closeness", "complete", "repetition", "copying", "profanity", "score"}
    ] * 4
    assert ranking.ratings[1]["closeness"] == pytest.approx(1)


def test_a_prompt_without_a_reference_is_refused_by_name() -> None:
    rows = [sampled("good", ["a", "b"]), sampled("bare", ["a", "b"], reference=None)]
    with pytest.raises(ValueError, match="prompt bare has no demonstration"):
        rank(rows, careful(), WordOverlap(), seed=0)


def test_errors_hang_on_the_prompt_and_the_seed_but_not_on_the_other_rows() -> None:
    rows = [
        sampled(f"p{number}", ["the red house", "the red boat", "a blue boat", "the house"]) for number in range(40)
    ]
    config, judge = careful(disagreement=0.5), WordOverlap()
    all_at_once = rank(rows, config, judge, seed=0)
    assert rank(rows[::-1], config, judge, seed=0)[::-1] == all_at_once
    assert rank(rows[7:9], config, judge, seed=0) == all_at_once[7:9]
    assert [r.ranks for r in rank(rows, config, judge, seed=1)] != [r.ranks for r in all_at_once]
    assert len({tuple(r.ranks or []) for r in all_at_once}) > 5, "each prompt has errors of its own"


def test_ratings_tell_what_the_labeler_saw_not_what_it_said() -> None:
    rows = [sampled(f"p{number}", ["the red house", "a blue boat"]) for number in range(30)]
    erring, right = (rank(rows, careful(disagreement=rate), WordOverlap(), seed=0) for rate in (0.9, 0.0))
    assert [r.ratings for r in erring] == [r.ratings for r in right]
    assert [r.ranks for r in erring] != [r.ranks for r in right]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LabelsConfig(tie_width=-0.1), "labels.tie_width"),
        (LabelsConfig(disagreement=1.0), "labels.disagreement"),
        (LabelsConfig(disagreement=-0.1), "labels.disagreement"),
        (SamplesConfig(answers_per_prompt=1), "samples.answers_per_prompt"),
        (SamplesConfig(temperature=0), "samples.temperature"),
        (SamplesConfig(top_k=1), "samples.top_k=1"),
        (SamplesConfig(batch_size=0), "samples.batch_size"),
    ],
)
def test_contradictions_are_refused_by_name(config: LabelsConfig | SamplesConfig, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        config.validate()
