"""Stage 1 with trl's SFTTrainer (Ouyang et al. 2022, appendices C.1 and C.3)."""

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig as TrlConfig

from data.records import Demonstration
from modeling.accelerator import divided, from_main, launched_for
from modeling.adapters import add_lora, copy_weights, merged, trained_weights, what_lora_adapts
from modeling.checkpoint import step_of
from modeling.config import ModelConfig
from modeling.export import export
from modeling.finite import require_finite
from modeling.load import autocast_dtype, context_length, load_causal
from modeling.models import recompute_activations
from modeling.run import Run
from modeling.sharding import Sharding
from modeling.tracking import Tracker
from sft.config import SFTConfig
from sft.examples import demonstration_examples, mix, text_examples
from sft.resume import CheckpointCallback, ResumableTrainer, mean_of_tokens, newest_complete
from sft.zero import description, gathered_model, keep_weights_in_float32, refuse_other_checkpoint

NAMES = {
    "loss": "loss",
    "eval_loss": "valid_loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "mean_token_accuracy": "token_accuracy",
}


class OneDevice(TrlConfig):
    """trl's settings for one device per process, independent of the machine's number of GPUs.

    Without a launcher the Trainer uses all visible GPUs, and would wrap its model in DataParallel and multiply its
    batch.
    """

    @property
    def n_gpu(self) -> int:
        """Number of devices of this process."""
        return min(1, int(super().n_gpu))


def numbers_of(args: TrainingArguments, logs: dict[str, float]) -> dict[str, float]:
    """The trainer's metrics under this project's names. In float16 a step whose gradient overflows is skipped; it has
    `skipped` instead of a gradient norm.
    """
    numbers = {NAMES[name]: float(value) for name, value in logs.items() if name in NAMES}
    if args.fp16 and "grad_norm" in numbers:
        numbers["skipped"] = float(not math.isfinite(numbers["grad_norm"]))
        if numbers["skipped"]:
            del numbers["grad_norm"]
    return numbers


class LogCallback(TrainerCallback):
    """Logs the trainer's metrics, under this project's names, to metrics.jsonl and a progress bar in the first process.
    Stops every process at the first metric that is NaN or infinite, before a checkpoint is saved.
    """

    def __init__(self, tracker: Tracker | None, section: str) -> None:
        """`tracker` is None in all processes but the first."""
        self.tracker, self.section = tracker, section
        self.bar = tqdm(disable=True)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        if self.tracker is not None:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.section, unit="step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.bar.close()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **rest: Any,
    ) -> None:
        numbers = numbers_of(args, logs or {})
        advice = f"lower {self.section}.learning_rate, or with float16 try another model.precision; nothing is exported"
        require_finite(numbers, f"{self.section}, step {state.global_step}", advice)
        if numbers and self.tracker is not None:
            self.tracker.log(state.global_step, numbers)
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in numbers.items() if "loss" in name})


@dataclass(frozen=True)
class Base:
    """The model to train."""

    model: Any
    tokenizer: Any
    config: ModelConfig


@dataclass(frozen=True)
class SFTData:
    """Demonstrations, and token ids of plain text, from which the pretraining mix is drawn."""

    train: Sequence[Demonstration]
    valid: Sequence[Demonstration]
    chunks: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Trained:
    """A model after training, and its last losses."""

    model: Any
    numbers: dict[str, float]


def train(config: SFTConfig, base: Base, data: SFTData, run: Run) -> dict[str, float]:
    """Trains, saves the model to `run.out/model` and returns the last losses. Raises like `fit`."""
    assert run.out is not None
    out, model_config, tokenizer = run.out, base.config, base.tokenizer
    trained = fit(config, base, data, run)

    def save() -> None:
        saved = trained.model
        if model_config.quantization != "none":
            fresh = load_causal(base.model.name_or_path, model_config, tokenizer)
            saved = add_lora(fresh, model_config.lora)
            copy_weights(trained_weights(trained.model), saved, "the adapter")
        export(merged(saved), tokenizer, out / "model", model_config)

    from_main(run.accelerator, save)
    return trained.numbers


def fit(config: SFTConfig, base: Base, data: SFTData, run: Run, *more: TrainerCallback) -> Trained:
    """Trains, with `more` callbacks.

    Resumes from the newest complete checkpoint below `run.out`.

    Raises ValueError when the batch does not divide over the processes or differs from the trainer's, a demonstration
    is longer than the context, a loss or gradient norm is not finite, or every checkpoint is damaged.
    """
    assert run.out is not None
    model, tokenizer, model_config, section = base.model, base.tokenizer, base.config, config.section
    accelerator, seed, out = run.accelerator, run.seed, run.out
    context = context_length(model.config)
    rows = demonstration_examples(tokenizer, data.train, context)
    rows = mix(rows, text_examples(data.chunks), config.pretraining_fraction, seed)
    if model_config.adapter == "lora":
        torch.manual_seed(seed)
        model = add_lora(model, model_config.lora)
        accelerator.print(f"{section}: {what_lora_adapts(model)}")
    if config.epochs == 0:
        accelerator.print(f"{section}: nothing is trained (sft.epochs=0): the SFT model is the base model")
    if config.activation_checkpointing:
        recompute_activations(model)
    zero = launched_for("DEEPSPEED")
    blank = copy.deepcopy(model) if zero and accelerator.is_main_process else None
    checkpoint, said = from_main(accelerator, lambda: newest_complete(out / "trainer"))
    for line in said:
        accelerator.print(f"{section}: {line}")
    if checkpoint is not None:
        refuse_other_checkpoint(checkpoint, accelerator.num_processes if zero else 0)
    done = step_of(checkpoint) if checkpoint is not None else 0
    kept = done if config.epochs > 0 else -1  # the only row is of step 0
    with Tracker(out, kept, run.tracking) if accelerator.is_main_process else nullcontext() as tracker:
        checkpoints = CheckpointCallback(config.checkpoint_minutes, accelerator)
        trainer = ResumableTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(demonstration_examples(tokenizer, data.valid, context)),
            callbacks=[LogCallback(tracker, section), checkpoints, *more],
            compute_metrics=mean_of_tokens,
            args=trainer_settings(config, base, run),
        )
        check_batch_size(trainer.args, config)
        if zero:
            precision = autocast_dtype(model_config, accelerator.device)
            keep_weights_in_float32(trainer.args, precision == torch.bfloat16)
        how = description(trainer.args) if zero else Sharding().description(model, accelerator.num_processes)
        accelerator.print(f"{section}: {how}")
        trainer.remove_callback(PrinterCallback)
        if config.epochs > 0:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        else:
            trainer.evaluate()
        history = trainer.state.log_history
    trained = gathered_model(trainer, blank) if zero else trainer.accelerator.unwrap_model(trainer.model)
    losses = {name: [row[name] for row in history if name in row] for name in ("loss", "eval_loss")}
    numbers = {"valid_loss": losses["eval_loss"][-1]}
    if config.epochs > 0:
        numbers = {"train_loss": losses["loss"][-1], **numbers, "examples": float(len(rows))}
    return Trained(trained, numbers)


def trainer_settings(config: SFTConfig, base: Base, run: Run) -> OneDevice:
    """trl's settings. Creating them resets accelerate's state, which the trainer then creates again.

    Raises ValueError when the batch does not divide, or DeepSpeed does not support a setting.
    """
    device, zero, settings = run.accelerator.device, launched_for("DEEPSPEED"), base.model.config.get_text_config()
    precision = autocast_dtype(base.config, device)
    if zero and (precision == torch.float16 or base.config.quantization != "none"):
        raise ValueError("with DeepSpeed, set model.precision to float32 or bfloat16 and model.quantization to none")
    if zero and config.epochs == 0:
        raise ValueError("sft.epochs=0 does not train, which DeepSpeed needs: use configs/accelerate/ddp.yaml")
    per_process = divided(run.accelerator, config.batch_size, f"{config.section}.batch_size")
    micro = min(config.micro_batch_size, per_process)
    if per_process % micro:
        setting = f"{config.section}.micro_batch_size={micro}"
        raise ValueError(f"{setting} does not divide the {per_process} sequences of each process")
    return OneDevice(
        output_dir=f"{run.out}/trainer",
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
        # trl's router loss reads `num_experts`, which some configurations (Phi-MoE) lack; 0 turns it off.
        router_aux_loss_coef=None if hasattr(settings, "num_experts") else 0.0,
        max_length=None,
        packing=False,
        gradient_checkpointing=False,  # see `recompute_activations`
        bf16=precision == torch.bfloat16 and not zero,
        fp16=precision == torch.float16,
        use_cpu=device.type == "cpu" and not zero,
        ddp_backend="gloo" if device.type == "cpu" and zero else None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,  # the newest is complete only once it has checksums
        report_to=[],
        disable_tqdm=True,
        seed=run.seed,
        dataloader_pin_memory=device.type == "cuda",
    )


def check_batch_size(args: TrainingArguments, config: SFTConfig) -> None:
    """Raises ValueError unless the trainer takes the configured number of sequences per optimizer step."""
    found = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if found != config.batch_size:
        raise ValueError(
            f"{config.section}.batch_size={config.batch_size}, but the trainer would take {found} sequences per step: "
            f"{args.world_size} processes with {args.n_gpu} devices each; start one process per GPU with torchrun or "
            "make's GPUS="
        )
