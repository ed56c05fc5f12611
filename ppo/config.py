"""Stage 3's settings."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from ppo.guards import GuardSettings
from ppo.held_out import HeldOutSettings

LARGEST_KL_ERROR = 0.2
"""With `kl_target`: a KL that is far off moves kl_coef no faster than one that is 20% off (Ziegler et al. 2019)."""


@dataclass
class PPOConfig:
    """PPO-ptx. Defaults are the paper's (section 3.5, appendix C.4) unless marked ours."""

    total_episodes: int = 256_000
    """Length of training: an episode is one response to one prompt. C.4: 256k episodes over 31k prompts, so each prompt comes about eight times."""
    batch_size: int = 512
    """Episodes a roll-out over all processes; divides total_episodes. C.4; E.10 found 512 best of 64 to 1024."""
    responses_per_prompt: int = 1
    """Episodes of a roll-out that answer the same prompt, whose pass they share; divides minibatch_size. Ours: C.4 does not say, so 1."""
    minibatch_size: int = 64
    """Episodes an optimizer step over all processes; divides batch_size. C.4."""
    max_tokens_per_micro_batch: int = 8192
    """Tokens of prompts and responses a forward pass of one process takes, one episode at least; bounds memory, does not change the result. Ours."""
    engine: Literal["native", "transformers", "vllm"] = "native"
    """What samples responses: `native`, our decoder (modeling/engines), or transformers' `generate` where ours cannot
    decode the model; `transformers`, always its `generate`; `vllm`, which needs its extra and a GPU. Ours."""
    rollout_batch_size: int = 64
    """Episodes decoded side by side in one process; changes speed and memory only. Ours."""
    inner_epochs: int = 1
    """Passes over a roll-out. C.4."""
    max_new_tokens: int = 512
    """Responses are cut off after so many tokens. C.4 gives responses 1,000 tokens of context."""
    temperature: float = 1.0
    """Of roll-outs; log-probabilities are those of the distribution sampled from. C.4: 1."""
    kl_coef: float = 0.02
    """beta, the price of a nat of KL to the SFT policy. C.4. Where `kl_target` is given, what beta starts from."""
    kl_target: float | None = None
    """Nats an episode that beta is steered towards (Ziegler et al. 2019, section 2.2); null keeps beta fixed, as C.4."""
    kl_horizon: int = 10_000
    """With `kl_target`: an iteration multiplies beta by 1 + error * batch_size / kl_horizon, the error being KL / target - 1, cut to 0.2 either way
    (Ziegler et al. 2019)."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Where the price stands. 3.5, eq. 2: in each token's reward. `loss`, ours: half the squared log ratio of each token beside the policy loss,
    whose gradient is that of the token's own KL; earlier tokens are not charged for where they lead. Whitened advantages have a spread of 1, and
    `kl_coef` is then the price in such spreads: set `whiten_advantages` to false for the price in units of score."""
    score_scaling: Literal["none", "running"] = "none"
    """`running` divides scores by the running standard deviation of all scores so far. Ours; the paper does not scale."""
    score_clip: float | None = None
    """Scores, scaled or not, are cut to within so far from 0; null does not cut. Ours; the paper does not."""
    discount: float = 1.0
    """Of future rewards. C.4: none."""
    gae_lambda: float = 0.95
    """Ours: the paper gives none; as Stiennon et al. 2020."""
    whiten_advantages: bool = True
    """Advantages to mean 0 and variance 1 over the whole roll-out. Ours."""
    clip_range: float = 0.2
    """Of the policy ratio. C.4."""
    value_clip_range: float | None = 0.2
    """How far an update may move a value by; null does not clip. Ours."""
    missing_eos_penalty: float = 0.0
    """Subtracted from the score of a response that does not end by itself. Ours."""
    learning_rate: float = 9.65e-6
    """Policy, after warm-up. C.4: the best of a sweep; with LoRA take about 1e-4."""
    value_learning_rate: float = 9e-6
    """Value model. C.4: 9e-6; with LoRA take about 2e-4."""
    value_init: Literal["reward", "sft"] = "reward"
    """What the value model starts from. 3.5: `reward`, the reward model. `sft`, ours: the SFT model with a head of zeros; needed where the reward
    model has another tokenizer than the policy, whose tokens the value model reads."""
    value_top_layers: int | None = None
    """With `model.adapter: lora` and a reward model of its own base, from which the value model starts: adapt only this many of its layers nearest
    the output; null adapts all. A value model on the policy's base is adapted as `model.lora` says. Ours."""
    warmup_iterations: int = 10
    """Both learning rates rise over these from a tenth. C.4."""
    adam_beta1: float = 0.9
    """C.1."""
    adam_beta2: float = 0.95
    """C.1."""
    max_grad_norm: float | None = 1.0
    """Gradient clipping, policy (PPO and ptx gradients together) and value model apart; null does not clip. Ours."""
    ptx_coef: float = 27.8
    """gamma, the weight of the pretraining loss (mean a token). C.4. 0 is plain PPO."""
    ptx_examples_per_episode: int = 8
    """Pretraining examples an episode. C.4."""
    ema_decay: float = 0.992
    """Of the policy's moving average, per optimizer step. C.4."""
    old_logprobs: Literal["rollout", "recompute"] = "recompute"
    """Old log-probabilities as recorded while decoding, or computed again as the update will: one more pass, for a ratio of exactly 1 at
    learning rate 0. Ours."""
    checkpoint_every: int = 10
    """Iterations between checkpoints. Ours."""
    keep_checkpoints: int = 2
    """The newest so many stay. Ours."""
    samples_every: int = 1
    """Iterations between those whose first episodes are written to samples.jsonl. Ours."""
    samples_per_iteration: int = 2
    """Episodes written then. Ours."""
    held_out: HeldOutSettings = field(default_factory=HeldOutSettings)
    """The policy on held-out prompts while it is trained."""
    guards: GuardSettings = field(default_factory=GuardSettings)
    """What stops a run that has gone wrong, or warns."""

    @property
    def iterations(self) -> int:
        """Roll-outs."""
        return self.total_episodes // self.batch_size

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        positive = (
            "total_episodes", "batch_size", "responses_per_prompt", "minibatch_size", "max_tokens_per_micro_batch", "rollout_batch_size",
            "inner_epochs", "max_new_tokens", "checkpoint_every", "keep_checkpoints", "ptx_examples_per_episode", "samples_every", "kl_horizon",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"ppo.{name}={getattr(self, name)} must be at least 1")
        for part, whole in (("batch_size", "total_episodes"), ("minibatch_size", "batch_size"), ("responses_per_prompt", "minibatch_size")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"ppo.{part}={getattr(self, part)} does not divide ppo.{whole}={getattr(self, whole)}")
        for name in ("kl_coef", "ptx_coef", "learning_rate", "value_learning_rate", "missing_eos_penalty", "warmup_iterations"):
            if getattr(self, name) < 0:
                raise ValueError(f"ppo.{name}={getattr(self, name)} must not be negative")
        if self.value_top_layers is not None and self.value_top_layers < 1:
            raise ValueError(f"ppo.value_top_layers={self.value_top_layers} must be at least 1, or null for all layers")
        if self.value_top_layers is not None and self.value_init == "sft":
            raise ValueError("ppo.value_top_layers is of a value model that starts from the reward model, and ppo.value_init=sft does not")
        for name in ("discount", "gae_lambda", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"ppo.{name}={getattr(self, name)} must be between 0 and 1")
        if self.temperature <= 0:
            raise ValueError(f"ppo.temperature={self.temperature} must be above 0")
        for name in ("clip_range", "value_clip_range", "max_grad_norm", "kl_target", "score_clip"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"ppo.{name}={value} must be above 0")
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("ppo.kl_target steers ppo.kl_coef by factors, and 0 stays 0: start it above 0")
        if self.kl_target is not None and self.batch_size * LARGEST_KL_ERROR >= self.kl_horizon:
            raise ValueError(
                f"ppo.kl_horizon={self.kl_horizon} must be above {LARGEST_KL_ERROR} * ppo.batch_size, or kl_coef would fall to 0 or below"
            )
        if self.engine == "vllm" and find_spec("vllm") is None:
            raise ValueError("ppo.engine=vllm needs vLLM and a GPU: pip install -e '.[vllm]', or take ppo.engine=native")
        if self.old_logprobs == "rollout" and self.engine != "native":
            raise ValueError(f"ppo.old_logprobs=rollout needs ppo.engine=native: {self.engine} does not record log-probabilities; take recompute")
        self.held_out.validate()
        self.guards.validate()

    def refuse_unrecorded(self, recorded: bool) -> None:
        """Raises ValueError where old log-probabilities are to come from an engine that records none."""
        if self.old_logprobs == "rollout" and not recorded:
            raise ValueError(
                "ppo.old_logprobs=rollout needs log-probabilities that the native engine records, and it cannot decode "
                "this model: set ppo.old_logprobs=recompute"
            )
