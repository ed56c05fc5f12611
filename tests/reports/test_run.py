"""The report shows the run folder's numbers in their places, stands alone, and does without what a run lacks.

pytest tests/reports/test_run.py
"""

import json
import math
import re
import shutil
from html import unescape
from pathlib import Path

import pytest

from reports.formats import change
from reports.run import Results, reward_metric, write_report
from tests.reports.fake_run import HOSTILE, around, fake_run, put

PICTURES = ["over_optimisation", "parts", "ppo", "reward", "sft", "win_rates"]


def rendered(run: Path, out: Path, samples: int = 4) -> tuple[str, str]:
    write_report(run, out, "fake", samples)
    return (out / "index.html").read_text(), (out / "report.md").read_text()


def text_of(html: str) -> str:
    """What a reader sees, tags taken as gaps."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html.split("<body>")[1])))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def reports(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    out = tmp_path_factory.mktemp("report")
    return *rendered(run, out), out


def test_numbers_stand_in_their_places(reports):
    html, markdown, _ = reports
    seen = text_of(html)
    sentence = (
        "PPO is better than SFT by the rubric: PPO won 63.5% of comparisons (95% interval 58.5% to 68.5%, 120 held-out "
        "prompts); the win comes from the bonus for ending: without it no difference is shown (52.6%, 47.1% to 58.1%)."
    )
    assert sentence in seen
    assert f"**{sentence}**" in markdown
    assert (
        "open PPO wins among pairs where both answers end by themselves 49.5% (43.3% to 55.7%) over 88 prompts" in seen
    )
    assert "holds PPO wins by the rubric without closeness to the reference 59.1% (54.1% to 64.1%)" in seen
    assert "open PPO wins by the rubric without the bonus for ending 52.6% (47.1% to 58.1%)" in seen
    assert "PPO vs SFT, both answers end 49.5% 43.3% to 55.7% 88 no difference shown" in seen
    assert "| the bonus for ending (weight 0.3) | 52.6% (47.1% to 58.1%) | 58.2% (53.2% to 63.2%) |" in markdown
    assert "PPO vs base 87.7% 84.7% to 90.7% 120 PPO better" in seen
    assert "PPO vs SFT, similar length 59.9% 51.9% to 67.9% 71 PPO better" in seen
    assert "Accuracy, best vs worst the easier number 84.6%" in seen
    assert "Choosing the longest answer baseline, all pairs 54.3% 51.3% to 57.3%" in seen
    assert "Choosing the shortest answer baseline, all pairs 45.7%" in seen
    assert "Choosing at random baseline, all pairs 50.1%" in seen
    assert "Choosing what is more likely under SFT baseline, all pairs 60.2%" in seen
    assert "more likely per token" not in seen
    assert "Expected calibration error mean gap between confidence and accuracy 3.5% 3.5%" in seen
    best = (
        "71.2% against 60.2% (choosing what is more likely under SFT), a paired difference of +11.0 points (+7.0 to "
        "+15.1)."
    )
    assert (
        f"holds The reward model beats the best simple baseline {best} The best baseline is chosen on these same pairs"
        in seen
    )
    assert "71.2% 69.2% to 73.2%, best baseline 60.2%" in seen
    assert "train 11 2" in seen
    assert "18.1 → 19.0 +5.0%, SFT → PPO" in seen
    assert "PPO 19.0 +11.9% +5.0%" in seen
    assert "8.77" in seen
    assert "12 min 1 s" in seen
    assert "sft 1 min 41 s 101 1.50 cuda:0 1 0123456789+dirty" in seen
    assert "data home.jsonl aaaaaaaaaa 0fffffffff" in seen
    assert "samples data bbbbbbbbbb, sft cccccccccc 2fffffffff" in seen
    assert "sft 1,234 130 40" in seen
    assert "prompts near duplicate 31" in seen
    assert "rankings repeated 5" in seen
    assert "23 malformed rows were skipped" in seen
    assert "| prompts | near duplicate | 31 |" in markdown
    assert "| PPO vs SFT | 63.5% | 58.5% to 68.5% | 120 | PPO better |" in markdown
    assert "| PPO | 19.0 | +11.9% | +5.0% |" in markdown
    assert "chrF held-out judge, not used in training" in seen


def test_judges_stand_side_by_side(reports):
    html, markdown, _ = reports
    seen = text_of(html)
    assert "| Against SFT | Rubric | Language model |" in markdown
    assert "| PPO | 61.1% (56.1% to 66.1%) | 54.3% (49.3% to 59.3%) |" in markdown
    assert "| the prompt itself | 57.8% (52.8% to 62.8%) | – |" in markdown, "length-controlled"
    assert "| owner/name | 61.1%" in markdown
    assert "Judges on whose rankings the reward model was trained: rubric." in seen
    assert "| Rubric and Language model | 321 | 71.2% | 0.432 | – |" in markdown
    assert (
        "654 pairs in both orders, 3 without a verdict. The same position won in both orders in 25.0% of pairs" in seen
    )
    assert "| quality | 5.43 (5.38 to 5.48) | 0.310 (0.260 to 0.360) |" in markdown
    assert "| Quality by use case | PPO |\n| --- | ---: |\n| chat | 6.21 (6.16 to 6.26) |" in markdown
    assert "| hallucination | 8.0% (3.0% to 13.0%) | -2.0% (-7.0% to 3.0%) |" in markdown


def test_results_of_stages_outside_the_pipeline_are_shown_once_they_are_there(run, tmp_path, reports, monkeypatch):
    monkeypatch.setattr("reports.page.png", lambda figure: b"")
    assert "Public benchmarks" not in reports[0]
    shutil.copytree(run, tmp_path / "run")
    moved = {"from": "sft", **around(-0.031, 0.02)}
    changes = {"mc1": [{"from": "base", **around(0.5)}, moved], "crows": [moved | {"low": -0.07, "high": 0.01}]}
    changes["ppl"] = [moved]
    changes["few"] = [moved | {"clusters": 6}]
    put(
        tmp_path / "run" / "tax" / "tax.json",
        {
            "better": {"truthfulqa": {"mc1": "higher", "crows": "neither", "ppl": "lower", "few": "lower"}},
            "results": {
                name: {
                    "truthfulqa": {"mc1": around(0.345), "crows": around(0.67), "ppl": around(0.5), "few": around(0.6)}
                }
                for name in ("sft", "ppo", "Qwen/Qwen2.5-0.5B")
            },
            "changes": {"sft": {"truthfulqa": {}}, "ppo": {"truthfulqa": changes}},
        },
    )
    epochs = [
        {"epoch": n, "train_loss": 3.0, "valid_loss": 3.5, "score": around(0.1), "chosen": n == 2} for n in (1, 2, 3)
    ]
    put(tmp_path / "run" / "sft_baseline" / "epochs.jsonl", epochs)
    html, markdown = rendered(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out" / "pictures" / "baseline.png").is_file()
    assert "0.345 (-0.031 (-0.051 to -0.011) against SFT: worse)" in markdown
    assert "-0.031 (-0.070 to +0.010) against SFT: no change shown" in text_of(html)
    assert "0.500 (-0.031 (-0.051 to -0.011) against SFT: better)" in markdown
    assert "0.600 (-0.031 (-0.051 to -0.011) against SFT: too few items to tell)" in markdown
    assert markdown.count("against SFT:") == 4
    assert markdown.count("0.345") == 3, "the name of a model may contain a dot"


def test_results_of_stages_outside_the_pipeline_are_left_out_once_the_models_are_others(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reports.run.figures", lambda results: {})
    shutil.copytree(run, tmp_path / "run")
    put(tmp_path / "run" / "tax" / "tax.json", {"better": {"own test": {}}, "results": {"sft": {}}, "changes": {}})
    for digest, shown in (("c" * 64, True), ("d" * 64, False)):
        put(tmp_path / "run" / "tax" / "manifest.json", {"inputs": {"sft": digest, "t.csv": "0" * 64}})
        _, markdown = rendered(tmp_path / "run", tmp_path / "out")
        assert ("Public benchmarks" in markdown) is shown
        assert ("are of other data, models or weights than the rest of this report: tax." in markdown) is not shown
    for weights, outdated in (("ema", []), ("last", ["tax"])):
        put(tmp_path / "run" / "tax" / "manifest.json", {"inputs": {}, "config": {"evaluate": {"weights": weights}}})
        assert Results(tmp_path / "run").left_out == outdated, "the evaluation is of the EMA"
    put(tmp_path / "run" / "tax" / "manifest.json", {"inputs": {}})
    put(tmp_path / "run" / "evaluate" / "manifest.json", {"inputs": {"ppo": "c" * 64}, "config": {}})
    for digest, outdated in (("c" * 64, []), ("d" * 64, ["sweep_kl"])):
        put(tmp_path / "run" / "sweep_kl" / "sweep.json", {"inputs": {"ppo": digest}})
        assert Results(tmp_path / "run").left_out == outdated, "the curve is of an earlier policy"


def test_the_weights_of_the_rubric_are_those_of_the_evaluation(tmp_path: Path) -> None:
    for name, weight in (("labels", 0.3), ("evaluate", 0.0)):
        labels = {"weights": {"complete": weight}}
        put(tmp_path / name / "manifest.json", {"inputs": {}, "config": {"labels": labels}})
        assert Results(tmp_path).weights == {"complete": weight}


def test_a_result_of_an_earlier_version_is_named(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    place = tmp_path / "run" / "evaluate" / "evaluation.json"
    put(place, {key: value for key, value in json.loads(place.read_text()).items() if key != "judges"})
    with pytest.raises(ValueError, match="is the result of an earlier version: run `make evaluate` again"):
        rendered(tmp_path / "run", tmp_path / "out")


def test_best_of_n_stands_beside_ppo(reports):
    html, markdown, _ = reports
    seen = text_of(html)
    assert "Best of 1 a second sample of SFT answers; expected win rate 50% 0.000 -0.100" in seen
    assert "Best of 4 0.636 0.937" in seen
    assert (
        "PPO 8.77 8.17 to 9.37 1.61 1.51 to 1.71 0.820 0.780 to 0.860 0.181 0.171 to 0.191 64.1% 59.1% to 69.1%" in seen
    )
    sentence = (
        "No difference from best-of-n shown at the nearest KL: PPO (8.77 nats) won 53.2% of comparisons with "
        "best of 16 (1.84 nats) by the rubric"
    )
    assert f"{sentence}, 95% interval 47.2% to 59.2%. PPO's KL is above that of best of 16: raise" in seen
    assert sentence in markdown
    assert "| Best of 4 | 0.636 | 0.937 (" in markdown


def test_a_run_without_best_of_n_has_the_curve_of_training_alone(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "reports.page.png", lambda figure: str(sum(bool(axes.collections) for axes in figure.axes)).encode()
    )
    shutil.copytree(run, tmp_path / "run")
    place = tmp_path / "run" / "evaluate" / "evaluation.json"
    html, _ = rendered(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out" / "pictures" / "over_optimisation.png").read_text() == "3", "proxy, rubric and chrF"
    put(place, {key: value for key, value in json.loads(place.read_text()).items() if key != "best_of_n"})
    html, markdown = rendered(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out" / "pictures" / "over_optimisation.png").read_text() == "2", (
        "the score, and the scale of iterations"
    )
    assert "Best-of-n" not in html + markdown


@pytest.mark.parametrize(
    ("terms", "metric"),
    [
        (None, "score"),
        ([{"kind": "model", "weight": 1.0}], "score"),
        ([{"kind": "model", "weight": 0.5}], None),
        ([{"kind": "model", "weight": 0.1}, {"kind": "length"}], "score_model"),
        ([{"kind": "model", "name": "mine"}, {"kind": "length"}], "score_mine"),
        ([{"kind": "model", "path": "other"}, {"kind": "length"}], None),
        ([{"kind": "model", "weight": 0}, {"kind": "length"}], None),
        ([{"kind": "model"}, {"kind": "length", "weight": 0}], "score"),
    ],
)
def test_the_path_of_training_is_the_reward_models_score(terms, metric):
    assert reward_metric({"ppo": {} if terms is None else {"rewards": terms}}) == metric


def test_other_rewards_are_not_called_the_reward_models(run, tmp_path, monkeypatch):
    monkeypatch.setattr("reports.page.png", lambda figure: b"")
    shutil.copytree(run, tmp_path / "run")
    drawn = {}
    for name in ("run_plots.ppo_curves", "run_plots.over_optimisation"):
        monkeypatch.setattr(
            f"reports.run.{name}", lambda *given, name=name, **named: drawn.update({name: (given, named)})
        )
    place = tmp_path / "run" / "ppo"
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["config"].setdefault("ppo", {})["rewards"] = [{"kind": "model"}, {"kind": "length"}]
    put(place / "manifest.json", manifest)
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    put(place / "metrics.jsonl", [row | {"score_model": -1.0 - row["step"]} for row in rows])
    html, _ = rendered(tmp_path / "run", tmp_path / "out")
    assert "The reward model's score is one of several rewards that PPO maximizes." in html.replace("&#39;", "'")
    assert drawn["run_plots.ppo_curves"][1] == {"weighted": True}
    [path, _] = drawn["run_plots.over_optimisation"][0]
    assert [row["score"] for row in path] == [-1.0 - row["step"] for row in rows]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("ema", "Evaluated with EMA weights"),
        ("last", "Evaluated with the last weights"),
    ],
)
def test_the_report_says_which_weights_were_compared(run, tmp_path, monkeypatch, weights, said):
    monkeypatch.setattr("reports.run.figures", lambda results: {})
    shutil.copytree(run, tmp_path / "run")
    place = tmp_path / "run" / "evaluate" / "evaluation.json"
    put(place, json.loads(place.read_text()) | {"weights": weights})
    manifest = tmp_path / "run" / "evaluate" / "manifest.json"
    # What was measured counts, whatever the configuration says by now.
    put(
        manifest,
        json.loads(manifest.read_text())
        | {"config": {"evaluate": {"weights": {"ema": "last", "last": "ema"}[weights], "temperature": 0.7}}},
    )
    html, markdown = rendered(tmp_path / "run", tmp_path / "out")
    assert said in html.replace("&#39;", "'")
    assert said in markdown
    assert "1 answer per prompt from PPO and from SFT, one from base, at temperature 0.7." in markdown


@pytest.mark.parametrize(
    ("warnings", "said"),
    [(["step 3: too much KL"], "step 3: too much KL"), ([], "The monitors raised no warning."), (None, "")],
)
def test_the_report_shows_the_warnings_of_the_monitors(run, tmp_path, monkeypatch, warnings, said):
    monkeypatch.setattr("reports.run.figures", lambda results: {})
    shutil.copytree(run, tmp_path / "run")
    if warnings is not None:
        put(tmp_path / "run" / "ppo" / "warnings.json", warnings)
    html, markdown = rendered(tmp_path / "run", tmp_path / "out")
    for page in (text_of(html), markdown):
        assert said in page
        assert page.count("Warnings about PPO's settings and metrics") == bool(warnings)
        assert page.count("The monitors raised") == (warnings == [])


def test_a_damaged_file_is_named(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "ppo" / "metrics.jsonl").write_text('{"step": 1}\nnot JSON\n')
    with pytest.raises(ValueError, match=r"ppo/metrics\.jsonl"):
        write_report(tmp_path / "run", tmp_path / "out", "fake", 1)
    (tmp_path / "run" / "evaluate" / "evaluation.json").write_text('{"prompts": 4')
    with pytest.raises(ValueError, match=r"evaluate/evaluation\.json is damaged .*: run the stage evaluate again"):
        write_report(tmp_path / "run", tmp_path / "out", "fake", 1)


def test_it_says_that_no_person_ranked(reports):
    assert all("No person ranked any answer for training in this run" in text for text in reports[:2])


@pytest.mark.parametrize(
    ("labeler", "rankings", "said"),
    [
        ("none", ["mine.jsonl"], "The reward model was trained on the rankings in data.rankings."),
        ("simulated", ["mine.jsonl"], "The reward model was also trained on rankings from data.rankings."),
    ],
)
def test_the_note_on_who_judged_follows_the_configuration(run, tmp_path, monkeypatch, labeler, rankings, said):
    monkeypatch.setattr("reports.run.figures", lambda results: {})
    shutil.copytree(run, tmp_path / "run")
    for stage in ("data", "labels"):
        place = tmp_path / "run" / stage / "manifest.json"
        manifest = json.loads(place.read_text())
        manifest["config"]["data"]["rankings"], manifest["config"]["labels"]["labeler"] = rankings, labeler
        put(place, manifest)
    _, markdown = rendered(tmp_path / "run", tmp_path / "out")
    assert said in markdown
    assert "No person ranked any answer" not in markdown
    assert ("A simulated labeler, a rubric" in markdown) == (labeler == "simulated")


def test_it_says_that_sft_is_the_base_model(run, tmp_path, monkeypatch):
    monkeypatch.setattr("reports.page.png", lambda figure: b"")
    shutil.copytree(run, tmp_path / "run")
    for place in sorted((tmp_path / "run").glob("*/manifest.json")):
        manifest = json.loads(place.read_text())
        manifest["config"].setdefault("sft", {})["epochs"] = 0
        put(place, manifest)
    _, markdown = rendered(tmp_path / "run", tmp_path / "out")
    assert "**SFT is the base model.** sft.epochs is 0: base and SFT are the same model here" in markdown
    assert "Nothing was trained (sft.epochs is 0)." in markdown


def test_html_stands_alone(reports):
    html, _, _ = reports
    assert "http" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    assert html.count("<script") == 1
    assert len(re.findall(r'<img src="data:image/png;base64,', html)) == len(PICTURES)
    assert html.count("<img ") == len(PICTURES)


def test_markdown_refers_to_pictures_beside_it(reports):
    _, markdown, out = reports
    assert sorted(re.findall(r"\]\(pictures/(\w+)\.png\)", markdown)) == PICTURES
    assert sorted(path.stem for path in (out / "pictures").iterdir()) == PICTURES


def test_answers_cannot_break_out(reports):
    html, markdown, _ = reports
    assert "&lt;script&gt;alert(" in html
    assert f"`````text\n{HOSTILE}\ufffd\ufffd[2J\n`````" in markdown
    assert "\0" not in html + markdown
    assert "\x1b" not in html + markdown


def test_samples_are_evenly_spaced(reports):
    html, markdown, _ = reports
    for text in (html, markdown):
        assert re.findall(r"<summary>(\d+)\. Question (\d+):", text) == [
            ("1", "0"), ("2", "10"), ("3", "20"), ("4", "30"),
        ]  # fmt: skip
    assert "4 of 40 held-out prompts" in text_of(html)
    assert "above SFT's 20 times, tied 10 times, below 10 times" in text_of(html)


def test_without_ptx_its_panels_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("reports.page.png", lambda figure: b"")
    html, _ = rendered(fake_run(tmp_path / "run", ptx=False, iterations=1), tmp_path / "out")
    assert html.count("<img ") == len(PICTURES)


@pytest.mark.parametrize("missing", ["data", "sft", "samples", "labels", "reward", "ppo", "evaluate"])
def test_a_missing_stage_leaves_a_gap_and_no_more(run, tmp_path, monkeypatch, missing):
    monkeypatch.setattr("reports.page.png", lambda figure: b"")
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / missing)
    html, markdown = rendered(tmp_path / "run", tmp_path / "out")
    pictures = {"sft": 1, "reward": 1, "ppo": 1, "evaluate": 2}
    assert html.count("<img ") == len(PICTURES) - pictures.get(missing, 0)
    assert markdown.startswith("# fake")


def test_an_empty_run_says_so(tmp_path):
    html, _ = rendered(tmp_path, tmp_path / "out")
    assert "PPO and SFT were not compared" in html
    assert "<img " not in html


def test_no_pairs_of_like_length_and_numbers_that_are_none(run, tmp_path, monkeypatch):
    monkeypatch.setattr("reports.page.png", lambda figure: b"")
    shutil.copytree(run, tmp_path / "run")
    place = tmp_path / "run" / "evaluate" / "evaluation.json"
    evaluation = json.loads(place.read_text()) | {
        "win_rate_length_matched": None,
        "perplexity": {"base": math.inf, "sft": math.nan, "ppo": 19.0},
    }
    put(place, evaluation)
    put(tmp_path / "run" / "ppo" / "metrics.jsonl", [{"step": 1, "episodes": 8.0, "score": math.nan, "kl": None}])
    (tmp_path / "run" / "ppo" / "timings.jsonl").unlink()
    html, _ = rendered(tmp_path / "run", tmp_path / "out")
    assert "PPO vs SFT, similar length – – 0 no such pairs" in text_of(html)
    assert "nan" not in text_of(html).lower()
    assert html.count("<img ") == len(PICTURES) - 1


def test_a_change_is_told_in_percent():
    assert [change(20.0, 21.0), change(None, 1.0)] == ["+5.0%", "–"]
