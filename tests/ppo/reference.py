"""PPO-ptx written down as plainly and slowly as can be, in float64: what tests of a whole run compare with.

From Ouyang et al. 2022 (section 3.5, appendix C.4) and what the settings' docstrings say, sharing no code with the
project: one unpadded pass an episode, loops over tokens, advantages as double sums, and Adam, clipping and moving
average by hand. Only models come from elsewhere, as saved. Shapes: S tokens of a sequence, T of its response, V
vocabulary, H hidden size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

Weights = Mapping[str, Tensor]


@dataclass
class Episode:
    """What was sampled."""

    prompt: list[int]
    response: list[int]
    ended: bool
    recorded: list[float] = field(default_factory=list)
    """Log-probabilities noted while decoding, where the run goes by those."""
    scored: list[int] = field(default_factory=list)
    """The response as the reward model scores it."""


@dataclass
class Network:
    """A causal transformer in float64, and the weights that it is run with."""

    module: Any
    trained: dict[str, Tensor]
    """Leaves that gradients are wanted of; none in a frozen network."""
    compose: Callable[[Weights], Weights] = lambda trained: trained
    """From those to weights of the module, by the module's names."""
    head: Callable[[Weights], Tensor] = lambda trained: trained["score.weight"]
    """The (1, H) head of a scalar network."""
    bias: float = 0.0

    def logprobs(self, ids: list[int], temperature: float) -> Tensor:
        """(S, V): row s is the log-distribution of token s + 1."""
        logits = functional_call(
            self.module, dict(self.compose(self.trained)), (), {"input_ids": torch.tensor([ids]), "use_cache": False}
        ).logits[0]
        return (logits / temperature).log_softmax(-1)

    def readings(self, ids: list[int]) -> Tensor:
        """(S,): the head at every token, less the bias."""
        prefix = f"{self.module.base_model_prefix}."
        weights = {
            name.removeprefix(prefix): weight
            for name, weight in self.compose(self.trained).items()
            if name.startswith(prefix)
        }
        hidden = functional_call(
            self.module.base_model, weights, (), {"input_ids": torch.tensor([ids]), "use_cache": False}
        ).last_hidden_state[0]
        return hidden @ self.head(self.trained)[0] - self.bias


def whole(module: Any, trains: bool) -> Network:
    """A model all of whose weights are trained, or none."""
    module = module.double().eval()
    leaves = {name: p.detach().clone().requires_grad_(trains) for name, p in module.named_parameters()}
    return Network(module, leaves, bias=float(getattr(module.config, "score_bias", 0.0)))


def adapted(
    base: Any,
    adapters: Weights,
    scale: float,
    transposed: bool,
    trains: bool,
    head: Tensor | None = None,
    bias: float = 0.0,
) -> Network:
    """A model whose linear maps are W + scale * B A, of which B and A are trained (and the head, if it has one).

    `adapters` holds `<the map>.lora_A.weight` and `.lora_B.weight`; `transposed` maps keep W as (in, out).
    """
    base = base.double().eval()
    frozen = {name: p.detach().clone() for name, p in base.named_parameters()}
    leaves = {name: p.double().detach().clone().requires_grad_(trains) for name, p in adapters.items()}
    if head is not None:
        leaves["score.weight"] = head.double().clone().requires_grad_(trains)

    def compose(trained: Weights) -> Weights:
        weights = dict(frozen)
        for name in trained:
            if name.endswith(".lora_A.weight"):
                place = name.removesuffix(".lora_A.weight")
                update = trained[f"{place}.lora_B.weight"] @ trained[name]
                weights[f"{place}.weight"] = frozen[f"{place}.weight"] + scale * (update.T if transposed else update)
        return weights

    return Network(base, leaves, compose, bias=bias)


@dataclass
class Four:
    """Policy, reference, value and reward."""

    policy: Network
    reference: Network
    value: Network
    reward: Network


def load_whole(sft: Path, reward: Path) -> Four:
    """Full fine-tuning, from the folders that the stages before left."""

    def causal(trains: bool) -> Network:
        return whole(AutoModelForCausalLM.from_pretrained(sft / "model", dtype=torch.float32), trains)

    def scalar(trains: bool) -> Network:
        return whole(AutoModelForSequenceClassification.from_pretrained(reward / "model", dtype=torch.float32), trains)

    return Four(causal(True), causal(False), scalar(True), scalar(False))


def load_adapted(sft: Path, reward: Path, policy_start: Weights, scale: float) -> Four:
    """LoRA, with a reward model that was trained as an adapter on the same base. `policy_start` is the policy's fresh
    adapter, which is random.
    """

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(sft / "model", dtype=torch.float32)

    transposed = base().config.model_type == "gpt2"
    saved = load_file(reward / "adapter" / "adapter_model.safetensors")
    prefix = base().base_model_prefix
    # The reward stage adapted a classifier; its backbone has the name that the causal model's has.
    adapter = {name.removeprefix("base_model.model."): p for name, p in saved.items() if ".lora_" in name}
    assert adapter
    assert all(name.startswith(f"{prefix}.") for name in adapter)
    scorer = AutoModelForSequenceClassification.from_pretrained(reward / "model", dtype=torch.float32)
    head, bias = scorer.score.weight.detach(), float(scorer.config.score_bias)
    return Four(
        adapted(base(), policy_start, scale, transposed, True),
        whole(base(), False),
        adapted(base(), adapter, scale, transposed, True, head, bias),
        adapted(base(), adapter, scale, transposed, False, head, bias),
    )


@dataclass
class Adam:
    """Kingma and Ba 2015, algorithm 1."""

    leaves: dict[str, Tensor]
    beta1: float
    beta2: float
    epsilon: float = 1e-8
    steps: int = 0
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)

    def step(self, gradients: Weights, learning_rate: float) -> None:
        """In place."""
        self.steps += 1
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                g = gradients[name]
                self.first[name] = self.beta1 * self.first.get(name, torch.zeros_like(g)) + (1 - self.beta1) * g
                self.second[name] = self.beta2 * self.second.get(name, torch.zeros_like(g)) + (1 - self.beta2) * g * g
                mean, square = (
                    self.first[name] / (1 - self.beta1**self.steps),
                    self.second[name] / (1 - self.beta2**self.steps),
                )
                leaf -= learning_rate * mean / (square.sqrt() + self.epsilon)


@dataclass
class Outcome:
    """What a run came to."""

    rows: list[dict[str, float]]
    """One an iteration."""
    average: dict[str, Tensor]
    advantages: list[list[list[float]]]
    """Of each iteration, of each episode, of each token: as the losses see them."""


@dataclass
class Scored:
    """An episode with what models say about it; lists are over its tokens."""

    episode: Episode
    logprobs: list[float]
    ref_logprobs: list[float]
    values: list[float]
    score: float
    rewards: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)

    @property
    def log_ratio(self) -> float:
        """k1 of the episode."""
        return sum(new - ref for new, ref in zip(self.logprobs, self.ref_logprobs, strict=True))


def chosen(network: Network, episode: Episode, temperature: float) -> tuple[list[Tensor], list[Tensor]]:
    """(log-probability of each response token, entropy of the distribution it was drawn from)."""
    logprobs = network.logprobs(episode.prompt + episode.response, temperature)
    rows = [logprobs[len(episode.prompt) + t - 1] for t in range(len(episode.response))]
    return [row[token] for row, token in zip(rows, episode.response, strict=True)], [
        -(row.exp() * row).sum() for row in rows
    ]


def states(network: Network, episode: Episode) -> list[Tensor]:
    """The value of the state before each response token."""
    readings = network.readings(episode.prompt + episode.response)
    return [readings[len(episode.prompt) + t - 1] for t in range(len(episode.response))]


def look(four: Four, episode: Episode, temperature: float) -> Scored:
    """What all four say before the update."""
    with torch.no_grad():
        return Scored(
            episode,
            episode.recorded or [float(x) for x in chosen(four.policy, episode, temperature)[0]],
            [float(x) for x in chosen(four.reference, episode, temperature)[0]],
            [float(x) for x in states(four.value, episode)],
            float(four.reward.readings(episode.prompt + episode.scored)[-1]),
        )


def spread(numbers: Sequence[float]) -> float:
    """The population's variance."""
    mean = sum(numbers) / len(numbers)
    return sum((x - mean) ** 2 for x in numbers) / len(numbers)


def reward_tokens(scored: Sequence[Scored], settings: Any, kl_coef: float, all_scores: Sequence[float]) -> None:
    """Sets rewards, advantages and returns of a roll-out. `all_scores` are those of the run so far, this roll-out's
    included.
    """
    for s in scored:
        score = s.score
        if settings.score_scaling == "running":
            score /= math.sqrt(spread(all_scores))
        if settings.score_clip is not None:
            score = max(-settings.score_clip, min(settings.score_clip, score))
        if not s.episode.ended:
            score -= settings.missing_eos_penalty
        price = kl_coef if settings.kl_placement == "reward" else 0.0
        count = len(s.episode.response)
        s.rewards = [
            -price * (s.logprobs[t] - s.ref_logprobs[t]) + (score if t == count - 1 else 0.0) for t in range(count)
        ]
        after = [*s.values[1:], 0.0]
        surprises = [s.rewards[t] + settings.discount * after[t] - s.values[t] for t in range(count)]
        weight = settings.discount * settings.gae_lambda
        s.advantages = [
            sum(weight ** (later - t) * surprises[later] for later in range(t, count)) for t in range(count)
        ]
        s.returns = [advantage + value for advantage, value in zip(s.advantages, s.values, strict=True)]
    if settings.whiten_advantages:
        everything = [a for s in scored for a in s.advantages]
        mean, deviation = sum(everything) / len(everything), math.sqrt(spread(everything) + 1e-8)
        for s in scored:
            s.advantages = [(a - mean) / deviation for a in s.advantages]


def gradients(loss: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a scalar; zeros where it does not depend on a leaf."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }


def norm(of: Weights) -> float:
    """Over all weights together."""
    return math.sqrt(sum(float((g * g).sum()) for g in of.values()))


def clipped(of: Weights, limit: float | None) -> dict[str, Tensor]:
    """Shrunk so that the norm is at most `limit`; torch's 1e-6 beside the norm is part of what its users expect."""
    factor = 1.0 if limit is None else min(1.0, limit / (norm(of) + 1e-6))
    return {name: g * factor for name, g in of.items()}


def policy_part(
    policy: Network, part: Sequence[Scored], settings: Any, kl_coef: float
) -> tuple[Tensor, dict[str, float]]:
    """(the minibatch's loss, its numbers)."""
    tokens = sum(len(s.episode.response) for s in part)
    surrogate, penalty = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    entropy, outside, moved, farthest = 0.0, 0, 0.0, 1.0
    for s in part:
        logprobs, entropies = chosen(policy, s.episode, settings.temperature)
        for t, logprob in enumerate(logprobs):
            ratio = (logprob - s.logprobs[t]).exp()
            kept = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
            surrogate = surrogate - torch.minimum(ratio * s.advantages[t], kept * s.advantages[t]) / tokens
            penalty = penalty + kl_coef * 0.5 * (logprob - s.ref_logprobs[t]) ** 2 / tokens
            entropy += float(entropies[t].detach()) / tokens
            r = float(ratio.detach())
            outside += abs(r - 1) > settings.clip_range
            moved += (r - 1 - math.log(r)) / tokens
            farthest = max(farthest, r, 1 / r)
    loss = surrogate + penalty if settings.kl_placement == "loss" else surrogate
    numbers = {
        "policy_loss": float(loss.detach()), "entropy": entropy, "clip_fraction": outside / tokens,
        "approximate_kl": moved, "ratio_max": farthest,
    }  # fmt: skip
    return loss, numbers


def text_part(policy: Network, texts: Sequence[list[int]]) -> Tensor:
    """The pretraining loss: mean over all tokens that have one before them."""
    losses = []
    for text in texts:
        logprobs = policy.logprobs(text, temperature=1.0)
        losses += [-logprobs[t, text[t + 1]] for t in range(len(text) - 1)]
    return torch.stack(losses).mean()


def value_part(value: Network, part: Sequence[Scored], settings: Any) -> Tensor:
    """Half the larger of two squared errors, mean a token."""
    losses = []
    for s in part:
        for t, new in enumerate(states(value, s.episode)):
            error = (new - s.returns[t]) ** 2
            if settings.value_clip_range is not None:
                near = new.clamp(s.values[t] - settings.value_clip_range, s.values[t] + settings.value_clip_range)
                error = torch.maximum(error, (near - s.returns[t]) ** 2)
            losses.append(0.5 * error)
    return torch.stack(losses).mean()


def update(four: Four, adams: tuple[Adam, Adam], part: Sequence[Scored], texts: Sequence[list[int]], settings: Any,
    kl_coef: float, rates: tuple[float, float]) -> dict[str, float]:  # fmt: skip
    """One optimizer step on a minibatch of each model whose learning rate is above 0; returns its numbers."""
    numbers: dict[str, float] = {}
    if rates[0] > 0:
        loss, numbers = policy_part(four.policy, part, settings, kl_coef)
        total = gradients(loss, four.policy.trained)
        if settings.ptx_coef > 0:
            text_loss = text_part(four.policy, texts)
            mix = gradients(settings.ptx_coef * text_loss, four.policy.trained)
            numbers |= {"ptx_loss": float(text_loss.detach()), "ppo_grad_norm": norm(total), "ptx_grad_norm": norm(mix)}
            total = {name: total[name] + mix[name] for name in total}
        numbers["policy_grad_norm"] = norm(total)
        adams[0].step(clipped(total, settings.max_grad_norm), rates[0])
    error = value_part(four.value, part, settings)
    slopes = gradients(error, four.value.trained)
    numbers |= {"value_loss": float(error.detach()), "value_grad_norm": norm(slopes)}
    adams[1].step(clipped(slopes, settings.max_grad_norm), rates[1])
    return numbers


def run(
    settings: Any, four: Four, rollouts: Sequence[Sequence[Episode]], minibatches: Sequence[Sequence[Sequence[int]]],
    texts: Sequence[list[int]],
) -> Outcome:  # fmt: skip
    """All iterations, on these episodes. `minibatches` are the episodes of each step of each iteration, and every step
    takes all of `texts`."""
    adams = tuple(
        Adam(network.trained, settings.adam_beta1, settings.adam_beta2) for network in (four.policy, four.value)
    )
    average = {name: leaf.detach().clone() for name, leaf in four.policy.trained.items()}
    kl_coef, scores, rows, advantages = settings.kl_coef, list[float](), [], []
    for iteration, episodes in enumerate(rollouts):
        warm, own = settings.warmup_iterations, iteration - settings.value_warmup_iterations
        factors = [1.0 if place >= warm else 0.1 + 0.9 * place / warm for place in (own, iteration)]
        rates = (settings.learning_rate * factors[0] * (own >= 0), settings.value_learning_rate * factors[1])
        scored = [look(four, episode, settings.temperature) for episode in episodes]
        for s in scored:
            terms = {"model": s.score, "length": float(len(s.episode.response))}
            s.score = sum(term.weight * terms[term.kind] for term in settings.rewards)
        scores += [s.score for s in scored]
        reward_tokens(scored, settings, kl_coef, scores)
        steps = []
        for members in minibatches[iteration]:
            part = [scored[number] for number in members]
            steps.append(update(four, (adams[0], adams[1]), part, texts, settings, kl_coef, rates))
            keep = settings.ema_decay if own >= 0 else 1.0
            weights = four.policy.trained.items()
            average = {name: keep * average[name] + (1 - keep) * leaf.detach() for name, leaf in weights}
        kl = sum(s.log_ratio for s in scored) / len(scored)
        rows.append(summary(scored, steps, kl) | {"kl_coef": kl_coef, "learning_rate": rates[0]})
        advantages.append([s.advantages for s in scored])
        if settings.kl_target is not None and own >= 0:
            error = max(-0.2, min(0.2, kl / settings.kl_target - 1))
            kl_coef *= 1 + error * settings.batch_size / settings.kl_horizon
    return Outcome(rows, average, advantages)


def summary(scored: Sequence[Scored], steps: Sequence[Mapping[str, float]], kl: float) -> dict[str, float]:
    """An iteration's numbers: of the roll-out, and means over optimizer steps."""
    episodes, returns = len(scored), [r for s in scored for r in s.returns]
    errors = [r - v for s in scored for r, v in zip(s.returns, s.values, strict=True)]
    ratios = [[ref - new for new, ref in zip(s.logprobs, s.ref_logprobs, strict=True)] for s in scored]
    numbers = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
    # The two gradients are measured apart in the iteration's first step.
    numbers |= {name: steps[0][name] for name in ("ppo_grad_norm", "ptx_grad_norm") if name in steps[0]}
    if "ratio_max" in numbers:
        numbers["ratio_max"] = max(step["ratio_max"] for step in steps)
    return numbers | {
        "score": sum(s.score for s in scored) / episodes,
        "score_std": math.sqrt(spread([s.score for s in scored])),
        "reward": sum(sum(s.rewards) for s in scored) / episodes,
        "kl": kl,
        "kl_k3": sum(math.exp(x) - 1 - x for row in ratios for x in row) / episodes,
        "length": sum(len(s.episode.response) for s in scored) / episodes,
        "ended": sum(s.episode.ended for s in scored) / episodes,
        "value_mean": sum(v for s in scored for v in s.values) / len(returns),
        "explained_variance": 1 - spread(errors) / spread(returns),
    }
