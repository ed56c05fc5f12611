"""Models against SFT by judges whose verdicts are written by hand, and agreement between judges."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
from sklearn.metrics import cohen_kappa_score

from data.intervals import Bootstrap
from data.records import Demonstration
from evaluation.agreement import between, calls_of, judge_agreement
from evaluation.compare import Answer, Answers, Verdicts
from evaluation.contest import Contest
from evaluation.judges.protocol import Judge

PROMPTS = [Demonstration(prompt=f"Question {number}", completion="So.", user_id="ann") for number in range(3)]


@dataclass
class Fixed(Judge):
    """A pairwise judge who prefers the text that comes first in `order`; no verdict on a text that is not in it."""

    name: str
    order: Sequence[str]
    taught: bool = False
    max_prompts: int | None = None

    def preferences(self, prompts: Sequence[Demonstration], ours: Answers, theirs: Answers) -> Verdicts:
        def verdict(a: str, b: str) -> float | None:
            if a not in self.order or b not in self.order:
                return None
            return 0.5 + 0.5 * (
                (self.order.index(a) < self.order.index(b)) - (self.order.index(a) > self.order.index(b))
            )

        return [
            [[verdict(a.text, b.text) for b in right] for a in left] for left, right in zip(ours, theirs, strict=True)
        ]


def rows(*texts: str, complete: bool = True) -> list[list[Answer]]:
    """An answer to each prompt per letter."""
    return [[Answer(letter, complete, 3) for letter in text] for text in texts]


def contest(judges: Sequence[Fixed], **models: list[list[Answer]]) -> Contest:
    return Contest(PROMPTS, models, judges, Bootstrap(20, [prompt.user_id for prompt in PROMPTS]))  # type: ignore[arg-type]


def test_every_model_meets_sft_and_pairs_without_a_verdict_are_left_out_and_counted() -> None:
    judges = [Fixed("first", "abc"), Fixed("second", "cba")]
    found = contest(
        judges, sft=rows("b", "b", "b"), ppo=rows("a", "ax", "x"), base=rows("c", "c", "c"), best_of_n=rows("", "a", "")
    )
    comparisons = found.comparisons()
    assert list(comparisons) == ["ppo", "base", "best_of_n"]
    ppo = comparisons["ppo"]["first"]
    assert ppo["no_verdict"] == 2
    assert {name: (ppo[name]["mean"], ppo[name]["n"], ppo[name]["users"]) for name in ppo if name != "no_verdict"} == {
        "win_rate": (1.0, 2, 1), "length_controlled": (1.0, 2, 1), "both_end": (1.0, 2, 1),
    }  # fmt: skip
    assert comparisons["ppo"]["second"]["win_rate"]["mean"] == 0.0
    assert comparisons["base"]["first"]["win_rate"]["mean"] == 0.0
    assert comparisons["best_of_n"]["first"]["win_rate"]["n"] == 1, "the number of prompts that it covers"
    headline = found.headline(comparisons)
    assert headline["win_rate"]["sft"] == ppo["win_rate"], "by the first judge"
    assert headline["win_rate"]["base"]["mean"] == 1.0
    one = contest([Fixed("one", "", max_prompts=1)], sft=rows("b", "b", "b"), ppo=rows("a", "a", "a"))
    assert one.comparisons()["ppo"]["one"]["no_verdict"] == 1, "of the prompts that it was given"
    nobody = contest([Fixed("first", "")], sft=rows("b", "b", "b"), ppo=rows("a", "a", "a"), base=rows("c", "c", "c"))
    assert nobody.comparisons()["ppo"]["first"] == {
        "win_rate": None, "length_controlled": None, "both_end": None, "no_verdict": 3
    }  # fmt: skip


def test_answers_that_were_cut_off_are_left_out_of_both_end() -> None:
    cut = rows("a", "a", "a", complete=False)
    found = contest([Fixed("first", "ab")], sft=rows("b", "b", "b"), ppo=cut, base=cut)
    assert found.comparisons()["ppo"]["first"]["both_end"] is None
    assert found.comparisons()["ppo"]["first"]["win_rate"]["mean"] == 1.0


def test_agreement_is_over_the_same_pairs_without_null_baselines() -> None:
    judges = [Fixed("first", "abc"), Fixed("second", "acb")]
    models: Mapping[str, list[list[Answer]]] = {
        "sft": rows("b", "b", "b"), "ppo": rows("a", "c", "x"), "echo": rows("a", "a", "a"),
    }  # fmt: skip
    found = contest(judges, **models).agreement()
    assert found is not None
    # a over b by both; b over c by one and c over b by the other; x by none. In both orders: 1 1, -1 -1, 1 -1, -1 1.
    # Half agree, as chance would. Alpha: 1 - 2 / (16/7), from the squared differences within and between the pairs.
    assert found["pairs"] == 2
    assert found["between"] == [
        {
            "judges": ["first", "second"],
            "pairs": 2,
            "same": 0.5,
            "kappa": pytest.approx(0),
            "alpha": pytest.approx(0.125),
        }
    ]
    assert contest(judges[:1], **models).agreement() is None


def test_kappa_is_scikits_on_both_orders_and_by_hand() -> None:
    # Of the four pairs that both judged three are alike, so 6 of 8 in both orders.
    found = between([1, 1, -1, 0, None, 1], [1, 1, -1, 1, 1, None])
    # The first judge: 3 of 1, 3 of -1, 2 ties; the second: 4 of 1, 4 of -1. By chance (3 * 4 + 3 * 4) / 64 = 3/8.
    assert (found["pairs"], found["same"]) == (4, 0.75)
    assert found["kappa"] == pytest.approx((6 / 8 - 3 / 8) / (1 - 3 / 8))
    chance = random.Random(3)
    one, other = ([chance.choice([-1, 0, 1]) for _ in range(50)] for _ in range(2))
    left, right = [*one, *(-call for call in one)], [*other, *(-call for call in other)]
    assert between(one, other)["kappa"] == pytest.approx(cohen_kappa_score(left, right))
    assert between([-call for call in one], [-call for call in other]) == pytest.approx(between(one, other)), (
        "whichever answer comes first"
    )


def test_coefficients_are_none_where_nothing_varies_or_nothing_was_judged_twice() -> None:
    assert between([0, 0], [0, 0]) == {"pairs": 2, "same": 1.0, "kappa": None, "alpha": None}
    assert between([1, None], [None, 1]) == {"pairs": 0, "same": None, "kappa": None, "alpha": None}
    assert between([1, 1], [1, 1])["kappa"] == 1.0, "two judges who both prefer the same model do agree"
    assert judge_agreement({"a": [1], "b": [1], "c": [None]})["pairs"] == 1  # type: ignore[index]


def test_several_labelers_count_for_the_side_that_they_favour() -> None:
    assert calls_of([[[1.0, 2 / 3], [0.5, None]], [], [[0.25]]]) == [1, 1, 0, None, -1]


@pytest.mark.parametrize(
    ("name", "order", "ppo", "sentence"),
    [
        ("human", "b", ["a", "a", "b"], "people judged 0 of the 2 prompts to which PPO and SFT gave different answers"),
        ("human", "ab", ["a", "a", "b"], None),
        ("human", "ab", ["ax", "ax", "ax"], None),  # the first of two answers
        ("human", "", ["b", "b", "b"], None),  # nobody is asked about equal answers
        ("llm", "b", ["a", "a", "a"], None),
    ],
)
def test_people_who_judged_other_answers_are_warned_about(
    name: str, order: str, ppo: list[str], sentence: str | None
) -> None:
    found = contest([Fixed(name, order)], sft=rows("b", "b", "b"), ppo=rows(*ppo)).unjudged()
    assert (found is None) is (sentence is None)
    assert (sentence or "") in (found or "")
