"""Saves the finished policy in Hugging Face format: the last weights in `model` and the EMA in `model_ema`, with LoRA
also their adapters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor

from modeling.accelerator import from_main
from modeling.adapters import merged, save_adapter
from modeling.config import ModelConfig
from modeling.disk import room_for
from modeling.export import export as export_model
from modeling.sharding import full_weights
from ppo.actor_critic import ActorCritic
from ppo.ema import MovingAverage
from ppo.snapshots import policy_with


@dataclass(frozen=True)
class PolicyExport:
    """What an export needs besides the weights."""

    sft: Path
    config: ModelConfig
    tokenizer: Any
    out: Path

    def write(self, models: ActorCritic, average: MovingAverage, accelerator: Accelerator) -> None:
        """Writes both; all processes call it. The weights go into a new copy of the SFT model, with adapters merged, so
        that the folders load with plain transformers.
        """
        self._write("", models.policy_parameters, accelerator)
        self._write("_ema", average.average, accelerator)

    def _write(self, suffix: str, weights: Mapping[str, Tensor], accelerator: Accelerator) -> None:
        whole = full_weights(weights)
        from_main(accelerator, lambda: self._save(suffix, whole))

    def _save(self, suffix: str, weights: dict[str, Tensor]) -> None:
        folder = self.out / f"model{suffix}"
        with room_for(folder):
            policy = policy_with(weights, self.sft, self.config, self.tokenizer)
            if isinstance(policy, PeftModel):
                save_adapter(policy, self.out / f"adapter{suffix}", "policy")
            export_model(merged(policy), self.tokenizer, folder, self.config)
