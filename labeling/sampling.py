"""Samples K answers per prompt from one model and merges identical ones (Ouyang et al. 2022, section 3.5)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from data.records import Demonstration, Prompt, Samples
from data.tokenize import count_prompt_tokens, decode_completion, encode_prompt
from labeling.scratch import AnswerScratch
from modeling.accelerator import share_of
from modeling.config import GenerationSettings
from modeling.generation import Generation, by_length, generator_for
from modeling.seeds import derive_seed

BATCHES_A_BLOCK = 8
"""Batches decoded between two writes to the scratch file. Smaller blocks are slower: slots idle at their end."""


@dataclass(frozen=True)
class AnswerSampler:
    """Samples several answers per prompt from one model, the same for any number of processes."""

    model: Any
    tokenizer: Any
    sampling: GenerationSettings
    seed: int
    accelerator: Accelerator
    """The processes that share the work."""
    scratch: Path | None = None
    """A folder for finished answers, so that a killed run resumes with the missing ones."""

    def answers(self, prompts: Sequence[Prompt], answers_per_prompt: int, stream: str) -> list[list[Generation]]:
        """`answers_per_prompt` responses to each prompt.

        The random stream of an answer depends only on the seed, the stream's name, the prompt's id and the answer's
        number.
        """
        accelerator = self.accelerator
        jobs = [(index, number) for index in range(len(prompts)) for number in range(answers_per_prompt)]
        mine = share_of(accelerator, jobs)
        encoded = {index: encode_prompt(self.tokenizer, prompts[index]) for index in {index for index, _ in mine}}
        kept = AnswerScratch(self.scratch, stream, accelerator) if self.scratch is not None else None
        finished = kept.finished if kept is not None else {}
        # In decoding order (by length), so that a block's prompts need little padding.
        mine = [mine[place] for place in by_length([encoded[index] for index, _ in mine])]
        size = BATCHES_A_BLOCK * self.sampling.batch_size if kept is not None else max(1, len(mine))
        made: dict[tuple[int, int], Generation] = {}
        longest = max(count_prompt_tokens(self.tokenizer, prompts), default=0)  # of all processes
        generator = generator_for(self.model, tokens=longest + self.sampling.max_new_tokens)
        with tqdm(total=len(mine), desc=stream, unit="answer", disable=not accelerator.is_main_process) as bar:
            for start in range(0, len(mine), size):
                block = mine[start : start + size]
                missing = [job for job in block if job not in finished]
                bar.update(len(block) - len(missing))
                if not missing:
                    continue
                generations = generator.generate(
                    self.model,
                    [encoded[index] for index, _ in missing],
                    [derive_seed(self.seed, stream, prompts[index].prompt_id, number) for index, number in missing],
                    self.sampling,
                    on_batch=bar.update,
                )
                made |= dict(zip(missing, generations, strict=True))
                if kept is not None:
                    kept.add(missing, generations)
        gathered = finished | dict(gather_object(list(made.items())))
        return [[gathered[index, number] for number in range(answers_per_prompt)] for index in range(len(prompts))]


def distinct_samples(tokenizer: Any, prompt: Prompt, generations: Sequence[Generation]) -> Samples:
    """The prompt with its distinct answers, in order of first occurrence."""
    complete: dict[str, bool] = {}
    for generation in generations:
        text = decode_completion(tokenizer, generation.ids, generation.ended)
        complete[text] = complete.get(text, False) or generation.ended
    return Samples(
        **{field.name: getattr(prompt, field.name) for field in fields(Prompt)},
        completions=list(complete),
        complete=list(complete.values()),
        reference=prompt.completion if isinstance(prompt, Demonstration) else None,
    )


def with_echo(row: Samples) -> Samples:
    """Adds the prompt's text as a complete answer, unless it is one of the answers already."""
    text = row.text.strip()
    if text in row.completions:
        return row
    return replace(row, completions=[*row.completions, text], complete=[*row.complete, True])


def rankable(samples: Sequence[Samples]) -> tuple[list[Samples], int]:
    """(those with at least two distinct answers, how many were dropped for having fewer)."""
    kept = [row for row in samples if len(row.completions) >= 2]
    return kept, len(samples) - len(kept)
