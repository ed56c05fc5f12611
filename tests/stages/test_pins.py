"""Hub models without a revision: the commit that a run keeps. The Hub's cache is a folder here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ppo.reward_terms import RewardTerm
from stages import loop, sweep_kl, sweeps
from stages.config import RunConfig
from stages.pins import pinned
from stages.runner import RunFolder, Stage, adopt, run_stage

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache; acme/tiny is at commit OLD."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    push(tmp_path / "hub", OLD)
    return tmp_path / "hub"


def push(hub: Path, commit: str) -> None:
    model = hub / "models--acme--tiny"
    for folder in (model / "refs", model / "snapshots" / commit):
        folder.mkdir(parents=True, exist_ok=True)
    (model / "snapshots" / commit / "config.json").write_text("{}")
    (model / "refs" / "main").write_text(commit)


def config_of(name: str, base: str = "acme/tiny") -> RunConfig:
    config = RunConfig(run_name=name, runs_folder="runs")
    config.model.base = base
    return config


def stage_of(read: list[Any]) -> Stage:
    def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        read.append(config.model.revision)
        return {}

    return Stage("data", sections=("model", "seed"), after=(), work=work)


def test_a_run_keeps_the_commit_with_which_it_began_and_another_takes_the_current_one(
    hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[Any] = []
    run_stage(stage_of(read), config_of("mine"))
    assert f"acme/tiny: pinned to its current commit {OLD}\n" in capsys.readouterr().out
    push(hub, NEW)
    run_stage(stage_of(read), config_of("mine"))
    assert "data: unchanged" in capsys.readouterr().out
    Path("runs/mine/pins.json").unlink()  # somebody copied the stage's folder alone
    run_stage(stage_of(read), config_of("mine"), force=True)
    run_stage(stage_of(read), config_of("other"))
    assert read == [OLD, OLD, NEW]
    given = config_of("mine")
    given.model.revision = "v2"
    run_stage(stage_of(read), given)
    assert read[3:] == ["v2"]


def test_a_run_that_reuses_another_reads_the_same_commit(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage(stage_of([]), config_of("mine"))
    push(hub, NEW)
    config, _ = pinned(config_of("other"), Path("runs/other"), Path("runs/mine"))
    adopt(stage_of([]), config, RunFolder(Path("runs/mine")))
    assert "data: taken from runs/mine/data" in capsys.readouterr().out


def test_an_interrupted_stage_resumes_with_the_commit_with_which_it_began(hub: Path) -> None:
    read: list[Any] = []

    def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        read.append([config.reward.revision, *(term.revision for term in config.ppo.rewards)])
        if len(read) == 1:
            raise ValueError("killed")
        return {}

    config = config_of("mine", "tiny")
    config.reward.base = "acme/tiny"
    config.ppo.rewards = [RewardTerm(path="acme/tiny")]
    stage = Stage("ppo", sections=("ppo", "reward"), after=(), work=work)
    with pytest.raises(ValueError, match="killed"):
        run_stage(stage, config)
    push(hub, NEW)
    run_stage(stage, config)
    assert read == [[OLD, OLD]] * 2


def test_the_revision_of_one_setting_does_not_pin_another(hub: Path) -> None:
    config = config_of("mine")
    config.model.revision, config.reward.base = NEW, "acme/tiny"
    for _ in range(2):
        assert pinned(config, Path("runs/mine"))[0].reward.revision == OLD
        run_stage(stage_of([]), config)


def test_later_rounds_of_a_loop_and_points_of_a_sweep_read_the_same_commit(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(stage_of([]), config_of("round-1"))
    push(hub, NEW)
    Path("runs/round-2").mkdir()
    monkeypatch.setattr(loop, "begin", lambda config, done: config_of("round-2"))
    assert loop.prepared(RunConfig(), [Path("runs/round-1")], force=True).model.revision == OLD

    def trainer_of(config: RunConfig, run: RunFolder, out: Path) -> None:
        raise ValueError(f"read {config.model.revision} with seed {config.seed}")

    monkeypatch.setattr("stages.ppo.trainer_of", trainer_of)
    monkeypatch.setattr(sweeps, "INPUTS", ())
    with pytest.raises(ValueError, match=f"read {OLD} with seed 3"):
        sweeps.train(config_of("round-1"), "sweep_ptx/gamma-0", 3, force=False)


def test_all_hub_models_are_pinned_in_a_copy_of_the_configuration() -> None:
    config = config_of("mine")
    config.reward.base = config.evaluate.gold.model = config.evaluate_reward.model = "acme/tiny"
    config.ppo.rewards = [RewardTerm(path="acme/tiny"), RewardTerm(path="acme/tiny", revision="v1"), RewardTerm()]
    found, _ = pinned(config, Path("runs/mine"))
    assert found.model.revision == found.reward.revision == found.evaluate.gold.revision == OLD
    assert found.evaluate_reward.revision == OLD
    assert [term.revision for term in found.ppo.rewards] == [OLD, "v1", None]
    assert config.model.revision is None


def test_local_and_unknown_models_are_not_pinned(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for base in ("embedded", "tiny", "folder", "acme/unknown"):
        assert pinned(config_of("mine", base), Path("runs/mine"))[0].model.revision is None


def test_a_model_that_could_not_be_reached_is_pinned_once_it_can(hub: Path) -> None:
    config = config_of("mine")
    config.evaluate.gold.model = "acme/gated"
    run_stage(stage_of([]), config)
    assert json.loads(Path("runs/mine/pins.json").read_text()) == {"model": {"acme/tiny": OLD}}
    (hub / "models--acme--tiny").rename(hub / "models--acme--gated")
    found, _ = pinned(config, Path("runs/mine"))
    assert (found.model.revision, found.evaluate.gold.revision) == (OLD, OLD)


def test_a_refused_revision_is_not_kept(hub: Path) -> None:
    run_stage(stage_of([]), config_of("mine"))
    later = replace(stage_of([]), name="ppo", after=("data",))
    mistaken = config_of("mine")
    mistaken.model.revision = NEW
    with pytest.raises(ValueError, match=f"made with model.revision={OLD}: use the same here"):
        run_stage(later, mistaken)
    run_stage(later, config_of("mine"))


def test_runs_from_before_pins_stay_unpinned(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, read = config_of("old"), list[Any]()
    config.ppo.rewards = [RewardTerm(path="acme/tiny")]

    def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        read.append(config.ppo.rewards[0].revision)
        (out / "checkpoints" / "checkpoint-1").mkdir(parents=True, exist_ok=True)
        if len(read) == 1:
            raise ValueError("killed")
        return {}

    stages = stage_of([]), Stage("ppo", ("ppo",), ("data",), work, scratch=("checkpoints",))
    with monkeypatch.context() as old:
        old.setattr("stages.pins.current_commit", lambda name: None)
        run_stage(stages[0], config)
        with pytest.raises(ValueError, match="killed"):
            run_stage(stages[1], config)
    Path("runs/old/pins.json").unlink()
    for stage in stages:
        run_stage(stage, config)
    assert read == [None, None]
    Path("runs/old/pins.json").unlink()
    reusing, pins = pinned(replace(config, run_name="new"), Path("runs/new"), Path("runs/old"))
    assert reusing.model.revision is reusing.ppo.rewards[0].revision is None
    assert pins == {"model": {"acme/tiny": None}, "ppo.rewards": {"acme/tiny": None}}


def test_the_kl_sweep_accepts_the_pinned_ppo(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_stage(stage_of([]), config_of("mine"))
    run_stage(replace(stage_of([]), name="ppo", after=("data",)), config_of("mine"))
    monkeypatch.setattr(sweep_kl, "refuse_few_snapshots", lambda config, folder: None)
    assert list(sweep_kl.runs(config_of("mine"), force=False)) == [("ppo", Path("runs/mine/ppo"))]
