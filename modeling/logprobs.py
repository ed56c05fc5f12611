"""Log-probabilities of response tokens under a causal language model, without the logits of all tokens in memory.

The output layer runs only over the hidden states of the needed tokens, in chunks; with gradients, each chunk's backward
pass runs before the next chunk's forward pass. Under mixed precision the backbone computes in bfloat16, the output
layer and log-softmax in float32: bfloat16 logits of size 10 are rounded to 0.06.
Shapes: R response tokens of all rows, one row after the other; N tokens of one chunk; H hidden size; V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from modeling.batch import Batch
from modeling.trunk import backbone_of

LOGITS_AT_ONCE = 2**22
"""Numbers in a piece of logits: 16 MiB in float32. Large enough to keep a matrix product busy, and small enough for an
allocator to keep: beyond 32 MiB glibc asks the system for fresh pages each time."""
LOGITS_IN_CACHE = 2**19
"""Numbers that fit a processor core's own cache: 2 MiB in float32."""
LOWEST_LOGPROB = -1e4
"""Of a token that an architecture rules out (minus infinity), whose share of the entropy is 0 and not 0 times
infinity.
"""


class _Found(BaseModelOutputWithPastAndCrossAttentions):
    """What some heads ask of their backbone beside hidden states, such as a router's logits, is not there."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Passed(nn.Module):
    """Stands in for a backbone and hands on what it gets."""

    @property
    def decoder(self) -> "_Passed":
        """OPT's head calls this part of its backbone."""
        return self

    def forward(self, *others: Any, inputs_embeds: Tensor, **named: Any) -> _Found:
        """Hidden states as they came."""
        return _Found(last_hidden_state=inputs_embeds)


@contextlib.contextmanager
def output_layer(model: Any, temperature: float = 1.0) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from hidden_NH to logits_NV, divided by the temperature, in at least float32, under autocast too.

    It is the model itself without its backbone, so it includes the architecture's changes to logits (a scale, a soft
    cap).
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    name, backbone, weight = inner.base_model_prefix, backbone_of(inner), model.get_output_embeddings().weight

    def logits(hidden_NH: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            found_NV: Tensor = inner(inputs_embeds=hidden_NH[None].to(weight.dtype), use_cache=False).logits[0]
        found_NV = found_NV if found_NV.dtype == torch.float64 else found_NV.float()
        return found_NV / temperature if temperature != 1.0 else found_NV

    setattr(inner, name, _Passed())
    try:
        yield logits
    finally:
        setattr(inner, name, backbone)


class _Chosen(torch.autograd.Function):
    """(log-probability, entropy) of each distribution. One buffer of probabilities serves the entropy and then the
    gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, token_N: Tensor) -> tuple[Tensor, Tensor]:
        """The entropy is there to be watched and has no gradient."""
        probability_NV = torch.empty_like(logits_NV)
        logprobs, entropies = [], []
        for part in blocks(logits_NV):
            logprob_BV = logits_NV[part].log_softmax(-1)
            probability_BV = torch.exp(logprob_BV, out=probability_NV[part])
            logprobs.append(logprob_BV.gather(1, token_N[part, None]).squeeze(1))
            entropies.append(-torch.linalg.vecdot(probability_BV, logprob_BV.clamp_(min=LOWEST_LOGPROB)))
        entropy_N = torch.cat(entropies)
        ctx.save_for_backward(probability_NV, token_N)
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat(logprobs), entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        """d logprob / d logits = (1 at the chosen token) - probability. There is one backward pass, so the buffer may
        become the gradient.
        """
        probability_NV, token_N = ctx.saved_tensors
        gradient_N1 = gradients[0][:, None]
        return probability_NV.mul_(-gradient_N1).scatter_add_(1, token_N[:, None], gradient_N1), None


class _AddsInPlace(torch.autograd.Function):
    """A linear map whose weight's gradient is added to `.grad` within the matrix product. Autograd would lay out a
    second one, as large as the vocabulary times H, for each piece."""

    @staticmethod
    def forward(ctx: Any, x_NH: Tensor, weight: nn.Parameter) -> Tensor:
        """x_NV."""
        ctx.save_for_backward(x_NH)
        ctx.weight = weight
        return nn.functional.linear(x_NH, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        """Of x alone: the weight's is where it belongs already."""
        (x_NH,), gradient_NV, weight = ctx.saved_tensors, gradients[0].flatten(0, -2), ctx.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.addmm_(gradient_NV.T, x_NH.flatten(0, -2))
        return (gradient_NV @ weight).view_as(x_NH), None


@contextlib.contextmanager
def adding_in_place(head: Any) -> Iterator[None]:
    """A context in which a purely linear output layer accumulates its weight's gradient in place.

    `output_layer` runs it outside autocast, so it multiplies by the weight itself.
    """
    plain = type(head) is nn.Linear and getattr(head, "bias", None) is None and head.weight.requires_grad
    if not plain:
        yield
        return
    head.forward = lambda x: _AddsInPlace.apply(x, head.weight)
    try:
        yield
    finally:
        del head.forward


def blocks(logits_NV: Tensor) -> list[slice]:
    """Rows that a processor's cache holds while several passes go over them."""
    size = max(1, LOGITS_IN_CACHE // logits_NV.shape[1])
    return [slice(start, start + size) for start in range(0, len(logits_NV), size)]


def chosen(logits_NV: Tensor, token_N: Tensor) -> tuple[Tensor, Tensor]:
    """(logprob_N of the chosen tokens, entropy_N of the distributions in nats); the first has a gradient."""
    found: tuple[Tensor, Tensor] = _Chosen.apply(logits_NV, token_N)
    return found


def chosen_logprobs(logits_NV: Tensor, token_N: Tensor) -> Tensor:
    """logprob_N of the chosen tokens, to the bit as `chosen` gives it; no gradient."""
    return torch.cat(
        [logits_NV[part].log_softmax(-1).gather(1, token_N[part, None]).squeeze(1) for part in blocks(logits_NV)]
    )


def pieces(model: Any, tokens: int) -> list[slice]:
    """R tokens in stretches whose logits may be in memory at once."""
    size = max(1, LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


@torch.no_grad()
def response_logprobs(model: Any, batch: Batch, temperature: float = 1.0) -> Tensor:
    """logprobs_R of the response tokens in the distributions at that temperature; no gradient."""
    hidden_RH = batch.hidden(backbone_of(model), "states")
    with output_layer(model, temperature) as logits:
        return torch.cat(
            [chosen_logprobs(logits(hidden_RH[part]), batch.token_R[part]) for part in pieces(model, len(hidden_RH))]
        )


def accumulate_gradient(
    model: Any,
    batch: Batch,
    loss_of: Callable[[Tensor, slice], Tensor],
    temperature: float = 1.0,
    forward: Any = contextlib.nullcontext,
) -> tuple[Tensor, Tensor, Tensor]:
    """Adds the gradient of a loss that is a sum over response tokens to the parameters' `.grad`.

    `loss_of(logprobs_N, part)` is the loss of the tokens `part` of all R. `forward` returns a context for the
    backbone's forward pass, such as autocast.
    Returns (the loss, logprobs_R, entropy_R in nats), all without gradients.
    """
    with forward():
        hidden_RH = batch.hidden(backbone_of(model), "states")
    losses, logprobs, entropies, gradients = [], [], [], []
    head = model.get_output_embeddings()  # now, as some models find it through their backbone, detached below
    with output_layer(model, temperature) as logits:
        for part in pieces(model, len(hidden_RH)):
            leaf_NH = hidden_RH[part].detach().requires_grad_()
            with adding_in_place(head):
                logits_NV = logits(leaf_NH)
            logprobs_N, entropy_N = chosen(logits_NV, batch.token_R[part])
            del logits_NV
            loss = loss_of(logprobs_N, part)
            loss.backward()
            assert leaf_NH.grad is not None
            losses.append(loss.detach())
            logprobs.append(logprobs_N.detach())
            entropies.append(entropy_N)
            gradients.append(leaf_NH.grad)
    hidden_RH.backward(torch.cat(gradients))
    return torch.stack(losses).sum(), torch.cat(logprobs), torch.cat(entropies)


def text_batch(chunks: Sequence[list[int]], pad_id: int, device: torch.device) -> Batch:
    """Plain text whose tokens, from the second on, are what is predicted."""
    return Batch([chunk[:1] for chunk in chunks], [chunk[1:] for chunk in chunks], pad_id, device, shared=False)


def text_loss(model: Any, chunks: Sequence[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, int]:
    """(sum of the next-token losses of plain text, how many tokens they are over); no gradient."""
    logprobs_R = response_logprobs(model, text_batch(chunks, pad_id, device))
    return -logprobs_R.double().sum(), len(logprobs_R)
