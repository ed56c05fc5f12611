"""Likelihood of answers under a language model, a baseline for reward models.

The prompt is encoded once for all its answers if the architecture supports it. Shapes: A answers of all prompts
together.
"""

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from modeling.config import ModelConfig
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
        context_length(model.config, generating=False),
    )
    if longest > context:
        accelerator.print(
            f"no likelihood under the SFT model: a prompt with its answer has {longest} tokens, more than its "
            f"context of {context}"
        )
        return {}
    policy = policy_model(model, autocast_dtype(model_config, accelerator.device))
    Sharding.from_environment().shard(model)
    totals, means = likelihoods(policy, own, max_tokens, accelerator)
    return {"sft_likelihood": totals, "sft_likelihood_per_token": means}


def likelihoods(
    policy: PolicyModel, items: Sequence[RankingExample], max_tokens: int, accelerator: Accelerator
) -> tuple[list[list[float]], list[list[float]]]:
    """(log-probability of each answer, its mean per token) for every example, in order, in nats; the processes share
    the work.

    `max_tokens` limits a forward pass.
    """

    def compute(group: Sequence[RankingExample]) -> Tensor:
        batch = answers_of(group, accelerator.device)
        logprobs_R, _ = policy(batch, with_entropy=False)
        return batch.padded(logprobs_R).sum(1)

    totals = each_answer(policy, compute, items, max_tokens, accelerator)
    means = [
        [total / len(ids) for total, ids in zip(row, item.answers, strict=True)]
        for row, item in zip(totals, items, strict=True)
    ]
    return totals, means
