"""The numbers of a roll-out are of its response tokens and episodes, whoever holds them, and each of them is
explained.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import distributed

from data.overlap import chrf, repeated_share
from data.records import Demonstration
from ppo.guards import GUARDS, GuardSettings
from ppo.held_out import HeldOutSettings
from ppo.metrics import mean_of, rollout_numbers, speeds
from ppo.reading import reading_numbers
from ppo.rollout import Rollout
from ppo.train import train
from tests.ppo.conftest import CHUNKS, PROMPTS, TEAM, Chain, small

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = [5, 1, 7, 3]
RESPONSES = [[3, 4, 3, 4, 3], [9], [1, 2, 3, 4, 1, 2, 3], [9, 9, 2]]
ENDED = [True, True, False, True]
GARBAGE = float("nan")


def rollout(rows: list[int]) -> Rollout:
    """Some of four episodes; what stands in padding is no number, so that nothing that touches it goes unseen."""
    generator = torch.Generator().manual_seed(0)
    width = max(LENGTHS[row] for row in rows)
    drawn = {
        name: torch.randn(4, 7, generator=generator, dtype=torch.float64)
        for name in ("old", "ref", "values", "rewards", "advantages")
    }
    mask_BT = torch.arange(width) < torch.tensor([LENGTHS[row] for row in rows])[:, None]
    cut = {name: found[rows, :width].masked_fill(~mask_BT, GARBAGE) for name, found in drawn.items()}
    return Rollout(
        prompts=[[1, 2]] * len(rows),
        responses=[RESPONSES[row] for row in rows],
        ended_B=torch.tensor([ENDED[row] for row in rows]),
        scores_B=torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)[rows],
        logprobs_BT=cut["old"],
        ref_logprobs_BT=cut["ref"],
        values_BT=cut["values"],
        mask_BT=mask_BT,
        rewards_BT=cut["rewards"].nan_to_num(0.0),
        advantages_BT=cut["advantages"],
        returns_BT=cut["rewards"] + cut["values"],
    )


def expected() -> dict[str, float]:
    """The oracle: plain Python, episode by episode and token by token."""
    whole = rollout([0, 1, 2, 3])
    tokens = [(row, column) for row, length in enumerate(LENGTHS) for column in range(length)]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def variance(values: list[float]) -> float:
        return mean([(value - mean(values)) ** 2 for value in values])

    ratios = {place: float(whole.logprobs_BT[place] - whole.ref_logprobs_BT[place]) for place in tokens}
    scores = whole.scores_B.tolist()
    returns, values = ([float(x_BT[place]) for place in tokens] for x_BT in (whole.returns_BT, whole.values_BT))
    return {
        "score": mean(scores),
        "score_std": math.sqrt(variance(scores)),
        "score_scaled": mean(scores) / 2,
        "reward": sum(float(whole.rewards_BT[place]) for place in tokens) / 4,
        "kl": sum(ratios.values()) / 4,
        "kl_k3": sum(math.exp(-ratio) - 1 + ratio for ratio in ratios.values()) / 4,
        "kl_per_token": sum(ratios.values()) / 16,
        "length": 4.0,
        "ended": 0.75,
        # [3 4 3 4 3] has no 4 tokens twice; [1 2 3 4 1 2 3] has none either: every run of four is new.
        "repetition": 0.0,
        "distinct": 1.0,
        "tokens": 16.0,
        "value_mean": mean(values),
        "explained_variance": 1 - variance([r - v for r, v in zip(returns, values, strict=True)]) / variance(returns),
    }


def numbers_of(rows: list[int]) -> dict[str, float]:
    found = rollout(rows)
    return rollout_numbers(found, found.scores_B / 2)


def test_numbers_are_means_over_episodes_and_tokens_and_never_over_padding():
    found, by_hand = numbers_of([0, 1, 2, 3]), expected()
    assert found.keys() == by_hand.keys()
    # Double precision throughout; variances are differences of squares of order 10, so they lose a digit.
    assert found == pytest.approx(by_hand, rel=1e-12, abs=1e-13)


def _one_of_two(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(json.dumps(numbers_of([[0, 2], [1, 3]][rank])))
    distributed.destroy_process_group()


def test_two_processes_log_what_one_does(tmp_path: Path):
    multiprocessing.start_processes(_one_of_two, (tmp_path,), nprocs=2, start_method="fork")
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(expected(), rel=1e-12, abs=1e-13)


def test_scores_that_are_not_scaled_are_logged_once():
    assert "score_scaled" not in rollout_numbers(rollout([0, 1]))


def test_equal_scores_have_no_spread_and_constant_returns_nothing_to_explain():
    found = rollout([0, 1, 2, 3])
    found.scores_B = torch.full((4,), 0.1)
    found.returns_BT = torch.full_like(found.returns_BT, 2.0)
    numbers = rollout_numbers(found)
    assert (numbers["score_std"], numbers["explained_variance"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    "name", ["scores_B", "logprobs_BT", "ref_logprobs_BT", "values_BT", "rewards_BT", "returns_BT"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_number_that_is_none_shows(name: str, value: float):
    found = rollout([0, 1, 2, 3])
    spoilt = getattr(found, name).clone()
    spoilt[(2, 3) if spoilt.dim() == 2 else 2] = value
    setattr(found, name, spoilt)
    assert not all(map(math.isfinite, rollout_numbers(found).values()))


def test_repetition_and_distinct_responses_are_counted():
    found = rollout([0, 1, 2, 3])
    found.responses = [[5, 6] * 3 + [7], [9], [9], [1, 1, 1, 1, 1, 1]]
    numbers = rollout_numbers(found)
    # Runs of four: 5656 6565 5656 6567 (one of four is a repeat), none, none, 1111 three times (two of three are).
    assert numbers["repetition"] == pytest.approx((1 / 4 + 0 + 0 + 2 / 3) / 4)
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


def test_every_number_that_a_run_logs_is_explained_and_nothing_else_is(chains: Callable[[str], Chain], tmp_path: Path):
    chain = chains("lora")
    config = small(ptx_coef=1.0, held_out=HeldOutSettings(every=1), score_clip=5.0, total_episodes=8)
    asked = [Demonstration(prompt=f"Say {word}", completion=word) for word in ("cat", "snow")]
    train(
        config,
        chain.config,
        chain.models(),
        chain.tokenizer,
        PROMPTS,
        CHUNKS,
        0,
        TEAM,
        tmp_path,
        held_out_prompts=asked,
    )
    # A reward model with a context of its own may cut responses; tests/ppo/test_reading.py has one.
    rows = logged(tmp_path / "metrics.jsonl") | set(reading_numbers(torch.tensor([True, False])))
    assert rows == explained("ppo/metrics.jsonl")
    assert logged(tmp_path / "timings.jsonl") | {"step"} == explained("ppo/timings.jsonl") | {"step"}
    assert logged(tmp_path / "held_out.jsonl") | {"step"} == explained("ppo/held_out.jsonl") | {"step"}


def test_the_defaults_of_the_guards_are_those_that_are_explained():
    text = (ROOT / "docs" / "metrics.md").read_text()
    table = text[text.index("guards (`ppo.guards`)") :]
    for field in fields(GuardSettings):
        if field.name in GUARDS:
            assert re.search(rf"^\| `{field.name}` \|.*\| `{field.default}` \|$", table, re.MULTILINE), field.name
        else:
            assert f"`{field.name}` = {field.default:g} " in table, field.name
