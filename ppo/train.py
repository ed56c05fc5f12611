"""Stage 3: PPO-ptx (Ouyang et al. 2022, section 3.5 and appendix C.4). The loop reads like the algorithm; each step
lives in its own file.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.records import Prompt
from data.tokenize import decode_completion
from modeling.batch import micro_batches
from modeling.checkpoint import random_state
from modeling.config import ModelConfig, TrackingConfig
from modeling.finite import require_finite_weights
from modeling.generation import generator_for
from modeling.load import autocast
from modeling.processes import Processes
from modeling.tracking import read_metrics
from ppo.checkpoint import Checkpoints, Progress, Trained
from ppo.config import PPOConfig
from ppo.ema import MovingAverage
from ppo.guards import Guards
from ppo.held_out import HeldOut
from ppo.interrupt import Interrupt
from ppo.journal import Journal
from ppo.kl import KLController
from ppo.metrics import mean_of, rollout_numbers, speeds
from ppo.models import PPOModels
from ppo.reading import reading_numbers
from ppo.rollout import Rollout, in_order, refuse_recorded_logprobs, roll_out, score
from ppo.scaling import ScoreScale
from ppo.streams import Stream, shuffled_minibatches
from ppo.update import ADVICE, Optimizers, step


def train(
    config: PPOConfig,
    model_config: ModelConfig,
    models: PPOModels,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    chunks: Sequence[list[int]],
    seed: int,
    team: Processes,
    out: Path,
    tracking: TrackingConfig | None = None,
    held_out_prompts: Sequence[Prompt] = (),
) -> MovingAverage:
    """Trains policy and value model in place and returns the policy's EMA; resumes from the last complete checkpoint
    below `out`.

    Raises ValueError when batches do not divide over the processes, recorded log-probabilities are requested in
    bfloat16, a prompt is too long for reward or value model, a gradient or weight is not finite, the disk is full, or
    every checkpoint is damaged. Raises `Interrupted` after SIGTERM or Ctrl-C, once a checkpoint is saved.
    """
    team.divide(config.minibatch_size, "ppo.minibatch_size")
    refuse_recorded_logprobs(config, model_config, team.device)
    models.check_prompts(prompts, tokenizer, config.max_new_tokens)
    with models.as_policy() as policy:
        generator = generator_for(policy, config.engine)
    config.refuse_unrecorded(generator.records_logprobs)
    optimizers = Optimizers.make(models, config)
    average = MovingAverage(models.policy_parameters, config.ema_decay)
    kl, scale = KLController.make(config), ScoreScale(config)
    trained = Trained(models, optimizers, average, stateful={"kl": kl, "score_scale": scale})
    checkpoints = Checkpoints(out / "checkpoints", config.keep_checkpoints, team, seed)
    progress = checkpoints.begin(trained)
    prompt_stream = Stream(prompts, seed, "prompts", progress.prompt_position)
    text_stream = Stream(chunks, seed, "pretraining examples", progress.text_position) if config.ptx_coef > 0 else None
    numbers_of_minibatch = shares_of(config, team.rank, team.count)
    own = [number for numbers in numbers_of_minibatch for number in numbers]
    place = {number: row for row, number in enumerate(own)}

    def grouped(minibatches: list[list[int]], ids: list[list[int]], lengths: list[int]) -> list[list[list[int]]]:
        """This process's rows of each minibatch, in micro-batches."""
        here = [[place[number] for number in numbers if number in place] for numbers in minibatches]
        limit = config.max_tokens_per_micro_batch
        return [micro_batches(in_order(rows, ids, lengths), lengths, limit) for rows in here]

    with (
        Interrupt(team) as interrupt,
        Journal(out, progress.iteration, tracking, team) as journal,
        tqdm(
            total=config.iterations, initial=progress.iteration, desc="ppo", unit="iteration", disable=not team.is_main
        ) as bar,
    ):
        held_out = HeldOut(
            held_out_prompts, config, model_config, models, tokenizer, seed, team, out, progress.iteration, generator
        )
        guards = Guards(config.guards, [*team.from_main(lambda: read_metrics(out / "metrics.jsonl")), *held_out.rows])

        def watch(iteration: int, numbers: dict[str, float]) -> None:
            for warning in guards.check(iteration, numbers):
                team.say(f"ppo: {warning}")

        if progress.iteration == 0:
            watch(0, held_out.evaluate(average, 0))
        for iteration in range(progress.iteration, config.iterations):
            clock = Clock()
            factor = optimizers.set_learning_rates(config, iteration)
            batch = prompt_stream.take(config.batch_size // config.responses_per_prompt)
            asked = [batch[number // config.responses_per_prompt] for number in own]
            with interrupt.breakable():
                with clock.phase("rollout"), autocast(model_config, team.device):
                    ids, responses = roll_out(models, asked, config, tokenizer, seed, iteration, own, generator)
                lengths = [len(prompt) + len(response.ids) for prompt, response in zip(ids, responses, strict=True)]
                groups = grouped(numbers_of_minibatch, ids, lengths)
                with clock.phase("score"):
                    every_group = [rows for minibatch in groups for rows in minibatch]
                    rollout = score(
                        models,
                        ids,
                        responses,
                        every_group,
                        config,
                        model_config,
                        tokenizer.pad_token_id,
                        team.device,
                        asked,
                        kl.coef,
                        scale,
                        groups[0],
                    )
            # Nothing has changed since `progress` yet.
            if interrupt.agreed():
                checkpoints.save(progress, trained)
                raise interrupt.stop(progress.iteration, config.iterations)
            numbers = {
                **rollout_numbers(rollout, rollout.scaled_scores_B),
                **reading_numbers(rollout.reward_truncated_B),
            }
            watch(iteration + 1, numbers)
            rows = []
            with clock.phase("update"):
                for epoch in range(config.inner_epochs):
                    if epoch > 0:
                        groups = grouped(shuffled_minibatches(config, seed, iteration, epoch), ids, lengths)
                        rollout.regroup([members for minibatch in groups for members in minibatch])
                    for minibatch in groups:
                        texts = (
                            text_stream.take(config.ptx_examples_per_episode * config.minibatch_size)
                            if text_stream
                            else []
                        )
                        rows.append(
                            step(
                                models,
                                optimizers,
                                rollout,
                                minibatch,
                                texts,
                                config,
                                model_config,
                                tokenizer.pad_token_id,
                                team,
                                kl.coef,
                            )
                        )
                        average.update()
            for trained_weights in (models.policy_parameters, models.value_parameters):
                require_finite_weights(trained_weights.items(), f"ppo, iteration {iteration + 1}", ADVICE)
            numbers = {
                "episodes": float((iteration + 1) * config.batch_size),
                **numbers,
                **mean_of(rows),
                "kl_coef": kl.coef,
                "learning_rate": config.learning_rate * factor,
            }
            samples = (
                shown(tokenizer, rollout, asked, config.samples_per_iteration)
                if iteration % config.samples_every == 0
                else []
            )
            del rollout  # and what it keeps of hidden states, before others are made
            with clock.phase("held_out"):
                evaluated = held_out.evaluate(average, iteration + 1)
            watch(iteration + 1, numbers | evaluated)
            kl.update(numbers["kl"], config.batch_size)
            numbers |= guards.warnings
            timings = clock.seconds | speeds(
                numbers["tokens"], clock.seconds["seconds_rollout"], sum(clock.seconds.values())
            )
            progress = Progress(
                iteration=iteration + 1,
                prompt_position=prompt_stream.position,
                text_position=text_stream.position if text_stream else 0,
                states=trained.states(),
                random=random_state(team.device),
            )
            # Before the checkpoint, because a resumed run takes what lies before it as written.
            journal.log(progress.iteration, numbers, timings, samples)
            if progress.iteration % config.checkpoint_every == 0 or progress.iteration == config.iterations:
                checkpoints.save(progress, trained)
            if interrupt.agreed():
                checkpoints.save(progress, trained)
                raise interrupt.stop(progress.iteration, config.iterations)
            bar.update()
            bar.set_postfix({name: f"{numbers[name]:.3f}" for name in ("score", "kl", "entropy", "ended")})
    return average


def shares_of(config: PPOConfig, rank: int, processes: int) -> list[list[int]]:
    """For each minibatch the numbers of the episodes that are this process's. Whole prompts where they divide:
    responses to one share its pass.
    """
    run = config.responses_per_prompt if config.minibatch_size // config.responses_per_prompt % processes == 0 else 1
    return [
        [start + k for k in range(config.minibatch_size) if k // run % processes == rank]
        for start in range(0, config.batch_size, config.minibatch_size)
    ]


class Clock:
    """Wall seconds of each phase of an iteration."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times what happens within."""
        start = time.perf_counter()
        yield
        self.seconds[f"seconds_{name}"] = round(time.perf_counter() - start, 3)


def shown(tokenizer: Any, rollout: Rollout, prompts: Sequence[Prompt], count: int) -> list[dict[str, Any]]:
    """The first episodes of a roll-out as text."""
    rows = []
    for index in range(min(count, len(prompts))):
        ended = bool(rollout.ended_B[index])
        log_ratio = ((rollout.logprobs_BT - rollout.ref_logprobs_BT) * rollout.mask_BT)[index].sum()
        rows.append(
            {
                "prompt": prompts[index].text,
                "response": decode_completion(tokenizer, rollout.responses[index], ended),
                "ended": ended,
                "score": float(rollout.scores_B[index]),
                "kl": float(log_ratio),
            }
        )
    return rows
