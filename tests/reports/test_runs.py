"""The report that compares runs: what differs, and which runs are seeds of one another."""

import json
from pathlib import Path
from typing import Any

import pytest

from reports.run import Results
from reports.runs import by_settings, curves, differing, flat, frontier, write_comparison
from tests.reports.fake_run import fake_run, put


def changed(run: Path, **settings: Any) -> Path:
    """A run with other settings in all manifests."""
    for place in run.glob("*/manifest.json"):
        manifest = json.loads(place.read_text())
        manifest["config"] |= {"seed": 0, "run_name": run.name} | settings
        put(place, manifest)
    return run


def test_seeds_are_one_group_and_other_settings_are_listed(tmp_path: Path) -> None:
    ppo = {"kl_coef": 0.02, "ptx_coef": 0.0}
    runs = [
        changed(fake_run(tmp_path / "a")),
        changed(fake_run(tmp_path / "b"), seed=1),
        changed(fake_run(tmp_path / "c", iterations=9), ppo=ppo),
    ]
    change = {"from": "sft", "mean": -0.1, "low": -0.2, "high": -0.05, "n": 100}
    found = {"truthfulqa": {"mc1": {"mean": 0.4}}}
    tax = {"better": {"truthfulqa": {"mc1": "higher"}}, "results": {"ppo": found}}
    put(runs[2] / "tax" / "tax.json", tax | {"changes": {"ppo": {"truthfulqa": {"mc1": [change]}}}})
    write_comparison(runs, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"| `{runs[0]}`" not in text
    assert f"|  | {runs[0]} (seed 0) | {runs[1]} (seed 1) | {runs[2]} (seed 0) |" in text
    assert "| Win rate of PPO against SFT (the first judge) | 63.5% (58.5% to 68.5%) |" in text
    assert f"| Setting | {runs[0]} | {runs[1]} | {runs[2]} |" in text, "names as they are, with underscores"
    assert "| ppo.ptx_coef | 27.8 | 27.8 | 0.0 |" in text
    assert "| Language model (length-controlled) | – | – | – |" in text
    assert "| Language model (win rate) | 54.3% (49.3% to 59.3%) |" in text
    assert "| hallucination | 8.0% (3.0% to 13.0%) |" in text
    assert f"| {runs[0]} | bbbbbbbbbb | cccccccccc |" in text
    moved = "-0.100 (-0.200 to -0.050) against SFT: worse"
    assert f"| truthfulqa mc1 (higher is better) | – | – | 0.400 ({moved}) |" in text, "measured in the last run alone"
    page = (tmp_path / "out" / "index.html").read_text()
    assert f'<td>0.400<small class="worse">{moved}</small></td>' in page
    assert "<summary>40. Question 39: why is the sky blue?</summary>" in page
    assert page.count("Answer of ppo to 39.") == 3
    assert "Answer of sft to 39." not in page
    assert "| seed |" not in text
    assert "run_name" not in text
    assert sorted(path.stem for path in (tmp_path / "out" / "pictures").iterdir()) == ["curves", "frontier"]
    greedy = runs[0] / "evaluate" / "evaluation.json"
    put(greedy, json.loads(greedy.read_text()) | {"kl": None})
    write_comparison(runs[:1], tmp_path / "greedy")
    assert [path.stem for path in (tmp_path / "greedy" / "pictures").iterdir()] == ["curves"], "no KL to draw"
    with pytest.raises(ValueError, match="absent holds no results of a run"):
        write_comparison([runs[0], tmp_path / "absent"], tmp_path / "out")


def test_runs_of_other_files_under_the_same_names_are_no_seeds_of_one_another(tmp_path: Path) -> None:
    runs = [changed(fake_run(tmp_path / name)) for name in ("a", "b")]
    for run, digest in zip(runs, ("1" * 64, "2" * 64), strict=True):
        place = run / "data" / "manifest.json"
        put(place, json.loads(place.read_text()) | {"inputs": {"posts.jsonl": digest}})
    write_comparison(runs, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert '| contents of posts.jsonl | "1111111111" | "2222222222" |' in text


def test_best_of_n_is_drawn_only_beside_win_rates_of_the_same_judge(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "a")
    place = run / "evaluate" / "evaluation.json"
    found = json.loads(place.read_text())
    for judge, lines in (("rubric", 1), ("chrf", 0)):
        put(place, found | {"judges": [{"name": judge, "taught": False}]})
        figure = frontier({"a": Results(run)})
        assert figure is not None
        labels = figure.axes[0].get_legend_handles_labels()[1]
        assert labels.count("best of n, a") == lines


def test_a_band_reaches_from_the_lowest_to_the_highest_seed() -> None:
    class Found:
        def __init__(self, score: float) -> None:
            rows = [{"step": step, "score": score + step, "kl": 1.0, "entropy": 1.0, "length": 1.0} for step in (1, 2)]
            self.metrics = {"ppo": rows}

    results: Any = {"a": Found(0.0), "b": Found(3.0), "c": Found(10.0), "unfinished": Found(0.0)}
    results["unfinished"].metrics = {"ppo": []}
    groups = by_settings({"a": {"seed": 0, "x": 1}, "b": {"seed": 1, "x": 1}, "c": {"seed": 0, "x": 2}})
    assert groups == [["a", "b"], ["c"]]
    assert by_settings({"a": {"tracking.to": ["wandb"]}, "b": {"tracking.to": [], "data.split_salt": "1"}}) == [
        ["a", "b"]
    ]
    figure = curves(results, [[*groups[0], "unfinished"], groups[1]])
    assert figure is not None
    score = figure.axes[0]
    assert [list(line.get_ydata()) for line in score.get_lines()] == [[2.5, 3.5], [11.0, 12.0]]
    band = score.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (1.0, 5.0)
    assert differing({"a": flat({"p": {"q": [1]}}), "b": flat({"p": {"q": [2]}})}) == {"p.q": {"a": "[1]", "b": "[2]"}}
