"""Training sequences for stage 1: demonstrations with the loss on the answer only, and plain text with the loss on all
tokens.
"""

import random
from collections.abc import Sequence
from typing import Any

from data.records import Demonstration
from data.tokenize import encode_completion, encode_prompt, generation_prompt


def demonstration_examples(
    tokenizer: Any, demonstrations: Sequence[Demonstration], context: int
) -> list[dict[str, list[int]]]:
    """`input_ids` and `completion_mask` (1 on answer tokens and EOS), the columns that trl's SFTTrainer expects.

    Raises ValueError for a demonstration longer than the model's context.
    """
    examples = []
    for demonstration in demonstrations:
        # Text that the template adds before an answer, such as an empty think block, is trained on too.
        prompt = generation_prompt(tokenizer, demonstration)
        opening = encode_prompt(tokenizer, demonstration)[len(prompt) :]
        completion = [*opening, *encode_completion(tokenizer, demonstration.completion)]
        if len(prompt) + len(completion) > context:
            raise ValueError(
                f"demonstration {demonstration.prompt_id} has {len(prompt) + len(completion)} tokens, more than the "
                "model's context of "
                f"{context}: lower data.max_prompt_tokens or data.max_answer_tokens"
            )
        examples.append(
            {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}
        )
    return examples


def text_examples(chunks: Sequence[Sequence[int]]) -> list[dict[str, list[int]]]:
    """Plain text as sequences with the loss on every token."""
    return [{"input_ids": list(chunk), "completion_mask": [1] * len(chunk)} for chunk in chunks]


def mix(
    examples: list[dict[str, list[int]]], texts: list[dict[str, list[int]]], fraction: float, seed: int
) -> list[dict[str, list[int]]]:
    """Adds texts so that they make up `fraction` of the whole (appendix C.3: 10%); if there are too few, they are
    repeated.
    """
    count = round(len(examples) * fraction / (1 - fraction))
    chosen = random.Random(seed).sample(texts, len(texts)) if texts else []
    return examples + [chosen[index % len(chosen)] for index in range(count)] if chosen else examples
