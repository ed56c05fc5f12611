"""Log-probabilities of tokens from hidden states, without the logits of all tokens in memory.

The output layer runs on chunks of tokens. Each chunk's logits are discarded after the forward pass and computed again
in the backward pass (gradient checkpointing), so that at most one chunk of logits exists. Under mixed precision the
output layer and log-softmax run in float32: bfloat16 rounds logits near 10 to multiples of 0.06.

trl's `add_fused_lm_head` does the same, but it replaces the model's `forward`, needs Triton to score a subset of the
positions, and is not public API. Shapes: N tokens, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modeling.architecture import backbone_of, float32_arithmetic

LOGITS_PER_CHUNK = 2**23
"""Number of logits in a chunk on a CPU: 32 MiB in float32."""
LOWEST_LOGPROB = -1e4
"""Replaces minus infinity (a token that the architecture excludes) in the entropy, where 0 * inf would be NaN."""


def token_logprobs(
    layer: "OutputLayer", hidden_NH: Tensor, token_N: Tensor, temperature: float = 1.0, with_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """(logprob_N of the tokens, entropy_N of their distributions in nats).

    Args:
        temperature: the distributions are softmax(logits / temperature).
        with_entropy: if false, the entropy is zeros.
    """

    def of_chunk(hidden_NH: Tensor, token_N: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = layer(hidden_NH)
        logprob_NV = (logits_NV if temperature == 1.0 else logits_NV / temperature).log_softmax(-1)
        logprob_N = logprob_NV.gather(1, token_N[:, None]).squeeze(1)
        with torch.no_grad():
            entropy_N = torch.zeros_like(logprob_N)
            if with_entropy:
                entropy_N -= torch.linalg.vecdot(logprob_NV.exp(), logprob_NV.clamp(min=LOWEST_LOGPROB))
        return logprob_N, entropy_N

    size = max(1, logits_per_chunk(hidden_NH.device) // layer.vocabulary)
    parts = list(zip(hidden_NH.split(size), token_N.split(size), strict=True))
    if torch.is_grad_enabled() and len(parts) > 1:
        found = [checkpoint(of_chunk, *part, use_reentrant=False) for part in parts]
    else:
        found = [of_chunk(*part) for part in parts]
    logprobs, entropies = zip(*found, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def logits_per_chunk(device: torch.device) -> int:
    """Number of logits in a chunk; larger on a GPU, where small matrix products are slow."""
    if device.type != "cuda":
        return LOGITS_PER_CHUNK
    return logits_within(torch.cuda.get_device_properties(device).total_memory)


def logits_within(gpu_bytes: int) -> int:
    """Number of float32 logits in a 64th of a GPU's memory: several such tensors exist at a time."""
    return gpu_bytes // (64 * 4)


class OutputLayer:
    """Maps hidden states (N, H) to the logits (N, V) of a causal model, in float32 (float64 for a float64 model).

    Calls the model's output layer outside autocast, then applies the scale or soft cap of some architectures. It is not
    a module, since it owns no weights.
    """

    def __init__(self, model: Any) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        settings = inner.config.get_text_config()
        self.head = inner.get_output_embeddings()
        self.vocabulary: int = settings.vocab_size
        self.scale = getattr(settings, "logit_scale", None) or getattr(settings, "lm_head_multiplier", None) or 1.0
        self.scale /= getattr(settings, "logits_scaling", None) or 1.0
        self.cap = getattr(settings, "final_logit_softcapping", None)

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        with torch.autocast(hidden_NH.device.type, enabled=False):
            logits_NV: Tensor = self.head(hidden_NH.to(self.head.weight.dtype))
        logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        return self.cap * torch.tanh(logits_NV / self.cap) if self.cap else logits_NV


@torch.no_grad()
def refuse_unknown_logits(model: Any, name: str) -> None:
    """Raises ValueError for an architecture whose logits are not those of `OutputLayer`; runs a few tokens."""
    embeddings = model.get_input_embeddings()
    ids_1S = torch.arange(4, 10, device=embeddings.weight.device)[None] % embeddings.num_embeddings
    backbone = backbone_of(model)
    with float32_arithmetic(backbone):
        expected_SV = model(input_ids=ids_1S, use_cache=False).logits[0].float()
        found_SV = OutputLayer(model)(backbone(input_ids=ids_1S, use_cache=False).last_hidden_state[0])
    difference, scale = float((found_SV - expected_SV).abs().max()), float(expected_SV.abs().max())
    if difference > 1e-4 * max(scale, 1.0):
        raise ValueError(
            f"{name} changes its logits in a way that is not known ({type(model).__name__}, by {difference:.2g}): "
            "its log-probabilities would be wrong; choose another architecture"
        )
