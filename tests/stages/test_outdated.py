"""A stage does not combine results that do not belong together, and warns about settings that have changed since."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from modeling.disk import file_digest
from stages import evaluate
from stages.config import RunConfig
from stages.manifest import Manifest, model_digests, output_records, stage_digest
from stages.outdated import changed_settings, outdated
from stages.pipeline import is_made
from stages.report import compare
from stages.runner import RunFolder, Stage, run_stage

CHAIN = {"data": (), "sft": ("data",), "samples": ("data", "sft"), "labels": ("samples",), "reward": ("sft", "labels")}
SECTIONS = {"data": ("data",), "sft": ("model", "sft"), "samples": ("samples",), "reward": ("model", "reward")}


def write_seed(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """The work of every stage."""
    (out / "made.txt").write_text(
        f"{config.data.test_fraction} {config.sft.epochs} {config.samples.answers_per_prompt}"
    )
    return {}


STAGES = {
    name: Stage(name, sections=SECTIONS.get(name, ()), after=after, work=write_seed) for name, after in CHAIN.items()
}
PPO = Stage("ppo", sections=("ppo",), after=("data", "sft", "reward"), work=write_seed)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    config = RunConfig(run_name="run", runs_folder=str(tmp_path / "runs"))
    config.model.device = "cpu"
    for stage in STAGES.values():
        run_stage(stage, config)
    return config


def test_results_that_belong_together_are_used_without_a_word(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stage(PPO, config)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("remade", "older"),
    [("data", "(sft|samples|reward)"), ("sft", "(samples|reward)"), ("samples", "labels")],
)
def test_a_result_made_from_one_that_has_been_replaced_is_refused(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], remade: str, older: str
) -> None:
    config.data.test_fraction, config.sft.epochs, config.samples.answers_per_prompt = 0.4, 7, 5
    run_stage(STAGES[remade], config)
    with pytest.raises(ValueError, match=rf"{older} was made from an older result of the {remade} stage: run `make"):
        run_stage(PPO, config)
    assert compare([str(tmp_path / "runs" / "run"), "--out", str(tmp_path / "out")]) == 2
    assert f"was made from an older result of the {remade} stage: run `make" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for stage in STAGES.values():  # as the pipeline does
        run_stage(stage, config)
    run_stage(PPO, config)


def test_a_result_that_was_made_again_without_a_difference_is_used(config: RunConfig) -> None:
    run_stage(STAGES["sft"], config, force=True)
    run_stage(PPO, config)


def test_another_base_model_is_refused(config: RunConfig) -> None:
    config.model.base = "some/other"
    with pytest.raises(ValueError, match=r"was made with model.base=embedded: use the same here, or another run_name"):
        run_stage(PPO, config)


def test_other_settings_are_named_with_the_values_that_were_used(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config.sft.learning_rate, epochs = 0.5, config.reward.epochs
    config.reward.epochs = 9
    run_stage(PPO, config)
    out = capsys.readouterr().out
    assert "ppo: warning: " in out
    assert f"reward was made with other settings: reward.epochs={epochs}" in out
    assert "sft was made with other settings: sft.learning_rate=" in out


def test_a_reward_model_is_not_evaluated_on_data_that_it_may_have_been_trained_on(config: RunConfig) -> None:
    """`evaluate_reward` names its model among the inputs from outside."""
    evaluation = replace(PPO, after=("data", "labels"), external=lambda config: {"reward": "its digest"})
    config.data.test_fraction = 0.4
    for name in ("data", "sft", "samples", "labels"):
        run_stage(STAGES[name], config)
    with pytest.raises(ValueError, match="reward was made from an older result"):
        run_stage(evaluation, config)


def test_other_files_of_the_base_model_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig(run_name="run", runs_folder=str(tmp_path / "runs"))
    config.model.device, config.model.base = "cpu", str(tmp_path / "base")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    base = replace(STAGES["sft"], after=(), external=lambda config: model_digests(config.model.base))
    later = replace(PPO, after=("sft",))
    run_stage(base, config)
    (tmp_path / "base" / "README.md").write_text("a model card, as another run's report writes it")
    run_stage(later, config)
    assert "warning" not in capsys.readouterr().out
    (tmp_path / "base" / "config.json").write_text("{ }")
    run_stage(later, config)
    said = capsys.readouterr().out
    assert (
        f"ppo: warning: the files in {tmp_path / 'base'} have changed since {tmp_path / 'runs' / 'run' / 'sft'}" in said
    )


def test_a_data_file_that_has_changed_since_the_data_stage_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, template = tmp_path / "mine.jsonl", tmp_path / "chat.jinja"
    file.write_text("{}")
    template.write_text("{{ messages }}")
    config = RunConfig(run_name="run", runs_folder=str(tmp_path / "runs"))
    config.model.device = "cpu"
    inputs = {str(file): file_digest(file), "someone/set train": "main"} | model_digests(str(template))
    for stage in (replace(STAGES["data"], external=lambda config: inputs), STAGES["sft"]):
        run_stage(stage, config)
    assert "warning" not in capsys.readouterr().out
    file.write_text('{"prompt": "Why?"}')
    template.write_text("{{ messages[0] }}")
    later = replace(PPO, after=("sft",))
    run_stage(later, config)
    said = capsys.readouterr().out
    for changed in (file, template):
        assert f"ppo: warning: {changed} has changed since {tmp_path / 'runs' / 'run' / 'data'}" in said
    file.unlink()  # moved away
    run_stage(later, config, force=True)
    assert str(file) not in capsys.readouterr().out


def test_a_stage_of_another_run_among_the_inputs_is_no_earlier_result(config: RunConfig) -> None:
    other = replace(config, run_name="other")
    run_stage(STAGES["data"], other)
    place = str(Path(config.runs_folder) / "other" / "data")
    named = replace(STAGES["reward"], external=lambda config: {place: "its digest"})
    run_stage(named, config)
    run_stage(PPO, config)


def test_a_removed_intermediate_result_is_no_obstacle(config: RunConfig) -> None:
    (Path(config.runs_folder) / "run" / "samples" / "made.txt").unlink()
    assert outdated(Path(config.runs_folder) / "run", ("reward",), {}) == []


def test_settings_are_compared_by_value(tmp_path: Path) -> None:
    made = {"model": {"base": str(tmp_path), "lora": {"rank": 8}}, "data.tokens": 3, "gone": 1, "weights": [1, 2]}
    now = {
        "model": {"base": f"{tmp_path}/../{tmp_path.name}", "lora": {"rank": 4}},
        "data": {"tokens": 4},
        "weights": (1, 2),
    }
    assert changed_settings(made, now) == {"model.lora.rank": 8, "data.tokens": 3}


@pytest.mark.parametrize("place", ["ppo/model_ema", "sft/model", "reward"])
def test_a_result_of_the_run_is_no_base_of_it(config: RunConfig, place: str) -> None:
    (disk := Path(config.runs_folder) / "disk" / "model_ema").mkdir(parents=True)
    (Path(config.runs_folder) / "run" / "ppo").symlink_to(disk.parent)  # results are often moved to another disk
    (base := Path(config.runs_folder) / "run" / place).mkdir(parents=True, exist_ok=True)
    (elsewhere := Path(config.runs_folder) / "link").symlink_to(base)
    for setting in (config.model, config.reward):
        for path in (base, elsewhere):
            setting.base, config.run_name = str(path), "run"
            with pytest.raises(ValueError, match="is a result of this run, which would train it again and again"):
                config.validate()
            config.run_name = "another"
            config.validate()
        setting.base = type(setting)().base


def test_an_evaluation_with_other_settings_or_files_is_checked_before_anything_is_trained(tmp_path: Path) -> None:
    """So that a judge that cannot be used is refused at once in a run that was finished before, too."""
    prompt = tmp_path / "prompt.j2"
    prompt.write_text("Which is better?")
    config = RunConfig(runs_folder=str(tmp_path), run_name="run")
    config.evaluate.llm.prompt_file = str(prompt)
    root = tmp_path / "run"
    assert not is_made("evaluate", config, root)
    (root / "evaluate").mkdir(parents=True)
    settings = {name: asdict(config)[name] for name in ("evaluate", "labels")}

    def make_data(content: str) -> None:
        (root / "data").mkdir(exist_ok=True)
        (root / "data" / "made.txt").write_text(content)
        made = output_records(root / "data")
        Manifest("data", "", {}, {}, made, {}, 0, 1, "cpu", "", "", 0.0).write(root / "data")

    make_data("short prompts")
    read = evaluate.external(config) | {"data": stage_digest(root / "data")}
    Manifest("evaluate", "", {}, read, {}, {}, 0, 1, "cpu", "", "", 0.0, settings=settings).write(root / "evaluate")
    assert not is_made("evaluate", config, root), "models are still to be trained"
    for name in ("sft", "samples", "labels", "reward", "ppo"):
        (root / name).mkdir()
        parts: list[Any] = [name, "", {}, {"data": read["data"]}, {}, {}, 0, 1, "cpu", "", "", 0.0]
        Manifest(*parts, settings={name: asdict(config)[name]}).write(root / name)
    assert is_made("evaluate", config, root)
    assert is_made("labels", config, root)
    config.ppo.kl_coef = 0.5
    assert not is_made("evaluate", config, root), "PPO runs again, for days"
    assert is_made("labels", config, root)
    config.ppo.kl_coef = RunConfig().ppo.kl_coef
    config.evaluate.judges = ["gold"]
    assert not is_made("evaluate", config, root)
    config.evaluate.judges = ["rubric", "chrf"]
    assert is_made("evaluate", config, root)
    make_data("long prompts")
    assert not is_made("evaluate", config, root), "longer prompts may not fit a judge"
    make_data("short prompts")
    assert is_made("evaluate", config, root)
    prompt.write_text("Which is worse?")
    assert not is_made("evaluate", config, root)
