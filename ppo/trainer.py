"""Stage 3: PPO-ptx (Ouyang et al. 2022, section 3.5 and appendix C.4).

`PPOTrainer.train` is the algorithm; the other methods are its steps.
Shapes: B episodes of this process, R response tokens of all of them, T tokens of the longest response.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object, reduce
from torch import Tensor
from tqdm import tqdm

from data.records import Prompt
from data.tokenize import encode_prompt
from modeling.accelerator import divided, from_main, share_of
from modeling.batch import micro_batches, text_batch
from modeling.checkpoint import Stateful, TrainingState, random_state
from modeling.config import GenerationSettings
from modeling.finite import require_finite_weights
from modeling.generation import generator_for
from modeling.models import PolicyModel, ScalarModel
from modeling.run import Run
from modeling.seeds import derive_seed
from modeling.tracking import read_metrics
from ppo.actor_critic import ActorCritic
from ppo.advantages import gae, whiten
from ppo.checkpoint import Checkpoints, Progress
from ppo.config import PPOConfig
from ppo.ema import MovingAverage
from ppo.evaluation import PeriodicEvaluation
from ppo.experience import Experience, Rollout, Rows, Scores
from ppo.interrupt import Interrupt
from ppo.kl import KLController, kl_loss
from ppo.logger import MetricsLogger, samples_of
from ppo.losses import largest_ratio, policy_loss, policy_sums, value_loss
from ppo.metrics import mean_of, rollout_metrics, speeds
from ppo.monitors import Monitors
from ppo.optimizers import ADVICE, Optimizers
from ppo.rewards import token_rewards
from ppo.samplers import Sampler, own_minibatches, shuffled_minibatches
from ppo.scaling import ScoreScale
from ppo.snapshots import save_snapshot

Numbers = dict[str, float]


@dataclass(frozen=True)
class PPOData:
    """Prompts and texts for PPO."""

    prompts: Sequence[Prompt]
    texts: Sequence[list[int]] = ()
    """Token ids of the examples of the pretraining mix."""
    held_out: Sequence[Prompt] = ()
    """Prompts of the periodic evaluation."""


@dataclass
class Clock:
    """Wall seconds of each phase of an iteration."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Context manager that times a phase."""
        start = time.perf_counter()
        yield
        self.seconds[f"seconds_{name}"] = round(time.perf_counter() - start, 3)


class PPOTrainer:
    """Trains policy and value model in place.

        trainer = PPOTrainer(config, models, tokenizer, PPOData(prompts, texts), run)
        average = trainer.train()   # the policy's moving average

    A run resumes from the last complete checkpoint below `run.out`.

    Raises ValueError when minibatches are not divisible by the number of processes, recorded log-probabilities are
    requested in mixed precision, a prompt is too long for a model, a gradient or weight is not finite, the disk is
    full, or every checkpoint is damaged. Raises `Interrupted` after SIGTERM or Ctrl-C, once a checkpoint is saved.
    """

    def __init__(self, config: PPOConfig, models: ActorCritic, tokenizer: Any, data: PPOData, run: Run) -> None:
        assert run.out is not None, "PPO writes checkpoints"
        self.out = run.out
        self.config, self.models, self.tokenizer = config, models, tokenizer
        self.run, self.accelerator = run, run.accelerator
        divided(self.accelerator, config.minibatch_size, "ppo.minibatch_size")
        longest = models.check_prompts([*data.prompts, *data.held_out], tokenizer, config.max_new_tokens)
        with self.gathered(models.policy):
            self.generator = generator_for(models.policy.causal, config.engine, longest)
        config.refuse_unrecorded(self.generator.records_logprobs)
        config.refuse_rounded(models.autocast_dtype is not None)
        if config.activation_checkpointing:
            for model in (models.policy, models.value):
                model.encoder.enable_checkpointing()
        self.optimizers = Optimizers.make(models, config)
        self.average = MovingAverage(models.policy_parameters, config.ema_decay)
        self.kl, self.scale = KLController.make(config), ScoreScale(config)
        adaptive: dict[str, Stateful] = {"kl": self.kl, "score_scale": self.scale, **self.optimizers.loss_scales}
        trained = {
            "policy": (models.policy_parameters, self.optimizers.policy),
            "value": (models.value_parameters, self.optimizers.value),
        }
        self.trained = TrainingState(trained, {"average": self.average.average}, adaptive)
        self.checkpoints = Checkpoints(run.out / "checkpoints", config.keep_checkpoints, self.accelerator, run.seed)
        self.progress = self.checkpoints.begin(self.trained)
        self.prompts = Sampler(data.prompts, run.seed, "prompts", self.progress.prompt_position)
        self.texts: Sampler[list[int]] | None = None
        if config.ptx_coef > 0:
            self.texts = Sampler(data.texts, run.seed, "pretraining examples", self.progress.text_position)
        self.evaluation = PeriodicEvaluation(self, data.held_out)
        logged = from_main(self.accelerator, lambda: read_metrics(self.out / "metrics.jsonl"))
        # Rows after the checkpoint are written again.
        past = [row for row in logged if row["step"] <= self.progress.iteration]
        self.monitors = Monitors(config.monitors, [*past, *self.evaluation.rows])
        self.interrupt, self.clock = Interrupt(self.accelerator), Clock()

    def train(self) -> MovingAverage:
        """Runs the remaining iterations; returns the policy's moving average."""
        done, iterations = self.progress.iteration, self.config.iterations
        bar = tqdm(
            total=iterations, initial=done, desc="ppo", unit="iteration", disable=not self.accelerator.is_main_process
        )
        with self.interrupt, MetricsLogger(self.run, done) as self.logger, bar:
            if done == 0:
                self.monitor(0, self.evaluation.evaluate(self.average, 0))
            for iteration in range(done, iterations):
                self.clock = Clock()
                learning_rate = self.optimizers.start_iteration(iteration)
                with self.interrupt.breakable():
                    rollout = self.generate(iteration)
                    experience = self.advantages(self.score(rollout), rollout)
                self.stop_if_interrupted()  # nothing has changed since the last iteration
                numbers = rollout_metrics(experience)
                self.monitor(iteration + 1, numbers)
                with self.clock.phase("update"):
                    steps = [
                        self.train_minibatch(experience, minibatch, first=number == 0)
                        for number, minibatch in enumerate(self.minibatches(rollout, iteration))
                    ]
                numbers |= mean_of(steps) | {"learning_rate": learning_rate}
                kept = self.config.samples_per_iteration if iteration % self.config.samples_every == 0 else 0
                samples = samples_of(experience, self.tokenizer, kept)
                del rollout, experience  # frees the memory of hidden states
                self.finish_iteration(iteration, numbers, samples)
                bar.update()
                shown = [name for name in ("score", "kl", "entropy", "ended") if name in numbers]
                bar.set_postfix({name: f"{numbers[name]:.3f}" for name in shown})
        return self.average

    def generate(self, iteration: int) -> Rollout:
        """Samples this process's episodes of a roll-out. Each has its own random stream."""
        config, own = self.config, [number for numbers in self.own_minibatches() for number in numbers]
        batch = self.prompts.take(config.batch_size // config.responses_per_prompt)
        prompts = [batch[number // config.responses_per_prompt] for number in own]
        seeds = [derive_seed(self.run.seed, "rollout", iteration, number) for number in own]
        with self.clock.phase("rollout"):
            rollout = self.respond(prompts, seeds, config.temperature)
        rollout.make_micro_batches(self.own_rows(), config.max_tokens_per_micro_batch)
        return rollout

    def respond(self, prompts: list[Prompt], seeds: Sequence[int], temperature: float) -> Rollout:
        """Samples the policy's response to each of this process's prompts."""
        ids = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        sampling = GenerationSettings(
            self.config.max_new_tokens, temperature, batch_size=self.config.rollout_batch_size
        )
        policy = self.models.policy
        with self.gathered(policy), policy.encoder.autocast():
            responses = self.generator.generate(policy.causal, ids, seeds, sampling)
        return Rollout(prompts, ids, responses, self.accelerator.device, self.run.sharding)

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Scores:
        """The reward of each response, and the log-probabilities (policy and reference) and values of each token."""
        config, models = self.config, self.models
        with self.clock.phase("score"):
            ref_logprobs_R = self.logprobs(models.reference, rollout, config.temperature, models.dtype)
            if config.old_logprobs == "recompute":
                logprobs_R = self.logprobs(models.policy, rollout, config.temperature, models.dtype)
            else:
                recorded = [logprob for response in rollout.responses for logprob in response.logprobs or ()]
                logprobs_R = torch.tensor(recorded, dtype=models.dtype, device=rollout.device)
            limit = config.max_tokens_per_micro_batch
            total_B, parts, truncated_B = models.rewards(rollout, limit)
            with self.computing(models.value):
                values_R = rollout.each_token(models.value, models.dtype)
        return Scores(total_B.to(models.dtype), truncated_B, logprobs_R, ref_logprobs_R, values_R, parts)

    def logprobs(self, model: PolicyModel, rollout: Rollout, temperature: float, dtype: torch.dtype) -> Tensor:
        """logprobs_R of the responses under policy or reference."""
        with self.computing(model):
            return rollout.each_token(lambda batch: model(batch, temperature, False)[0], dtype)

    def advantages(self, scores: Scores, rollout: Rollout) -> Experience:
        """The reward of each token (3.5, eq. 2), advantages and returns."""
        config, mask_BT = self.config, rollout.mask_BT
        scaled_B = self.scale(scores.rewards_B)
        charged_B = scaled_B - config.missing_eos_penalty * (~rollout.ended_B).to(scaled_B)
        kl_coef = self.kl.coef if config.kl_placement == "reward" else 0.0
        logprobs_BT, ref_logprobs_BT = rollout.padded(scores.logprobs_R), rollout.padded(scores.ref_logprobs_R)
        rewards_BT = token_rewards(charged_B, logprobs_BT, ref_logprobs_BT, mask_BT, kl_coef)
        values_BT = rollout.padded(scores.values_R)
        advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, config.discount, config.gae_lambda)
        if config.whiten_advantages:
            advantages_BT = whiten(advantages_BT, mask_BT)
        return Experience(
            rollout,
            scores,
            scaled_B if self.scale.active else None,
            rollout.flat(rewards_BT),
            rollout.flat(advantages_BT),
            rollout.flat(returns_BT),
        )

    def minibatches(self, rollout: Rollout, iteration: int) -> Iterator[list[Rows]]:
        """This process's micro-batches of each minibatch; reshuffled in every inner epoch after the first."""
        yield from rollout.minibatches
        place = {number: row for row, number in enumerate(n for numbers in self.own_minibatches() for n in numbers)}
        for epoch in range(1, self.config.inner_epochs):
            shuffled = shuffled_minibatches(self.config, self.run.seed, iteration, epoch)
            rows = [[place[number] for number in numbers if number in place] for numbers in shuffled]
            rollout.make_micro_batches(rows, self.config.max_tokens_per_micro_batch)
            yield from rollout.minibatches

    def train_minibatch(self, experience: Experience, minibatch: Sequence[Rows], first: bool) -> Numbers:
        """One optimizer step of each model, or of the value model alone during its warm-up. Losses are sums divided by
        the tokens of the whole minibatch, so that gradients of micro-batches and processes add up.

        Args:
            first: of the iteration; the norms of the PPO and pretraining gradients are then measured separately.
        """
        own = sum(experience.rollout.lengths[row] for rows in minibatch for row in rows)
        tokens = float(reduce(torch.tensor(float(own), dtype=torch.float64, device=self.accelerator.device), "sum"))
        models, reduce_gradients = self.models, self.run.sharding.reduce_gradients
        with self.computing(models.value):
            numbers = self.value_gradient(experience, minibatch, tokens)
            reduce_gradients(models.value.encoder.model, models.value_parameters.values())
        numbers |= self.optimizers.step("value")
        if self.optimizers.value_only:
            return numbers
        with self.computing(models.policy):
            numbers |= self.policy_gradient(experience, minibatch, tokens)
            ppo_gradient = self.take_gradient() if first and self.texts is not None else None
            if self.texts is not None:
                texts = self.texts.take(self.config.ptx_examples_per_minibatch)
                numbers |= self.ptx_gradient(texts)
            if ppo_gradient is not None:
                numbers |= self.join_gradients(ppo_gradient)
            else:
                reduce_gradients(models.policy.encoder.model, models.policy_parameters.values())
        numbers |= self.optimizers.step("policy")
        if not numbers.get("policy_skipped"):
            self.average.update()
        return numbers

    def policy_gradient(self, experience: Experience, minibatch: Sequence[Rows], tokens: float) -> Numbers:
        """Adds the gradient of the clipped surrogate objective and, with kl_placement=loss, of the KL penalty."""
        config, totals = self.config, torch.zeros(4, dtype=torch.float64, device=self.accelerator.device)
        ratio = 1.0
        for rows in minibatch:
            index_R = experience.rollout.index(rows)
            old_1R = experience.scores.logprobs_R[index_R][None]
            mask_1R = torch.ones_like(old_1R, dtype=torch.bool)
            logprobs_R, entropy_R = self.models.policy(experience.rollout.batches[rows], config.temperature)
            logprobs_1R, advantages_1R = logprobs_R[None], experience.advantages_R[index_R][None]
            loss = policy_loss(logprobs_1R, old_1R, advantages_1R, mask_1R, config.clip_range, tokens)
            if config.kl_placement == "loss":
                ref_1R = experience.scores.ref_logprobs_R[index_R][None]
                loss = loss + kl_loss(logprobs_1R, ref_1R, mask_1R, self.kl.coef, tokens)
            self.optimizers.backward("policy", loss)
            sums = policy_sums(logprobs_1R.detach(), old_1R, mask_1R, config.clip_range)
            ratio = max(ratio, largest_ratio(logprobs_1R.detach(), old_1R, mask_1R))
            totals[0] += loss.detach()
            for place, total in enumerate((entropy_R.sum(), sums["clipped"], sums["approximate_kl"]), start=1):
                totals[place] += total / tokens
        names = ("policy_loss", "entropy", "clip_fraction", "approximate_kl")
        found = dict(zip(names, reduce(totals, "sum").tolist(), strict=True))
        return found | {"ratio_max": max(gather_object([ratio]))}

    def ptx_gradient(self, texts: Sequence[list[int]]) -> Numbers:
        """Adds ptx_coef times the gradient of the mean loss per predicted token (ours: the paper defines none)."""
        tokens = float(sum(len(text) - 1 for text in texts))
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        own = share_of(self.accelerator, sorted(texts, key=len))
        sizes = [len(text) for text in own]
        groups = micro_batches(range(len(own)), sizes, self.config.max_tokens_per_micro_batch)
        for rows in self.run.sharding.even(groups, []):
            batch = text_batch([own[row] for row in rows] or [[0]], self.accelerator.device)
            logprobs_R, _ = self.models.policy(batch, 1.0, False)
            loss = -logprobs_R.sum() / tokens
            self.optimizers.backward("policy", self.config.ptx_coef * loss)
            total += loss.detach()
        return {"ptx_loss": float(reduce(total, "sum"))}

    def value_gradient(self, experience: Experience, minibatch: Sequence[Rows], tokens: float) -> Numbers:
        """Adds the gradient of the value loss."""
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        for rows in minibatch:
            index_R = experience.rollout.index(rows)
            values_1R = self.models.value(experience.rollout.batches[rows])[None]
            old_1R, returns_1R = experience.scores.values_R[index_R][None], experience.returns_R[index_R][None]
            mask_1R = torch.ones_like(old_1R, dtype=torch.bool)
            loss = value_loss(values_1R, old_1R, returns_1R, mask_1R, self.config.value_clip_range, tokens)
            self.optimizers.backward("value", loss)
            total += loss.detach()
        return {"value_loss": float(reduce(total, "sum"))}

    def take_gradient(self) -> dict[str, Tensor]:
        """Returns the policy's gradient, summed over the processes, and clears it."""
        weights = self.models.policy_parameters
        self.run.sharding.reduce_gradients(self.models.policy.encoder.model, weights.values())
        found = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        for weight in weights.values():
            weight.grad = None
        return found

    def join_gradients(self, ppo: dict[str, Tensor]) -> Numbers:
        """Adds PPO's gradient, set aside by `take_gradient`, to that of the pretraining mix; returns their norms (that
        of the mix times gamma). In other minibatches than an iteration's first, `ptx_gradient` adds to PPO's directly.
        """
        weights = self.models.policy_parameters
        self.run.sharding.reduce_gradients(self.models.policy.encoder.model, weights.values())
        ptx = [weight.grad for weight in weights.values() if weight.grad is not None]
        norms = self.optimizers.part_norms(ppo.values(), ptx)
        for name, gradient in ppo.items():
            weight = weights[name]
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        return norms

    def gathered(self, model: PolicyModel | ScalarModel) -> AbstractContextManager[None]:
        """Context manager for generation: a sharded model's weights are gathered."""
        return self.run.sharding.gathered(model.encoder.model)

    def computing(self, model: PolicyModel | ScalarModel) -> AbstractContextManager[None]:
        """Context manager for a sharded model's passes in scoring and training."""
        return self.run.sharding.computing(model.encoder.model)

    def finish_iteration(self, iteration: int, numbers: Numbers, samples: list[dict[str, Any]]) -> None:
        """Evaluates and saves a checkpoint if they are due; checks and logs the metrics.

        Raises `Interrupted`, after a checkpoint, if a signal was received.
        """
        config, done = self.config, iteration + 1
        for weights in (self.models.policy_parameters, self.models.value_parameters):
            require_finite_weights(weights.items(), f"ppo, iteration {done}", ADVICE)
        with self.clock.phase("held_out"):
            evaluated = self.evaluation.evaluate(self.average, done)
        numbers |= {"episodes": float(done * config.batch_size), "kl_coef": self.kl.coef}
        self.monitor(done, numbers | evaluated)
        if not self.optimizers.value_only:
            self.kl.update(numbers["kl"], config.batch_size)
        numbers |= self.monitors.warnings
        seconds = self.clock.seconds
        timings = seconds | speeds(numbers["tokens"], seconds["seconds_rollout"], sum(seconds.values()))
        self.progress = Progress(
            iteration=done,
            prompt_position=self.prompts.position,
            text_position=self.texts.position if self.texts is not None else 0,
            states=self.trained.states(),
            random=random_state(self.accelerator.device),
        )
        # Before the checkpoint: a resumed run assumes that all rows and snapshots up to its checkpoint exist.
        self.logger.log(done, numbers, timings, samples)
        if config.snapshot_every and (done % config.snapshot_every == 0 or done == config.iterations):
            save_snapshot(self.out, done, self.models.policy_parameters, self.accelerator)
        if done % config.checkpoint_every == 0 or done == config.iterations:
            self.checkpoints.save(self.progress, self.trained)
        self.stop_if_interrupted()

    def monitor(self, iteration: int, numbers: Numbers) -> None:
        """Prints the monitors' warnings; raises StoppedRunError if one stops the run."""
        for warning in self.monitors.check(iteration, numbers):
            self.accelerator.print(f"ppo: {warning}")

    def stop_if_interrupted(self) -> None:
        """Saves the state after the last iteration and raises `Interrupted`, if a signal reached any process."""
        if self.interrupt.agreed():
            self.checkpoints.save(self.progress, self.trained)
            raise self.interrupt.stop(self.progress.iteration, self.config.iterations)

    def own_minibatches(self) -> list[list[int]]:
        """The episode numbers of this process, per minibatch."""
        return own_minibatches(self.config, self.accelerator.process_index, self.accelerator.num_processes)

    def own_rows(self) -> list[list[int]]:
        """The same as indices into this process's episodes."""
        sizes = [len(numbers) for numbers in self.own_minibatches()]
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
