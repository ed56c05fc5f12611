"""What is measured: rankings for the reward model and prompts for PPO, as token ids drawn from fixed seeds.

Imports the standard library only, because a peer's environment has nothing of this project but this folder.
"""

import random
from dataclasses import dataclass
from pathlib import Path

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
PAD, BOS, EOS, UNK = range(len(SPECIAL_TOKENS))
VOCABULARY = 16_000
TOKENS_SEED = 0


@dataclass(frozen=True)
class RewardWork:
    """One epoch of reward-model training, full fine-tuning in float32, with a step every `prompts_per_step` prompts."""

    models: str = "long"
    """Folder written by benchmarks/fixture.py."""
    prompts: int = 4
    prompts_per_step: int = 1
    k: int = 9
    """Answers per prompt."""
    prompt_tokens: int = 100
    answer_tokens: int = 100
    """Lengths are uniform within a fifth of these."""
    seed: int = 0

    def rankings(self) -> list[tuple[list[int], list[list[int]]]]:
        """(prompt, answers from best to worst). Every answer ends with EOS."""
        chance = random.Random(TOKENS_SEED)

        def words(mean: int) -> list[int]:
            return draw(chance, mean + chance.randint(-mean // 5, mean // 5))

        return [
            (words(self.prompt_tokens), [[*words(self.answer_tokens - 1), EOS] for _ in range(self.k)])
            for _ in range(self.prompts)
        ]


@dataclass(frozen=True)
class PPOWork:
    """PPO iterations in float32, with one inner epoch of several minibatches and without a pretraining mix."""

    models: str = "long"
    """Folder written by benchmarks/fixture.py."""
    adapter: str = "none"
    """`none` trains whole models, `lora` adapters on the top layers of one shared base (ours only)."""
    iterations: int = 2
    episodes: int = 64
    """Per iteration."""
    minibatches: int = 8
    """Optimizer steps per iteration; 8 in the paper (C.4)."""
    prompt_tokens: int = 32
    """Lengths are uniform within a quarter of this."""
    response_tokens: int = 64
    """At most."""
    seed: int = 0

    def prompt_ids(self) -> list[list[int]]:
        """The prompts of all iterations."""
        chance, spread = random.Random(TOKENS_SEED), self.prompt_tokens // 4
        lengths = [self.prompt_tokens + chance.randint(-spread, spread) for _ in range(self.iterations * self.episodes)]
        return [draw(chance, length) for length in lengths]


Work = RewardWork | PPOWork


def draw(chance: random.Random, length: int) -> list[int]:
    """Token ids without special tokens."""
    return [chance.randrange(len(SPECIAL_TOKENS), VOCABULARY) for _ in range(length)]


def word(token: int) -> str:
    """The text of a token that is not special."""
    return f"w{token}"


def sft_folder(models: str) -> Path:
    """The SFT model of a fixture."""
    return Path(models) / "sft" / "model"


def reward_folder(models: str) -> Path:
    """The reward model of a fixture."""
    return Path(models) / "reward" / "model"


def lora_folder(models: str) -> Path:
    """The reward model that is an adapter of the SFT model: `adapter` and `model`."""
    return Path(models) / "reward_lora"
