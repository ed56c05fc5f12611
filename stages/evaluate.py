"""Compares base, SFT and PPO on the prompts of held-out users.

python -m stages.evaluate --config configs/demo.yaml
"""

import json
from pathlib import Path
from typing import Any

from stages import manifest
from stages.config import STAGES, RunConfig
from stages.runner import RunFolder, Stage, stage_main


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Writes generations.jsonl, evaluation.json and headline.json, and best_of_n.jsonl if best-of-n is configured."""
    from data.sets import evenly, read_set, read_texts
    from evaluation.best_of_n import Proxy
    from evaluation.comparison import Comparison
    from modeling.accelerator import from_main, make_accelerator
    from modeling.load import base_model_place, read_settings
    from modeling.run import Run
    from stages.inputs import refuse_long_texts

    accelerator, settings, data = make_accelerator(config.model.device), config.evaluate, run.stage("data")
    sft, reward = run.stage("sft") / "model", run.stage("reward")
    places = {
        "ppo": str(run.stage("ppo") / ("model_ema" if settings.weights == "ema" else "model")),
        "sft": str(sft),
        "base": from_main(accelerator, lambda: base_model_place(config.model)),
    }
    refuse_long_texts(config, read_settings(places["base"], config.model))
    trust = (config.model if config.reward.base is None else config.reward).trust_remote_code
    comparison = Comparison(
        settings=settings,
        labels=config.labels,
        model_config=config.model,
        run=Run(accelerator, config.seed, out),
        places=places,
        prompts=evenly(read_set(data, "sft", "test"), settings.max_prompts),
        texts=list(read_texts(data, "heldout")),
        text_tokens=config.data.pretraining_tokens,
        proxy=Proxy.of(sft, reward / "model", config.model, trust) if settings.best_of_n else None,
        max_tokens=config.reward.max_tokens_per_micro_batch,
    )
    comparison.sample_and_score()
    if not accelerator.is_main_process:
        return {}
    accuracy = json.loads((reward / "accuracy.json").read_text())
    return comparison.write(comparison.compare(accuracy["test"]), seconds_so_far(run))


def seconds_so_far(run: RunFolder) -> float:
    """Wall seconds of the finished stages before this one."""
    found = [manifest.read(run.stage(name)) for name in STAGES[: STAGES.index("evaluate")]]
    return round(sum(item.seconds for item in found if item is not None), 1)


STAGE = Stage(
    "evaluate",
    sections=(
        "model", "evaluate", "labels", "data.pretraining_tokens", "reward.base", "reward.trust_remote_code",
        "reward.max_tokens_per_micro_batch",
    ),
    after=("data", "sft", "reward", "ppo"),
    work=work,
    parallel=True,
    discardable=("scratch",),
)  # fmt: skip

if __name__ == "__main__":
    stage_main(STAGE, "Compares base, SFT and PPO on held-out prompts.")
