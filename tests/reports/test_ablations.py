"""The table and the picture of variants under several seeds."""

import json
from pathlib import Path

import numpy as np
import pytest

from reports.ablations import main, picture, variants


def made_run(root: Path, name: str, win_rate: float, kl: float | None) -> str:
    folder = root / name / "evaluate"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    numbers = {"win_rate": win_rate, "kl": kl, "perplexity_sft": 50.0, "perplexity_ppo": 45.0}
    (folder / "headline.json").write_text(json.dumps(numbers))
    return str(folder.parent)


def test_a_variant_is_a_row_with_mean_and_spread_over_its_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        made_run(tmp_path, "gamma-0-seed0", 0.5, 1.0),
        made_run(tmp_path, "demo-seed0", 0.6, None),
        made_run(tmp_path, "gamma-0-seed1", 0.7, 3.0),
    ]
    main([*runs, "--picture", str(tmp_path / "a.png")])
    header, _, first, second = (line.split(" | ") for line in capsys.readouterr().out.splitlines())
    rows = {row[0]: dict(zip(header, row, strict=True)) for row in (first, second)}
    assert list(rows) == ["| gamma-0", "| demo"]
    # The sample standard deviation of 0.5 and 0.7 is 0.1414, of 1 and 3 it is 1.414.
    gamma = rows["| gamma-0"]
    assert (gamma["seeds"], gamma["win rate against SFT"], gamma["KL to SFT, nats"]) == (
        "2",
        "60.0% ± 14.1%",
        "2.00 ± 1.41",
    )
    assert gamma["change of perplexity"] == "-10.0% ± 0.0%"
    assert (rows["| demo"]["win rate against SFT"], rows["| demo"]["KL to SFT, nats"]) == ("60.0%", "–")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    figure = picture(variants([Path(run) for run in runs]))
    drawn = [(line.get_marker(), *np.asarray(line.get_xydata()).tolist()) for line in figure.axes[1].lines]
    assert [one for one in drawn if one[0] in "o^"] == [("o", [0.5, 0]), ("^", [0.7, 0]), ("o", [0.6, 1])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["seed 0", "seed 1"]


def test_the_last_seed_in_a_name_is_the_seed(tmp_path: Path) -> None:
    names = ("chat-seed-data-seed0", "chat-seed-data-seed1", "chat-seed-beta-seed0", "alone")
    found = variants([Path(made_run(tmp_path, name, 0.5, 1.0)) for name in names])
    assert {name: [run["seed"] for run in runs] for name, runs in found.items()} == {
        "chat-seed-data": ["seed 0", "seed 1"], "chat-seed-beta": ["seed 0"], "alone": ["seed "]
    }  # fmt: skip


def test_a_picture_that_cannot_be_written_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([made_run(tmp_path, "demo-seed0", 0.5, 1.0), "--picture", str(tmp_path / "absent" / "a.png")])
    assert capsys.readouterr().err.startswith("error: [Errno 2] No such file or directory: ")


def test_an_unfinished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert "holds no finished evaluation" in capsys.readouterr().err
