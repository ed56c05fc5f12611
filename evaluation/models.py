"""The compared models: where they are, how they are prompted, and what their answers are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from data.records import Demonstration, Prompt
from data.tokenize import count_prompt_tokens, decode_completion, encode_completion
from evaluation.compare import Answer
from evaluation.config import EvaluateConfig
from modeling.config import ModelConfig
from modeling.foreign import refuse_other_kinds
from modeling.generation import Generation
from modeling.load import context_length, knows_tokens, load_tokenizer, read_settings, same_tokenizer


@dataclass(frozen=True)
class ComparedModel:
    """A language model that answers the held-out prompts."""

    name: str
    """In evaluation.json and tax.json: a special name, or the folder or Hub name as it was given."""
    place: str
    config: ModelConfig
    answers_per_prompt: int

    @property
    def stream(self) -> str:
        """Names its random stream and its files in `scratch`; a hash distinguishes paths of the same name."""
        if self.name != self.place:
            return f"evaluate {self.name}"
        return f"evaluate {Path(self.name).name} {sha256(self.name.encode()).hexdigest()[:8]}"

    def tokenizer(self) -> Any:
        """The model's own tokenizer and chat template."""
        return load_tokenizer(self.place, self.config)

    def asked(self, prompts: Sequence[Demonstration]) -> Sequence[Prompt]:
        """The prompts as this model gets them."""
        return prompts

    def reads_as(self, sft_tokenizer: Any) -> bool:
        """Whether it has SFT's tokens and prompts, so that KL and perplexity can be compared."""
        return same_tokenizer(sft_tokenizer, self.tokenizer())

    def check(self, prompts: Sequence[Demonstration], max_new_tokens: int) -> None:
        """Raises ValueError, without loading weights, if the model is missing or not a language model, or if a prompt
        leaves no room for an answer in its context.
        """
        setting = f"evaluate.models: {self.name}"
        refuse_other_kinds(self.place, self.config, setting)
        try:
            longest = max(count_prompt_tokens(self.tokenizer(), self.asked(prompts)), default=0)
        except ValueError as error:  # of the chat template
            raise ValueError(f"{setting}: {error}") from None
        context = context_length(read_settings(self.place, self.config))
        if longest + max_new_tokens > context:
            raise ValueError(
                f"{setting} has a context of {context} tokens, too few for its longest prompt of {longest} tokens and "
                f"evaluate.max_new_tokens={max_new_tokens}: lower that setting, or leave the model out"
            )

    def answers(
        self, generations: Sequence[Sequence[Generation]], tokenizer: Any, sft_tokenizer: Any
    ) -> list[list[Answer]]:
        """The texts of its answers, with their lengths in SFT's tokens."""
        same_tokens = knows_tokens(sft_tokenizer, tokenizer)

        def answer(generation: Generation) -> Answer:
            text = decode_completion(tokenizer, generation.ids, generation.ended)
            shown, complete = self.ending(text, generation.ended)
            if same_tokens and shown == text:
                return Answer(shown, complete, len(generation.ids))
            return Answer(shown, complete, len(encode_completion(sft_tokenizer, shown, complete)))

        return [[answer(generation) for generation in row] for row in generations]

    def ending(self, text: str, ended: bool) -> tuple[str, bool]:
        """(the answer in a text, whether it ended by itself)."""
        return text, ended


def compared_models(
    settings: EvaluateConfig, model_config: ModelConfig, places: Mapping[str, str]
) -> list[ComparedModel]:
    """PPO, the models of `evaluate.models` but `base_few_shot`, SFT and base, in this order: SFT scores the answers of
    those before it.

    `places` has the folders of models of this run by their names.
    """
    saved, count = model_config.of_export(), settings.answers_per_prompt
    foreign = replace(saved, trust_remote_code=settings.trust_remote_code)
    own = [name for name in settings.models if name in places]
    return [
        *(ComparedModel(name, places[name], saved, count) for name in ("ppo", *own)),
        *(ComparedModel(name, name, foreign, count) for name in settings.places),
        ComparedModel("sft", places["sft"], saved, count),
        ComparedModel("base", places["base"], model_config, 1),
    ]
