"""Saves the finished policy in Hugging Face format: the last weights in `model` and the EMA in `model_ema`, with LoRA
also their adapters.
"""

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
from modeling.load import load_causal
from modeling.sharding import full
from ppo.actor_critic import ActorCritic
from ppo.ema import MovingAverage


@dataclass(frozen=True)
class PolicyExport:
    """What an export needs besides the weights."""

    sft: Path
    config: ModelConfig
    tokenizer: Any
    out: Path

    def write(self, models: ActorCritic, average: MovingAverage, accelerator: Accelerator) -> None:
        """Writes both; all processes call it. The weights go into a fresh copy of the SFT model, with adapters merged,
        so that the folders load with plain transformers.
        """
        self._write("model", models, accelerator)
        with average.in_place():
            self._write("model_ema", models, accelerator)

    def _write(self, name: str, models: ActorCritic, accelerator: Accelerator) -> None:
        # Shards are gathered by all processes, one weight at a time.
        parameters = models.policy_parameters.items() if self.config.adapter == "none" else ()
        weights = {key: full(weight.detach()).cpu() for key, weight in parameters}
        from_main(accelerator, lambda: self._save(name, models.policy.causal, weights))

    def _save(self, name: str, policy: Any, weights: dict[str, Tensor]) -> None:
        with room_for(self.out / name):
            fresh = load_causal(self.sft, self.config, self.tokenizer)
            if isinstance(policy, PeftModel):
                adapter = self.out / name.replace("model", "adapter")
                save_adapter(policy, adapter, "policy")
                fresh = merged(PeftModel.from_pretrained(fresh, str(adapter)))
            else:
                fresh.load_state_dict(weights, strict=False)  # a tied output layer has no weight of its own
            export_model(fresh, self.tokenizer, self.out / name, self.config)
