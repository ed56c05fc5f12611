"""Policy, value and reward model as modules: `policy(batch)`, `value(batch)`, `reward(batch)`.

Backbone, head, chunked projection, shared prompts and frozen lower layers are inside `forward`; no other code calls a
backbone or a head. With LoRA, several models share one base, each with its own adapter.
Shapes: B responses, R response tokens of all responses concatenated, M either of the two, H hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from data.tokenize import template_closing
from modeling.adapters import use_adapter
from modeling.architecture import backbone_of, is_classifier, layers_of
from modeling.batch import Batch
from modeling.frozen_layers import FrozenLayers
from modeling.logprobs import OutputLayer, token_logprobs
from modeling.shared_prefix import enable

Position = Literal["state", "last"]
"""`state`: the position before each response token, whose logits predict it; `last`: the last response token."""


class Encoder(nn.Module):
    """A transformer that returns the hidden states at the positions that a head needs."""

    def __init__(
        self,
        model: nn.Module,
        adapter: str | None = None,
        frozen: FrozenLayers | None = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            model: a Hugging Face model with a head, wrapped by peft or not.
            adapter: the adapter that is active in this model's forward passes; None for none.
            frozen: the frozen lower layers of the backbone, if their output is cached.
            autocast_dtype: the dtype of mixed precision; None computes in the dtype of the weights.
        """
        super().__init__()
        self.model, self.adapter, self.frozen, self.autocast_dtype = model, adapter, frozen, autocast_dtype
        self._recomputed: list[nn.Module] = []
        self.plain_reason = enable(backbone_of(model))
        """Why a prompt is encoded again for each response; None if its responses share the pass."""

    def activate(self) -> Any:
        """Makes this model's adapter the active one; returns the Hugging Face model."""
        if isinstance(self.model, PeftModel):
            use_adapter(self.model, self.adapter)
        return self.model

    def enable_checkpointing(self) -> None:
        """Recomputes the activations of each layer with trained weights in the backward pass, see
        `recompute_activations`.
        """
        recompute_activations(self.model)
        layers = layers_of(backbone_of(self.model))
        self._recomputed = [layer for layer in layers if any(weight.requires_grad for weight in layer.parameters())]

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Context manager for a forward pass. transformers checkpoints the layers that are in train mode, so this sets
        the mode of the layers themselves, without their submodules, and only if a backward pass follows. Dropout must
        be 0, as `load_causal` and `load_scalar` set it.
        """
        layers = self._recomputed if torch.is_grad_enabled() else []
        try:
            for layer in layers:
                layer.training = True
            yield
        finally:
            for layer in layers:
                layer.training = False

    def autocast(self) -> torch.autocast:
        """Mixed precision, or a context manager without effect."""
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def forward(self, batch: Batch, position: Position) -> Tensor:
        """hidden_MH at these positions, in the order of the batch."""
        backbone = backbone_of(self.activate())
        layout = batch.layout(packed=self.plain_reason is None)
        inputs = layout.inputs()
        with self.autocast(), self.recomputing():
            if self.frozen is None:
                hidden = backbone(**inputs, use_cache=False).last_hidden_state
            else:
                if batch.frozen_hidden is None:
                    batch.frozen_hidden = self.frozen.hidden(inputs)
                hidden = self.frozen(batch.frozen_hidden, inputs)
        found_MH: Tensor = hidden.flatten(0, 1)[layout.state_R if position == "state" else layout.last_B]
        return found_MH


class PolicyModel(nn.Module):
    """A causal language model: `policy(batch) -> logprobs_R, entropy_R`. Also the reference, with its own adapter."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.output_layer = OutputLayer(encoder.model)

    @property
    def causal(self) -> Any:
        """The Hugging Face model with this model's adapter active, for generation."""
        return self.encoder.activate()

    def forward(self, batch: Batch, temperature: float = 1.0, with_entropy: bool = True) -> tuple[Tensor, Tensor]:
        """(logprobs_R of the response tokens at the temperature, entropy_R of their distributions in nats).

        The entropy has no gradient; it is zeros unless `with_entropy`, which costs a pass over the vocabulary.
        """
        return token_logprobs(self.output_layer, self.encoder(batch, "state"), batch.token_R, temperature, with_entropy)


class ScalarModel(nn.Module):
    """A transformer with a linear head without bias, and a constant that is subtracted.

    The constant makes the mean score of demonstrations zero (Ouyang et al. 2022, section 3.5); it is saved in the
    model's config as `score_bias`.
    """

    def __init__(self, encoder: Encoder, head: nn.Module | None = None, bias: float | None = None) -> None:
        """
        Args:
            head: None takes the head `score` of the encoder's sequence classifier.
            bias: None takes `score_bias` of its config, or 0.
        """
        super().__init__()
        inner = plain(encoder.model)
        self.encoder = encoder
        self.head: nn.Module = inner.score if head is None else head
        self.bias = float(getattr(inner.config, "score_bias", 0.0)) if bias is None else bias

    def read(self, batch: Batch, position: Position) -> Tensor:
        """The head's output at these positions, in float32 (float64 for a float64 model)."""
        hidden_MH = self.encoder(batch, position)
        with torch.autocast(hidden_MH.device.type, enabled=False):  # bfloat16 has few digits; the bias may be large
            found_M: Tensor = self.head(hidden_MH.to(self.head.get_parameter("weight").dtype)).squeeze(-1)
        return (found_M if found_M.dtype == torch.float64 else found_M.float()) - self.bias


class RewardModel(ScalarModel):
    """`reward(batch) -> scores_B`: the score of each response, read at its last token."""

    def forward(self, batch: Batch) -> Tensor:
        return self.read(batch, "last")


class ValueModel(ScalarModel):
    """`value(batch) -> values_R`: the expected return before each response token."""

    def forward(self, batch: Batch) -> Tensor:
        return self.read(batch, "state")


def recompute_activations(model: Any) -> None:
    """Makes a model store only each layer's input in train mode, and compute the layer's activations again in the
    backward pass (Chen et al. 2016). Raises ValueError if the architecture does not support it.
    """
    refuse_recomputing(model)
    inner = plain(model)
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Only reentrant checkpointing needs inputs with gradients; layers below all adapters would get a backward pass.
    inner.disable_input_require_grads()


def refuse_recomputing(model: Any) -> None:
    """Raises ValueError for an architecture whose activations cannot be recomputed."""
    inner = plain(model)
    if not inner.supports_gradient_checkpointing or not layers_of(backbone_of(inner)):
        kind = type(inner).__name__
        raise ValueError(f"{kind} cannot recompute activations: set activation_checkpointing to false")


def plain(model: Any) -> Any:
    """The model without peft's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def reward_model(model: Any, autocast_dtype: torch.dtype | None = None) -> RewardModel:
    """A RewardModel of an `AutoModelForSequenceClassification`, wrapped by peft or not.

    Raises ValueError for an architecture whose head is not a module named `score`.
    """
    if not hasattr(plain(model), "score"):
        kind = type(plain(model)).__name__
        raise ValueError(f"{kind} has no module `score`: choose a decoder-only architecture as reward model")
    return RewardModel(Encoder(model, adapter_of_model(model), autocast_dtype=autocast_dtype))


def policy_model(model: Any, autocast_dtype: torch.dtype | None = None) -> PolicyModel:
    """A PolicyModel of an `AutoModelForCausalLM`, wrapped by peft or not."""
    return PolicyModel(Encoder(model, adapter_of_model(model), autocast_dtype=autocast_dtype))


def adapter_of_model(model: Any) -> str | None:
    """The active adapter of a model that has one or none."""
    return str(model.active_adapter) if isinstance(model, PeftModel) else None


def answer_suffix_of(settings: Any, tokenizer: Any) -> list[int] | None:
    """Token ids to append to every answer before it is scored; None for reward models trained here, which are scored at
    EOS, or at the last token of a truncated answer.

    Downloaded reward models were trained to score the last token of their chat template that is not the pad token of
    their config: transformers skips pads, and trl makes EOS the pad token of a tokenizer that has none. When such a
    model is saved here, its config has the tokens up to there as `score_closing`.

    Args:
        settings: as stored with the model; a loaded model's has our pad token.
    """
    if (known := getattr(settings, "score_closing", None)) is not None:
        return [int(token) for token in known]
    if hasattr(settings, "score_bias") or not is_classifier(settings):
        return None
    closing, pad_id = template_closing(tokenizer), settings.get_text_config().pad_token_id
    while closing and closing[-1] == pad_id:
        closing.pop()
    return closing


def initialize_head(model: Any, seed: int) -> None:
    """Draws the head `score` from N(0, 1/(d+1)), d the hidden size (Stiennon et al. 2020)."""
    weight: Tensor = plain(model).score.get_parameter("weight")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) / (weight.shape[1] + 1) ** 0.5)
