"""The kept epochs of the baseline: the right weights under each number, no more than the disk may hold, and the same
bytes after a kill.
"""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

import sft.epochs
from modeling.adapters import add_lora, merged
from modeling.config import ModelConfig
from modeling.export import export
from modeling.run import Run
from modeling.tracking import Tracker
from sft.config import SFTBaselineConfig
from sft.epochs import KeepEpochs, epoch_file, kept_epochs, load_epoch
from sft.train import Base, SFTData, fit, train
from tests.cuts import Cut
from tests.sft.test_train import ALONE, CHUNKS, TRAIN, VALID, loss_by_hand, metrics

SETTINGS = SFTBaselineConfig(epochs=2, learning_rate=5e-3, batch_size=4, micro_batch_size=4)


@pytest.fixture
def prepared(tmp_path: Path, tiny_causal: Any, tiny_tokenizer: Any, model_config: ModelConfig) -> Callable[..., Any]:
    def prepared(name: str, adapter: Literal["none", "lora"], family: str = "llama") -> tuple[Base, SFTData, Run]:
        base = Base(tiny_causal(family), tiny_tokenizer, replace(model_config, adapter=adapter))
        return base, SFTData(TRAIN, VALID, CHUNKS), Run(ALONE, 0, tmp_path / name)  # type: ignore[arg-type]

    return prepared


def keep(prepared: Any, name: str, settings: SFTBaselineConfig, adapter: str, family: str = "llama") -> Path:
    """Trains into a folder of this name and returns it."""
    base, data, run = prepared(name, adapter, family)
    fit(settings, base, data, run, KeepEpochs(run.out, settings, run.accelerator))
    folder: Path = run.out
    return folder


def epochs_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "epoch" in path.name)


@pytest.mark.parametrize("adapter", [pytest.param("none", marks=pytest.mark.slow), "lora"])
def test_each_epochs_weights_have_the_validation_loss_of_that_epoch_and_the_last_are_the_export(
    prepared: Any, tiny_causal: Any, tiny_tokenizer: Any, model_config: ModelConfig, tmp_path: Path, adapter: Any
) -> None:
    settings = replace(SETTINGS, activation_checkpointing=True)
    folder = keep(prepared, "kept", settings, adapter)
    assert epochs_of(folder) == [f"epoch-0{epoch}.safetensors" for epoch in (1, 2)]
    losses = []
    for epoch in (1, 2):
        model = tiny_causal("llama")
        model = add_lora(model, model_config.lora) if adapter == "lora" else model
        load_epoch(epoch_file(folder, epoch), model)
        losses.append(loss_by_hand(model, tiny_tokenizer, VALID))
    assert losses == pytest.approx(metrics(folder, "valid_loss"), rel=1e-4)
    assert min(abs(one - other) for one, other in itertools.pairwise(losses)) > 1e-2

    train(settings, *prepared("exported", adapter))
    export(merged(model), tiny_tokenizer, tmp_path / "last", model_config)
    for name in ("metrics.jsonl", "model/model.safetensors", "model/config.json"):
        ours = folder if name == "metrics.jsonl" else tmp_path / "last"
        assert (tmp_path / "exported" / name).read_bytes() == (ours / Path(name).name).read_bytes(), name
    AutoModelForCausalLM.from_pretrained(tmp_path / "last")
    if adapter == "lora":
        assert all(".lora_" in name for name in load_file(epoch_file(folder, 1)))
        with pytest.raises(ValueError, match=r"epoch-01\.safetensors do not fit the model with these settings"):
            load_epoch(epoch_file(folder, 1), tiny_causal("llama"))


def test_a_run_killed_twice_ends_with_the_same_bytes_of_every_epoch(
    prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout: in epoch 2, which is steps 3 and 4, and after it, before its checkpoint."""
    whole = keep(prepared, "whole", SETTINGS, "lora", "gpt2")
    folder, log, first = whole.with_name("cut"), Tracker.log, None
    for name, there in (("loss", 1), ("valid_loss", 2)):

        def cut(tracker: Tracker, step: int, numbers: dict[str, float], name: str = name) -> None:
            if step == 4 and name in numbers:
                raise Cut
            log(tracker, step, numbers)

        torch.manual_seed(77)
        with monkeypatch.context() as patch:
            patch.setattr(Tracker, "log", cut)
            with pytest.raises(Cut):
                keep(prepared, "cut", SETTINGS, "lora", "gpt2")
        assert epochs_of(folder) == epochs_of(whole)[:there], "a finished epoch is there"
        first = first or epoch_file(folder, 1).stat().st_mtime_ns
    (folder / ".epoch-02.safetensors.partial").write_bytes(b"half")
    epoch_file(folder, 2).write_bytes(b"of an earlier attempt")
    keep(prepared, "cut", SETTINGS, "lora", "gpt2")
    assert epoch_file(folder, 1).stat().st_mtime_ns == first, "the first epoch was not trained again"
    assert epochs_of(folder) == epochs_of(whole)
    for name in [*epochs_of(whole), "metrics.jsonl"]:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("epochs", "every", "kept"), [(4, 1, [1, 2, 3, 4]), (16, 5, [5, 10, 15, 16]), (6, 3, [3, 6]), (2, 9, [2])]
)
def test_the_last_epoch_is_kept_whatever_the_interval(epochs: int, every: int, kept: list[int]) -> None:
    assert kept_epochs(SFTBaselineConfig(epochs=epochs, keep_every=every)) == kept


class Steps(TrainerCallback):
    """Fails at the first step."""

    def on_step_begin(self, *given: Any, **rest: Any) -> None:
        raise AssertionError("trained")


def test_epochs_that_take_too_much_room_are_refused_before_training(
    prepared: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base, data, run = prepared("out", "none")
    size = sum(weight.numel() for weight in base.model.parameters()) * 4

    def attempt(settings: SFTBaselineConfig) -> None:
        shutil.rmtree(run.out, ignore_errors=True)
        fit(settings, base, data, run, KeepEpochs(run.out, settings, run.accelerator), Steps())

    told = rf"^2 kept epochs of {size / 2**20:,.1f} MiB need {2 * size / 2**20:,.1f} MiB"
    with pytest.raises(ValueError, match=told + r", more than sft_baseline\.max_kept_gib=.* set model\.adapter=lora$"):
        attempt(replace(SETTINGS, max_kept_gib=1.9 * size / 2**30))
    with pytest.raises(AssertionError, match="trained"):
        attempt(replace(SETTINGS, max_kept_gib=1.9 * size / 2**30, keep_every=2))
    monkeypatch.setattr(sft.epochs, "free_bytes", lambda folder: 2 * size - 1)
    with pytest.raises(ValueError, match=told + r", and .* are free in .*: free some space"):
        attempt(SETTINGS)
