"""Snapshots of the policy's weights during PPO: its trained weights alone, a fraction of a checkpoint's size.

Checkpoints are removed when a run is complete; snapshots stay, so that the policy can be evaluated along its training.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from modeling.accelerator import from_main
from modeling.adapters import add_lora, copy_weights, merged
from modeling.checkpoint import write_weights
from modeling.config import ModelConfig
from modeling.load import load_causal
from modeling.sharding import full_weights

FOLDER = "snapshots"


def save_snapshot(out: Path, iteration: int, weights: Mapping[str, Tensor], accelerator: Accelerator) -> None:
    """Writes the snapshot of an iteration into the folder of a PPO run; all processes call it."""
    save_policy(out / FOLDER / f"iteration-{iteration:08d}.safetensors", weights, accelerator)


def save_policy(path: Path, weights: Mapping[str, Tensor], accelerator: Accelerator) -> None:
    """Writes the policy's trained weights (`ActorCritic.policy_parameters`) atomically; all processes call it.

    Raises ValueError when the disk is full.
    """
    whole = full_weights(weights)
    from_main(accelerator, lambda: write_weights(path, whole))


def snapshots(ppo: Path) -> dict[int, Path]:
    """The snapshots in the folder of a PPO run, by iteration, in order."""
    return {int(path.stem.removeprefix("iteration-")): path for path in sorted((ppo / FOLDER).glob("*.safetensors"))}


def load_policy(path: Path, sft: Path, config: ModelConfig, tokenizer: Any) -> Any:
    """The language model with the weights of `save_policy`; adapters are merged. Arguments and errors are those of
    `policy_with`.
    """
    return merged(policy_with(load_file(path), sft, config, tokenizer, str(path)))


def policy_with(
    weights: Mapping[str, Tensor], sft: Path, config: ModelConfig, tokenizer: Any, owner: str = "the policy"
) -> Any:
    """A new copy of the SFT model with the policy's trained weights.

    Args:
        sft: the folder of the SFT model that PPO started from.
        config: as in PPO, for `adapter` and `lora`.
        owner: see `copy_weights`.

    Raises ValueError for weights of another model or of another `config`.
    """
    model = load_causal(sft, config, tokenizer)
    if config.adapter == "lora":
        model = add_lora(model, config.lora, name="policy")
    copy_weights(weights, model, owner)
    return model
