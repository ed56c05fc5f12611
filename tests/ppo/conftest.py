"""A finished SFT and reward stage on a tiny random model, and one roll-out's worth of everything."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from data.records import Prompt
from modeling.adapters import add_lora, merged
from modeling.architecture import backbone_of
from modeling.batch import Batch
from modeling.config import LoraSettings, ModelConfig
from modeling.generation import Generation
from modeling.load import load_causal, load_scalar, load_tokenizer, save
from modeling.models import initialize_head
from modeling.run import Run
from modeling.tiny import make_tiny_model
from ppo.actor_critic import ActorCritic, Loader
from ppo.config import PPOConfig
from ppo.experience import Experience, Rollout
from ppo.trainer import PPOData, PPOTrainer
from tests.conftest import enliven
from tests.fakes import FakeAccelerator

ALONE = FakeAccelerator()
PROMPTS = [
    Prompt(prompt=text)
    for text in ("Hi", "What is a cat and why?", "Sing", "Name two rivers", "Why is snow white in winter?", "Go on")
]
CHUNKS = [[5 + (7 * i + j) % 200 for j in range(12 + i % 3)] for i in range(9)]


@dataclass
class Chain:
    """Folders of finished stages, and how to load them."""

    sft: Path
    reward: Path
    config: ModelConfig
    tokenizer: Any

    def models(self, **ppo: Any) -> ActorCritic:
        """`models(value_init="sft")`: freshly loaded, with changes to stage 3's settings that say how the value model
        starts.
        """
        loader = Loader(self.sft, self.reward, self.config, PPOConfig(**ppo), seed=0, device=ALONE.device)
        return loader.load(self.tokenizer)

    def trainer(
        self,
        out: Path,
        config: PPOConfig,
        models: ActorCritic | None = None,
        data: PPOData | None = None,
        accelerator: Accelerator = ALONE,
    ) -> PPOTrainer:
        """A trainer with seed 0 that writes to `out`; by default on `PROMPTS` and `CHUNKS`, with fresh models."""
        data = data or PPOData(PROMPTS, CHUNKS)
        return PPOTrainer(config, models or self.models(), self.tokenizer, data, Run(accelerator, 0, out))


def build_chain(folder: Path, adapter: str, lora: LoraSettings | None = None, **sizes: int) -> Chain:
    """Trains nothing: random weights, with a reward adapter that is far from zero so that a wrong switch shows."""
    config = ModelConfig(base="unused", adapter=adapter, lora=lora or LoraSettings(rank=4, alpha=8), device="cpu")  # type: ignore[arg-type]
    sft, reward = folder / "sft", folder / "reward"
    make_tiny_model(sft / "model", **sizes)
    tokenizer = load_tokenizer(sft / "model", config)
    model = load_scalar(sft / "model", config, tokenizer)
    initialize_head(model, seed=1)
    model.config.score_bias = 0.25
    if adapter == "lora":
        torch.manual_seed(3)
        model = add_lora(model, config.lora)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        model.save_pretrained(reward / "adapter")
    else:
        with torch.no_grad():
            for parameter in backbone_of(model).parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    save(merged(model), tokenizer, reward / "model")
    return Chain(sft, reward, config, tokenizer)


def save_reward(
    folder: Path,
    made: Path,
    template: str | None = None,
    eos: str | None = None,
    context: int | None = None,
    answer_suffix: list[int] | None = None,
) -> Path:
    """A reward stage whose model was not trained from the SFT model: `made` by make_tiny_model, with opinions and a
    bias of its own.
    """
    config = ModelConfig(base="unused", device="cpu")
    tokenizer = load_tokenizer(made, config)
    tokenizer.chat_template = template or tokenizer.chat_template
    if eos is not None:
        tokenizer.add_special_tokens({"eos_token": eos})
    model = enliven(load_scalar(made, config, tokenizer), seed=5)
    model.config.score_bias = 0.5
    model.config.max_position_embeddings = context or model.config.max_position_embeddings
    if answer_suffix is not None:
        model.config.score_closing = answer_suffix
    save(model, tokenizer, folder / "model")
    return folder


def chain_of(folder: Path, policy: Path, reward: Path, adapter: str) -> Chain:
    """An SFT stage with this model, and a reward stage of its own."""
    (folder / "sft").mkdir(parents=True)
    (folder / "sft" / "model").symlink_to(policy)
    config = ModelConfig(base="unused", adapter=adapter, lora=LoraSettings(rank=4, alpha=8), device="cpu")  # type: ignore[arg-type]
    return Chain(folder / "sft", reward, config, load_tokenizer(policy, config))


@pytest.fixture(scope="session")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Chain]:
    """`chains("lora")` and `chains("none")`, each built once."""
    built: dict[str, Chain] = {}

    def get(adapter: str) -> Chain:
        if adapter not in built:
            built[adapter] = build_chain(tmp_path_factory.mktemp(adapter), adapter)
        return built[adapter]

    return get


def small(**changes: Any) -> PPOConfig:
    """A configuration of a few episodes."""
    settings: dict[str, Any] = {
        "total_episodes": 16, "batch_size": 8, "minibatch_size": 4, "max_tokens_per_micro_batch": 80,
        "rollout_batch_size": 5, "max_new_tokens": 6,
        "learning_rate": 1e-2, "value_learning_rate": 1e-2, "warmup_iterations": 0, "ptx_examples_per_episode": 1,
        "ptx_coef": 0.0,
        "ema_decay": 0.5, "checkpoint_every": 1, "samples_per_iteration": 1,
    }  # fmt: skip
    return PPOConfig(**settings | changes)


def load_base(chain: Chain) -> Any:
    """The SFT model on its own, as plain transformers loads it."""
    return load_causal(chain.sft / "model", chain.config, chain.tokenizer)


def scored(trainer: PPOTrainer) -> Experience:
    """One roll-out of the trainer, with advantages."""
    rollout = trainer.generate(0)
    return trainer.advantages(trainer.score(rollout), rollout)


def all_rows(rollout: Rollout) -> Batch:
    """Every episode in one batch."""
    return Batch(rollout.prompt_ids, rollout.ids, ALONE.device)


def as_ranked(tokenizer: Any, response: Generation) -> list[int]:
    """The response's text tokenized again, by plain transformers: the form on which a reward model was trained."""
    text = tokenizer.decode([token for token in response.ids if token not in tokenizer.all_special_ids]).strip()
    eos = tokenizer.eos_token_id
    return tokenizer.encode(text, add_special_tokens=False) + [eos] * response.ended or [eos]
