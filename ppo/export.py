"""The finished policy in Hugging Face form: last weights in `model`, the moving average in `model_ema`, with LoRA their
adapters beside them.
"""

from pathlib import Path
from typing import Any

from peft import PeftModel

from modeling.adapters import merged, save_adapter
from modeling.config import ModelConfig
from modeling.export import export as export_model
from modeling.load import load_causal
from ppo.ema import MovingAverage
from ppo.models import PPOModels


def export(
    models: PPOModels, average: MovingAverage, sft: Path, config: ModelConfig, tokenizer: Any, out: Path
) -> None:
    """Writes both. Adapters are merged into a fresh copy of the SFT model, so the folders load with plain
    transformers.
    """
    _write(models.policy.model, "model", sft, config, tokenizer, out)
    with average.in_place():
        _write(models.policy.model, "model_ema", sft, config, tokenizer, out)


def _write(policy: Any, name: str, sft: Path, config: ModelConfig, tokenizer: Any, out: Path) -> None:
    if not isinstance(policy, PeftModel):
        export_model(policy, tokenizer, out / name, config)
        return
    adapter = out / name.replace("model", "adapter")
    save_adapter(policy, adapter, "policy")
    fresh = PeftModel.from_pretrained(load_causal(sft, config, tokenizer), str(adapter))
    export_model(merged(fresh), tokenizer, out / name, config)
