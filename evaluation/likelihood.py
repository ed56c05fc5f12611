"""Likelihoods of answers and of plain text under a language model.

The prompt is encoded once for all its answers if the architecture supports it. Shapes: A answers of all prompts
together.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from data.records import Prompt
from data.tokenize import encode_prompt
from modeling.config import ModelConfig
from modeling.generation import Generation
from modeling.load import autocast_dtype, context_length, load_causal, load_tokenizer
from modeling.models import PolicyModel, policy_model
from modeling.sharding import Sharding
from reward.batches import RankingExample, ranking_example
from reward.scoring import answers_of, each_answer


def sft_baselines(
    place: Path, model_config: ModelConfig, items: Sequence[RankingExample], max_tokens: int, accelerator: Accelerator
) -> dict[str, list[list[float]]]:
    """The SFT model's log-probability of every answer, as scores, by the names of the two baselines; empty, with a
    message, if an answer is longer than the context.
    """
    tokenizer = load_tokenizer(place, model_config)
    model = load_causal(place, model_config, tokenizer).to(accelerator.device)
    own = [ranking_example(tokenizer, item.ranking) for item in items if item.ranking is not None]
    longest, context = (
        max(len(item.prompt) + max(map(len, item.answers)) for item in own),
        context_length(model.config),
    )
    if longest > context:
        accelerator.print(
            f"no likelihood under the SFT model: a prompt with its answer has {longest} tokens, more than its "
            f"context of {context}"
        )
        return {}
    policy = policy_model(model, autocast_dtype(model_config, accelerator.device))
    Sharding.from_environment().shard(model)
    logprobs = likelihoods(policy, own, max_tokens, accelerator)
    return {"sft_likelihood": logprobs, "sft_likelihood_per_token": per_token(logprobs, own)}


def likelihoods(
    policy: PolicyModel,
    items: Sequence[RankingExample],
    max_tokens: int,
    accelerator: Accelerator,
    temperature: float = 1.0,
) -> list[list[float]]:
    """The log-probability of each answer of every example, in order, in nats; the processes share the work.

    Models of one architecture get the same batches. Under bfloat16 this matters for a KL: log-probabilities of the same
    model from two kinds of pass differ by far more than a small KL.

    Args:
        max_tokens: per forward pass, but at least one prompt with its answers.
        temperature: log-probabilities are those of the distribution at this temperature.
    """

    def compute(group: Sequence[RankingExample]) -> Tensor:
        batch = answers_of(group, accelerator.device)
        logprobs_R, _ = policy(batch, temperature, with_entropy=False)
        return batch.padded(logprobs_R.double()).sum(1)

    return each_answer(policy, compute, items, max_tokens, accelerator)


def per_token(logprobs: Sequence[Sequence[float]], items: Sequence[RankingExample]) -> list[list[float]]:
    """The mean over the tokens of each answer, from `likelihoods` of these examples."""
    return [
        [total / len(ids) for total, ids in zip(row, item.answers, strict=True)]
        for row, item in zip(logprobs, items, strict=True)
    ]


def answered_prompts(
    tokenizer: Any, prompts: Sequence[Prompt], generations: Sequence[Sequence[Generation]]
) -> list[RankingExample]:
    """Prompts with their sampled answers, as examples for `likelihoods`."""
    return [
        RankingExample(encode_prompt(tokenizer, prompt), [answer.ids for answer in row])
        for prompt, row in zip(prompts, generations, strict=True)
    ]


def text_losses(
    policy: PolicyModel, chunks: Sequence[list[int]], max_tokens: int, accelerator: Accelerator
) -> list[float]:
    """The mean next-token loss of each chunk of plain text, in nats per token, in order."""
    items = [RankingExample(chunk[:1], [chunk[1:]]) for chunk in chunks]
    return [-mean for (mean,) in per_token(likelihoods(policy, items, max_tokens, accelerator), items)]


def perplexity(policy: PolicyModel, chunks: Sequence[list[int]], max_tokens: int, accelerator: Accelerator) -> float:
    """exp of the mean next-token loss over the tokens of plain text."""
    losses, tokens = text_losses(policy, chunks, max_tokens, accelerator), [len(chunk) - 1 for chunk in chunks]
    return math.exp(sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens))
