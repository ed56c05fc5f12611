"""The policy on held-out prompts while it is trained: what the reward model and a judge that it never learned from say
of the same answers.

Each evaluation answers the same prompts with the same random numbers, so that the curve shows the policy and not the
draw. It has random streams of its own, and leaves weights and everything else as they were: a run that is evaluated
trains to the same bytes as one that is not.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from data.numbers import AtLeastTwo, NonNegativeInt, PositiveFloat, PositiveInt
from data.overlap import TOKEN_RUN, chrf, repeated_share
from data.records import Demonstration, Prompt
from data.sets import read_set, set_file
from data.tokenize import decode_completion, encode_prompt
from modeling.batch import Batch, micro_batches
from modeling.config import ModelConfig
from modeling.engines.native import NativeEngine
from modeling.engines.types import Engine, Generation, Sampling
from modeling.load import autocast, stop_ids
from modeling.logprobs import response_logprobs
from modeling.processes import Processes
from modeling.seeds import derive_seed
from modeling.tracking import RowLog, read_metrics
from ppo.reading import Episode, read_scores

if TYPE_CHECKING:  # the configuration holds HeldOutSettings
    from ppo.config import PPOConfig
    from ppo.ema import MovingAverage
    from ppo.models import PPOModels

Groups = list[tuple[list[int], Batch]]

WITH_ERRORS = ("score", "kl", "judge")
"""Means that come with a standard error."""


@dataclass
class HeldOutSettings:
    """The policy on held-out prompts while it is trained. All ours."""

    every: NonNegativeInt = 0
    """Iterations between evaluations; the policy is evaluated before the first and after the last one too. 0 makes
    none. Ours."""
    prompts: AtLeastTwo = 64
    """Maximum number of prompts, at least 2 for a standard error, spread evenly over the validation split. Ours."""
    prompts_from: Literal["sft", "rl"] = "sft"
    """`sft`: the demonstrations' prompts, each with an answer to judge by. `rl`: those of the prompts that PPO trains
    on; only those of them are judged that have a demonstration. Ours."""
    responses_per_prompt: PositiveInt = 1
    """Averaged before anything else, as the prompt is the unit of the standard errors. Ours."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature, above 0; the KL is between the distributions at this temperature. Ours."""
    weights: Literal["ema", "last"] = "ema"
    """The moving average, as the evaluate stage takes by default, or the weights that the next roll-out will use.
    Ours."""
    judge: Literal["chrf", "none"] = "chrf"
    """`chrf`: overlap of characters with the demonstration, which no reward model was taught. Ours."""


def held_out_prompts(data: Path, settings: HeldOutSettings) -> list[Prompt]:
    """The validation prompts in the data stage's folder, each with its demonstration where it has one; none where
    nothing is evaluated.

    Raises ValueError when evaluations are asked for and there are fewer than two prompts.
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
            f"ppo.held_out.every={settings.every} needs two held-out prompts at least, and the validation split of "
            f"the {settings.prompts_from} set "
            f"has {len(found)}: raise data.valid_fraction, take another ppo.held_out.prompts_from, or set "
            "ppo.held_out.every=0"
        )
    return found


@dataclass(frozen=True)
class Answer:
    """What is said of one response."""

    score: float
    kl: float
    """log pi - log pi_ref of the whole response, nats."""
    length: float
    ended: float
    repetition: float
    judge: float | None
    """None where there is nothing to judge by."""


class HeldOut:
    """Evaluates when it is time, and keeps held_out.jsonl: a row an evaluation."""

    def __init__(
        self, prompts: Sequence[Prompt], config: "PPOConfig", model_config: ModelConfig, models: "PPOModels",
        tokenizer: Any, seed: int,
        team: Processes, folder: Path, resume_after: int = 0, engine: Engine | None = None,
    ) -> None:  # fmt: skip
        """Rows of iterations after `resume_after`, which a resumed run makes again, are dropped.

        Raises ValueError for a prompt that leaves policy, value or reward model no room.
        """
        self.prompts, self.config, self.model_config, self.models, self.tokenizer = (
            prompts,
            config,
            model_config,
            models,
            tokenizer,
        )
        self.seed, self.team, self.engine = seed, team, engine or NativeEngine()
        models.check_prompts(prompts, tokenizer, config.max_new_tokens)
        path = folder / "held_out.jsonl"
        self._log = team.from_main(lambda: RowLog(path, resume_after)) if config.held_out.every else None
        self.rows: list[dict[str, float]] = team.from_main(lambda: read_metrics(path))
        """In every process, for the guards."""

    def due(self, iteration: int) -> bool:
        """Whether there is an evaluation after so many iterations that has not been made yet."""
        every = self.config.held_out.every
        times = every and (iteration % every == 0 or iteration == self.config.iterations)
        return bool(times) and all(row["step"] != iteration for row in self.rows)

    def evaluate(self, average: "MovingAverage", iteration: int) -> dict[str, float]:
        """The numbers after so many iterations, the same in every process, and a row of the file; nothing where none
        are due.
        """
        if not self.due(iteration):
            return {}
        with average.in_place() if self.config.held_out.weights == "ema" else nullcontext():
            numbers = summary(self._answers())
        self.rows.append({"step": iteration, **numbers})
        assert self._log is not None
        log = self._log
        self.team.from_main(lambda: log.log(iteration, numbers))
        return numbers

    @torch.no_grad()
    def _answers(self) -> list[list[Answer]]:
        """Prompt by prompt; prompts are shared among the processes."""
        mine = self.team.share(list(range(len(self.prompts))))
        jobs = [(index, number) for index in mine for number in range(self.config.held_out.responses_per_prompt)]
        prompts = [self.prompts[index] for index, _ in jobs]
        ids = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        settings, pad_id = self.config.held_out, self.tokenizer.pad_token_id
        sampling = Sampling(self.config.max_new_tokens, settings.temperature, self.config.rollout_batch_size)
        seeds = [
            derive_seed(self.seed, "held out", prompt.prompt_id, number)
            for prompt, (_, number) in zip(prompts, jobs, strict=True)
        ]
        with self.models.as_policy() as policy, autocast(self.model_config, self.team.device):
            responses = self.engine.generate(policy, ids, seeds, sampling, stop_ids(policy), pad_id)
        groups = self._groups(ids, [response.ids for response in responses])
        # Both from the same kind of pass over the same batches: recorded log-probabilities are rounded differently.
        with self.models.as_reference() as reference:
            ref_logprobs = self._logprobs(reference, groups)
        with self.models.as_policy() as policy:
            logprobs = self._logprobs(policy, groups)
        scores = self._scores([Episode(*episode) for episode in zip(ids, responses, prompts, strict=True)], groups)
        answers: dict[int, list[Answer]] = {index: [] for index in mine}
        for (index, _), prompt, response, score, logprob, ref_logprob in zip(
            jobs, prompts, responses, scores, logprobs, ref_logprobs, strict=True
        ):
            answers[index].append(
                Answer(
                    score=score,
                    kl=logprob - ref_logprob,
                    length=float(len(response.ids)),
                    ended=float(response.ended),
                    repetition=repeated_share(response.ids, TOKEN_RUN),
                    judge=self._judged(prompt, response),
                )
            )
        gathered = dict(self.team.gather(list(answers.items())))
        return [gathered[index] for index in range(len(self.prompts))]

    def _groups(self, ids: list[list[int]], responses: list[list[int]]) -> Groups:
        """Micro-batches with the numbers of their rows; responses to one prompt stand together."""
        tokens = [len(prompt) + len(response) for prompt, response in zip(ids, responses, strict=True)]
        order = sorted(range(len(ids)), key=lambda row: (len(ids[row]), ids[row], tokens[row]))
        pad_id, trunk = self.tokenizer.pad_token_id, self.models.trunk
        return [
            (rows, Batch([ids[i] for i in rows], [responses[i] for i in rows], pad_id, self.team.device, trunk=trunk))
            for rows in micro_batches(order, tokens, self.config.max_tokens_per_micro_batch)
        ]

    def _logprobs(self, model: Any, groups: Groups) -> list[float]:
        """The log-probability of each response under a language model."""
        found: dict[int, float] = {}
        for rows, batch in groups:
            with autocast(self.model_config, self.team.device):
                logprobs_BT = batch.rows(response_logprobs(model, batch, self.config.held_out.temperature))
            found |= zip(rows, logprobs_BT.double().sum(1).tolist(), strict=True)
        return [found[row] for row in range(len(found))]

    def _scores(self, episodes: list[Episode], groups: Groups) -> list[float]:
        """What the reward model says of each response."""
        batches = {tuple(rows): batch for rows, batch in groups}
        with self.models.as_reward() as reward, autocast(self.model_config, self.team.device):
            scores_B, _ = read_scores(
                self.models.reading, reward, batches, episodes, self.config.max_tokens_per_micro_batch
            )
        found: list[float] = scores_B.tolist()
        return found

    def _judged(self, prompt: Prompt, response: Generation) -> float | None:
        if self.config.held_out.judge == "none" or not isinstance(prompt, Demonstration):
            return None
        return chrf(decode_completion(self.tokenizer, response.ids, response.ended), prompt.completion)


def summary(answers: Sequence[Sequence[Answer]]) -> dict[str, float]:
    """Means over prompts of what is said of their answers, and standard errors (`_se`) of those that a guard or a
    reader must tell from chance.
    """
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
