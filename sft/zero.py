"""DeepSpeed's ZeRO for SFT: precision, checkpoints and export, so that the result agrees with DDP's.

accelerate launch --config_file configs/accelerate/zero3.yaml -m stages.sft --config configs/mine.yaml
"""

from pathlib import Path
from typing import Any

from accelerate import DistributedType
from transformers import Trainer, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config


def keep_weights_in_float32(args: TrainingArguments, bf16: bool) -> None:
    """Makes DeepSpeed use autocast, as all stages do; its `bf16` mode would round the exported weights."""
    assert args.distributed_state.distributed_type == DistributedType.DEEPSPEED, "the Trainer would not use DeepSpeed"
    # An empty list turns off communication in bfloat16, in which ZeRO-3 would gather rounded weights.
    autocast = {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    args.deepspeed_plugin.deepspeed_config["torch_autocast"] = autocast


def description(args: TrainingArguments) -> str:
    """A log message, like that of `Sharding.description`."""
    return f"{args.world_size} processes, model sharded (DeepSpeed ZeRO-{args.deepspeed_plugin.zero_stage})"


def refuse_other_checkpoint(checkpoint: Path, processes: int) -> None:
    """Raises ValueError for a checkpoint of another launch: ZeRO reads only those of as many processes, and the Trainer
    would skip the optimizer states that it does not find.

    Args:
        processes: their number with DeepSpeed, 0 without.
    """
    found = len(list(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt")))
    if found != processes:
        before, now = (f"DeepSpeed on {count} processes" if count else "no DeepSpeed" for count in (found, processes))
        raise ValueError(f"{checkpoint} was written with {before}, not with {now}: launch as before, or use --force")


def gathered_model(trainer: Trainer, blank: Any) -> Any:
    """The trained model, in the first process. All processes must call this.

    Args:
        blank: a copy of the model from before training, into which the gathered weights of ZeRO-3 are loaded.
    """
    if not is_deepspeed_zero3_enabled():
        return trainer.accelerator.unwrap_model(trainer.model)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    unset_hf_deepspeed_config()  # else transformers partitions every model that it loads from here on
    if trainer.accelerator.is_main_process:
        blank.load_state_dict(weights)
    return blank
