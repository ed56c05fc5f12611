"""Stage 3's settings."""

import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from data.numbers import (
    AtLeastTwo,
    ClosedUnitInterval,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_numbers,
)
from ppo.monitors import MonitorSettings
from ppo.reward_terms import RewardTerm, validate_terms

LARGEST_KL_ERROR = 0.2
"""With `kl_target`: the relative KL error is clipped to this (Ziegler et al. 2019)."""


@dataclass
class HeldOutSettings:
    """Periodic evaluation of the policy on held-out prompts during training. All ours."""

    every: NonNegativeInt = 0
    """Iterations between evaluations; the policy is also evaluated before the first and after the last iteration. 0
    turns evaluation off. Ours."""
    prompts: AtLeastTwo = 64
    """Maximum number of prompts, spread evenly over the validation split; at least 2, for a standard error. Ours."""
    prompts_from: Literal["sft", "rl"] = "sft"
    """The validation set: `sft`, the prompts of demonstrations, each with an answer for the judge; or `rl`, the set of
    PPO's prompts, of which only those with a demonstration are judged. Ours."""
    responses_per_prompt: PositiveInt = 1
    """Responses whose metrics are averaged per prompt, since the prompt is the unit of the standard errors. Ours."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature, above 0; the KL is between the distributions at this temperature. Ours."""
    weights: Literal["ema", "last"] = "ema"
    """Evaluate the EMA, the default of the evaluate stage too, or the current weights. Ours."""
    judge: Literal["chrf", "none"] = "chrf"
    """`chrf`: character overlap with the demonstration, which is independent of the reward model. Ours."""


@dataclass
class PPOConfig:
    """PPO-ptx. Defaults are the paper's (Ouyang et al. 2022, section 3.5, appendix C.4) unless marked ours."""

    total_episodes: PositiveInt = 256_000
    """Length of training; an episode is one response to one prompt. C.4: 256k episodes over 31k prompts, so each
    prompt is used about eight times.
    """
    batch_size: PositiveInt = 512
    """Episodes per roll-out over all processes; divides total_episodes. C.4."""
    responses_per_prompt: PositiveInt = 1
    """Episodes per prompt in a roll-out, which share the prompt's forward pass; divides minibatch_size. Ours: C.4 does
    not say, so 1.
    """
    minibatch_size: PositiveInt = 64
    """Episodes per optimizer step over all processes; divides batch_size. C.4."""
    max_tokens_per_micro_batch: PositiveInt = 8192
    """Maximum number of prompt and response tokens per forward pass of a process, but at least one episode; limits
    memory and does not change the result. Ours.
    """
    activation_checkpointing: bool = False
    """Store only each layer's input and recompute its activations in the backward pass of policy and value model: 1.3
    to 1.5 times the time for a fraction of the memory, with the same result. Ours.
    """
    engine: Literal["native", "transformers", "vllm"] = "native"
    """What generates responses: `native`, our decoder (modeling/generation.py), with transformers' `generate` as
    fallback for models that it cannot decode and for texts longer than the attention window; `transformers`, always
    `generate`; `vllm`, which needs its extra and a GPU. Ours.
    """
    rollout_batch_size: PositiveInt = 64
    """Episodes decoded together in one process; affects only speed and memory, apart from rounding. Ours."""
    inner_epochs: PositiveInt = 1
    """Passes over a roll-out, each with its own shuffle into minibatches. C.4: 1."""
    max_new_tokens: PositiveInt = 512
    """Maximum length of a response in tokens. Ours; appendix C allows 1,000."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of roll-outs; log-probabilities are those of the sampling distribution. C.4: 1."""
    kl_coef: NonNegativeFloat = 0.02
    """KL penalty coefficient (beta), per nat of KL to the SFT policy. C.4. With `kl_target`, its initial value."""
    kl_target: PositiveFloat | None = None
    """Target KL in nats per episode, to which beta is adapted (Ziegler et al. 2019, section 2.2); null keeps beta
    fixed, as in C.4."""
    kl_horizon: PositiveInt = 10_000
    """With `kl_target`: each iteration multiplies beta by 1 + error * batch_size / kl_horizon, where error is KL /
    target - 1, clipped to [-0.2, 0.2] (Ziegler et al. 2019). Ours."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Where the KL penalty is applied. `reward`, 3.5, eq. 2: in each token's reward. `loss`, ours: half the squared log
    ratio of each token is added to the policy loss; its gradient is that of the token's own KL, without the KL of later
    tokens. Whitened advantages have a standard deviation of 1, and `kl_coef` is in that unit: set `whiten_advantages`
    to false for units of the score."""
    rewards: list[RewardTerm] = field(default_factory=lambda: [RewardTerm()])
    """The terms of an episode's reward, whose weighted sum is the score (docs/reward.md). Section 3.5: the run's reward
    model alone. A list of several is ours."""
    score_scaling: Literal["none", "running"] = "none"
    """`running` divides scores by the running standard deviation of all scores so far. Ours; the paper does not scale.
    """
    score_clip: PositiveFloat | None = None
    """Clips scores, after scaling, to [-score_clip, score_clip]; null does not clip. Ours; the paper does not."""
    discount: ClosedUnitInterval = 1.0
    """Discount factor of future rewards. C.4: no discount."""
    gae_lambda: ClosedUnitInterval = 0.95
    """Lambda of GAE. Ours: the paper gives none; as Stiennon et al. 2020."""
    whiten_advantages: bool = True
    """Normalizes advantages to mean 0 and variance 1 over the whole roll-out. Ours."""
    clip_range: PositiveFloat = 0.2
    """Clip range of the policy ratio. C.4."""
    value_clip_range: PositiveFloat | None = 0.2
    """Clip range of values around the old value; null does not clip. Ours."""
    missing_eos_penalty: NonNegativeFloat = 0.0
    """Subtracted from the score of a response that does not end with EOS. Ours."""
    learning_rate: NonNegativeFloat = 5e-6
    """Learning rate of the policy after warm-up. Ours: the paper gives no value. E.9 sweeps 2.55e-6 to 2.55e-5, and
    without the pretraining mix training diverges above 8.05e-6. With LoRA use about 1e-4."""
    value_learning_rate: NonNegativeFloat = 9e-6
    """Learning rate of the value model after warm-up. C.4: 9e-6; with LoRA use about 2e-4."""
    value_init: Literal["reward", "sft"] = "reward"
    """Initialization of the value model. `reward`, 3.5: the reward model. `sft`, ours: the SFT model with a zero head;
    needed if the reward model has another tokenizer, since the value model's input is the policy's tokens."""
    value_top_layers: PositiveInt | None = None
    """With `model.adapter: lora` and a value model that starts from a reward model with a separate base: adapt only
    this many of its layers, those nearest the output; null adapts all. A value model on the policy's base uses
    `model.lora`. Ours."""
    warmup_iterations: NonNegativeInt = 10
    """Iterations in which both learning rates rise linearly from a tenth. C.4; warm-up of the value model is ours. The
    policy's warm-up starts after `value_warmup_iterations`."""
    value_warmup_iterations: NonNegativeInt = 0
    """Number of first iterations that train only the value model. They count towards total_episodes. Ours."""
    adam_beta1: FractionBelowOne = 0.9
    """Adam's first decay. Appendix C."""
    adam_beta2: FractionBelowOne = 0.95
    """Adam's second decay. Appendix C."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradient clipping, separately for policy (PPO plus ptx gradient) and value model; null does not clip. Ours."""
    ptx_coef: NonNegativeFloat = 0.2
    """gamma, the weight of the pretraining loss; 0 is plain PPO. Both losses are means over tokens here: the policy
    loss over response tokens of the minibatch, the pretraining loss over predicted tokens of its texts. Ours: on an
    earlier demo the pretraining gradient then had about a fifth of the norm of PPO's (`ptx_to_ppo_grad_ratio`, which is
    proportional to gamma). At 1 the norms were about equal and it did not improve on SFT: the pretraining
    gradient has the same direction in every minibatch, while PPO's is mostly noise. C.4 has 27.8, but does not say
    whether its losses are sums or means; `ppo.ptx_coef: 27.8` uses that number in our units."""
    ptx_examples_per_episode: PositiveFloat = 8.0
    """Pretraining examples per episode; below 1 if a minibatch then still has a whole number of examples. C.4."""
    ema_decay: FractionBelowOne = 0.992
    """Decay of the policy's EMA, per optimizer step. C.4 does not name the unit; per step is ours."""
    old_logprobs: Literal["rollout", "recompute"] = "recompute"
    """Old log-probabilities: recorded while decoding, or recomputed in the same way as in the update, which costs one
    forward pass and makes the ratio exactly 1 at learning rate 0. Ours."""
    checkpoint_every: PositiveInt = 10
    """Iterations between checkpoints. Ours."""
    keep_checkpoints: PositiveInt = 2
    """Number of newest checkpoints to keep until the run is complete. Ours."""
    snapshot_every: NonNegativeInt = 0
    """Iterations between snapshots of the policy's weights, one more after the last iteration; 0 writes none. They hold
    no optimizer state and no EMA, and stay when the run is complete, for the sweep over the KL (`make sweep-kl`). Ours.
    """
    samples_every: PositiveInt = 1
    """Iterations between writes of samples to samples.jsonl. Ours."""
    samples_per_iteration: NonNegativeInt = 2
    """Number of episodes per write. Ours."""
    held_out: HeldOutSettings = field(default_factory=HeldOutSettings)
    """Periodic evaluation on held-out prompts."""
    monitors: MonitorSettings = field(default_factory=MonitorSettings)
    """Monitors that stop a run or warn."""

    @property
    def iterations(self) -> int:
        """Number of iterations, one per roll-out."""
        return self.total_episodes // self.batch_size

    @property
    def ptx_examples_per_minibatch(self) -> int:
        """Number of pretraining examples per optimizer step over all processes."""
        return round(self.ptx_examples_per_episode * self.minibatch_size)

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "ppo")
        for part, whole in (
            ("batch_size", "total_episodes"),
            ("minibatch_size", "batch_size"),
            ("responses_per_prompt", "minibatch_size"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"ppo.{part}={getattr(self, part)} does not divide ppo.{whole}={getattr(self, whole)}: set both"
                )
        examples = self.ptx_examples_per_episode * self.minibatch_size
        if not math.isclose(examples, self.ptx_examples_per_minibatch):
            raise ValueError(
                f"ppo.ptx_examples_per_episode={self.ptx_examples_per_episode} times "
                f"ppo.minibatch_size={self.minibatch_size} is {examples:g}, and must be a whole number"
            )
        if self.value_warmup_iterations >= self.iterations:
            raise ValueError(
                f"ppo.value_warmup_iterations={self.value_warmup_iterations} must be below the {self.iterations} "
                "iterations of the run (ppo.total_episodes / ppo.batch_size)"
            )
        validate_terms(self.rewards, self.value_init)
        if self.value_top_layers is not None and self.value_init == "sft":
            raise ValueError(
                "ppo.value_top_layers applies only to a value model that starts from the reward model, and with "
                "ppo.value_init=sft it does not: leave it at null"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("ppo.kl_target multiplies ppo.kl_coef by factors, and 0 stays 0: set it above 0")
        if self.kl_target is not None and self.batch_size * LARGEST_KL_ERROR >= self.kl_horizon:
            raise ValueError(
                f"ppo.kl_horizon={self.kl_horizon} must be above {LARGEST_KL_ERROR} * ppo.batch_size, or kl_coef "
                "would fall to 0 or below"
            )
        if self.engine == "vllm" and find_spec("vllm") is None:
            raise ValueError("ppo.engine=vllm needs vLLM and a GPU: pip install -e '.[vllm]', or set ppo.engine=native")
        if self.old_logprobs == "rollout" and self.engine != "native":
            raise ValueError(
                f"ppo.old_logprobs=rollout needs ppo.engine=native: {self.engine} does not record log-probabilities; "
                "set ppo.old_logprobs=recompute"
            )

    def refuse_rounded(self, mixed_precision: bool) -> None:
        """Raises ValueError if old log-probabilities are to come from decoding in mixed precision, which rounds
        differently from the update: log-probabilities of equal models differ by 0.05 nats per response and more, which
        would enter KL and ratios. In float32 they agree to 1e-5.
        """
        if self.old_logprobs == "rollout" and mixed_precision:
            raise ValueError(
                "ppo.old_logprobs=rollout needs float32, and this run uses mixed precision (model.precision): set "
                "ppo.old_logprobs=recompute, or set model.precision=float32"
            )

    def refuse_unrecorded(self, recorded: bool) -> None:
        """Raises ValueError if old log-probabilities are to come from a generator that records none."""
        if self.old_logprobs == "rollout" and not recorded:
            raise ValueError(
                "ppo.old_logprobs=rollout needs the log-probabilities that our decoder records, but it cannot "
                "decode this model, or a prompt with its answer exceeds the attention window: set "
                "ppo.old_logprobs=recompute"
            )
