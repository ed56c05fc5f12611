"""The weights of each epoch of the supervised baseline: `epoch-03.safetensors` holds those that are trained, which are
the adapter's with LoRA.
"""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling.accelerator import from_main
from modeling.adapters import copy_weights, trained_weights
from modeling.checkpoint import write_weights
from modeling.disk import free_bytes, mib
from sft.config import SFTBaselineConfig


def epoch_file(folder: Path, epoch: int) -> Path:
    """The file with an epoch's weights; epochs count from 1."""
    return folder / f"epoch-{epoch:02d}.safetensors"


def kept_epochs(config: SFTBaselineConfig) -> list[int]:
    """The epochs to keep, in order: every `keep_every`-th and the last."""
    return sorted({*range(config.keep_every, config.epochs + 1, config.keep_every), config.epochs})


class KeepEpochs(TrainerCallback):
    """Writes the trained weights to a folder at the end of each epoch.

    An epoch is written before the Trainer saves the checkpoint of that step, so a run that is killed in between writes
    it again, with the same bytes.
    """

    def __init__(self, folder: Path, config: SFTBaselineConfig, accelerator: Accelerator) -> None:
        self.folder, self.config, self.accelerator = folder, config, accelerator

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **rest: Any
    ) -> None:
        """Raises ValueError if the epochs need more space than allowed, or than the disk has."""
        size = sum(weight.numel() * weight.element_size() for weight in trained_weights(model).values())
        epochs, section = kept_epochs(self.config), self.config.section
        told = f"{len(epochs)} kept epochs of {mib(size)} need {mib(size * len(epochs))}"
        if size * len(epochs) > self.config.max_kept_gib * 2**30:
            raise ValueError(
                f"{told}, more than {section}.max_kept_gib={self.config.max_kept_gib:g} allows: raise it, raise "
                f"{section}.keep_every, or set model.adapter=lora"
            )
        missing = sum(not epoch_file(self.folder, epoch).exists() for epoch in epochs)
        free = from_main(self.accelerator, lambda: free_bytes(self.folder))
        if size * missing > free:
            raise ValueError(
                f"{told}, and {mib(free)} are free in {self.folder}: free some space, raise {section}.keep_every, or "
                "choose another --runs_folder"
            )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **rest: Any
    ) -> None:
        epoch = round(state.epoch or 0.0)
        if epoch in kept_epochs(self.config):
            from_main(self.accelerator, lambda: write_weights(epoch_file(self.folder, epoch), trained_weights(model)))


def load_epoch(path: Path, model: Any) -> None:
    """Copies an epoch's weights into a model of the same base and adapter. Raises ValueError if they do not fit."""
    try:
        copy_weights(load_file(path), model, str(path))
    except ValueError as error:
        raise ValueError(f"{error}: run the stage again with --force") from None
