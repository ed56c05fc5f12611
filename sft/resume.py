"""Makes a killed SFT run bit-identical to an uninterrupted one: complete checkpoints, and batches that depend only on
seed and epoch.

transformers' Trainer writes a checkpoint in place and cannot distinguish a partly written one from a complete one. A
callback therefore adds `checksums.json` (modeling/checkpoint.py) to each finished checkpoint, and a run resumes only
from checkpoints that match it.
"""

import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import Sampler
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTTrainer

from modeling.checkpoint import SUMS, SaveTimer, all_damaged, seal, step_of, what_is_wrong
from modeling.disk import discard
from modeling.seeds import derive_seed


def newest_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """(the newest complete checkpoint of the Trainer below a folder, a message for each later one, which is removed).

    Raises ValueError, and removes nothing, if there were complete ones and all of them are damaged.
    """
    found = sorted(
        (place for place in folder.glob("checkpoint-*") if place.name.removeprefix("checkpoint-").isdigit()),
        key=step_of,
    )
    problems: dict[Path, str] = {}
    whole: Path | None = None
    for place in reversed(found):
        if (problem := what_is_wrong(place)) is None:
            whole = place
            break
        problems[place] = problem
    if whole is None and any((place / SUMS).is_file() for place in problems):
        raise ValueError(all_damaged(folder, {place.name: why for place, why in problems.items()}))
    for place in problems:
        # The Trainer writes in place, so files of an earlier attempt must be removed.
        discard(place)
    for place in found:
        # A partly deleted checkpoint has a newer modification time, so the Trainer would delete a complete one instead.
        if whole is not None and step_of(place) < step_of(whole) and what_is_wrong(place) is not None:
            discard(place)
    for rest in folder.glob(".checkpoint-*"):
        shutil.rmtree(rest)
    outcome = f"resuming from {whole.name}" if whole is not None else "starting over"
    removed = ((place.name, why) for place, why in problems.items())
    return whole, [f"{name} is incomplete or damaged ({why}) and was removed: {outcome}" for name, why in removed]


class CheckpointCallback(TrainerCallback):
    """Saves a checkpoint at an interval, and adds its checksums when all processes have written their files."""

    def __init__(self, minutes: float, accelerator: Accelerator) -> None:
        self.timer, self.accelerator = SaveTimer(minutes, accelerator), accelerator

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        # After an epoch's last step the Trainer evaluates, then saves; resuming from in between would skip evaluation.
        epoch_ends = float(state.epoch or 0.0).is_integer()
        if not epoch_ends and self.timer.due():
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            seal(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")
        self.timer.restart()


class EpochOrder(Sampler[int], TrainerCallback):
    """An order that groups examples of similar length and depends only on the seed and the epoch.

    The Trainer's own sampler uses torch's global generator, so a run resumed in the middle of an epoch would see
    different batches. An epoch's last batch is filled up with its first examples, on any number of processes:
    accelerate would do so only on several processes, and to a different size.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "sft order", self.epoch))
        order = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        return itertools.islice(itertools.cycle(order), len(self))

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **rest: Any,
    ) -> None:
        """Sets the epoch here, since accelerate does not forward `set_epoch` to every sampler that it wraps."""
        self.epoch = int(state.epoch or 0.0)


def mean_of_tokens(found: EvalPrediction) -> dict[str, float]:
    """`loss` over all tokens, from the losses and numbers of tokens of the examples."""
    return {"loss": float(found.predictions.sum(dtype="float64") / found.label_ids.sum())}


class ResumableTrainer(SFTTrainer):
    """trl's trainer with the order of `EpochOrder`, a token accuracy that counts all processes, and an evaluation loss
    that is the mean over all tokens, if `compute_metrics` is `mean_of_tokens`.

    The training loss is the mean over an optimizer step's answer tokens, of any model: the Trainer guesses from the
    model's class whether its loss can be one, but trl computes it here. Adapters on a quantized base, which trl rounds
    to bfloat16, stay in float32, since small updates would be lost.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.model_accepts_loss_kwargs = self._loss_shifts_labels = True
        for weight in self.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[Any, Any]:
        """Keeps accelerate from dropping processes from the token accuracy of an epoch's last step.

        trl gathers one count per process with `gather_for_metrics`, which keeps `remainder` entries (examples left for
        the last batch) at the end of a dataloader, so with `remainder` below the number of processes it would drop
        counts. After skipped batches `remainder` is unset. 0 keeps all.
        """
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)
        if (dataloader := self.accelerator.gradient_state.active_dataloader) is not None:
            dataloader.remainder = 0
        return batches

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Each example's loss and number of tokens, instead of the mean of the micro-batch.

        The Trainer's mean weights examples alike, so it depends on which examples share a micro-batch.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            found = model(**inputs, use_cache=False, fused_lm_head=True)  # trl's forward pass, as in `compute_loss`
        return None, -found.log_probs.float().sum(-1), found.label_mask.sum(-1)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        order = EpochOrder([len(ids) for ids in dataset["input_ids"]], batch_size, args.seed)
        self.add_callback(order)
        return order
