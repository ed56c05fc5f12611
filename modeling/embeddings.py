"""Embedding rows, configs and logits of tokens that a tokenizer has and its model lacks."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)
SUPPRESSED_LOGIT = -1e4
"""Logit of a token that is never sampled: its probability is 0 in float32; bfloat16 and float16 can represent it."""


def with_end(named: int | list[int] | None, end: int) -> int | list[int]:
    """The end tokens of a generation config, with `end` added if it is missing; an int or a list, as in the config."""
    ends = [named] if isinstance(named, int) else list(named or [])
    if end in ends:
        return ends if isinstance(named, list) else end
    return [*ends, end] if ends else end


def grow_embeddings(model: Any, tokenizer: Any) -> None:
    """Adds embedding rows for tokens that have none, and sets the pad and end tokens in the configs.

    A new pad token is never sampled. Here its logit is suppressed in every forward pass, so that sampling and
    log-probabilities use the same distribution; an exported model has the token in the generation config's
    `suppress_tokens`. The base's own pad token keeps its row and its logit.
    """
    generation, pad_id = getattr(model, "generation_config", None), tokenizer.pad_token_id
    rows = model.get_input_embeddings().weight.shape[0]
    new = set(range(rows, len(tokenizer)))
    # The added token may have an unused row of a padded vocabulary.
    added = getattr(tokenizer, "pad_is_new", False) or pad_id in new
    if new:
        resize(model, len(tokenizer))
        warn_of_new(tuple(map(str, tokenizer.convert_ids_to_tokens(sorted(new - {pad_id})))))
    fill_with_mean(model, sorted(new | {pad_id} if added else new))
    model.config.pad_token_id = pad_id
    # torch gives the row of `padding_idx` no gradient, and in many models it is EOS. Padding is masked anyway.
    model.get_input_embeddings().padding_idx = None
    if generation is not None and model.can_generate():
        generation.pad_token_id = pad_id
        generation.eos_token_id = with_end(generation.eos_token_id, tokenizer.eos_token_id)
        suppressed = generation.suppress_tokens or []
        if added and pad_id not in suppressed:
            generation.suppress_tokens = [*suppressed, pad_id]
        if pad_id in (generation.suppress_tokens or []):
            suppress_logit(model, pad_id)


@functools.lru_cache
def warn_of_new(tokens: tuple[str, ...]) -> None:
    """Logs a warning, once, if there are any."""
    if tokens:
        names = ", ".join(tokens[:5]) + (", ..." if len(tokens) > 5 else "")
        log.warning(
            f"{len(tokens)} of the tokenizer's tokens have no embedding in the model ({names}): they start as the mean "
            "of the others. LoRA does not train embeddings, so with it the model cannot tell them apart"
        )


def resize(model: Any, rows: int) -> None:
    """Resizes input and output embeddings. If the config says that they are tied but the checkpoint has an output layer
    of its own, they stay separate: transformers loads both, but would tie them when it resizes.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    apart = outputs is not None and outputs.weight is not inputs.weight
    contradicts = apart and getattr(model.config, "tie_word_embeddings", False)
    if contradicts:
        model.config.tie_word_embeddings = False
    model.resize_token_embeddings(rows, mean_resizing=False)
    if contradicts:
        model.config.tie_word_embeddings = True


@torch.no_grad()
def fill_with_mean(model: Any, tokens: Sequence[int]) -> None:
    """Sets the embeddings of new tokens to the mean of those before the first of them.

    The probability of each is then at most 1 / (number of tokens before the first) after any text, with tied embeddings
    or not, since exp of the mean logit is at most the mean of exp of the logits. A random row would have a logit near
    0, the largest of all in models like GPT-2, whose logits are far below 0.
    """
    if not tokens:
        return
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        for values in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
            if values is not None:
                values[tokens] = values[: tokens[0]].mean(0)


def suppress_logit(model: Any, token: int) -> None:
    """Sets a token's logit to SUPPRESSED_LOGIT in every call of the output layer."""

    def lower(module: nn.Module, inputs: Any, logits: torch.Tensor) -> None:
        logits.select(-1, token).fill_(SUPPRESSED_LOGIT)

    model.get_output_embeddings().register_forward_hook(lower)


def embedding_count(settings: Any, tokenizer: Any = None) -> int:
    """The number of embeddings of a model with this configuration; a tokenizer may have fewer tokens.

    Args:
        tokenizer: for a model that does not have the rows of `grow_embeddings` yet.
    """
    # The code of some models calls it otherwise.
    text = settings.get_text_config()
    count = getattr(text, "vocab_size", None) or getattr(text, "padded_vocab_size", None) or 0
    return max(int(count), 0 if tokenizer is None else len(tokenizer))
