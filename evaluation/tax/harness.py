"""Tasks of lm-evaluation-harness, through its Python API on a loaded model."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evaluation.tax.config import TaxConfig
from evaluation.tax.metrics import Better, Measurement, Metric
from evaluation.tax.model import TaxModel
from modeling.accelerator import from_main, main_alone
from modeling.load import autocast


@dataclass(frozen=True)
class Harness:
    """The tasks named in `tax.harness`, with the harness's prompts in plain text and its numbers of few-shot examples.
    They run in the first process only.
    """

    config: TaxConfig
    name = "harness"
    clusters = None

    @cached_property
    def manager(self) -> Any:
        """The harness's TaskManager. Raises ValueError for an unknown task."""
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        manager = TaskManager(include_path=self.config.harness_folder)
        for task in self.config.harness:
            if not manager.match_tasks([task]):
                raise ValueError(f"tax.harness names {task}, which is not a task of lm-evaluation-harness")
        return manager

    def check(self, model: TaxModel) -> None:
        """Raises ValueError for an unknown task."""
        _ = self.manager

    def measure(self, model: TaxModel) -> Measurement:
        """Every metric of every task, named `task metric`."""
        causal, tokenizer = model.causal, model.tokenizer  # loaded in all processes

        def run() -> Measurement:
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM

            wrapped = HFLM(pretrained=causal, tokenizer=tokenizer, batch_size=self.config.batch_size)
            with autocast(model.compared.config, model.accelerator.device):
                found = simple_evaluate(
                    wrapped,
                    tasks=self.manager.match_tasks(self.config.harness),
                    limit=self.config.max_items,
                    task_manager=self.manager,
                    bootstrap_iters=0,
                )
            return Measurement(metrics_of(found))

        measured = list[Measurement]()
        with main_alone(model.accelerator):
            if model.accelerator.is_main_process:
                measured.append(run())
        return from_main(model.accelerator, lambda: measured[0])


def metrics_of(found: Mapping[str, Any]) -> dict[str, Metric]:
    """Values by item if the harness's result is their mean, otherwise its own result and standard error."""
    metrics = {}
    for task, samples in found["samples"].items():
        for key, value in found["results"][task].items():
            name, _, filtered = key.partition(",")
            if not filtered or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            better = direction(found, task, name)
            values = [row.get(name) for row in samples if row["filter"] == filtered]
            error = found["results"][task].get(f"{name}_stderr,{filtered}")
            label = f"{task} {name}" if filtered == "none" else f"{task} {name} {filtered}"
            metrics[label] = by_item(values, value, better) or Metric(
                [[float(value), error if isinstance(error, float) else math.nan, float(len(values))]],
                "reported",
                better,
            )
    return metrics


def direction(found: Mapping[str, Any], task: str, metric: str) -> Better:
    """Whether a higher value is better."""
    higher = found.get("higher_is_better", {}).get(task, {}).get(metric)
    return "neither" if higher is None else "higher" if higher else "lower"


def by_item(values: Sequence[Any], mean: float, better: Better) -> Metric | None:
    """The metric of a value per item, if their mean is the harness's result."""
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    close = math.isclose(sum(values) / len(values), mean, rel_tol=1e-6, abs_tol=1e-9)
    return Metric.of(values, better) if close else None
