"""One measurement of trl's PPOTrainer on a fixture, printed as a JSON line; runs in the peer's environment, which has
nothing of this project but this folder.

runs/bench/peers/trl-1.12/bin/python -m benchmarks.ppo_peer FIXTURE --updates 2

trl 1.12 is the last that has PPO. Its cheapest settings on a CPU: float32, activations kept, nothing evaluated, sampled
for show or saved. One inner epoch and one minibatch, in micro-batches of 16 episodes; it neither clips gradients nor
mixes in pretraining text.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.fixture import EOS
from benchmarks.gauge import calm_libraries, metered, touch
from benchmarks.profiling import PHASES, profiled

MICRO_BATCH = 16


class Watch:
    """Stands between the trainer and the functions of its module that make its phases: CPU seconds of each, and the
    responses sampled.
    """

    def __init__(self, module: Any) -> None:
        self.seconds = dict.fromkeys(PHASES[:2], 0.0)
        self.lengths: list[int] = []
        self.ended: list[bool] = []
        self.generate = module.batch_generation
        module.batch_generation = self.sampled
        module.get_reward = self.timed("score", module.get_reward)
        module.forward = self.timed("score", module.forward)

    def sampled(self, model: Any, queries: Any, *rest: Any) -> Any:
        """The trainer's sampling, noted."""
        ids, logits = self.timed("rollout", self.generate)(model, queries, *rest)
        for row in ids[:, queries.shape[1] :].tolist():
            self.ended.append(EOS in row)
            self.lengths.append(row.index(EOS) + 1 if EOS in row else len(row))
        return ids, logits

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its seconds added to the phase's unless it is part of the update, which alone takes
        gradients.
        """
        import torch

        def call(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            found = function(*arguments, **named)
            if not torch.is_grad_enabled():
                self.seconds[phase] += time.process_time() - start
            return found

        return call


def measure(fixture: Path, updates: int, batch: int, response_tokens: int, seed: int, profile: bool) -> dict[str, Any]:
    """CPU seconds of training alone and of its phases; memory of the whole process. What is in no phase is the
    update's.
    """
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    torch.set_num_threads(1)
    prompts = [json.loads(line) for line in (fixture / "prompts.jsonl").read_text().splitlines()][: updates * batch]
    watch = Watch(ppo_trainer)
    policy, reference = (
        transformers.AutoModelForCausalLM.from_pretrained(fixture / "sft" / "model", dtype=torch.float32)
        for _ in range(2)
    )
    reward, value = (
        transformers.AutoModelForSequenceClassification.from_pretrained(
            fixture / "reward" / "model", dtype=torch.float32
        )
        for _ in range(2)
    )
    with tempfile.TemporaryDirectory(prefix="rlhf-ptx-") as out:
        rows = Dataset.from_list([{"input_ids": row["prompt_ids"]} for row in prompts])
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=out,
                seed=seed,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                per_device_train_batch_size=min(batch, MICRO_BATCH),
                gradient_accumulation_steps=max(1, batch // MICRO_BATCH),
                num_mini_batches=1,
                num_ppo_epochs=1,
                total_episodes=updates * batch,
                response_length=response_tokens,
                stop_token="eos",
                temperature=1.0,
                local_rollout_forward_batch_size=batch,
                kl_coef=0.02,
                num_sample_generations=0,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            processing_class=transformers.AutoTokenizer.from_pretrained(fixture / "sft" / "model", padding_side="left"),
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=rows,
            eval_dataset=rows.select(range(1)),
        )
        touch((policy, reference, reward, value))

        def work() -> None:
            with redirect_stdout(sys.stderr):
                trainer.train()

        with metered() as cost:
            work()
        phases = watch.seconds | {"update": cost.cpu_seconds - sum(watch.seconds.values())}
        lengths, ended = list(watch.lengths), list(watch.ended)
        looked_into = profiled(work, cost.cpu_seconds, len(prompts)) if profile else None
    return {
        "cpu_seconds_an_episode": cost.cpu_seconds / len(prompts),
        "peak_gib": cost.peak_gib,
        "loaded_gib": cost.loaded_gib,
        "episodes": len(lengths),
        "mean_response_tokens": mean(lengths),
        "ended": mean(ended),
        "phases": phases,
        "profile": looked_into,
        "versions": {"python": platform.python_version()}
        | {library.__name__: library.__version__ for library in (torch, transformers, trl)},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixture", type=Path)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--response_tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    calm_libraries()
    print(json.dumps(measure(**vars(arguments))))


if __name__ == "__main__":
    main()
