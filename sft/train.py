"""Stage 1 by trl's SFTTrainer (Ouyang et al. 2022, appendices C.1 and C.3)."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from data.records import Demonstration
from modeling.adapters import add_lora, merged, what_lora_adapts
from modeling.config import ModelConfig, TrackingConfig
from modeling.load import context_length, save
from modeling.processes import Processes
from modeling.tracking import Tracker
from sft.config import SFTConfig
from sft.examples import demonstration_examples, mix, text_examples

NAMES = {
    "loss": "loss",
    "eval_loss": "valid_loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "mean_token_accuracy": "token_accuracy",
}


class TrackerCallback(TrainerCallback):
    """Passes the trainer's numbers on to metrics.jsonl and to a bar, under this project's names."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.bar = tqdm(desc="sft", unit="step")

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.bar.reset(total=state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.bar.close()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **rest: Any
    ) -> None:
        numbers = {NAMES[name]: float(value) for name, value in (logs or {}).items() if name in NAMES}
        if numbers:
            self.tracker.log(state.global_step, numbers)
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in numbers.items() if "loss" in name})


def train(
    config: SFTConfig,
    model_config: ModelConfig,
    model: Any,
    tokenizer: Any,
    train_set: Sequence[Demonstration],
    valid_set: Sequence[Demonstration],
    chunks: Sequence[Sequence[int]],
    seed: int,
    team: Processes,
    out: Path,
    tracking: TrackingConfig | None = None,
) -> dict[str, float]:
    """Trains, saves the model to `out/model` and returns the last losses. Goes on from the trainer's last checkpoint below `out`.

    Raises ValueError when the batch does not divide over the processes, or a demonstration is longer than the context.
    """
    per_process = team.divide(config.batch_size, "sft.batch_size")
    micro = min(config.micro_batch_size, per_process)
    if per_process % micro:
        raise ValueError(f"sft.micro_batch_size={micro} does not divide the {per_process} sequences of each process")
    context = context_length(model.config)
    rows = demonstration_examples(tokenizer, train_set, context)
    rows = mix(rows, text_examples(chunks), config.pretraining_fraction, seed)
    if model_config.adapter == "lora":
        torch.manual_seed(seed)
        model = add_lora(model, model_config.lora)
        team.say(f"sft: {what_lora_adapts(model)}")
    bf16 = model_config.precision == "bfloat16" or (model_config.precision == "auto" and team.device.type == "cuda")
    folder = out / "trainer"
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    done = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
    with Tracker(out, done, tracking) if team.is_main else nullcontext() as tracker:
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(demonstration_examples(tokenizer, valid_set, context)),
            callbacks=[TrackerCallback(tracker)] if tracker is not None else [],
            args=TrlConfig(
                output_dir=str(folder),
                num_train_epochs=config.epochs,
                per_device_train_batch_size=micro,
                per_device_eval_batch_size=micro,
                gradient_accumulation_steps=per_process // micro,
                learning_rate=config.learning_rate,
                lr_scheduler_type="cosine_with_min_lr",
                lr_scheduler_kwargs={"min_lr_rate": config.final_lr_fraction},
                warmup_steps=0,
                adam_beta1=0.9,
                adam_beta2=0.95,
                weight_decay=0.0,
                max_grad_norm=config.max_grad_norm,
                completion_only_loss=True,
                max_length=None,
                packing=False,
                train_sampling_strategy="group_by_length",
                gradient_checkpointing=False,
                bf16=bf16,
                use_cpu=team.device.type == "cpu",
                logging_steps=1,
                eval_strategy="epoch",
                save_strategy="epoch",
                save_total_limit=1,
                report_to=[],
                disable_tqdm=True,
                seed=seed,
                dataloader_pin_memory=team.device.type == "cuda",
            ),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=checkpoint)
        history = trainer.state.log_history
    if team.is_main:
        trained = trainer.accelerator.unwrap_model(trainer.model)
        save(merged(trained) if isinstance(trained, PeftModel) else trained, tokenizer, out / "model")
    team.wait()
    losses = {name: [row[name] for row in history if name in row] for name in ("loss", "eval_loss")}
    return {"train_loss": losses["loss"][-1], "valid_loss": losses["eval_loss"][-1], "examples": float(len(rows))}
