"""The model that a reward model is initialized from: the SFT model (Ouyang et al. 2022, section 3.5), or a separate
base of any size, family and tokenizer.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from modeling.adapters import add_lora
from modeling.architecture import is_classifier, refuse_lookahead
from modeling.config import ModelConfig
from modeling.load import base_model_place, context_length, load_scalar, load_tokenizer, read_settings
from modeling.models import answer_suffix_of, initialize_head, plain
from modeling.seeds import derive_seed
from reward.config import RewardConfig


@dataclass(frozen=True)
class Start:
    """A model to load, and how to load and adapt it."""

    place: str
    model_config: ModelConfig
    own_base: bool
    """Whether it is not the SFT model, so its adapter fits no other model of the run."""
    trained: bool
    """Whether it is already a reward model, whose head is kept."""
    context: int
    """Maximum number of tokens of a prompt with an answer."""

    @staticmethod
    def of(config: RewardConfig, model_config: ModelConfig, sft: Path) -> "Start":
        """The start that the settings name. Raises ValueError when the base is missing, or is not a reward model
        although it is not to be trained.
        """
        if config.base is not None:
            lora = replace(model_config.lora, top_layers=config.top_layers)
            own = {name: getattr(config, name) for name in ("base", "revision", "trust_remote_code", "chat_template")}
            model_config = replace(model_config, **own, lora=lora)
        place = base_model_place(model_config) if config.base is not None else str(sft)
        settings = read_settings(place, model_config)
        layers = settings.get_text_config().num_hidden_layers
        if config.top_layers is not None and config.top_layers > layers:
            raise ValueError(
                f"reward.top_layers={config.top_layers}, but reward.base={config.base} has {layers} layers"
            )
        trained = is_classifier(settings)
        if config.epochs == 0 and not trained:
            kind = ", ".join(settings.architectures or ["unknown"])
            raise ValueError(
                f"reward.epochs=0 takes reward.base={config.base} as it is, but it is not a reward model: its "
                f"architecture is {kind}"
            )
        return Start(place, model_config, config.base is not None, trained, context_length(settings))

    def tokenizer(self) -> Any:
        """The base's own tokenizer, with its own chat template."""
        return load_tokenizer(self.place, self.model_config)

    def answer_suffix(self, tokenizer: Any) -> list[int] | None:
        """Tokens that the reward model expects after each answer, see `answer_suffix_of`."""
        return answer_suffix_of(read_settings(self.place, self.model_config), tokenizer)

    def model(self, tokenizer: Any, seed: int, device: torch.device, train: bool = True) -> Any:
        """A new copy, ready to be trained: with a new head unless it has one, and with `adapter: lora` with an adapter
        and a trained head.
        """
        model = load_scalar(self.place, self.model_config, tokenizer, quantize=train).to(device)
        refuse_lookahead(model, f"reward.base={self.model_config.base}" if self.own_base else self.place)
        if not self.trained:
            initialize_head(model, derive_seed(seed, "reward head"))
        if train and self.model_config.adapter == "lora":
            torch.manual_seed(derive_seed(seed, "reward adapter"))
            model = add_lora(model, self.model_config.lora)
            plain(model).score.requires_grad_(True)
        return model
