"""The reward models that read prompts with their own tokenizer, chat template or context: `reward.base`, and models of
`ppo.rewards` with a path. Prompts that they cannot read are refused before any training.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.records import Prompt
from modeling.config import ModelConfig
from modeling.disk import file_digest
from stages.config import RunConfig
from stages.manifest import digest_of


@dataclass(frozen=True)
class Reader:
    """A reward model that reads prompts."""

    name: str
    """The setting that names it."""
    tokenizer: Any
    settings: Any
    """Its configuration."""
    is_own: bool
    """Whether it is the run's reward model, which best-of-n uses, or that of a path in `ppo.rewards`."""

    def check_template(self, prompt: Prompt) -> None:
        """Raises ValueError when its chat template rejects the prompt."""
        from data.tokenize import check_prompt

        try:
            check_prompt(self.tokenizer, prompt)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None


def readers(config: RunConfig) -> list[Reader]:
    """All of them. Loads tokenizers and configurations, no weights."""
    from modeling.load import load_tokenizer, read_settings
    from ppo.reward_list import own_config
    from reward.start import Start

    def reader(name: str, place: str, model_config: ModelConfig, is_own: bool) -> Reader:
        return Reader(name, load_tokenizer(place, model_config), read_settings(place, model_config), is_own)

    found = []
    if config.reward.base is not None:
        start = Start.of(config.reward, config.model, Path())  # a separate base needs no SFT model
        found.append(reader(f"reward.base={config.reward.base}", start.place, start.model_config, True))
    for term in config.ppo.rewards:
        if term.path is not None:
            found.append(reader(f"ppo.rewards: path={term.path}", term.path, own_config(term, config.model), False))
    return found


def reader_digests(config: RunConfig) -> dict[str, str]:
    """Digests for a fingerprint: the prompts that can be read depend on the models' files other than their weights."""
    named = [(config.reward.base, config.reward.revision, config.reward.chat_template)]
    named += [(term.path, term.revision, None) for term in config.ppo.rewards]
    found = {}
    for place, revision, template in named:
        if place is not None:
            folder = Path(place)
            files = [file for file in sorted(folder.iterdir()) if file.is_file()] if folder.is_dir() else []
            files += [Path(template)] if template is not None else []
            digests = [file_digest(file) for file in files if is_read(file)]
            found[f"reads prompts: {place}"] = digest_of([revision, digests])
    return found


def is_read(file: Path) -> bool:
    """Whether a file can change how prompts are read: not weights, and not the model card."""
    return file.suffix != ".safetensors" and file.name != "README.md"


def check_readers(config: RunConfig, data: Path, tokenizer: Any) -> None:
    """Raises ValueError for a prompt of PPO or of best-of-n that leaves an answer no room in the context of a reward
    model. `tokenizer` is the policy's.
    """
    from data.sets import evenly, read_set
    from modeling.load import context_length
    from ppo.evaluation import held_out_prompts
    from ppo.reward_scorer import Tokens
    from reward.batches import demonstrations

    found = readers(config)
    if not found:
        return
    held_out = evenly(held_out_prompts(data, config.ppo.held_out), config.ppo.held_out.prompts)
    in_ppo, compared = [*read_set(data, "rl", "train"), *held_out], list[Prompt]()
    if config.evaluate.best_of_n:
        prompts = evenly(read_set(data, "sft", "test"), config.evaluate.max_prompts)
        compared = list(evenly(prompts, config.evaluate.best_of_n_prompts))
    shown = evenly(read_set(data, "sft", "train"), config.reward.bias_demonstrations)
    own_scores = any(term.is_own_model for term in config.ppo.rewards)
    for reader in found:
        tokens = Tokens.between(tokenizer, reader.tokenizer, reader.settings)
        try:
            if own_scores or not reader.is_own:
                tokens.check(in_ppo)
            if reader.is_own:
                context = context_length(reader.settings)
                demonstrations(reader.tokenizer, shown, context)  # for its bias
                tokens.check(compared, "lower data.max_prompt_tokens, or set evaluate.best_of_n=0")
        except ValueError as error:
            raise ValueError(f"{reader.name}: {error}") from None
