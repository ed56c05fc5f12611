"""One measurement of trl's RewardTrainer on a fixture, printed as a JSON line; runs in the peer's environment, which
has nothing of this project but this folder.

runs/bench/peers/trl-1.16/bin/python -m benchmarks.reward_peer FIXTURE

Every pair of a prompt's ranked answers is one example, as the library wants it. Its cheapest settings on a CPU:
float32, batches of 4 pairs padded to their longest row alone, activations kept, nothing logged, evaluated or saved. An
optimizer step every 4 pairs: 9 a prompt at K=9.
"""

import argparse
import json
import platform
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.gauge import calm_libraries, metered, touch

PAIRS_A_STEP = 4


def pairs(rows: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """All C(K,2) comparisons of each prompt, the better answer chosen."""
    return [
        {"chosen_ids": [*row["prompt_ids"], *better], "rejected_ids": [*row["prompt_ids"], *worse]}
        for row in rows
        for better, worse in combinations(row["answer_ids"], 2)
    ]


def measure(fixture: Path) -> dict[str, Any]:
    """CPU seconds of training alone; memory of the whole process."""
    import torch
    import transformers
    import trl
    from datasets import Dataset

    torch.set_num_threads(1)
    rows = [json.loads(line) for line in (fixture / "ranked.jsonl").read_text().splitlines()]
    with tempfile.TemporaryDirectory(prefix="rlhf-ptx-") as out:
        trainer = trl.RewardTrainer(
            model=transformers.AutoModelForSequenceClassification.from_pretrained(
                str(fixture / "rm"), dtype=torch.float32
            ),
            args=trl.RewardConfig(
                output_dir=out,
                use_cpu=True,
                bf16=False,
                per_device_train_batch_size=PAIRS_A_STEP,
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
            train_dataset=Dataset.from_list(pairs(rows)),
            processing_class=transformers.AutoTokenizer.from_pretrained(str(fixture / "rm")),
        )
        touch([trainer.model])
        with metered() as cost:
            trainer.train()
    return {
        "cpu_seconds_a_prompt": cost.cpu_seconds / len(rows),
        "peak_gib": cost.peak_gib,
        "loaded_gib": cost.loaded_gib,
        "versions": {"python": platform.python_version()}
        | {library.__name__: library.__version__ for library in (torch, transformers, trl)},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixture", type=Path)
    calm_libraries()
    print(json.dumps(measure(parser.parse_args().fixture)))


if __name__ == "__main__":
    main()
