"""The reward model's page shows accuracy.json's numbers in their places, stands alone, and does without what the file
lacks.

pytest tests/evaluation/test_reward_page.py
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from evaluation.reward_model import report
from reports.reward import figures, write_reward_page
from tests.evaluation.rankings import ranked

PICTURES = ["calibration", "epochs", "learning_curve"]


def around(mean: float, width: float = 0.05, n: int = 700) -> dict[str, float]:
    return {"mean": mean, "low": mean - width, "high": mean + width, "n": n}


def judge(all_pairs: float, easier: float | None = None) -> dict[str, Any]:
    return {
        "accuracy": around(all_pairs, 0.02),
        "best_vs_worst": None if easier is None else around(easier),
        "difference": around(0.7123 - all_pairs, 0.03),
    }


def split(**changed: Any) -> dict[str, Any]:
    """What evaluation/reward_model.py says, in numbers that tell themselves apart."""
    one = {
        "low": 0.52,
        "high": 0.7,
        "predicted": 0.61,
        "observed": 0.58,
        "observed_low": 0.5,
        "observed_high": 0.66,
        "pairs": 350,
    }
    return {
        **{key: value for key, value in judge(0.7123, 0.8457).items() if key != "difference"},
        "best_baseline": "my_own_judge",
        "score_mean": -0.21,
        "score_std": 1.234,
        "prompts": 120,
        "users": 30,
        "pairs": 700,
        "baselines": {
            "longest": judge(0.5432, 0.5777),
            "shortest": judge(0.4568, 0.4223),
            "random": judge(0.5011, 0.4889),
            "sft_likelihood": judge(0.6021),
            "my_own_judge": judge(0.6222, 0.6333),
        },
        "by_k": [
            {"k": 4, "pairs": 300, "accuracy": around(0.6811)},
            {"k": 9, "pairs": 400, "accuracy": around(0.7391)},
        ],
        "by_distance": [
            {"distance": 1, "pairs": 444, "accuracy": around(0.6411)},
            {"distance": 2, "pairs": 256, "accuracy": around(0.8311)},
        ],
        "calibration": {
            "bins": [
                one,
                one
                | {
                    "low": 0.73,
                    "high": 1.0,
                    "predicted": 0.84,
                    "observed": 0.81,
                    "observed_low": 0.7,
                    "observed_high": 0.9,
                },
            ],
            "expected_calibration_error": 0.0347,
            "loss": 0.5678,
            "temperature": 1.357,
        },
        "ties": {"pairs": 89, "mean_margin_tied": 0.4321, "mean_margin_strict": 0.9876, "auc": 0.7272},
        "length": {
            "spearman": around(0.3131),
            "labeler_spearman": None,
            "accuracy_longer_is_better": around(0.7474),
            "accuracy_shorter_is_better": around(0.6543),
        },
        **changed,
    }


def whole() -> dict[str, Any]:
    epochs = [
        {
            "epoch": epoch,
            "train": {"accuracy": 0.7 + epoch / 50, "loss": 0.5123},
            "valid": {"accuracy": 0.6789, "loss": 0.5 + epoch / 100},
        }
        for epoch in (1, 2, 3)
    ]
    curve = [
        {"fraction": share, "prompts": int(share * 900), "accuracy": around(0.5 + share / 5)}
        for share in (0.25, 0.5, 1.0)
    ]
    left_out = {"train": {"all_tied": 11, "too_long": 2}, "test": {"all_tied": 3, "too_long": 0}}
    valid = split(by_k=[{"k": 5, "pairs": 33, "accuracy": around(0.6123)}])
    return {
        "bias": 0.3111,
        "left_out": left_out,
        "valid": valid,
        "test": split(),
        "epochs": epochs,
        "learning_curve": curve,
    }


def pages(out: Path, evaluation: dict[str, Any]) -> tuple[str, str]:
    write_reward_page(out, "fake", evaluation)
    return (out / "reward.html").read_text(), (out / "reward.md").read_text()


def text_of(html: str) -> str:
    """What a reader sees, tags taken as gaps."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split("<body>")[1])).replace("&#39;", "'")


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reports.page.png", lambda figure: b"")


def test_numbers_stand_in_their_places(tmp_path: Path, unpainted: None) -> None:
    html, markdown = pages(tmp_path, whole())
    seen = text_of(html)
    assert (
        "orders 71.2% of 700 pairs as the labeler did (95% interval 69.2% to 73.2%; 120 prompts, held-out test)" in seen
    )
    model = "71.2% (69.2% to 73.2%) | 84.6% (79.6% to 89.6%) | –"
    assert f"| Reward model | {model} | {model} |" in markdown
    best = (
        "It beats the best simple baseline: 71.2% against 62.2% (my own judge), a paired difference of +9.0 "
        "points (+6.0 to +12.0)."
    )
    assert f"{best} The best baseline is chosen on these same pairs, which favours it" in seen
    assert best in markdown
    assert "54.3% 52.3% to 56.3% 57.8% 52.8% to 62.8% +16.9 points +13.9 to +19.9" in seen
    assert "Held-out test, best vs worst (easier)" in markdown
    assert "Choosing the longest answer in tokens 54.3% 52.3% to 56.3% 57.8%" in seen
    assert "Choosing the shortest answer in tokens 45.7%" in seen
    assert "Choosing at random chance level on these pairs 50.1%" in seen
    assert (
        "Choosing what is more likely under SFT log-probability of the answer 60.2% 58.2% to 62.2% – +11.0 "
        "points +8.0 to +14.0 60.2%" in seen
    )
    assert "my own judge 62.2%" in seen
    # Validation has prompts of five answers only, the test set of four and nine.
    assert "| 4 | 68.1% (63.1% to 73.1%) | 300 | – | – |" in markdown
    assert "| 5 | – | – | 61.2% (56.2% to 66.2%) | 33 |" in markdown
    assert "| 2 | 83.1% (78.1% to 88.1%) | 256 | 83.1% (78.1% to 88.1%) | 256 |" in markdown
    assert "Expected calibration error mean gap between confidence and accuracy 3.5% 3.5%" in seen
    assert "overconfident; below: underconfident 1.36 1.36" in seen
    assert "Ranking loss chance: 0.693 0.568" in seen
    assert "Tied pairs not trained on 89" in seen
    assert "tied 0.432 0.432" in seen
    assert "strict 0.988 0.988" in seen
    assert "a tied pair's chance: 50% 72.7%" in seen
    assert "Spearman's correlation within a prompt 0.313 0.263 to 0.363" in seen
    assert "the longer the better – –" in seen
    assert "choosing the longest: 100% 74.7%" in seen
    assert "choosing the longest: 0% 65.4%" in seen
    assert "a mean of -0.210 and a standard deviation of 1.23." in seen
    # 1.234 / 0.02
    assert (
        "one standard deviation of score equals the penalty for 1.23 / kl_coef nats of KL per answer: at the paper's "
        "kl_coef of 0.02, 61.7 nats" in seen
    )
    assert "saved model's logit minus config.score_bias (0.311)" in seen.replace("&#39;", "'")
    assert "| 2 | 74.0% | 67.9% | 0.512 | 0.520 |" in markdown
    assert "| 25.0% | 225 | 55.0% (50.0% to 60.0%) |" in markdown
    assert "train 11 2" in seen
    assert "None" not in seen


def test_it_stands_alone(tmp_path: Path) -> None:
    html, markdown = pages(tmp_path, whole())
    assert "http" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    assert html.count("<img ") == len(re.findall(r'<img src="data:image/png;base64,', html)) == len(PICTURES)
    assert sorted(re.findall(r"\]\(reward_pictures/(\w+)\.png\)", markdown)) == PICTURES
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        ["reward.html", "reward.md", *(f"{name}.png" for name in PICTURES)]
    )


@pytest.mark.parametrize(
    ("missing", "headings"),
    [
        ("bias", []),
        ("left_out", ["Left out"]),
        ("epochs", ["Epochs"]),
        ("learning_curve", ["Learning curve"]),
        ("test", []),
        ("valid", []),
    ],
)
@pytest.mark.parametrize("how", ["absent", "empty", "none"])
def test_a_missing_part_leaves_its_section_out(
    tmp_path: Path, unpainted: None, missing: str, headings: list[str], how: str
) -> None:
    evaluation = whole()
    given = evaluation.pop(missing)
    if how != "absent" and missing != "bias":
        evaluation[missing] = type(given)() if how == "empty" else None
    everything = re.findall(r"^##+ (.*)$", pages(tmp_path / "whole", whole())[1], re.MULTILINE)
    html, markdown = pages(tmp_path / "less", evaluation)
    assert re.findall(r"^##+ (.*)$", markdown, re.MULTILINE) == [title for title in everything if title not in headings]
    assert ("config.score_bias" in text_of(html)) == (missing != "bias")
    assert ("Held-out test" in markdown) == (missing != "test")
    assert ("Validation" in markdown) == (missing != "valid")


def test_without_held_out_rankings_it_says_so(tmp_path: Path, unpainted: None) -> None:
    html, markdown = pages(tmp_path, {})
    assert "No held-out rankings were judged." in text_of(html)
    assert not re.findall(r"^##", markdown, re.MULTILINE)
    assert "<img " not in html
    assert "<h2" not in html


def test_parts_of_a_report_that_say_nothing_are_left_out(tmp_path: Path, unpainted: None) -> None:
    bare = split(
        by_distance=[], ties=None, best_vs_worst=None, calibration=split()["calibration"] | {"temperature": None}
    )
    html, markdown = pages(tmp_path, {"test": bare})
    assert "By distance" not in markdown
    assert "Ties" not in markdown
    assert "Reward model 71.2% 69.2% to 73.2% –" in text_of(html)
    assert "below: underconfident –" in text_of(html)


def test_a_true_report_can_be_shown_as_it_comes_from_the_file(tmp_path: Path) -> None:
    items = [ranked([5, 4, 3, 3], [1, 2, 2, None]), ranked([1, 2], [1, 2]), ranked([2, 2, 9], [3, 1, 2])]
    said = json.loads(json.dumps(report([[1.0, 2.0, 0.0, 4.0], [1.0, 0.0], [0.0, 1.0, 0.5]], items, resamples=50)))
    html, _ = pages(tmp_path, {"bias": 0.0, "left_out": {}, "test": said})
    assert "of 6 pairs" in text_of(html)
    assert html.count("<img ") == 1


def test_names_cannot_break_out(tmp_path: Path, unpainted: None) -> None:
    write_reward_page(
        tmp_path, "<script>x</script>", {"test": split(baselines={"<script>": judge(0.5)}, best_baseline="<script>")}
    )
    assert "<script" not in (tmp_path / "reward.html").read_text()


def points(figure: Figure, panel: int) -> list[tuple[list[float], list[float]]]:
    return [
        (list(line.get_xdata()), list(line.get_ydata()))
        for line in figure.axes[panel].get_lines()
        if line.get_marker() not in ("None", "")
    ]


def test_the_calibration_curve_is_observed_against_predicted_with_its_interval() -> None:
    drawn = figures(whole())["calibration"]
    assert [axes.get_title(loc="left") for axes in drawn.axes] == [
        "Calibration, held-out test",
        "Calibration, validation",
    ]
    assert points(drawn, 0) == [([0.61, 0.84], [0.58, 0.81])]
    (bars,) = drawn.axes[0].collections
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx([0.5, 0.66]), pytest.approx([0.7, 0.9])]
    low, high = drawn.axes[0].get_ylim()
    assert low < 0.5 < 1 < high


def test_curves_by_epoch_tell_training_from_validation() -> None:
    drawn = figures(whole())["epochs"]
    assert points(drawn, 0) == [([1, 2, 3], pytest.approx([0.72, 0.74, 0.76])), ([1, 2, 3], [0.6789] * 3)]
    assert points(drawn, 1) == [([1, 2, 3], [0.5123] * 3), ([1, 2, 3], pytest.approx([0.51, 0.52, 0.53]))]
    assert [text.get_text() for text in drawn.axes[0].get_legend().get_texts()] == ["training", "validation", "chance"]


def test_the_learning_curve_goes_from_few_prompts_to_all() -> None:
    turned = whole() | {"learning_curve": whole()["learning_curve"][::-1]}
    for evaluation in (whole(), turned):
        drawn = figures(evaluation)["learning_curve"]
        assert ([225, 450, 900], pytest.approx([0.55, 0.6, 0.7])) in points(drawn, 0)
        assert [label.get_text() for label in drawn.axes[0].get_xticklabels()] == ["225\n25%", "450\n50%", "900\n100%"]


def test_an_epoch_without_one_of_the_splits_draws_the_other() -> None:
    drawn = figures({"epochs": [{"epoch": 1, "train": {"accuracy": 0.6, "loss": 0.6}}]})["epochs"]
    assert drawn is not None
    assert points(drawn, 0) == [([1], [0.6])]
