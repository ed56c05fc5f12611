"""Settings with which a run would learn next to nothing are named before it trains."""

from pathlib import Path

import pytest
import yaml

from ppo.config import HeldOutSettings
from stages.cautions import LORA_RATES, cautions, ema_warning, refuse_uneven_batches, setting
from stages.config import RunConfig, refuse_missing_folder

CONFIGS = Path(__file__).parents[2] / "configs"


def config(adapter: str = "lora") -> RunConfig:
    found = RunConfig()
    found.model.adapter = adapter
    return found


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("sft", ["sft.learning_rate=5e-06"]),
        ("reward", ["reward.learning_rate=9e-06"]),
        ("ppo", ["ppo.learning_rate=5e-06", "ppo.value_learning_rate=9e-06"]),
    ],
)
def test_full_fine_tuning_rates_are_named_with_lora_alone(stage: str, names: list[str]) -> None:
    found = cautions(config(), stage)
    assert [sentence.split(" ")[0] for sentence in found] == names
    assert all("set it to about 0.000" in sentence for sentence in found)
    assert cautions(config("none"), stage) == []


def test_rates_for_lora_and_rates_of_zero_are_not_named() -> None:
    found = config()
    found.sft.learning_rate, found.reward.epochs = 2e-4, 0
    found.ppo.learning_rate, found.ppo.value_learning_rate = 0.0, 2e-4
    assert [cautions(found, stage) for stage in ("sft", "reward", "ppo")] == [[], [], []]
    found.sft.learning_rate, found.sft.epochs = 5e-6, 0
    assert cautions(found, "sft") == [], "nothing is trained"


def test_the_full_fine_tuning_rates_are_the_defaults() -> None:
    assert {name: setting(RunConfig(), name) for name in LORA_RATES} == {
        name: full for name, (full, _) in LORA_RATES.items()
    }


def test_a_warm_up_longer_than_the_run_is_named() -> None:
    found = config("none")
    found.ppo.total_episodes, found.ppo.batch_size, found.ppo.minibatch_size = 96, 16, 4
    found.ppo.ema_decay = 0.5
    (sentence,) = cautions(found, "ppo")
    assert sentence.startswith("ppo.warmup_iterations=10 is more than the 6 iterations of this run that train")
    found.ppo.warmup_iterations = 6
    assert cautions(found, "ppo") == []
    found.ppo.value_warmup_iterations = 1
    assert len(cautions(found, "ppo")) == 1


def test_an_average_that_keeps_the_sft_weights_is_warned_about() -> None:
    found = config("none")
    assert cautions(found, "ppo") == []
    found.ppo.total_episodes, found.ppo.batch_size, found.ppo.warmup_iterations = 4096, 128, 0
    (sentence,) = cautions(found, "ppo")
    assert sentence.startswith("ppo.ema_decay=0.992 leaves 60% of the SFT weights in the moving average")
    assert sentence.endswith(
        "after the 64 optimizer steps of this run, and evaluate.weights=ema evaluates it: set ppo.ema_decay to about "
        "0.9, or evaluate.weights to last"
    )
    found.ppo.inner_epochs = 6
    assert cautions(found, "ppo") == [], "0.992 ** 384 is 4.6%"
    found.ppo.value_warmup_iterations = 8
    assert "after the 288 optimizer steps" in cautions(found, "ppo")[0]
    found.evaluate.weights = "last"
    assert cautions(found, "ppo") == []
    found.ppo.held_out.every = 10
    assert "or ppo.held_out.weights to last" in cautions(found, "ppo")[0]
    assert ema_warning(found.ppo)[0].endswith("the sweep measures it: set ppo.ema_decay to about 0.98")


def test_the_configurations_that_come_with_the_project_are_not_warned_of() -> None:
    for file in CONFIGS.glob("*.yaml"):
        given = yaml.safe_load(file.read_text())
        lora = given["model"].get("adapter", "lora") == "lora"
        named = [name for name in LORA_RATES if name.split(".")[1] not in given.get(name.split(".")[0], {})]
        assert not (lora and named), file
        run = RunConfig()
        held_out = HeldOutSettings(**given["ppo"].pop("held_out", {}))
        for name, value in (given["ppo"] | {"held_out": held_out}).items():
            setattr(run.ppo, name, value)
        assert not [line for line in cautions(run, "ppo") if "ema_decay" in line], file


def test_batches_are_checked_before_models_are_loaded() -> None:
    found = config()
    refuse_uneven_batches(found, 2)
    found.ppo.minibatch_size = 5
    refuse_uneven_batches(found, 2, "sft")
    for stage in ("", "ppo"):
        with pytest.raises(ValueError, match=r"ppo\.minibatch_size=5 is not divisible by the 2 processes"):
            refuse_uneven_batches(found, 2, stage)


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "model").mkdir(parents=True)
    for place in (None, "embedded", "my/model", str(tmp_path / "my"), "Qwen/Qwen2.5-0.5B"):
        refuse_missing_folder("model.base", place)
    with pytest.raises(ValueError, match="since the folder my is here, this is not taken for a model on the Hub"):
        refuse_missing_folder("model.base", "my/none")
    with pytest.raises(ValueError, match="no such folder; give a folder, or a model on the Hub as owner/name"):
        refuse_missing_folder("model.base", "../none")
    for place in ("my/none", "./none", "/none", "a/b/c", "../none"):
        with pytest.raises(ValueError, match=rf"^model\.base={place}: no such folder"):
            refuse_missing_folder("model.base", place)
