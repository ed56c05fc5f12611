"""Chooses the epoch of the supervised baseline by the reward model's score on validation prompts (section 3.5), or by
validation loss if there is no reward model yet.

The paper selects its final SFT models by reward-model score, because it predicts human preference better than
validation loss (C.1). Choosing among the epochs of one run is ours.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.files import write_rows
from data.intervals import Bootstrap
from data.records import Prompt
from data.tokenize import decode_completion
from evaluation.best_of_n import Proxy
from labeling.sampling import AnswerSampler
from labeling.scratch import remembered
from modeling.config import ModelConfig
from modeling.generation import Generation
from modeling.load import autocast
from modeling.run import Run
from sft.config import EpochScoringConfig
from sft.epochs import load_epoch


def losses_by_epoch(metrics: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """A row with the training and validation loss of each epoch, from the rows of the training's metrics.jsonl."""
    rows: list[dict[str, float]] = []
    losses: list[float] = []
    for row in metrics:
        if "loss" in row:
            losses.append(row["loss"])
        if "valid_loss" in row:
            found = {"train_loss": sum(losses) / len(losses), "valid_loss": row["valid_loss"]}
            rows.append({"epoch": len(rows) + 1, "step": row["step"], **found})
            losses = []
    return rows


@dataclass(frozen=True)
class EpochAnswers:
    """An epoch's answers to each prompt, and the reward model's scores of them."""

    generations: list[list[Generation]]
    scores: list[list[float]]

    def means(self) -> list[float]:
        """The mean score of each prompt."""
        return [sum(row) / len(row) for row in self.scores]


@dataclass(kw_only=True)
class EpochScorer:
    """Samples answers of every epoch, with the same random numbers for each, and scores them.

    A run that was killed continues from the folder `run.out/scratch`.
    """

    settings: EpochScoringConfig
    model_config: ModelConfig
    run: Run
    proxy: Proxy
    prompts: Sequence[Prompt]
    max_tokens: int
    """Maximum number of tokens per forward pass of the reward model."""

    def __post_init__(self) -> None:
        """Raises ValueError for a prompt that leaves no room for an answer in the reward model's context."""
        assert self.run.out is not None
        self.proxy.tokens.check(self.prompts, "lower data.max_prompt_tokens")
        self.scratch = self.run.out / "scratch"

    def answers(self, model: Any, files: Mapping[int, Path]) -> dict[int, EpochAnswers]:
        """The answers of each epoch, whose weights are in `files`; `model` ends with the last epoch's weights, on the
        CPU.
        """
        how, accelerator = self.settings, self.run.accelerator
        model.to(accelerator.device)
        found: dict[int, list[list[Generation]]] = {}
        for epoch, file in files.items():
            accelerator.print(f"sft_baseline: answers of epoch {epoch}")
            load_epoch(file, model)
            scratch = self.scratch / f"epoch-{epoch:02d}"
            sampler = AnswerSampler(model, self.proxy.policy_tokenizer, how, self.run.seed, accelerator, scratch)
            with autocast(self.model_config, accelerator.device):
                found[epoch] = sampler.answers(self.prompts, how.answers_per_prompt, "sft baseline")
        model.to("cpu")  # frees the GPU for the reward model
        score = partial(self.proxy.scores, self.prompts, list(found.values()), self.max_tokens, accelerator)
        scores = remembered(self.scratch, "reward scores", accelerator, score)
        return {epoch: EpochAnswers(rows, own) for (epoch, rows), own in zip(found.items(), scores, strict=True)}


@dataclass(kw_only=True)
class EpochChoice:
    """Chooses an epoch, and writes the results."""

    losses: Sequence[Mapping[str, float]]
    """`losses_by_epoch`."""
    kept: Sequence[int]
    """Epochs that can be chosen."""
    answers: Mapping[int, EpochAnswers]
    """Of each kept epoch; empty without a reward model."""
    bootstrap: Bootstrap
    """Over the prompts of the answers."""

    def __post_init__(self) -> None:
        self.valid_loss = {int(row["epoch"]): row["valid_loss"] for row in self.losses}
        self.score = {epoch: self.bootstrap.interval(made.means()) for epoch, made in self.answers.items()}
        self.least_loss = min(self.kept, key=lambda epoch: self.valid_loss[epoch])
        self.chosen = self.least_loss
        if self.score:
            self.chosen = max(self.kept, key=lambda epoch: (self.score[epoch]["mean"], -self.valid_loss[epoch]))

    def facts(self) -> dict[str, Any]:
        """The contents of choice.json."""
        found: dict[str, Any] = {
            "epoch": self.chosen,
            "by": "valid_loss",
            "why": f"lowest validation loss of the {len(self.kept)} kept epochs: there is no reward model yet",
            "least_valid_loss_epoch": self.least_loss,
            "above_least_valid_loss_epoch": None,
        }
        if self.score:
            score = self.score[self.chosen]
            ours, theirs = (self.answers[epoch].means() for epoch in (self.chosen, self.least_loss))
            gained = [one - other for one, other in zip(ours, theirs, strict=True)]
            found |= {
                "by": "reward_score",
                "why": f"highest mean reward-model score of the {len(self.kept)} kept epochs on {len(ours)} validation "
                f"prompts: {score['mean']:.3f} (95% interval {score['low']:.3f} to {score['high']:.3f})",
                "above_least_valid_loss_epoch": self.bootstrap.interval(gained),
            }
        return found

    def rows(self) -> list[dict[str, Any]]:
        """The rows of epochs.jsonl."""
        return [
            {
                **row,
                "kept": row["epoch"] in self.kept,
                "score": self.score.get(int(row["epoch"])),
                **answer_facts(self.answers.get(int(row["epoch"]))),
                "chosen": row["epoch"] == self.chosen,
            }
            for row in self.losses
        ]

    def write(self, out: Path, prompts: Sequence[Prompt], tokenizer: Any) -> dict[str, Any]:
        """Writes epochs.jsonl, choice.json and, if there are answers, answers.jsonl; returns `facts`."""
        facts = self.facts()
        write_rows(out / "epochs.jsonl", self.rows())
        (out / "choice.json").write_text(json.dumps(facts, indent=2) + "\n")
        if self.answers:
            write_rows(
                out / "answers.jsonl",
                [
                    {"prompt_id": prompt.prompt_id, "user_id": prompt.user_id, "prompt": prompt.text, "epoch": epoch}
                    | {"answer": decode_completion(tokenizer, given.ids, given.ended), "ended": given.ended}
                    | {"score": score}
                    for epoch, made in self.answers.items()
                    for prompt, row, scores in zip(prompts, made.generations, made.scores, strict=True)
                    for given, score in zip(row, scores, strict=True)
                ],
            )
        return facts


def answer_facts(made: EpochAnswers | None) -> dict[str, float | None]:
    """The mean length of an epoch's answers in tokens, EOS included, and the share that end with EOS."""
    answers = [] if made is None else [answer for row in made.generations for answer in row]
    if not answers:
        return {"answer_tokens": None, "ended": None}
    return {
        "answer_tokens": sum(len(answer.ids) for answer in answers) / len(answers),
        "ended": sum(answer.ended for answer in answers) / len(answers),
    }
