"""Measures trl's training once and prints the numbers as a line of JSON.

runs/bench/peers/trl-1.16/bin/python -m benchmarks.peers reward '{"models": "FIXTURE", "prompts": 4}'
runs/bench/peers/trl-1.12/bin/python -m benchmarks.peers ppo '{"models": "FIXTURE"}'

Runs in the peer's environment, which has nothing of this project but this folder. The settings are the cheapest on a
CPU: float32, activations kept, nothing evaluated or saved.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import combinations
from typing import Any

from benchmarks.meter import metered, numbers
from benchmarks.work import EOS, PPOWork, RewardWork, reward_folder, sft_folder

PAIRS_PER_MICRO_BATCH = 4
"""The cheapest size: more rows need more padding."""


def pairs(rankings: Sequence[tuple[list[int], list[list[int]]]]) -> list[dict[str, list[int]]]:
    """All C(K,2) comparisons of each prompt, the better answer chosen."""
    return [
        {"chosen_ids": [*prompt, *better], "rejected_ids": [*prompt, *worse]}
        for prompt, answers in rankings
        for better, worse in combinations(answers, 2)
    ]


def reward(work: RewardWork) -> dict[str, Any]:
    """trl's RewardTrainer on all pairs, with as many optimizer steps as the project takes."""
    import torch
    import transformers
    import trl
    from datasets import Dataset

    rows, place = pairs(work.rankings()), reward_folder(work.models)
    pairs_per_step = len(rows) // work.prompts * work.prompts_per_step
    assert pairs_per_step % PAIRS_PER_MICRO_BATCH == 0
    with tempfile.TemporaryDirectory(prefix="rlhf-ptx-") as out:
        trainer = trl.RewardTrainer(
            model=transformers.AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32),
            args=trl.RewardConfig(
                output_dir=out,
                seed=work.seed,
                use_cpu=True,
                bf16=False,
                per_device_train_batch_size=PAIRS_PER_MICRO_BATCH,
                gradient_accumulation_steps=pairs_per_step // PAIRS_PER_MICRO_BATCH,
                gradient_checkpointing=False,
                max_length=None,
                num_train_epochs=1,
                learning_rate=1e-5,
                lr_scheduler_type="constant",
                logging_steps=10**6,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=transformers.AutoTokenizer.from_pretrained(place),
        )
        with metered([trainer.model]) as cost:
            trainer.train()
    return numbers(cost, work.prompts, trainer.optimizer, torch, transformers, trl)


class Responses:
    """Counts response tokens in the reward model's input, where trl has replaced all tokens after EOS by padding."""

    def __init__(self, prompts: Sequence[list[int]]) -> None:
        self.tokens, self.ended, self.count = -sum(map(len, prompts)), 0, len(prompts)

    def read(self, module: Any, arguments: Any, named: dict[str, Any]) -> None:
        """A forward pre-hook."""
        self.tokens += int(named["attention_mask"].sum())
        self.ended += int((named["input_ids"] == EOS).any(dim=1).sum())


def ppo(work: PPOWork) -> dict[str, Any]:
    """trl's PPOTrainer, full fine-tuning.

    It takes an optimizer step every `gradient_accumulation_steps` micro-batches, which together are a whole roll-out,
    whatever `num_mini_batches` is. Minibatches get a step each only if they are micro-batches: with accumulation 1, and
    a batch size of the whole roll-out.
    """
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    prompts = work.prompt_ids()
    rows = Dataset.from_list([{"input_ids": ids} for ids in prompts])
    policy, reference = (
        transformers.AutoModelForCausalLM.from_pretrained(sft_folder(work.models), dtype=torch.float32)
        for _ in range(2)
    )
    scores, value = (
        transformers.AutoModelForSequenceClassification.from_pretrained(reward_folder(work.models), dtype=torch.float32)
        for _ in range(2)
    )
    responses = Responses(prompts)
    scores.model.register_forward_pre_hook(responses.read, with_kwargs=True)
    with tempfile.TemporaryDirectory(prefix="rlhf-ptx-") as out, redirect_stdout(sys.stderr):
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=out,
                seed=work.seed,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                per_device_train_batch_size=work.episodes,
                gradient_accumulation_steps=1,
                num_mini_batches=work.minibatches,
                num_ppo_epochs=1,
                total_episodes=len(prompts),
                response_length=work.response_tokens,
                stop_token="eos",
                temperature=1.0,
                local_rollout_forward_batch_size=work.episodes,
                kl_coef=0.02,
                num_sample_generations=0,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            processing_class=transformers.AutoTokenizer.from_pretrained(sft_folder(work.models), padding_side="left"),
            model=policy,
            ref_model=reference,
            reward_model=scores,
            value_model=value,
            train_dataset=rows,
            eval_dataset=rows.select(range(1)),
        )
        with metered((policy, reference, scores, value)) as cost:
            trainer.train()
    found = numbers(cost, len(prompts), trainer.optimizer, torch, transformers, trl)
    return found | {
        "response_tokens": responses.tokens / responses.count,
        "ended": responses.ended / responses.count,
    }


def main() -> None:
    """The command line."""
    kind, sizes = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps(reward(RewardWork(**sizes)) if kind == "reward" else ppo(PPOWork(**sizes))))


if __name__ == "__main__":
    main()
