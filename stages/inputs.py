"""Inputs of several stages, and checks of their lengths."""

import operator
from collections.abc import Mapping
from typing import Any

from data.files import read_records
from data.records import Ranking
from data.sets import read_set, set_file
from stages.config import RunConfig
from stages.runner import RunFolder


def refuse_long_texts(config: RunConfig, settings: Any) -> None:
    """Raises ValueError if data.pretraining_tokens exceeds the context of a model with this configuration."""
    from modeling.load import context_length

    length, context = config.data.pretraining_tokens, context_length(settings)
    if length > context:
        raise ValueError(f"data.pretraining_tokens={length} is more than the model's context of {context}: lower it")


def answering(config: RunConfig) -> list[str]:
    """Sections whose stages generate answers with a model of the run. Without a labeler, nothing is sampled."""
    if config.labels.labeler == "none" or config.samples.policy is not None:
        return ["ppo", "evaluate"]
    return ["samples", "ppo", "evaluate"]


def refuse_too_long(config: RunConfig, longest: Mapping[str, int], settings: Any) -> None:
    """Raises ValueError if a stage's longest prompt and an answer together exceed the context of a model with this
    configuration.

    `longest` has the number of tokens of the longest prompt by section.
    """
    from modeling.load import context_length

    context = context_length(settings)
    wanted = {name: operator.attrgetter(name)(config).max_new_tokens for name in longest}
    over = [
        f"{name}.max_new_tokens={count} (longest prompt: {longest[name]} tokens)"
        for name, count in wanted.items()
        if longest[name] + count > context
    ]
    if over:
        lower = f"lower {'that setting' if len(over) == 1 else 'those settings'} or data.max_prompt_tokens"
        found = f"prompt and answer together exceed the model's context of {context} tokens with {', '.join(over)}"
        raise ValueError(f"{found}: {lower}")


def rankings(config: RunConfig, run: RunFolder, split: str) -> list[Ranking]:
    """Rankings of the labeler and of the data stage, each with at most `reward.max_answers_per_prompt` answers.

    Raises ValueError when there are none.
    """
    from reward.batches import some_answers

    data, labeled = run.stage("data"), run.stage("labels") / f"rankings_{split}.jsonl"
    found = read_set(data, "rankings", split) if set_file(data, "rankings", split).is_file() else []
    found += read_records(labeled, Ranking) if labeled.is_file() else []
    if not found:
        raise ValueError(f"there are no {split} rankings: run the labels stage, or give some in data.rankings")
    return [some_answers(ranking, config.reward.max_answers_per_prompt, config.seed) for ranking in found]


def left_out_lines(left_out: dict[str, dict[str, int]]) -> list[str]:
    """A log line for each split from which rankings were left out."""
    return [
        f"{split} rankings left out: "
        + ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in found.items() if count)
        for split, found in left_out.items()
        if any(found.values())
    ]
