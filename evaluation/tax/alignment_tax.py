"""The alignment tax: measures models on tasks, one model at a time, and compares them item by item.

A new task is a class with the members of `Task`, an entry in `TASKS`, and a field of `TaxConfig` for its file.
"""

import gc
import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

from data.files import write_rows
from data.intervals import Bootstrap
from evaluation.models import ComparedModel
from evaluation.tax.bias import SentencePairs
from evaluation.tax.config import TaxConfig
from evaluation.tax.harness import Harness
from evaluation.tax.metrics import Interval, Measurement, change, interval
from evaluation.tax.model import TaxModel
from evaluation.tax.questions import Questions
from evaluation.tax.toxicity import Toxicity
from evaluation.tax.truthfulqa import TruthfulQA
from labeling.scratch import remembered
from modeling.run import Run

REFERENCES = ("base", "sft")
"""The models that the others are compared with."""


class Task(Protocol):
    """A benchmark: its items, and how a model is evaluated on them."""

    @property
    def name(self) -> str:
        """Its name in tax.json."""

    @property
    def clusters(self) -> Sequence[Hashable] | None:
        """The group of each item, if items of a group resemble each other; else None."""

    def check(self, model: TaxModel) -> None:
        """Raises ValueError for an item that the model cannot be measured on; loads no weights."""

    def measure(self, model: TaxModel) -> Measurement:
        """The metrics of the model; all processes call this together."""


TASKS: dict[str, Callable[[str, TaxConfig], Task]] = {
    "truthfulqa": TruthfulQA.read,
    "crows_pairs": SentencePairs.read_crows_pairs,
    "winogender": SentencePairs.read_winogender,
    "toxicity": Toxicity.read,
    "questions": Questions.read,
}
"""Readers by the field of `TaxConfig` that names their file."""


def read_tasks(config: TaxConfig) -> list[Task]:
    """The configured tasks. Raises ValueError for a malformed row."""
    tasks = [read(place, config) for name, read in TASKS.items() if (place := getattr(config, name)) is not None]
    return [*tasks, Harness(config)] if config.harness else tasks


@dataclass
class AlignmentTax:
    """The measurement of all models, and its results so far.

        tax = AlignmentTax(config.tax, run, models, tasks)
        tax.check()
        tax.measure()
        tax.write(tax.results())    # in the first process

    A run that was killed continues from the folder `run.out/scratch`.
    """

    settings: TaxConfig
    run: Run
    models: Sequence[ComparedModel]
    tasks: Sequence[Task]
    measured: dict[str, dict[str, Measurement]] = field(default_factory=dict, init=False)
    """Model -> task -> its measurement."""
    seconds: dict[str, dict[str, float]] = field(default_factory=dict, init=False)
    """Model -> task -> wall-clock seconds; the first task includes loading the model."""

    def __post_init__(self) -> None:
        assert self.run.out is not None
        self.out, self.scratch, self.accelerator = self.run.out, self.run.out / "scratch", self.run.accelerator

    def model(self, compared: ComparedModel) -> TaxModel:
        """A model that loads its parts on first use."""
        return TaxModel(compared, self.settings, self.accelerator, self.scratch)

    def check(self) -> None:
        """Raises ValueError if a model cannot be measured on a task, before weights are loaded."""
        for compared in self.models:
            model = self.model(compared)
            for task in self.tasks:
                task.check(model)

    def measure(self) -> None:
        """Measures the models, one after the other; call `check` before."""
        for compared in self.models:
            model = self.model(compared)
            for task in self.tasks:
                timed = partial(self.timed, task, model)
                found = remembered(self.scratch, f"{compared.stream} {task.name}", self.accelerator, timed)
                self.measured.setdefault(compared.name, {})[task.name] = Measurement.from_json(found["measurement"])
                self.seconds.setdefault(compared.name, {})[task.name] = found["seconds"]
            del model
            gc.collect()

    def timed(self, task: Task, model: TaxModel) -> dict[str, Any]:
        """A measurement and its wall seconds, as JSON."""
        self.accelerator.print(f"tax: {model.name} on {task.name}", flush=True)
        start = time.perf_counter()
        found = asdict(task.measure(model))
        return {"measurement": found, "seconds": round(time.perf_counter() - start, 1)}

    def results(self) -> dict[str, Any]:
        """The contents of tax.json, see docs/tax.md."""
        return {
            "models": {compared.name: compared.place for compared in self.models},
            "results": {name: {task.name: self.intervals(name, task) for task in self.tasks} for name in self.measured},
            "changes": {name: {task.name: self.changes(name, task) for task in self.tasks} for name in self.measured},
            "better": {
                task.name: {
                    metric: found.better
                    for measured in self.measured.values()
                    for metric, found in measured[task.name].metrics.items()
                }
                for task in self.tasks
            },
            "seconds": self.seconds,
        }

    def intervals(self, name: str, task: Task) -> dict[str, Interval]:
        """A model's metrics on a task."""
        metrics, bootstrap = self.measured[name][task.name].metrics, self.bootstrap(task)
        return {metric: interval(found, bootstrap) for metric, found in metrics.items()}

    def changes(self, name: str, task: Task) -> dict[str, list[Interval]]:
        """A model's changes from base and from SFT by metric, on the same items."""
        ours, bootstrap = self.measured[name][task.name], self.bootstrap(task)
        found: dict[str, list[Interval]] = {metric: [] for metric in ours.metrics}
        for reference in REFERENCES[: REFERENCES.index(name)] if name in REFERENCES else REFERENCES:
            theirs = self.measured[reference][task.name]
            for metric, values in ours.metrics.items():
                same = ours.items == theirs.items and metric in theirs.metrics
                moved = change(values, theirs.metrics[metric], bootstrap) if same else None
                if moved is not None:
                    found[metric].append({"from": reference, **moved})
        return found

    def bootstrap(self, task: Task) -> Bootstrap:
        """Resamples items, or whole clusters of them."""
        return Bootstrap(self.settings.bootstrap_resamples, task.clusters)

    def write(self, results: Mapping[str, Any]) -> None:
        """Writes tax.json, and answers.jsonl if answers were generated."""
        (self.out / "tax.json").write_text(json.dumps(results, indent=2) + "\n")
        answers = [
            {"model": name, "task": task, **answer}
            for name, tasks in self.measured.items()
            for task, found in tasks.items()
            for answer in found.answers
        ]
        if answers:
            write_rows(self.out / "answers.jsonl", answers)


def table(results: Mapping[str, Any]) -> str:
    """A line per metric and model: the value, and the changes from base and SFT, with 95% intervals."""
    rows = [("task", "metric", "model", "value", *(f"change from {name}" for name in REFERENCES))]
    for task, metrics in results["better"].items():
        for metric in metrics:
            for model, tasks in results["results"].items():
                moved = {found["from"]: found for found in results["changes"][model][task].get(metric, [])}
                value = tasks[task].get(metric)
                changes = (shown(moved.get(name), "+") for name in REFERENCES)
                rows.append((task, metric, model, shown(value), *changes))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def shown(found: Interval | None, sign: str = "") -> str:
    """`mean [low, high]`, or a dash."""
    if found is None:
        return "–"
    low, high = found["low"], found["high"]
    ends = "" if low is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{found['mean']:{sign}.3f}{ends}"
