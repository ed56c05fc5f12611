"""The ranges of all numbers of the configuration: what is outside is refused by the name of the field.

pytest tests/stages/test_number_ranges.py
"""

import dataclasses
import functools
import math
import re
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from data.config import SourceConfig
from stages.config import RunConfig


def numbers(config_type: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted name of every field that holds numbers to its type without annotations. `x` is any source's name."""
    found = {}
    for name, kind in get_type_hints(config_type).items():
        inner = get_args(kind)[1] if get_origin(kind) is dict else kind
        if dataclasses.is_dataclass(inner):
            found |= numbers(inner, f"{prefix}{name}." + ("x." if inner is not kind else ""))  # type: ignore[arg-type]
        elif {kind, *get_args(kind)} & {int, float}:
            found[prefix + name] = kind
    return found


ZERO_IS_ALLOWED = {
    "seed", "samples.top_k", "evaluate.top_k", "labels.tie_width", "labels.disagreement", "sft.epochs", "reward.epochs",
    "reward.epoch_evaluation_prompts",
    "reward.final_lr_fraction", "reward.adam_beta2", "sft.pretraining_fraction", "sft.residual_dropout",
    "sft.final_lr_fraction", "evaluate.temperature", "evaluate.best_of_n", "evaluate.samples_in_report",
    *(f"sft_baseline.{name}" for name in ("pretraining_fraction", "residual_dropout", "final_lr_fraction",
    "checkpoint_minutes", "scoring.temperature", "scoring.top_k")),
    "ppo.learning_rate", "ppo.value_learning_rate", "ppo.kl_coef", "ppo.ptx_coef", "ppo.missing_eos_penalty",
    "ppo.warmup_iterations", "ppo.value_warmup_iterations", "ppo.snapshot_every",
    *(
        f"{section}.llm.{name}"
        for section in ("evaluate", "labels")
        for name in ("temperature", "max_retries", "input_price", "output_price")
    ),
    "sweep_kl.seeds", "sweep_kl.kl_coef", "sweep_ptx.gammas", "sweep_ptx.betas", "sweep_ptx.seeds",
    "ppo.samples_per_iteration", "ppo.adam_beta1", "ppo.adam_beta2", "ppo.discount",
    "ppo.gae_lambda", "ppo.ema_decay", "ppo.held_out.every", "sft.checkpoint_minutes", "reward.checkpoint_minutes",
    "ppo.monitors.min_entropy",
    "ppo.monitors.min_entropy_fraction", *(f"labels.weights.{part}" for part in ("closeness", "complete",
    "repetition", "copying", "profanity")),
}  # fmt: skip
ONE_IS_ALLOWED = {
    "data.near_duplicate_fraction", "sft.final_lr_fraction", "reward.final_lr_fraction", "ppo.discount",
    "ppo.gae_lambda", "samples.top_p", "evaluate.top_p", "sft_baseline.final_lr_fraction", "sft_baseline.scoring.top_p",
}  # fmt: skip
FRACTIONS = ONE_IS_ALLOWED | {
    "data.valid_fraction", "data.test_fraction", "labels.disagreement", "sft.pretraining_fraction",
    "sft.residual_dropout", "sft_baseline.pretraining_fraction", "sft_baseline.residual_dropout",
    "reward.learning_curve", "reward.adam_beta2", "ppo.adam_beta1", "ppo.adam_beta2",
    "ppo.ema_decay",
    "ppo.monitors.min_entropy_fraction",
}  # fmt: skip
LEAST = {
    "data.pretraining_tokens": 2, "samples.answers_per_prompt": 2, "reward.max_answers_per_prompt": 2,
    "ppo.held_out.prompts": 2, "ppo.monitors.over_optimisation_evaluations": 3,
    "sweep_kl.snapshots": 3, "sweep_kl.best_of_n": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", numbers())
def test_every_number_outside_its_range_is_refused_by_name(name: str) -> None:
    """Also where the configuration is built in code, and by a section alone. A field that allows 0 is listed above."""
    *path, last = name.split(".")
    kind = numbers()[name]
    several = get_origin(kind) is list
    whole = int in {kind, *get_args(kind)}

    def validate(value: float) -> None:
        for alone in (False, True):
            config = RunConfig()
            config.data.sources["x"], config.data.prompts = SourceConfig(), ["x"]
            place = functools.reduce(lambda at, key: at["x"] if key == "x" else getattr(at, key), path, config)
            setattr(place, last, [value] if several else value)
            (getattr(config, path[0]) if alone and path else config).validate()

    bad: list[Any] = [-1, True, math.nan, math.inf, -math.inf, "1"]
    bad += [] if name in ZERO_IS_ALLOWED else [LEAST.get(name, 1) - 1]
    bad += [1.5] if whole or name in FRACTIONS else []
    bad += [1] if name in FRACTIONS - ONE_IS_ALLOWED else []
    for value in bad:
        with pytest.raises(ValueError, match=re.escape(f"{name}{'[0]' if several else ''}={value!r} must be ")):
            validate(value)
    needs_another = {"reward.epochs", "sweep_kl.kl_coef"} | {
        name for name in ZERO_IS_ALLOWED if name.endswith("_price")
    }
    if name in ZERO_IS_ALLOWED - needs_another:
        validate(0)
    if name in ONE_IS_ALLOWED:
        validate(1)


def test_the_numbers_of_all_sections_are_found() -> None:
    assert {
        "seed",
        "data.sources.x.weight",
        "model.lora.rank",
        "ppo.monitors.max_kl",
        "ppo.held_out.every",
        "reward.learning_curve",
    } <= numbers().keys()
    assert numbers().keys() >= ZERO_IS_ALLOWED | FRACTIONS | LEAST.keys()
