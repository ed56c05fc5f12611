"""Measures the alignment tax: base, SFT, PPO and any other models on public benchmarks in local files.

python -m stages.tax --config configs/mine.yaml --tax.truthfulqa TruthfulQA.csv
python -m stages.tax --config configs/mine.yaml --tax.models [runs/no_ptx/ppo/model_ema] --tax.harness [hellaswag]
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stages.config import RunConfig
from stages.manifest import model_digests
from stages.runner import RunFolder, Stage, stage_main


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Writes tax.json, and answers.jsonl if answers were generated; prints the table."""
    from data.sets import read_texts
    from evaluation.models import ComparedModel
    from evaluation.tax.alignment_tax import AlignmentTax, read_tasks, table
    from evaluation.tax.perplexity import Perplexity
    from evaluation.tax.reading import read_items, text_of
    from modeling.accelerator import from_main, make_accelerator
    from modeling.foreign import refuse_unusable
    from modeling.load import base_model_place
    from modeling.run import Run

    accelerator, settings = make_accelerator(config.model.device), config.tax
    tasks = read_tasks(settings)
    if settings.texts is None:
        texts = list(read_texts(run.stage("data"), "heldout"))
    else:
        texts = read_items(settings.texts, lambda at, row: text_of(row, "text"))
    tasks.append(Perplexity(texts, config.data.pretraining_tokens, settings.perplexity_examples))
    ppo = "model_ema" if config.evaluate.weights == "ema" else "model"
    saved = config.model.of_export()
    others = replace(saved, trust_remote_code=settings.trust_remote_code)
    base = from_main(accelerator, lambda: base_model_place(config.model))
    models = [
        ComparedModel("base", base, config.model, answers_per_prompt=1),
        ComparedModel("sft", str(run.stage("sft") / "model"), saved, answers_per_prompt=1),
        ComparedModel("ppo", str(run.stage("ppo") / ppo), saved, answers_per_prompt=1),
        *(ComparedModel(place, place, others, answers_per_prompt=1) for place in settings.models),
    ]
    tax = AlignmentTax(settings, Run(accelerator, config.seed, out), models, tasks)
    tax.check()
    for place in settings.models:
        from_main(accelerator, partial(refuse_unusable, place, others, f"tax.models: {place}"))
    tax.measure()
    if not accelerator.is_main_process:
        return {}
    results = tax.results()
    tax.write(results)
    print(f"\n{table(results)}\n", flush=True)
    return {"models": len(models), "tasks": ", ".join(task.name for task in tasks)}


def external(config: RunConfig) -> dict[str, str]:
    """Digests of the benchmark files and of the other models."""
    from evaluation.tax.alignment_tax import TASKS

    settings = config.tax
    files = [getattr(settings, name) for name in (*TASKS, "texts")]
    tasks = Path(settings.harness_folder).rglob("*") if settings.harness_folder else ()
    files += [str(path) for path in sorted(tasks) if path.is_file() and path.parent.name != "__pycache__"]
    return model_digests(*files, *settings.models, settings.toxicity_classifier)


STAGE = Stage(
    "tax",
    sections=("model", "tax", "evaluate.weights", "data.pretraining_tokens"),
    after=("data", "sft", "ppo"),
    work=work,
    external=external,
    parallel=True,
    discardable=("scratch",),
)

if __name__ == "__main__":
    stage_main(STAGE, "Measures the alignment tax of base, SFT, PPO and other models on public benchmarks.")
