"""One measurement of the project's reward-model training on a fixture, printed as a JSON line.

python -m benchmarks.reward_ours FIXTURE

The stage's own code from token ids on: one epoch, full fine-tuning in float32, activations kept, and an optimizer step
a prompt, which is a batch as small as a prompt with all its answers can be. A constant learning rate, as the peer's.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gauge import calm_libraries, metered, touch

if TYPE_CHECKING:
    from reward.batches import RankingExample

SEED = 0


def ranking_examples(rows: list[dict[str, Any]]) -> "list[RankingExample]":
    """Each answer is better than all that follow it."""
    import torch

    from reward.batches import RankingExample

    found = []
    for row in rows:
        k = len(row["answer_ids"])
        found.append(RankingExample(row["prompt_ids"], row["answer_ids"], torch.ones(k, k).triu(diagonal=1).bool()))
    return found


def measure(fixture: Path) -> dict[str, Any]:
    """CPU seconds of training alone; memory of the whole process."""
    import torch
    import transformers

    from modeling.accelerator import make_accelerator
    from modeling.config import ModelConfig
    from modeling.load import load_scalar, load_tokenizer
    from modeling.models import reward_model
    from modeling.run import Run
    from reward.config import RewardConfig
    from reward.trainer import RewardTrainer

    torch.set_num_threads(1)
    rows = [json.loads(line) for line in (fixture / "ranked.jsonl").read_text().splitlines()]
    model_config = ModelConfig(base=str(fixture / "rm"), adapter="none", device="cpu", precision="float32")
    tokenizer = load_tokenizer(fixture / "rm", model_config)
    model, train_set, accelerator = (
        load_scalar(fixture / "rm", model_config, tokenizer),
        ranking_examples(rows),
        make_accelerator("cpu"),
    )
    config = RewardConfig(
        epochs=1, batch_size=1, max_tokens_per_micro_batch=1, learning_rate=1e-5, final_lr_fraction=1.0
    )
    touch([model])
    with metered() as cost:
        RewardTrainer(config, reward_model(model), train_set, Run(accelerator, SEED)).train()
    return {
        "cpu_seconds_a_prompt": cost.cpu_seconds / len(rows),
        "peak_gib": cost.peak_gib,
        "loaded_gib": cost.loaded_gib,
        "versions": {"python": platform.python_version()}
        | {library.__name__: library.__version__ for library in (torch, transformers)},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixture", type=Path)
    calm_libraries()
    print(json.dumps(measure(parser.parse_args().fixture)))


if __name__ == "__main__":
    main()
