"""Measures this project's training once and prints the numbers as a line of JSON.

python -m benchmarks.ours reward '{"models": "FIXTURE", "prompts": 4}'
ACCELERATE_USE_CPU=true accelerate launch --config_file configs/accelerate/fsdp2.yaml --num_processes 2 \
    -m benchmarks.ours ppo '{"models": "FIXTURE"}'

Runs the trainers of the stages with their metrics, samples and moving average, but without checkpoints, which the peers
do not write either.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import gather_object

from benchmarks.fixture import LORA
from benchmarks.meter import Cost, metered, numbers, resident_gib
from benchmarks.work import PPOWork, RewardWork, lora_folder, reward_folder, sft_folder, word
from data.records import Prompt
from modeling.accelerator import from_main, make_accelerator
from modeling.checkpoint import TrainingState
from modeling.config import ModelConfig
from modeling.load import load_scalar, load_tokenizer
from modeling.models import reward_model
from modeling.run import Run
from modeling.sharding import Sharding
from ppo.actor_critic import Loader
from ppo.checkpoint import Checkpoints, Progress
from ppo.config import PPOConfig
from ppo.trainer import PPOData, PPOTrainer
from reward.batches import RankingExample
from reward.config import RewardConfig
from reward.trainer import RewardTrainer

MICRO_BATCH_TOKENS = 8 * (40 + 64)
"""PPO: eight episodes at their longest, the peer's micro-batch."""


class Unsaved(Checkpoints):
    """Writes nothing."""

    def save(self, progress: Progress, trained: TrainingState) -> None:
        """Skips a checkpoint."""


def reward(work: RewardWork, accelerator: Accelerator) -> dict[str, Any]:
    """Reward-model training at a constant learning rate, one prompt with its answers per micro-batch."""
    sharding, place = Sharding.from_environment(), reward_folder(work.models)
    config = ModelConfig(base=str(place), adapter="none", device="cpu", precision="float32")
    rankings = ranking_examples(work)
    libraries = resident_gib()
    model = load_scalar(place, config, load_tokenizer(place, config))
    scorer = reward_model(model)  # runs the model once, so before sharding
    sharding.shard(model)
    settings = RewardConfig(
        epochs=1,
        batch_size=work.prompts_per_step,
        max_tokens_per_micro_batch=1,
        learning_rate=1e-5,
        final_lr_fraction=1.0,
    )
    accelerator.wait_for_everyone()
    with metered([model]) as cost:
        trainer = RewardTrainer(settings, scorer, rankings, Run(accelerator, work.seed, sharding=sharding))
        trainer.train()
    found = numbers(cost, work.prompts, trainer.optimizer, torch, transformers)
    return (
        found
        | over_processes(cost, libraries, accelerator)
        | {"layout": sharding.description(model, accelerator.num_processes)}
    )


def ranking_examples(work: RewardWork) -> list[RankingExample]:
    """Each answer is better than all that follow it."""
    better_KK = torch.ones(work.k, work.k).triu(diagonal=1).bool()
    return [RankingExample(prompt, answers, better_KK) for prompt, answers in work.rankings()]


def ppo(work: PPOWork, accelerator: Accelerator) -> dict[str, Any]:
    """PPO with the peer's settings: recorded log-probabilities, no gradient clipping, no pretraining mix."""
    sharding, sft = Sharding.from_environment(), sft_folder(work.models).parent
    scored_by = reward_folder(work.models).parent
    model_config = ModelConfig(base=str(sft / "model"), adapter="none", device="cpu", precision="float32")
    if work.adapter == "lora":
        scored_by, model_config = lora_folder(work.models), replace(model_config, adapter="lora", lora=LORA)
    prompts = [Prompt(prompt=" ".join(map(word, ids))) for ids in work.prompt_ids()]
    config = PPOConfig(
        total_episodes=len(prompts),
        batch_size=work.episodes,
        minibatch_size=work.episodes // work.minibatches,
        max_tokens_per_micro_batch=MICRO_BATCH_TOKENS,
        rollout_batch_size=work.episodes,
        max_new_tokens=work.response_tokens,
        old_logprobs="rollout",
        kl_coef=0.02,
        max_grad_norm=None,
        ptx_coef=0.0,
    )
    tokenizer = load_tokenizer(sft / "model", model_config)
    libraries = resident_gib()
    models = Loader(sft, scored_by, model_config, config, work.seed, accelerator.device, sharding=sharding).load(
        tokenizer
    )
    encoders = [model.encoder for model in (models.policy, models.reference, models.value)]
    encoders += [scorer.model.encoder for scorer in models.rewards.scorers]
    roots = {id(encoder.model): encoder.model for encoder in encoders}
    with tempfile.TemporaryDirectory(prefix="rlhf-ptx-") as folder:
        out = Path(from_main(accelerator, lambda: folder))
        accelerator.wait_for_everyone()
        with metered(roots.values()) as cost:
            trainer = PPOTrainer(
                config, models, tokenizer, PPOData(prompts), Run(accelerator, work.seed, out, sharding=sharding)
            )
            trainer.checkpoints = Unsaved(out / "checkpoints", 1, accelerator, work.seed)
            trainer.train()
        found = numbers(cost, len(prompts), trainer.optimizers.policy, torch, transformers)
        found |= over_processes(cost, libraries, accelerator)
        found |= logged(out) if accelerator.is_main_process else {}
        return found | {"layout": sharding.description(models.policy.causal, accelerator.num_processes)}


def logged(out: Path) -> dict[str, Any]:
    """Means of the logged metrics over the iterations, and the total seconds of each phase."""
    metrics, timings = (
        [json.loads(line) for line in (out / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "timings.jsonl")
    )
    phases = ("seconds_rollout", "seconds_score", "seconds_update")
    return {
        "response_tokens": mean(row["length"] for row in metrics),
        "ended": mean(row["ended"] for row in metrics),
        **{phase: sum(row[phase] for row in timings) for phase in phases},
    }


def over_processes(cost: Cost, libraries_gib: float, accelerator: Accelerator) -> dict[str, float]:
    """The maximum of each number over the processes. Called while the trainer exists: its weights and optimizer states
    are the memory between phases.
    """
    own = {
        "wall_seconds": cost.wall_seconds,
        "peak_gib": cost.peak_gib,
        "above_libraries_gib": cost.peak_gib - libraries_gib,
        "between_phases_gib": resident_gib() - libraries_gib,
    }
    every = gather_object([own])
    return {name: max(numbers[name] for numbers in every) for name in own}


def main() -> None:
    """The command line."""
    torch.set_num_threads(1)
    accelerator, kind, sizes = make_accelerator("cpu"), sys.argv[1], json.loads(sys.argv[2])
    found = reward(RewardWork(**sizes), accelerator) if kind == "reward" else ppo(PPOWork(**sizes), accelerator)
    if accelerator.is_main_process:
        print(json.dumps(found), flush=True)
    make_accelerator().end_training()


if __name__ == "__main__":
    main()
