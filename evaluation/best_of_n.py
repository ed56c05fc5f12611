"""Best-of-n: the reward model chooses the best of n answers of the SFT model. PPO has to beat it at the same KL to SFT.

N answers have C(N, n) subsets of size n. The mean over all of them takes one sort, and is an unbiased estimate for
every n up to N (Nakano et al. 2021, appendix I; Gao et al. 2022, section 2). Answers are chosen by the reward model's
score only, without ppo.missing_eos_penalty. Shapes: N answers of one prompt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from data.intervals import Bootstrap
from data.records import Prompt
from data.tokenize import encode_prompt
from evaluation.compare import Answer, by_scores, preference, scores_of, win_rate
from evaluation.reward_scores import SavedRewardModel
from modeling.config import ModelConfig
from modeling.generation import Generation
from modeling.load import load_tokenizer
from ppo.reward_scorer import Episode, Tokens

MEASURES = ("proxy", "score", "chrf")
"""The reward model, which chooses; the labeler's rubric, on which it was trained; chrF, on which it was not trained."""


def choice_weights(scores: Sequence[float], n: int) -> NDArray[np.float64]:
    """weights_N: the share of all subsets of size n in which an answer is chosen, because it has the highest score.

    The i-th lowest of N is the highest in C(i-1, n-1) of the C(N, n) subsets; answers with the same score are chosen
    equally often.
    """
    count = len(scores)
    assert 1 <= n <= count
    of_place = [math.comb(place, n - 1) / math.comb(count, n) for place in range(count)]
    _, level_N = np.unique(np.asarray(scores, dtype=float), return_inverse=True)
    of_level = np.bincount(np.sort(level_N), weights=of_place) / np.bincount(level_N)
    weights_N: NDArray[np.float64] = of_level[level_N]
    return weights_N


def best_of_n_kl(n: int) -> float:
    """KL(best-of-n || SFT) in nats: log n - (n-1)/n (Stiennon et al. 2020, appendix G.3).

    Exact if no two answers tie, otherwise an upper bound (Beirami et al. 2024), for example if a model repeats answers.
    """
    return math.log(n) - (n - 1) / n


def sizes(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest`."""
    return [*(2**power for power in range(largest.bit_length()) if 2**power < largest), largest]


@dataclass(frozen=True)
class Proxy:
    """The run's reward model, which encodes answers as in PPO."""

    model: SavedRewardModel
    policy_tokenizer: Any
    tokens: Tokens
    """As in PPO's RewardScorer."""

    @staticmethod
    def of(sft: Path, reward: Path, config: ModelConfig, trust_reward_code: bool) -> "Proxy":
        """From the folders of the two finished models. Weights are loaded later, by `scores`."""
        return Proxy.between(load_tokenizer(sft, config.of_export()), reward, config, trust_reward_code)

    @staticmethod
    def between(policy_tokenizer: Any, reward: Path, config: ModelConfig, trust_reward_code: bool) -> "Proxy":
        """`of` for a policy that is not saved yet."""
        own = replace(config.of_export(), trust_remote_code=trust_reward_code)
        model = SavedRewardModel.of(reward, own, str(reward))
        return Proxy(model, policy_tokenizer, Tokens.between(policy_tokenizer, model.tokenizer, model.settings))

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises ValueError for a prompt that leaves no room for an answer in the reward model's context."""
        self.tokens.check(prompts, "set evaluate.best_of_n=0, or lower data.max_prompt_tokens")

    def scores(
        self,
        prompts: Sequence[Prompt],
        sets: Sequence[Sequence[Sequence[Generation]]],
        max_tokens: int,
        accelerator: Accelerator,
    ) -> list[list[list[float]]]:
        """Scores of several sets of answers to each prompt, in order; the processes share the work.

        `max_tokens` limits a forward pass.
        """
        asked = [
            self._read(prompt, [generation for row in rows for generation in row])
            for prompt, *rows in zip(prompts, *sets, strict=True)
        ]
        flat = [iter(row) for row in self.model.scores(asked, max_tokens, accelerator)]
        return [[[next(left) for _ in row] for left, row in zip(flat, rows, strict=True)] for rows in sets]

    def _read(self, prompt: Prompt, responses: list[Generation]) -> tuple[list[int], list[list[int]]]:
        ids = encode_prompt(self.policy_tokenizer, prompt)
        befores, afters, _ = self.tokens.rows([Episode(ids, response, prompt) for response in responses])
        return befores[0], afters


@dataclass(frozen=True)
class BestOfN:
    """Best-of-n beside PPO, on the same prompts: one entry for each of them in the first four fields."""

    candidates: Sequence[Sequence[Answer]]
    """N answers of SFT, with their `proxy` score."""
    ppo: Sequence[Sequence[Answer]]
    """PPO's answers, with their `proxy` score."""
    sft: Sequence[Sequence[Answer]]
    """SFT's answers that are not candidates: best-of-n must not be compared with answers that it was chosen from."""
    kl: Sequence[float]
    """KL from PPO to SFT in nats."""
    tie_width: float
    """The labeler's."""

    def results(self, bootstrap: Bootstrap) -> dict[str, Any]:
        """Results for each of `sizes(N)`, of PPO, and of PPO against best-of-n at the n of nearest KL."""
        count = len(self.candidates[0])

        def chosen(n: int, values: Sequence[Sequence[float]]) -> dict[str, float]:
            return bootstrap.interval(self.chosen(n, values))

        values = {name: scores_of(self.candidates, name) for name in MEASURES}
        values["win_rate"] = self.preferred_to(self.sft)
        lost_to_ppo = [[1 - won for won in row] for row in self.preferred_to(self.ppo)]
        ours = {
            name: bootstrap.interval([sum(row) / len(row) for row in scores_of(self.ppo, name)]) for name in MEASURES
        }
        rate = win_rate(by_scores(scores_of(self.ppo), scores_of(self.sft), self.tie_width), bootstrap)
        distance = bootstrap.interval(self.kl)
        nearest = min(range(1, count + 1), key=lambda n: abs(best_of_n_kl(n) - distance["mean"]))
        return {
            "prompts": len(self.candidates),
            "samples": count,
            "rows": [
                {"n": n, "kl": best_of_n_kl(n)} | {name: chosen(n, of) for name, of in values.items()}
                for n in sizes(count)
            ],
            "ppo": {"kl": distance, **ours, "win_rate": rate},
            "ppo_against": {"n": nearest, "kl": best_of_n_kl(nearest), "win_rate": chosen(nearest, lost_to_ppo)},
        }

    def chosen(self, n: int, values: Sequence[Sequence[float]]) -> list[float]:
        """For each prompt, the expected value of the candidate that is chosen among n, from the values of all."""
        weights = [choice_weights(row, n) for row in scores_of(self.candidates, "proxy")]
        return [float(own @ np.asarray(row)) for own, row in zip(weights, values, strict=True)]

    def preferred_to(self, others: Sequence[Sequence[Answer]]) -> list[list[float]]:
        """For each candidate, how often the labeler prefers it to one of the others, ties counting half."""
        return [
            [sum(preference(a, b, self.tie_width) for b in right) / len(right) for a in left]
            for left, right in zip(scores_of(self.candidates), scores_of(others), strict=True)
        ]
