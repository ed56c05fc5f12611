"""The measurement of reward-model training: what is measured, what is made of the measurements, and that ours runs. No
peer runs here.

pytest tests/benchmarks/test_reward.py
"""

import json
import math
from pathlib import Path

import pytest

from benchmarks import reward_ours, reward_peer
from benchmarks.compare import Round, report
from benchmarks.fixture import EOS, VOCABULARY, ranked, write
from benchmarks.reward import summary, table


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompts of three short answers, with the model in its full size."""
    folder = tmp_path_factory.mktemp("fixture")
    write(folder, prompts=2, k=3, prompt_tokens=10, answer_tokens=8)
    return folder


def a_round(ours: float, ours_gib: float, peer: float, peer_gib: float) -> Round:
    return Round(
        {"cpu_seconds_a_prompt": ours, "peak_gib": ours_gib, "loaded_gib": 0.5},
        {"cpu_seconds_a_prompt": peer, "peak_gib": peer_gib, "loaded_gib": 0.5},
    )


def test_token_ids_are_the_same_every_time_and_their_lengths_lie_within_a_fifth() -> None:
    rows = ranked(prompts=20, k=9, prompt_tokens=300, answer_tokens=100)
    assert rows == ranked(prompts=20, k=9, prompt_tokens=300, answer_tokens=100)
    assert rows[:2] == ranked(prompts=2, k=9, prompt_tokens=300, answer_tokens=100)
    answers = [answer for row in rows for answer in row["answer_ids"]]
    assert (len(rows), len(answers)) == (20, 180)
    assert {len(row["prompt_ids"]) for row in rows} <= set(range(240, 361))
    assert {len(answer) for answer in answers} <= set(range(80, 120))
    assert len({len(answer) for answer in answers}) > 20
    assert {answer[-1] for answer in answers} == {EOS}
    body = {token for row in rows for token in row["prompt_ids"]} | {
        token for answer in answers for token in answer[:-1]
    }
    assert min(body) > EOS
    assert max(body) < VOCABULARY


def test_the_model_on_disk_has_16_8_million_parameters_and_the_same_weights_every_time(
    miniature: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open

    write(tmp_path, prompts=2, k=3, prompt_tokens=10, answer_tokens=8)
    for name in ("ranked.jsonl", "rm/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (miniature / name).read_bytes(), name
    with safe_open(str(miniature / "rm" / "model.safetensors"), "pt") as weights:
        assert sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()) == 16_766_208  # noqa: SIM118


def test_ours_and_the_peer_learn_from_the_same_comparisons(miniature: Path) -> None:
    rows = [json.loads(line) for line in (miniature / "ranked.jsonl").read_text().splitlines()]
    ours = [
        (item.prompt + item.answers[better], item.prompt + item.answers[worse])
        for item in reward_ours.ranking_examples(rows)
        for better, worse in item.preference_mask_KK.nonzero().tolist()
    ]
    assert ours == [(pair["chosen_ids"], pair["rejected_ids"]) for pair in reward_peer.pairs(rows)]
    assert len(ours) == 6


def test_ours_is_measured(miniature: Path) -> None:
    numbers = reward_ours.measure(miniature)
    assert 0 < numbers["cpu_seconds_a_prompt"] < 60
    assert numbers["peak_gib"] > numbers["loaded_gib"]
    assert set(numbers["versions"]) == {"python", "torch", "transformers"}


def test_ratios_are_taken_within_rounds() -> None:
    """Round 2 ran on a busy machine: 8/4 and 30/10, not the quotient of medians, 19/7."""
    found = summary([a_round(4, 1.0, 8, 2.0), a_round(10, 1.5, 30, 2.0)])
    assert (found["ours"], found["peer"], found["ratio"]) == (7, 19, 2.5)
    assert (found["ours_peak_gib"], found["peer_peak_gib"], found["memory_ratio"]) == (1.25, 2.0, 0.625)


def test_the_first_setting_is_the_headline_and_every_measurement_is_kept() -> None:
    measured = {"k9_100_100": [a_round(2, 1, 24, 2)], "k9_300_100": [a_round(2, 3, 36, 2)]}
    written = json.loads(
        json.dumps(report({name: summary(rounds) for name, rounds in measured.items()}, {"threads": 1}))
    )
    assert {name: written[name] for name in ("ours", "peer", "ratio", "memory_ratio")} == {
        "ours": 2,
        "peer": 24,
        "ratio": 12,
        "memory_ratio": 0.5,
    }
    assert written["threads"] == 1
    assert [found["ratio"] for found in written["settings"].values()] == [12, 18]
    assert written["settings"]["k9_300_100"]["rounds"] == [
        {"ours": measured["k9_300_100"][0].ours, "peer": measured["k9_300_100"][0].peer}
    ]
    assert [line.split()[:4] for line in table(written).splitlines()[1:]] == [
        ["k9_100_100", "2.00", "24.00", "12.0"],
        ["k9_300_100", "2.00", "36.00", "18.0"],
    ]
