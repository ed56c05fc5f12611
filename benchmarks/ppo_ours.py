"""One measurement of the project's PPO on a fixture, printed as a JSON line.

python -m benchmarks.ppo_ours FIXTURE --updates 2 --adapter lora_top3

The stage's own training loop with the peer's settings: one inner epoch, one minibatch, float32, activations kept, no
clipping of gradients and no pretraining mix. All else that the stage does is in: moving average, metrics, samples; only
the checkpoint at the end is left out, since the peer is not made to save anything either.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from benchmarks.fixture import word
from benchmarks.gauge import calm_libraries, metered, touch
from benchmarks.ppo_fixture import LORA_RANK, LORA_VARIANTS
from benchmarks.profiling import PHASES, profiled

if TYPE_CHECKING:
    from data.records import Prompt

MICRO_BATCH_TOKENS = 8 * (40 + 64)
"""Eight episodes at their longest, half of the peer's micro-batch: that changes memory, and neither results nor
speed.
"""


def read_prompts(fixture: Path, count: int) -> "list[Prompt]":
    """The fixture's token ids as the text that its tokenizer reads as them."""
    from data.records import Prompt

    rows = [json.loads(line) for line in (fixture / "prompts.jsonl").read_text().splitlines()][:count]
    return [Prompt(prompt=" ".join(map(word, row["prompt_ids"]))) for row in rows]


def read_rows(out: Path, name: str) -> list[dict[str, float]]:
    """What training has written, an iteration a row."""
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def measure(
    fixture: Path, updates: int, batch: int, response_tokens: int, seed: int, adapter: str, profile: bool
) -> dict[str, Any]:
    """CPU seconds of training alone; memory of the whole process. Phases are in wall seconds, as the stage times
    them.
    """
    import torch
    import transformers

    from modeling.accelerator import make_accelerator
    from modeling.config import LoraSettings, ModelConfig
    from modeling.load import load_tokenizer
    from modeling.run import Run
    from ppo.actor_critic import Loader
    from ppo.checkpoint import Checkpoints
    from ppo.config import PPOConfig
    from ppo.trainer import PPOData, PPOTrainer

    torch.set_num_threads(1)
    lora = adapter in LORA_VARIANTS
    sft, reward = fixture / "sft", fixture / (f"reward_{adapter}" if lora else "reward")
    model_config = ModelConfig(
        base=str(sft / "model"),
        adapter="lora" if lora else "none",
        lora=LoraSettings(rank=LORA_RANK, top_layers=LORA_VARIANTS.get(adapter)),
        device="cpu",
        precision="float32",
    )
    prompts = read_prompts(fixture, updates * batch)
    config = PPOConfig(
        total_episodes=len(prompts),
        batch_size=batch,
        minibatch_size=batch,
        max_tokens_per_micro_batch=MICRO_BATCH_TOKENS,
        rollout_batch_size=batch,
        max_new_tokens=response_tokens,
        old_logprobs="rollout",
        kl_coef=0.02,
        max_grad_norm=None,
        ptx_coef=0.0,
    )
    tokenizer, accelerator = load_tokenizer(sft / "model", model_config), make_accelerator("cpu")
    models = Loader(sft, reward, model_config, config, seed, accelerator.device).load(tokenizer)
    used = [model.encoder for model in (models.policy, models.reference, models.value)]
    used += [scorer.model.encoder for scorer in models.rewards.scorers]
    touch({id(encoder.model): encoder.model for encoder in used}.values())

    def work() -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        with tempfile.TemporaryDirectory(prefix="rlhf-ptx-") as out, patch.object(Checkpoints, "save"):
            PPOTrainer(config, models, tokenizer, PPOData(prompts), Run(accelerator, seed, Path(out))).train()
            return read_rows(Path(out), "metrics.jsonl"), read_rows(Path(out), "timings.jsonl")

    with metered() as cost:
        metrics, timings = work()
    return {
        "cpu_seconds_an_episode": cost.cpu_seconds / len(prompts),
        "peak_gib": cost.peak_gib,
        "loaded_gib": cost.loaded_gib,
        "episodes": len(prompts),
        "mean_response_tokens": mean(row["length"] for row in metrics),
        "ended": mean(row["ended"] for row in metrics),
        "phases": {phase: sum(row[f"seconds_{phase}"] for row in timings) for phase in PHASES},
        "profile": profiled(work, cost.cpu_seconds, len(prompts)) if profile else None,
        "versions": {"python": platform.python_version()}
        | {library.__name__: library.__version__ for library in (torch, transformers)},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixture", type=Path)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--response_tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--adapter", choices=["none", *LORA_VARIANTS], default="none")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    calm_libraries()
    print(json.dumps(measure(**vars(arguments))))


if __name__ == "__main__":
    main()
