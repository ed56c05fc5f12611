"""Stage 3: PPO-ptx (Ouyang et al. 2022, section 3.5 and appendix C.4). The loop reads like the algorithm; each step lives in its own file."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.files import write_rows
from data.records import Prompt
from data.tokenize import decode_completion
from modeling.config import ModelConfig
from modeling.load import autocast
from modeling.processes import Processes
from modeling.tracking import Tracker, read_metrics
from ppo.checkpoint import Progress, load_checkpoint, newest, save_checkpoint
from ppo.config import PPOConfig
from ppo.ema import MovingAverage
from ppo.metrics import mean_of, rollout_numbers
from ppo.models import PPOModels
from ppo.reading import reading_numbers
from ppo.rollout import Rollout, micro_batches, roll_out, score
from ppo.streams import Stream
from ppo.update import Optimizers, step


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
) -> MovingAverage:
    """Trains the policy and value in place and returns the policy's moving average; goes on from the last checkpoint below `out`.

    Raises ValueError when batches do not divide over the processes, a prompt is too long for reward or value model, or a gradient stops being a
    number.
    """
    team.divide(config.minibatch_size, "ppo.minibatch_size")
    models.check_prompts(prompts, tokenizer, config.max_new_tokens)
    optimizers = Optimizers.make(models, config)
    average = MovingAverage(models.policy_parameters, config.ema_decay)
    checkpoints = out / "checkpoints"
    progress = Progress()
    if (last := newest(checkpoints)) is not None:
        progress = load_checkpoint(last, models, optimizers, average, team.device)
    prompt_stream = Stream(prompts, seed, "prompts", progress.prompt_position)
    text_stream = Stream(chunks, seed, "pretraining examples", progress.text_position) if config.ptx_coef > 0 else None
    numbers_of_minibatch = [
        [start + k for k in range(config.minibatch_size) if k % team.count == team.rank]
        for start in range(0, config.batch_size, config.minibatch_size)
    ]
    own = [number for numbers in numbers_of_minibatch for number in numbers]
    place = {number: row for row, number in enumerate(own)}
    tracker = Tracker(out, resume_after=progress.iteration) if team.is_main else None
    samples = SampleLog(out / "samples.jsonl", progress.iteration) if team.is_main else None

    with tqdm(total=config.iterations, initial=progress.iteration, desc="ppo", unit="iteration", disable=not team.is_main) as bar:
        for iteration in range(progress.iteration, config.iterations):
            clock = Clock()
            factor = optimizers.set_learning_rates(config, iteration)
            batch = prompt_stream.take(config.batch_size)
            asked = [batch[number] for number in own]
            with clock.phase("rollout"), autocast(model_config, team.device):
                ids, responses = roll_out(models, asked, config, tokenizer, seed, iteration, own)
            groups = [
                micro_batches(sorted((place[n] for n in numbers), key=lambda row: len(ids[row]) + len(responses[row].ids)), config.micro_batch_size)
                for numbers in numbers_of_minibatch
            ]
            with clock.phase("score"):
                every_group = [rows for minibatch in groups for rows in minibatch]
                rollout = score(models, ids, responses, every_group, config, model_config, tokenizer.pad_token_id, team.device, asked)
            rows = []
            with clock.phase("update"):
                for _ in range(config.inner_epochs):
                    for minibatch in groups:
                        texts = text_stream.take(config.ptx_examples_per_episode * config.minibatch_size) if text_stream else []
                        rows.append(step(models, optimizers, rollout, minibatch, texts, config, model_config, tokenizer.pad_token_id, team))
                        average.update()
            numbers = {
                "episodes": float((iteration + 1) * config.batch_size),
                **rollout_numbers(rollout),
                **reading_numbers(rollout.reward_truncated_B),
                **mean_of(rows),
                "kl_coef": config.kl_coef,
                "learning_rate": config.learning_rate * factor,
                **clock.seconds,
            }
            if tracker is not None and samples is not None:
                tracker.log(iteration + 1, numbers)
                samples.log(iteration + 1, shown(tokenizer, rollout, asked, config.samples_per_iteration))
            progress = Progress(iteration + 1, prompt_stream.position, text_stream.position if text_stream else 0)
            if team.is_main and (progress.iteration % config.checkpoint_every == 0 or progress.iteration == config.iterations):
                save_checkpoint(checkpoints, progress, models, optimizers, average, config.keep_checkpoints)
            bar.update()
            bar.set_postfix({name: f"{numbers[name]:.3f}" for name in ("score", "kl", "entropy", "ended")})
    if tracker is not None:
        tracker.board.close()
    return average


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


class SampleLog:
    """samples.jsonl: a few episodes of each iteration, for people to read."""

    def __init__(self, path: Path, resume_after: int) -> None:
        """Drops rows of iterations that a resumed run makes again."""
        self.path = path
        write_rows(path, [row for row in read_metrics(path) if row["step"] <= resume_after])

    def log(self, iteration: int, rows: list[dict[str, Any]]) -> None:
        """Appends rows."""
        with self.path.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({"step": iteration, **row}, ensure_ascii=False) + "\n")


def shown(tokenizer: Any, rollout: Rollout, prompts: Sequence[Prompt], count: int) -> list[dict[str, Any]]:
    """The first episodes of a roll-out as text."""
    rows = []
    for index in range(min(count, len(prompts))):
        text, ended = decode_completion(tokenizer, rollout.responses[index])
        log_ratio = ((rollout.logprobs_BT - rollout.ref_logprobs_BT) * rollout.mask_BT)[index].sum()
        rows.append(
            {
                "prompt": prompts[index].text,
                "response": text,
                "ended": ended,
                "score": float(rollout.scores_B[index]),
                "kl": float(log_ratio),
            }
        )
    return rows
