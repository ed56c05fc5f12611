"""The fits of the KL sweep against planted curves, and the contents of both sweep.json against numbers by hand."""

import math

import numpy as np
import pytest

from data.intervals import Bootstrap
from evaluation.compare import Answer
from evaluation.sweeps.config import SweepKLConfig, SweepPtxConfig
from evaluation.sweeps.fits import Curve, Form, peak
from evaluation.sweeps.kl import Snapshot, kl_sweep
from evaluation.sweeps.measure import Measured, with_gold
from evaluation.sweeps.ptx import Point, ptx_sweep

PLANTED = {"best_of_n": lambda d: d * (1.5 - 0.6 * d), "rl": lambda d: d * (0.8 - 0.5 * math.log(d))}
TRUE = {"best_of_n": (1.5, 0.6), "rl": (0.8, 0.5)}
PROMPTS, USERS = 80, 10
D = [0.4, 0.8, 1.2, 1.8, 2.5, 3.2]


def planted(form: Form, chance: np.random.Generator | None = None) -> Curve:
    """A curve of this form; with noise in score and KL, of which each user has a share of her own."""
    kl_NP = np.repeat(np.square(D)[:, None], PROMPTS, axis=1)
    gain_NP = np.repeat([[PLANTED[form](d)] for d in D], PROMPTS, axis=1)
    if chance is not None:
        user_P = np.arange(PROMPTS) % USERS
        # An effect in proportion to d is an effect on alpha.
        gain_NP = gain_NP + np.array(D)[:, None] * chance.normal(0, 0.3, USERS)[user_P]
        gain_NP = gain_NP + chance.normal(0, 0.2, gain_NP.shape)
        kl_NP = kl_NP * (1 + chance.normal(0, 0.1, kl_NP.shape))
    return Curve(form, kl_NP, gain_NP)


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_a_fit_finds_the_planted_parameters_and_where_the_curve_peaks(form: Form) -> None:
    found = planted(form).fit(Bootstrap(20))
    assert (found["alpha"]["mean"], found["beta"]["mean"]) == pytest.approx(TRUE[form], abs=1e-9)
    assert found["rmse"] == pytest.approx(0, abs=1e-9)
    grid = np.linspace(0.01, 4, 40_000)
    top = grid[np.argmax([PLANTED[form](d) for d in grid])]
    assert found["peak"] == pytest.approx(top, abs=1e-3)


def test_a_curve_that_still_rises_where_it_ends_has_no_peak() -> None:
    rising = Curve("best_of_n", np.full((2, 3), [[0.25], [1.0]]), np.full((2, 3), [[0.5 * 1.2], [0.9]]))
    assert rising.fit(Bootstrap(5))["peak"] is None, "its maximum is at d > 1"
    assert peak("best_of_n", 1.0, -0.1) is peak("rl", 1.0, 0.0) is None


def test_intervals_over_users_cover_the_planted_parameters_and_those_over_prompts_do_not() -> None:
    chance, covered = np.random.default_rng(1), {"users": [0, 0], "prompts": [0, 0]}
    runs = 40
    for _ in range(runs):
        curve = planted("rl", chance)
        for unit, users in (("users", [p % USERS for p in range(PROMPTS)]), ("prompts", None)):
            found = curve.fit(Bootstrap(100, users))
            for place, name in enumerate(("alpha", "beta")):
                covered[unit][place] += found[name]["low"] <= TRUE["rl"][place] <= found[name]["high"]
    # In 60 simulations they cover alpha in 95% and beta in 92%; of 40, 33 or more do with a probability of 0.97.
    assert min(covered["users"]) >= 33, covered
    assert covered["prompts"][0] < 28, "prompts of a user are not independent"


def answer(proxy: float, gold: float, chrf: float = 0.5, tokens: int = 4) -> Answer:
    parts = {"proxy": proxy, "score": gold, "gold": gold, "chrf": chrf, "complete": 1.0}
    return Answer(text="", complete=True, tokens=tokens, parts=parts)


SFT = Measured(
    answers=[[answer(0, 1), answer(2, 5), answer(4, 3)], [answer(1, 0), answer(3, 0), answer(5, 6)]],
    kl=[0.0, 0.0], losses=[2.0, 4.0], documents=[0, 1], users=["a", "b"],
)  # fmt: skip
POLICY = Measured(
    answers=[[answer(3, 5), answer(5, 3)], [answer(6, 1), answer(6, 5)]],
    kl=[3.0, 5.0], losses=[2.5, 4.1], documents=[0, 1], users=["a", "b"],
)  # fmt: skip


def test_scores_are_relative_to_sfts_mean_on_the_same_prompts_and_the_proxy_chooses() -> None:
    found = kl_sweep(SFT, [Snapshot("ppo", 4, POLICY)] * 3, Bootstrap(50, SFT.users))
    row, (first, second, third) = found["rl"][0], found["best_of_n"]
    assert row["d"] == 2.0
    assert (row["proxy"]["mean"], row["gold"]["mean"]) == (2.5, 1.0), "(4 - 2 + 6 - 3) / 2 and (4 - 3 + 3 - 2) / 2"
    assert (first["d"], first["proxy"]["mean"], first["gold"]["mean"]) == (0, 0, 0), "best of 1 is SFT"
    # Of two of the three answers the proxy chooses the second with 1/3, the third with 2/3.
    assert second["gold"]["mean"] == pytest.approx(((5 + 2 * 3) / 3 - 3 + (0 + 2 * 6) / 3 - 2) / 2)
    assert third["proxy"]["mean"] == pytest.approx((4 - 2 + 5 - 3) / 2)
    assert third["kl"] == pytest.approx(math.log(3) - 2 / 3)
    assert set(found["fits"]["rl"]) == {"proxy", "gold", "chrf"}
    assert row["pretraining_loss"]["mean"] == pytest.approx(3.3)


def test_a_point_is_the_mean_over_its_seeds_and_the_loss_is_compared_text_by_text() -> None:
    found = ptx_sweep(SFT, [Point(1.0, 0.02, {0: POLICY, 1: SFT})], 0.0, Bootstrap(50, SFT.users))
    (point,) = found["points"]
    assert point["pretraining_loss_change"]["mean"] == pytest.approx((0.5 + 0.1) / 2 / 2)
    assert point["perplexity"] == pytest.approx(math.exp((2.25 + 4.05) / 2))
    assert point["proxy_change"]["mean"] == pytest.approx(((4 + 2) / 2 - 2 + (6 + 3) / 2 - 3) / 2)
    assert point["kl"]["mean"] == pytest.approx(2.0)
    assert point["seeds"]["1"] == {"proxy": 2.5, "pretraining_loss": 3.0}
    assert (found["sft"]["proxy"]["mean"], found["sft"]["perplexity"]) == (2.5, pytest.approx(math.exp(3)))
    # The rubric's preference of each of 5 answers of both seeds over each of 3: (4.5 + 6.5) / 15 and (9.0) / 15.
    ours = [[5, 3, 1, 5, 3], [1, 5, 0, 0, 6]]
    theirs = [[1, 5, 3], [0, 0, 6]]
    rates = [
        sum((a > b) + 0.5 * (a == b) for a in row for b in other) / 15 for row, other in zip(ours, theirs, strict=True)
    ]
    assert point["win_rate"]["mean"] == pytest.approx(sum(rates) / 2)


def test_the_gold_score_is_that_of_the_given_model_and_otherwise_the_rubrics() -> None:
    rows = [[Answer("", True, 1, {"score": 0.7}), Answer("", True, 1, {"score": 0.2})]]
    assert [a.parts["gold"] for a in with_gold(rows, None)[0]] == [0.7, 0.2]
    assert [a.parts["gold"] for a in with_gold(rows, [[-3.0, 2.0]])[0]] == [-3.0, 2.0]


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sweep_kl.kl_coef is for PPO runs that the sweep trains: set sweep_kl.seeds"):
        SweepKLConfig(kl_coef=0.0).validate()
    with pytest.raises(ValueError, match=r"sweep_kl.best_of_n=2 must be at least 3"):
        SweepKLConfig(best_of_n=2).validate()
    with pytest.raises(ValueError, match=r"sweep_ptx.gammas=\[1.0, 1.0\] contains a value twice"):
        SweepPtxConfig(gammas=[1.0, 1.0]).validate()
    with pytest.raises(ValueError, match="has nothing to train"):
        SweepPtxConfig(gammas=[], betas=[]).validate()
