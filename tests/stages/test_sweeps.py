"""Both sweeps on a hand-made run of tiny models: what they share with the run, what they refuse, how they resume."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.records import Demonstration
from data.sets import DOCUMENT_SCHEMA, set_file
from evaluation.config import EvaluateConfig
from evaluation.sweeps.config import SweepKLConfig, SweepPtxConfig
from labeling.config import LabelsConfig
from modeling.adapters import add_lora
from modeling.config import LoraSettings, ModelConfig
from modeling.load import load_causal, load_tokenizer
from ppo.snapshots import load_policy, save_snapshot, snapshots
from ppo.trainer import PPOTrainer
from stages import sweep_kl, sweep_ptx
from stages.config import RunConfig
from stages.manifest import stage_digest
from stages.runner import RunFolder, Stage, run_stage
from tests.families import CLASSIFIERS, classifier_folder
from tests.ppo.conftest import ALONE, PROMPTS, Chain, build_chain, small
from tests.sets import write_set

ASKED = [
    Demonstration(prompt=f"{text} {number}", completion="So it is.", user_id=f"u{number}")
    for number, text in enumerate(("Why?", "Name two rivers", "Write a poem."))
]
SWEEPING = {"prompts": 3, "answers_per_prompt": 2, "perplexity_examples": 4}


def write_data(folder: Path) -> None:
    """The sets that the sweeps read."""
    for name, split, rows in (("sft", "test", ASKED), ("rl", "train", PROMPTS)):
        write_set(folder, name, split, rows)  # type: ignore[arg-type]
    texts = [{"text": "The sky is blue and the sea is deep. " * 8, "dataset": "mine"}]
    for split, documents in (("train", 1), ("heldout", 2)):
        pq.write_table(
            pa.Table.from_pylist(texts * documents, schema=DOCUMENT_SCHEMA), set_file(folder, "texts", split)
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Chain]:
    """(a runs folder with data, SFT and reward model, the chain of its models)."""
    runs = tmp_path_factory.mktemp("runs")
    chain = build_chain(tmp_path_factory.mktemp("chain"), "lora")
    config = config_of(runs, chain)
    copies: dict[str, Callable[[Path], Any]] = {
        "data": write_data,
        "sft": lambda out: shutil.copytree(chain.sft, out, dirs_exist_ok=True),
        "reward": lambda out: shutil.copytree(chain.reward, out, dirs_exist_ok=True),
    }
    for name, copy in copies.items():

        def work(config: RunConfig, run: RunFolder, out: Path, copy: Callable[[Path], Any] = copy) -> dict[str, Any]:
            copy(out)
            return {}

        run_stage(Stage(name, sections=(), after=(), work=work), config)
    return runs, chain


def config_of(runs: Path, chain: Chain) -> RunConfig:
    config = RunConfig(
        run_name="run", runs_folder=str(runs),
        model=replace(chain.config, base="tiny"),
        labels=LabelsConfig(closeness="words"),
        ppo=small(ptx_coef=0.5, total_episodes=12, batch_size=4),
        evaluate=EvaluateConfig(max_new_tokens=5, bootstrap_resamples=20),
        sweep_kl=SweepKLConfig(best_of_n=3, snapshots=3, **SWEEPING),
        sweep_ptx=SweepPtxConfig(gammas=[0.0], betas=[0.02], total_episodes=8, **SWEEPING),
    )  # fmt: skip
    config.data.pretraining_tokens = 12
    return config


@pytest.fixture
def config(made: tuple[Path, Chain], tmp_path: Path) -> RunConfig:
    """Of a copy of the run for one test."""
    shutil.copytree(made[0], tmp_path / "runs")
    return config_of(tmp_path / "runs", made[1])


def root(config: RunConfig) -> Path:
    return Path(config.runs_folder) / config.run_name


def sweep(config: RunConfig, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root(config) / name / "sweep.json").read_text())
    return found


def manifests(folder: Path) -> dict[str, int]:
    """The time at which each point's result was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/manifest.json")}


class KilledError(Exception):
    pass


def kill(*_: Any) -> None:
    raise KilledError


def test_points_share_the_runs_models_and_finished_ones_are_kept_when_another_is_added(config: RunConfig) -> None:
    config.ppo.kl_target = 6.0
    before = {name: stage_digest(root(config) / name) for name in ("data", "sft", "reward")}
    sweep_ptx.work(config, force=False)
    first, folder = manifests(root(config) / "sweep_ptx"), root(config) / "sweep_ptx"
    name, other = "gamma-0-beta-0.02-seed-0", "gamma-7-beta-0.02-seed-0"
    assert sorted(first) == [name, f"measured-{name}", "measured-sft"], "gamma 0 at beta 0.02 is in both lists"
    for point in first:
        inputs = json.loads((folder / point / "manifest.json").read_text())["inputs"]
        assert {key: inputs[key] for key in before} == before

    config.sweep_ptx.gammas = [0.0, 7.0]
    sweep_ptx.work(config, force=False)
    second = manifests(folder)
    assert second.keys() - first.keys() == {other, f"measured-{other}"}
    assert {point: second[point] for point in first} == first, "nothing was computed again"
    settings = [json.loads((folder / one / "manifest.json").read_text())["settings"]["ppo"] for one in (name, other)]
    assert [(one["ptx_coef"], one["total_episodes"]) for one in settings] == [(0, 8), (7, 8)]
    assert [one["kl_target"] for one in settings] == [None, None], "beta stays what the point says"
    found = sweep(config, "sweep_ptx")
    assert [(point["gamma"], point["beta"]) for point in found["points"]] == [(0, 0.02), (7, 0.02)]
    assert found["points"][0]["seeds"].keys() == {"0"}
    assert found["sft"]["pretraining_loss"]["documents"] == 2, "the held-out texts; the training text is one"
    assert {name: stage_digest(root(config) / name) for name in before} == before


def test_a_killed_point_continues_where_it_was_and_ends_in_the_same_numbers(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.sweep_ptx = SweepPtxConfig(gammas=[3.0], betas=[], total_episodes=8, **SWEEPING)
    real, finished, folder = PPOTrainer.finish_iteration, list[int](), root(config) / "sweep_ptx"

    def count(trainer: PPOTrainer, iteration: int, *rest: Any) -> None:
        if iteration == 1 and len(finished) == 1:
            finished.append(-1)
            raise KilledError
        finished.append(iteration)
        real(trainer, iteration, *rest)

    monkeypatch.setattr(PPOTrainer, "finish_iteration", count)
    with pytest.raises(KilledError):
        sweep_ptx.work(config, force=False)
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.sweeps.measure.with_parts", kill)
        with pytest.raises(KilledError):
            sweep_ptx.work(config, force=False)
    assert finished == [0, -1, 1], "the second run began with the second iteration"
    partial = folder / "measured-gamma-3-beta-0.02-seed-0.partial"
    assert list((partial / "scratch").glob("sweep-policy*")), "answers are kept"
    sweep_ptx.work(config, force=False)
    resumed = sweep(config, "sweep_ptx")
    assert finished == [0, -1, 1]
    assert not [*folder.glob("*.partial"), *folder.glob("*/scratch"), *folder.glob("*/checkpoints")]

    sweep_ptx.work(config, force=True)
    assert sweep(config, "sweep_ptx") == resumed


def test_a_point_that_a_monitor_stops_is_listed_and_the_sweep_goes_on(config: RunConfig) -> None:
    config.sweep_ptx = SweepPtxConfig(gammas=[], betas=[0.02, 0.5], total_episodes=8, **SWEEPING)
    config.ppo.monitors.entropy, config.ppo.monitors.min_entropy = "stop", 100.0
    sweep_ptx.work(config, force=False)
    found = sweep(config, "sweep_ptx")
    assert found["points"] == []
    assert [*found["stopped"]] == ["gamma-0-beta-0.02-seed-0", "gamma-0-beta-0.5-seed-0"]
    assert "ppo.monitors.entropy" in found["stopped"]["gamma-0-beta-0.5-seed-0"]


def test_the_kl_sweep_evaluates_the_snapshots_of_the_runs_own_ppo(config: RunConfig) -> None:
    def ppo_with(snapshots: int) -> Stage:
        def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
            model_config, sft = config.model.of_export(), run.stage("sft") / "model"
            model = load_causal(sft, model_config, load_tokenizer(sft, model_config))
            policy = add_lora(model, model_config.lora, name="policy")
            for number in range(1, snapshots + 1):
                for name, weight in policy.named_parameters():
                    if "lora_B" in name:
                        torch.nn.init.constant_(weight, 0.15 * number)
                trained = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
                save_snapshot(out, number, trained, ALONE)
            return {"episodes": 12.0}

        return Stage("ppo", sections=(), after=("sft",), work=work)

    with pytest.raises(ValueError, match=r"ppo holds no finished result: run `make ppo` first"):
        sweep_kl.work(config, force=False)
    run_stage(ppo_with(2), config)
    with pytest.raises(
        ValueError, match=r"holds 2 snapshot\(s\).*needs 3: run PPO again with --ppo.snapshot_every 1, "
    ):
        sweep_kl.work(config, force=False)
    run_stage(ppo_with(5), config, force=True)
    sweep_kl.work(config, force=False)
    found = sweep(config, "sweep_kl")
    assert [(row["run"], row["iteration"]) for row in found["rl"]] == [("ppo", 2), ("ppo", 4), ("ppo", 5)]
    first, _, last = (row["d"] for row in found["rl"])
    assert last > first > 0, "a larger adapter is further from SFT"
    assert [row["n"] for row in found["best_of_n"]] == [1, 2, 3]
    assert found["gold"] == "rubric"
    assert found["inputs"] == {name: stage_digest(root(config) / name) for name in ("data", "sft", "reward", "ppo")}
    assert (root(config) / "sweep_kl" / "sweep.png").is_file()


@pytest.mark.slow
def test_the_kl_sweep_trains_a_run_for_each_seed_and_a_model_gives_the_gold_score(config: RunConfig) -> None:
    config.ppo.batch_size = 8
    config.sweep_kl = SweepKLConfig(
        seeds=[1, 2],
        total_episodes=16,
        kl_coef=0.0,
        best_of_n=3,
        gold=str(root(config) / "reward" / "model"),
        **SWEEPING,
    )
    with pytest.raises(ValueError, match=r"^sweep_kl\.gold=.* is the run's own reward model, on which PPO was trained"):
        config.validate()
    copied = shutil.copytree(root(config) / "reward" / "model", root(config).with_name("copied"))
    config.sweep_kl.gold = str(copied)
    with pytest.raises(ValueError, match=r"^sweep_kl\.gold=.* has the weights of the run's own reward model"):
        sweep_kl.work(config, force=False)
    weights = load_file(copied / "model.safetensors")
    save_file(weights, copied / "model.safetensors", {"format": "pt", "made": "another file with the same scores"})
    with pytest.raises(ValueError, match=r"2 iteration\(s\) leaves too few snapshots.*raise sweep_kl.total_episodes"):
        sweep_kl.work(config, force=False)
    assert not (root(config) / "sweep_kl").exists(), "refused before training"
    config.ppo.batch_size, config.sweep_kl.total_episodes = 4, 12
    sweep_kl.work(config, force=False)
    found = sweep(config, "sweep_kl")
    assert (found["kl_coef"], "ppo" in found["inputs"]) == (0.0, False)
    assert [row["run"] for row in found["rl"]] == ["seed-1"] * 3 + ["seed-2"] * 3
    rows = [json.loads((path / "measured.json").read_text()) for path in (root(config) / "sweep_kl").glob("measured-*")]
    parts = [answer["parts"] for row in rows for answers in row["answers"] for answer in answers]
    assert all(part["gold"] == part["proxy"] != part["score"] for part in parts), "here both are the same model"
    first, second = (
        json.loads((root(config) / "sweep_kl" / f"seed-{n}" / "manifest.json").read_text()) for n in (1, 2)
    )
    assert first["outputs"]["policy_ema.safetensors"]["sha256"] != second["outputs"]["policy_ema.safetensors"]["sha256"]
    assert first["settings"]["ppo"]["kl_coef"] == 0.0


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_snapshot_is_the_policy_after_that_iteration(adapter: str, tmp_path: Path) -> None:
    chain = build_chain(tmp_path, adapter)
    trainer = chain.trainer(tmp_path / "out", small(total_episodes=24, snapshot_every=2))
    trainer.train()
    found = snapshots(tmp_path / "out")
    assert [*found] == [2, 3], "every second one, and the last"
    again = load_policy(found[3], chain.sft / "model", chain.config, chain.tokenizer)
    before = load_policy(found[2], chain.sft / "model", chain.config, chain.tokenizer)
    ids = torch.tensor([[5, 9, 40, 77]])
    with torch.no_grad():
        policy, last, earlier = (m(input_ids=ids).logits for m in (trainer.models.policy.causal, again, before))
    assert torch.allclose(policy, last, atol=1e-5), float((policy - last).abs().max())
    assert float((policy - earlier).abs().max()) > 1e-3
    other = ModelConfig(base="unused", adapter="lora", lora=LoraSettings(rank=3), device="cpu")
    with pytest.raises(ValueError, match=r"iteration-00000003\.safetensors do not fit the model with these settings"):
        load_policy(found[3], chain.sft / "model", other, chain.tokenizer)


def test_a_gold_model_that_cannot_score_is_refused_before_a_run_is_trained(config: RunConfig, tmp_path: Path) -> None:
    places = {str(root(config) / "sft" / "model"): "is not a reward model"}
    for kind, said in CLASSIFIERS.items():
        places[str(classifier_folder(tmp_path / kind, root(config) / "sft" / "model", kind))] = said
    for place, said in places.items():
        config.sweep_kl.seeds, config.sweep_kl.gold, config.sweep_ptx.gold = [0], place, place
        for name, work in (("sweep_kl", sweep_kl.work), ("sweep_ptx", sweep_ptx.work)):
            with pytest.raises(ValueError, match=rf"^{name}\.gold=.* {said}"):
                work(config, force=False)
            assert not (root(config) / name).exists()


def test_sampling_from_a_part_of_the_distribution_is_refused(config: RunConfig) -> None:
    config.evaluate.top_p = 0.9
    for work in (sweep_kl.work, sweep_ptx.work):
        with pytest.raises(ValueError, match=r"samples of the whole distribution: set evaluate.temperature above 0"):
            work(config, force=False)
