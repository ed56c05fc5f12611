"""The base model with a few demonstrations in its prompt, a baseline for SFT ("GPT-3 prompted" in Ouyang et al. 2022,
section 3.5). The form of the prompt is ours.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data.near_duplicates import comparable
from data.records import Demonstration, Message, Prompt
from data.sets import evenly
from data.tokenize import count_prompt_tokens
from evaluation.models import ComparedModel
from modeling.load import context_length, read_settings
from modeling.seeds import derive_seed

TEMPLATE = (
    "{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}{{ message['role'].capitalize() + ':\n' + message['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""Plain text, also for a base that has a chat template."""
NEXT_TURN = re.compile(r"(?:^|\n)\s*(?:User|Assistant|System):(?:\n|$)")
"""The start of a further turn, which a base model may write after its answer."""
POOL = 1000
"""Maximum number of training demonstrations, spread evenly, from which the examples are drawn."""
QUESTION: Message = {"role": "user", "content": "?"}


@dataclass(frozen=True)
class FewShotModel(ComparedModel):
    """A language model prompted with a few demonstrations."""

    examples: int
    """Number of demonstrations in a prompt."""
    demonstrations: Sequence[Demonstration]
    """Of the training split."""
    max_new_tokens: int
    seed: int

    def tokenizer(self) -> Any:
        """The model's tokenizer, with a plain-text template."""
        tokenizer = super().tokenizer()
        tokenizer.chat_template = TEMPLATE
        return tokenizer

    def reads_as(self, sft_tokenizer: Any) -> bool:
        """False: its prompts contain demonstrations."""
        return False

    @cached_property
    def pool(self) -> list[tuple[Demonstration, str, int]]:
        """(demonstration, its prompt normalized for comparison, an upper bound of its length in tokens)."""
        pool = evenly(self.demonstrations, POOL)
        turns = [Prompt(prompt=[*turn(one), QUESTION]) for one in pool]
        lengths = count_prompt_tokens(self.tokenizer(), turns)
        return [(one, comparable(one.text), length) for one, length in zip(pool, lengths, strict=True)]

    def asked(self, prompts: Sequence[Demonstration]) -> Sequence[Prompt]:
        """Each prompt after demonstrations of other prompts, drawn from those that fit the context.

        Raises ValueError if there are too few.
        """
        context = context_length(read_settings(self.place, self.config))
        longest = max(count_prompt_tokens(self.tokenizer(), prompts), default=0)
        room = (context - self.max_new_tokens - longest) // self.examples
        fitting = [(one, text) for one, text, length in self.pool if length <= room]
        return [self._asked(prompt, fitting, context) for prompt in prompts]

    def _asked(self, prompt: Demonstration, fitting: Sequence[tuple[Demonstration, str]], context: int) -> Prompt:
        own = comparable(prompt.text)
        others = [one for one, text in fitting if one.prompt_id != prompt.prompt_id and text != own]
        if len(others) < self.examples:
            raise ValueError(
                f"evaluate.few_shot_examples={self.examples}, but only {len(others)} training demonstrations are short "
                f"enough for the base model's context of {context} tokens beside the longest prompt and "
                f"evaluate.max_new_tokens={self.max_new_tokens}: lower one of these settings"
            )
        chosen = random.Random(derive_seed(self.seed, "few-shot", prompt.prompt_id)).sample(others, self.examples)
        messages = [message for one in chosen for message in turn(one)]
        return Prompt(prompt=[*messages, *prompt.messages], prompt_id=prompt.prompt_id)

    def ending(self, text: str, ended: bool) -> tuple[str, bool]:
        """Cuts the text where the model starts a further turn."""
        found = NEXT_TURN.search(text)
        return (text, ended) if found is None else (text[: found.start()].strip(), True)


def turn(shown: Demonstration) -> list[Message]:
    """A prompt and its demonstration as a conversation."""
    return [*shown.messages, {"role": "assistant", "content": shown.completion.strip()}]
