"""Evaluates the policy on held-out prompts during training, with the reward model and with an independent judge.

Each evaluation answers the same prompts with the same random numbers, so changes in the metrics come from the policy,
not from sampling. It has its own random streams and restores the weights: a run with evaluations trains to the same
bytes as one without.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.utils import gather_object

from data.overlap import TOKEN_RUN, chrf, repeated_share
from data.records import Demonstration, Prompt
from data.sets import read_set, set_file
from data.tokenize import decode_completion
from modeling.accelerator import from_main, share_of
from modeling.generation import Generation
from modeling.seeds import derive_seed
from modeling.tracking import RowLog, read_metrics
from ppo.config import HeldOutSettings

if TYPE_CHECKING:
    from ppo.ema import MovingAverage
    from ppo.trainer import PPOTrainer

WITH_ERRORS = ("score", "kl", "judge")
"""Means that are reported with a standard error."""


def held_out_prompts(data: Path, settings: HeldOutSettings) -> list[Prompt]:
    """The validation prompts in the data stage's folder, with their demonstrations if there are any; [] if
    evaluation is off.

    Raises ValueError when evaluation is on and there are fewer than two prompts.
    """
    if not settings.every:
        return []

    def valid(name: Literal["sft", "rl"]) -> list[Any]:
        return read_set(data, name, "valid") if set_file(data, name, "valid").is_file() else []

    answered = {prompt.prompt_id: prompt for prompt in valid("sft")}
    found = (
        list(answered.values())
        if settings.prompts_from == "sft"
        else [answered.get(prompt.prompt_id, prompt) for prompt in valid("rl")]
    )
    if len(found) < 2:
        raise ValueError(
            f"ppo.held_out.every={settings.every} needs two held-out prompts or more, but the validation split of "
            f"the {settings.prompts_from} set "
            f"has {len(found)}: raise data.valid_fraction, choose another ppo.held_out.prompts_from, or set "
            "ppo.held_out.every=0"
        )
    return found


@dataclass(frozen=True)
class Answer:
    """The metrics of one response."""

    score: float
    kl: float
    """log pi - log pi_ref of the whole response, nats."""
    length: float
    ended: float
    repetition: float
    judge: float | None
    """None without a demonstration or a judge."""


class PeriodicEvaluation:
    """Evaluates the trainer's policy when it is due, and writes a row of held_out.jsonl per evaluation."""

    def __init__(self, trainer: "PPOTrainer", prompts: Sequence[Prompt]) -> None:
        """Drops rows of iterations after the trainer's, which a resumed run repeats."""
        self.trainer, self.prompts, self.settings = trainer, prompts, trainer.config.held_out
        path, accelerator = trainer.out / "held_out.jsonl", trainer.accelerator
        log = from_main(accelerator, lambda: RowLog(path, trainer.progress.iteration)) if self.settings.every else None
        self._log: RowLog | None = log
        self.rows: list[dict[str, float]] = from_main(accelerator, lambda: read_metrics(path))
        """The same in every process, for the monitors."""

    def due(self, iteration: int) -> bool:
        """Whether the evaluation after this many iterations is scheduled and not done yet."""
        every = self.settings.every
        times = every and (iteration % every == 0 or iteration == self.trainer.config.iterations)
        return bool(times) and all(row["step"] != iteration for row in self.rows)

    def evaluate(self, average: "MovingAverage", iteration: int) -> dict[str, float]:
        """Evaluates after this many iterations if it is due, and writes a row; returns the metrics, the same in every
        process, or {}.
        """
        if not self.due(iteration):
            return {}
        with average.in_place() if self.settings.weights == "ema" else nullcontext():
            numbers = summary(self.answers())
        self.rows.append({"step": iteration, **numbers})
        assert self._log is not None
        log = self._log
        from_main(self.trainer.accelerator, lambda: log.log(iteration, numbers))
        return numbers

    @torch.no_grad()
    def answers(self) -> list[list[Answer]]:
        """The metrics of each prompt's responses; the prompts are divided among the processes."""
        trainer, settings = self.trainer, self.settings
        config, models, accelerator = trainer.config, trainer.models, trainer.accelerator
        mine = share_of(accelerator, list(range(len(self.prompts))))
        jobs = [(index, number) for index in mine for number in range(settings.responses_per_prompt)]
        prompts = [self.prompts[index] for index, _ in jobs]
        seeds = [
            derive_seed(trainer.run.seed, "held out", prompt.prompt_id, number)
            for prompt, (_, number) in zip(prompts, jobs, strict=True)
        ]
        rollout = trainer.respond(prompts, seeds, settings.temperature)
        rollout.make_micro_batches([list(range(len(prompts)))], config.max_tokens_per_micro_batch)
        # Both are computed the same way: log-probabilities recorded while decoding are rounded differently.
        logprobs_R, ref_logprobs_R = (
            trainer.logprobs(model, rollout, settings.temperature, torch.float64)
            for model in (models.policy, models.reference)
        )
        kl_B = [float(log_ratio.sum()) for log_ratio in (logprobs_R - ref_logprobs_R).split(rollout.lengths)]
        scores_B, _, _ = models.rewards(rollout, config.max_tokens_per_micro_batch)
        answers: dict[int, list[Answer]] = {index: [] for index in mine}
        for (index, _), prompt, response, score, kl in zip(
            jobs, prompts, rollout.responses, scores_B.tolist(), kl_B, strict=True
        ):
            answers[index].append(
                Answer(
                    score=score,
                    kl=kl,
                    length=float(len(response.ids)),
                    ended=float(response.ended),
                    repetition=repeated_share(response.ids, TOKEN_RUN),
                    judge=self._judged(prompt, response),
                )
            )
        gathered = dict(gather_object(list(answers.items())))
        return [gathered[index] for index in range(len(self.prompts))]

    def _judged(self, prompt: Prompt, response: Generation) -> float | None:
        if self.settings.judge == "none" or not isinstance(prompt, Demonstration):
            return None
        return chrf(decode_completion(self.trainer.tokenizer, response.ids, response.ended), prompt.completion)


def summary(answers: Sequence[Sequence[Answer]]) -> dict[str, float]:
    """Means over prompts of the metrics of their responses, with standard errors (`_se`) of those in WITH_ERRORS."""
    numbers: dict[str, float] = {}
    for name in Answer.__annotations__:
        values = [[getattr(answer, name) for answer in row] for row in answers]
        means = [sum(row) / len(row) for row in values if None not in row]
        if len(means) < 2:
            continue
        mean = sum(means) / len(means)
        numbers[f"held_out_{name}"] = mean
        if name in WITH_ERRORS:
            numbers[f"held_out_{name}_se"] = math.sqrt(
                sum((value - mean) ** 2 for value in means) / (len(means) - 1) / len(means)
            )
    return numbers
