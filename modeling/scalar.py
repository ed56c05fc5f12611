"""One number a position: the reward model's score at the last token, the value model's value at every state.

Both are `AutoModelForSequenceClassification(num_labels=1)`: a backbone and a linear head without bias. The bias that makes the mean score of
demonstrations zero (Ouyang et al. 2022, appendix C.2) is kept in the saved config as `score_bias` and subtracted here.
Shapes: B rows, S tokens a row, T positions wanted of each row, H hidden size.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from data.tokenize import template_closing
from modeling.load import is_classifier
from modeling.sequences import Sequences, take_positions
from modeling.shared_prefix import why_not
from modeling.trunk import backbone_of


@dataclass
class ScalarModel:
    """A backbone with a scalar head, whoever owns the two."""

    backbone: nn.Module
    head: nn.Module
    bias: float = 0.0

    def at(self, sequences: Sequences, index_BT: Tensor) -> Tensor:
        """values_BT in float32: the head at these positions, less the bias."""
        with sequences.inputs_of(self.backbone) as inputs:
            hidden_BSH = self.backbone(**inputs, use_cache=False).last_hidden_state
        return self.from_hidden(take_positions(hidden_BSH, index_BT))

    def from_hidden(self, hidden_BTH: Tensor) -> Tensor:
        """values_BT of hidden states."""
        values_BT: Tensor = self.head(hidden_BTH).squeeze(-1).float() - self.bias
        return values_BT

    def scores(self, sequences: Sequences) -> Tensor:
        """scores_B: what the last response token says of the whole answer."""
        return self.at(sequences, sequences.last_index_B1).squeeze(1)

    def values(self, sequences: Sequences) -> Tensor:
        """values_BT of the states before each response token."""
        return self.at(sequences, sequences.state_index_BT)

    @cached_property
    def plain_because(self) -> str | None:
        """Why each answer needs a pass of its own over its prompt; None where answers share it."""
        return why_not(self.backbone)


def scalar_model(model: Any) -> ScalarModel:
    """The backbone and head inside an `AutoModelForSequenceClassification`, wrapped by peft or not.

    Raises ValueError for an architecture whose head is not a module named `score`.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(inner, "score"):
        raise ValueError(f"{type(inner).__name__} has no module `score`: choose a decoder-only architecture as reward model")
    return ScalarModel(backbone_of(model), inner.score, float(getattr(inner.config, "score_bias", 0.0)))


def closing_of(settings: Any, tokenizer: Any) -> list[int] | None:
    """Token ids after which a reward model reads any answer's score; None for those trained here, which read at EOS or where the answer was cut off.

    One of other people's learned to read at the end of its chat template; it says so in its saved config from then on, as `score_closing`.
    """
    if (known := getattr(settings, "score_closing", None)) is not None:
        return [int(token) for token in known]
    ours = hasattr(settings, "score_bias") or not is_classifier(settings)
    return None if ours else template_closing(tokenizer)


def initialise_head(model: Any, seed: int) -> None:
    """Draws the head from N(0, 1/(d+1)), d the hidden size (Stiennon et al. 2020, appendix B.2)."""
    weight: Tensor = scalar_model(model).head.get_parameter("weight")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) / (weight.shape[1] + 1) ** 0.5)
