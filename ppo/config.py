"""Stage 3's settings."""

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

LARGEST_KL_ERROR = 0.2
"""With `kl_target`: a KL that is far off moves kl_coef no faster than one that is 20% off (Ziegler et al. 2019)."""


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
    Ours.
    """
    judge: Literal["chrf", "none"] = "chrf"
    """`chrf`: overlap of characters with the demonstration, which no reward model was taught. Ours."""


@dataclass
class PPOConfig:
    """PPO-ptx. Defaults are the paper's (Ouyang et al. 2022, section 3.5, appendix C.4) unless marked ours."""

    total_episodes: PositiveInt = 256_000
    """Length of training: an episode is one response to one prompt. C.4: 256k episodes over 31k prompts, so each prompt
    comes about eight times.
    """
    batch_size: PositiveInt = 512
    """Episodes per roll-out over all processes; divides total_episodes. C.4."""
    responses_per_prompt: PositiveInt = 1
    """Episodes of a roll-out that answer the same prompt, whose pass they share; divides minibatch_size. Ours: C.4 does
    not say, so 1.
    """
    minibatch_size: PositiveInt = 64
    """Episodes per optimizer step over all processes; divides batch_size. C.4."""
    max_tokens_per_micro_batch: PositiveInt = 8192
    """Tokens of prompts and responses per forward pass of one process, one episode at least; bounds memory, does
    not change the result. Ours.
    """
    engine: Literal["native", "transformers", "vllm"] = "native"
    """What generates responses: `native`, our decoder (modeling/generation.py), or transformers' `generate` if ours
    cannot decode the model; `transformers`, always its `generate`; `vllm`, which needs its extra and a GPU. Ours."""
    rollout_batch_size: PositiveInt = 64
    """Episodes decoded together in one process; changes speed and memory only. Ours."""
    inner_epochs: PositiveInt = 1
    """Passes over a roll-out, each with its own shuffle into minibatches. C.4: 1."""
    max_new_tokens: PositiveInt = 512
    """Maximum length of a response in tokens. Ours; appendix C allows 1,000."""
    temperature: PositiveFloat = 1.0
    """Of roll-outs; log-probabilities are those of the distribution sampled from. C.4: 1."""
    kl_coef: NonNegativeFloat = 0.02
    """KL penalty coefficient (beta), per nat of KL to the SFT policy. C.4. With `kl_target`, its initial value."""
    kl_target: PositiveFloat | None = None
    """Target KL in nats per episode, to which beta adapts (Ziegler et al. 2019, section 2.2); null keeps beta fixed, as
    in C.4."""
    kl_horizon: PositiveInt = 10_000
    """With `kl_target`: an iteration multiplies beta by 1 + error * batch_size / kl_horizon, the error being KL /
    target - 1, cut to 0.2 either way (Ziegler et al. 2019). Ours."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Where the KL penalty is applied. 3.5, eq. 2: in each token's reward. `loss`, ours: half the squared log ratio of
    each token beside the policy loss, whose gradient is that of the token's own KL; earlier tokens are not charged for
    where they lead. Whitened advantages have a standard deviation of 1, and `kl_coef` is then in units of it: set
    `whiten_advantages` to false for units of score."""
    score_scaling: Literal["none", "running"] = "none"
    """`running` divides scores by the running standard deviation of all scores so far. Ours; the paper does not
    scale.
    """
    score_clip: PositiveFloat | None = None
    """Scores, scaled or not, are cut to within so far from 0; null does not cut. Ours; the paper does not."""
    discount: ClosedUnitInterval = 1.0
    """Of future rewards. C.4: none."""
    gae_lambda: ClosedUnitInterval = 0.95
    """Ours: the paper gives none; as Stiennon et al. 2020."""
    whiten_advantages: bool = True
    """Advantages to mean 0 and variance 1 over the whole roll-out. Ours."""
    clip_range: PositiveFloat = 0.2
    """Of the policy ratio. C.4."""
    value_clip_range: PositiveFloat | None = 0.2
    """How far an update may move a value by; null does not clip. Ours."""
    missing_eos_penalty: NonNegativeFloat = 0.0
    """Subtracted from the score of a response that does not end by itself. Ours."""
    learning_rate: NonNegativeFloat = 5e-6
    """Of the policy, after warm-up. Ours: the paper gives no value. E.9 sweeps 2.55e-6 to 2.55e-5, and without the
    pretraining mix training diverges above 8.05e-6. With LoRA use about 1e-4."""
    value_learning_rate: NonNegativeFloat = 9e-6
    """Of the value model. C.4: 9e-6; with LoRA use about 2e-4."""
    value_init: Literal["reward", "sft"] = "reward"
    """What the value model starts from. 3.5: `reward`, the reward model. `sft`, ours: the SFT model with a head of
    zeros; needed where the reward model has another tokenizer than the policy, whose tokens the value model reads."""
    value_top_layers: PositiveInt | None = None
    """With `model.adapter: lora` and a reward model of its own base, from which the value model starts: adapt only this
    many of its layers nearest the output; null adapts all. A value model on the policy's base is adapted as
    `model.lora` says. Ours."""
    warmup_iterations: NonNegativeInt = 10
    """Warm-up iterations, in which both learning rates rise from a tenth. C.4; warm-up of the value model is ours."""
    adam_beta1: FractionBelowOne = 0.9
    """Adam's first decay. Appendix C."""
    adam_beta2: FractionBelowOne = 0.95
    """Adam's second decay. Appendix C."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradient clipping, policy (PPO and ptx gradients together) and value model apart; null does not clip. Ours."""
    ptx_coef: NonNegativeFloat = 0.2
    """gamma, the weight of the pretraining loss; 0 is plain PPO. Both losses are means over tokens here: the policy
    loss over response tokens of the minibatch, the pretraining loss over predicted tokens of its texts. Ours: on the
    demo the pretraining gradient then has about a fifth of the norm of PPO's (`ptx_to_ppo_grad_ratio`, which is
    proportional to gamma). At 1 the norms are about equal and the demo does not improve on SFT: the pretraining
    gradient has the same direction in every minibatch, while PPO's is mostly noise. C.4 has 27.8, but does not say
    whether its losses are sums or means; `ppo.ptx_coef: 27.8` uses that number in our units."""
    ptx_examples_per_episode: PositiveInt = 8
    """Pretraining examples per episode. C.4."""
    ema_decay: ClosedUnitInterval = 0.992
    """Decay of the policy's EMA, per optimizer step. C.4 does not name the unit; per step is ours."""
    old_logprobs: Literal["rollout", "recompute"] = "recompute"
    """Old log-probabilities as recorded while decoding, or computed again as the update will: one more pass, for a
    ratio of exactly 1 at learning rate 0. Ours."""
    checkpoint_every: PositiveInt = 10
    """Iterations between checkpoints. Ours."""
    keep_checkpoints: PositiveInt = 2
    """The newest so many stay. Ours."""
    samples_every: PositiveInt = 1
    """Iterations between those whose first episodes are written to samples.jsonl. Ours."""
    samples_per_iteration: NonNegativeInt = 2
    """Episodes written then. Ours."""
    held_out: HeldOutSettings = field(default_factory=HeldOutSettings)
    """The policy on held-out prompts while it is trained."""
    monitors: MonitorSettings = field(default_factory=MonitorSettings)
    """What stops a run that has gone wrong, or warns."""

    @property
    def iterations(self) -> int:
        """Roll-outs."""
        return self.total_episodes // self.batch_size

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "ppo")
        for part, whole in (
            ("batch_size", "total_episodes"),
            ("minibatch_size", "batch_size"),
            ("responses_per_prompt", "minibatch_size"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"ppo.{part}={getattr(self, part)} does not divide ppo.{whole}={getattr(self, whole)}")
        if self.value_top_layers is not None and self.value_init == "sft":
            raise ValueError(
                "ppo.value_top_layers is of a value model that starts from the reward model, and ppo.value_init=sft "
                "does not"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("ppo.kl_target steers ppo.kl_coef by factors, and 0 stays 0: start it above 0")
        if self.kl_target is not None and self.batch_size * LARGEST_KL_ERROR >= self.kl_horizon:
            raise ValueError(
                f"ppo.kl_horizon={self.kl_horizon} must be above {LARGEST_KL_ERROR} * ppo.batch_size, or kl_coef "
                "would fall to 0 or below"
            )
        if self.engine == "vllm" and find_spec("vllm") is None:
            raise ValueError(
                "ppo.engine=vllm needs vLLM and a GPU: pip install -e '.[vllm]', or take ppo.engine=native"
            )
        if self.old_logprobs == "rollout" and self.engine != "native":
            raise ValueError(
                f"ppo.old_logprobs=rollout needs ppo.engine=native: {self.engine} does not record log-probabilities; "
                "take recompute"
            )

    def refuse_unrecorded(self, recorded: bool) -> None:
        """Raises ValueError if old log-probabilities are to come from a generator that records none."""
        if self.old_logprobs == "rollout" and not recorded:
            raise ValueError(
                "ppo.old_logprobs=rollout needs the log-probabilities that our decoder records, but it cannot "
                "decode this model: set ppo.old_logprobs=recompute"
            )
