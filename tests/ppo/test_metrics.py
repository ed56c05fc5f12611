"""The metrics of a roll-out against plain Python, on one process and on two; and each of them is in docs/metrics.md."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher

from data.overlap import chrf, repeated_share
from data.records import Demonstration
from modeling.accelerator import make_accelerator
from modeling.generation import Generation
from ppo.config import HeldOutSettings
from ppo.experience import Experience, Rollout, Scores
from ppo.metrics import mean_of, rollout_metrics, speeds
from ppo.monitors import MONITORS, MonitorSettings
from ppo.trainer import PPOData
from tests.ppo.conftest import ALONE, CHUNKS, PROMPTS, Chain, small

ROOT = Path(__file__).resolve().parents[2]
RESPONSES = [[3, 4, 3, 4, 3], [9], [1, 2, 3, 4, 1, 2, 3], [9, 9, 2]]
ENDED = [True, True, False, True]
TRUNCATED = [False, False, True, False]
SCORES = [1.0, -2.0, 0.5, 3.0]
ALL = [0, 1, 2, 3]


def tokens_of(row: int) -> dict[str, list[float]]:
    """Random numbers for each token of an episode."""
    generator = torch.Generator().manual_seed(row)
    names = ("logprobs", "ref_logprobs", "values", "rewards", "returns")
    size = (len(RESPONSES[row]),)
    return {name: torch.randn(size, generator=generator, dtype=torch.float64).tolist() for name in names}


def experience(rows: list[int]) -> Experience:
    """Some of the four episodes."""
    x_R = {
        name: torch.tensor([value for row in rows for value in tokens_of(row)[name]], dtype=torch.float64)
        for name in tokens_of(0)
    }
    responses = [Generation(RESPONSES[row], None, ENDED[row]) for row in rows]
    rewards_B = torch.tensor([SCORES[row] for row in rows], dtype=torch.float64)
    truncated_B = torch.tensor([TRUNCATED[row] for row in rows])
    rollout = Rollout([PROMPTS[0]] * len(rows), [[1, 2]] * len(rows), responses, ALONE.device)
    scores = Scores(rewards_B, truncated_B, x_R["logprobs"], x_R["ref_logprobs"], x_R["values"])
    return Experience(rollout, scores, rewards_B / 2, x_R["rewards"], torch.zeros_like(x_R["rewards"]), x_R["returns"])


def expected() -> dict[str, float]:
    """The oracle: plain Python, episode by episode and token by token."""
    found: dict[str, list[float]] = {
        name: [value for row in ALL for value in tokens_of(row)[name]] for name in tokens_of(0)
    }

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def variance(values: list[float]) -> float:
        return mean([(value - mean(values)) ** 2 for value in values])

    ratios = [new - old for new, old in zip(found["logprobs"], found["ref_logprobs"], strict=True)]
    returns, values = found["returns"], found["values"]
    return {
        "score": mean(SCORES),
        "score_std": math.sqrt(variance(SCORES)),
        "score_scaled": mean(SCORES) / 2,
        "reward": sum(found["rewards"]) / 4,
        "reward_truncated": 0.25,
        "kl": sum(ratios) / 4,
        "kl_k3": sum(math.exp(-ratio) - 1 + ratio for ratio in ratios) / 4,
        "kl_per_token": sum(ratios) / 16,
        "length": 4.0,
        "ended": 0.75,
        # No response has the same four tokens twice.
        "repetition": 0.0,
        "distinct": 1.0,
        "tokens": 16.0,
        "value_mean": mean(values),
        "explained_variance": 1 - variance([r - v for r, v in zip(returns, values, strict=True)]) / variance(returns),
    }


def test_metrics_are_means_over_episodes_and_tokens():
    found, by_hand = rollout_metrics(experience(ALL)), expected()
    assert found.keys() == by_hand.keys()
    # Double precision throughout; variances are differences of squares of order 10, so they lose a digit.
    assert found == pytest.approx(by_hand, rel=1e-12, abs=1e-13)


def _one_of_two(folder: Path) -> None:
    rank = make_accelerator("cpu").process_index
    (folder / f"{rank}.json").write_text(json.dumps(rollout_metrics(experience([[0, 2], [1, 3]][rank]))))


def test_two_processes_log_what_one_does(tmp_path: Path):
    debug_launcher(_one_of_two, (tmp_path,), num_processes=2)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(expected(), rel=1e-12, abs=1e-13)


def test_scores_that_are_not_scaled_are_logged_once():
    found = experience([0, 1])
    found.scaled_B = None
    assert "score_scaled" not in rollout_metrics(found)


def test_a_term_of_the_reward_may_have_any_name():
    found = experience(ALL)
    found.scores.parts = {"model": found.scores.rewards_B, "square": torch.full((4,), 7.0)}
    numbers = rollout_metrics(found)
    assert numbers["score_square"] == 7.0
    assert numbers["score_std"] == pytest.approx(expected()["score_std"], rel=1e-12)


def test_equal_scores_have_no_spread_and_constant_returns_nothing_to_explain():
    found = experience(ALL)
    found.scores.rewards_B = torch.full((4,), 0.1)
    found.returns_R = torch.full_like(found.returns_R, 2.0)
    numbers = rollout_metrics(found)
    assert (numbers["score_std"], numbers["explained_variance"]) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["rewards_B", "logprobs_R", "ref_logprobs_R", "values_R", "rewards_R", "returns_R"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_value_that_is_not_finite_makes_a_metric_not_finite(name: str, value: float):
    found = experience(ALL)
    getattr(found.scores if hasattr(found.scores, name) else found, name)[2] = value
    assert not all(map(math.isfinite, rollout_metrics(found).values()))


def test_repetition_and_distinct_responses_are_counted():
    found = experience(ALL)
    found.rollout.responses = [Generation(ids, None, True) for ids in ([5, 6] * 3 + [7], [9], [9], [1] * 7)]
    numbers = rollout_metrics(found)
    # Runs of four: 5656 6565 5656 6567 (one of four is a repeat), none, none, 1111 four times (three are).
    assert numbers["repetition"] == pytest.approx((1 / 4 + 0 + 0 + 3 / 4) / 4)
    assert numbers["distinct"] == 3 / 4


def test_repeated_runs_of_words_and_of_tokens():
    assert repeated_share(["a", "b", "c", "a", "b", "c"], 3) == pytest.approx(1 / 4)
    assert [repeated_share(text.split(), 3) for text in ("", "a", "a b", "a b c")] == [0.0] * 4
    assert repeated_share([1] * 10, 4) == pytest.approx(6 / 7)


def test_chrf_is_one_for_the_reference_and_nothing_for_nothing():
    assert chrf("The sea is blue.", "The sea is blue.") == pytest.approx(1.0)
    assert chrf("", "The sea is blue.") == chrf("xyz", "The sea is blue.") == 0.0
    assert 0 < chrf("The sea", "The sea is blue.") < 1


def test_minibatches_are_averaged_and_their_largest_ratio_kept():
    rows = [
        {"value_loss": 1.0, "ratio_max": 1.5},
        {"value_loss": 2.0, "ratio_max": 4.0},
        {"value_loss": 6.0, "ratio_max": 2.0},
    ]
    assert mean_of(rows) == {"value_loss": 3.0, "ratio_max": 4.0}
    for place in range(3):
        spoilt = [dict(row) for row in rows]
        spoilt[place] = {"value_loss": math.nan, "ratio_max": math.nan}
        assert all(map(math.isnan, mean_of(spoilt).values()))


def test_speed_is_tokens_a_second():
    assert speeds(1000, 2.0, 5.0) == {"rollout_tokens_per_second": 500.0, "tokens_per_second": 200.0}
    assert math.isfinite(speeds(1000, 0.0, 0.0)["tokens_per_second"])


def explained(file: str) -> set[str]:
    """Names in the first column of the table in docs/metrics.md whose heading names the file."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    section = re.search(rf"^## [^\n]*`{re.escape(file)}`(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, file
    return {
        name
        for line in section[1].splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }


def logged(path: Path) -> set[str]:
    return {name for line in path.read_text().splitlines() for name in json.loads(line)}


def test_docs_explain_exactly_the_metrics_that_a_run_logs(chains: Callable[[str], Chain], tmp_path: Path):
    config = small(ptx_coef=1.0, held_out=HeldOutSettings(every=1), score_clip=5.0, total_episodes=8)
    held_out = [Demonstration(prompt=f"Say {word}", completion=word) for word in ("cat", "snow")]
    chains("lora").trainer(tmp_path, config, data=PPOData(PROMPTS, CHUNKS, held_out)).train()
    assert logged(tmp_path / "metrics.jsonl") == explained("ppo/metrics.jsonl")
    assert logged(tmp_path / "timings.jsonl") | {"step"} == explained("ppo/timings.jsonl") | {"step"}
    assert logged(tmp_path / "held_out.jsonl") | {"step"} == explained("ppo/held_out.jsonl") | {"step"}


def test_docs_give_the_defaults_of_the_monitors():
    text = (ROOT / "docs" / "metrics.md").read_text()
    table = text[text.index("monitors (`ppo.monitors`)") :]
    for field in fields(MonitorSettings):
        if field.name in MONITORS:
            assert re.search(rf"^\| `{field.name}` \|.*\| `{field.default}` \|$", table, re.MULTILINE), field.name
        else:
            assert f"`{field.name}` = {field.default:g} " in table, field.name
