"""One scalar per position: the reward model's score at the last token, the value model's value at every state.

Both are `AutoModelForSequenceClassification(num_labels=1)`: a backbone and a linear head without bias. The bias that
makes the mean score of demonstrations zero (Ouyang et al. 2022, section 3.5) is kept in the saved config as
`score_bias` and subtracted here. Shapes: B rows, R response tokens of all rows, M tokens of any meaning, H hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data.tokenize import template_closing
from modeling.batch import Batch
from modeling.load import is_classifier
from modeling.shared_prefix import plain_because
from modeling.trunk import backbone_of


@dataclass
class ScalarModel:
    """A backbone with a scalar head, whoever owns the two."""

    backbone: nn.Module
    head: nn.Module
    bias: float = 0.0

    def from_hidden(self, hidden_MH: Tensor) -> Tensor:
        """values_M of hidden states, in float32 at least: the head, less the bias."""
        with torch.autocast(
            hidden_MH.device.type, enabled=False
        ):  # bfloat16 has three digits, and the bias may be large
            values_M: Tensor = self.head(hidden_MH.to(self.head.get_parameter("weight").dtype)).squeeze(-1)
        return (values_M if values_M.dtype == torch.float64 else values_M.float()) - self.bias

    def scores(self, batch: Batch) -> Tensor:
        """scores_B: what the last response token says of the whole answer."""
        return self.from_hidden(batch.hidden(self.backbone, "last"))

    def values(self, batch: Batch) -> Tensor:
        """values_R of the states before each response token, row after row."""
        return self.from_hidden(batch.hidden(self.backbone, "states"))

    @property
    def plain_because(self) -> str | None:
        """Why each answer needs a pass of its own over its prompt; None where answers share it."""
        return plain_because(self.backbone)


def scalar_model(model: Any) -> ScalarModel:
    """The backbone and head inside an `AutoModelForSequenceClassification`, wrapped by peft or not.

    Raises ValueError for an architecture whose head is not a module named `score`.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(inner, "score"):
        raise ValueError(
            f"{type(inner).__name__} has no module `score`: choose a decoder-only architecture as reward model"
        )
    return ScalarModel(backbone_of(model), inner.score, float(getattr(inner.config, "score_bias", 0.0)))


def closing_of(settings: Any, tokenizer: Any) -> list[int] | None:
    """Token ids after which a reward model reads any answer's score; None for those trained here, which read at EOS or
    where the answer was cut off.

    One of other people's learned to read at the end of its chat template; it says so in its saved config from then on,
    as `score_closing`.
    """
    if (known := getattr(settings, "score_closing", None)) is not None:
        return [int(token) for token in known]
    ours = hasattr(settings, "score_bias") or not is_classifier(settings)
    return None if ours else template_closing(tokenizer)


def initialise_head(model: Any, seed: int) -> None:
    """Draws the head from N(0, 1/(d+1)), d the hidden size (Stiennon et al. 2020)."""
    weight: Tensor = scalar_model(model).head.get_parameter("weight")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) / (weight.shape[1] + 1) ** 0.5)
