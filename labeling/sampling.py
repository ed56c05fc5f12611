"""K answers a prompt from one model, identical ones merged (Ouyang et al. 2022, section 3.5)."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from tqdm import tqdm

from data.records import Demonstration, Prompt, Samples
from data.tokenize import decode_completion, encode_prompt
from modeling.engines.make import engine_for
from modeling.engines.types import Generation, Sampling
from modeling.processes import Processes
from modeling.seeds import derive_seed


def answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    answers_per_prompt: int,
    sampling: Sampling,
    stream: str,
    seed: int,
    team: Processes,
) -> list[list[Generation]]:
    """`answers_per_prompt` responses to each prompt, shared among the processes, the same whatever their number.

    The random stream of an answer hangs on the seed, the stream's name, the prompt's id and the answer's number.
    """
    jobs = [(index, number) for index in range(len(prompts)) for number in range(answers_per_prompt)]
    mine = team.share(jobs)
    encoded = {index: encode_prompt(tokenizer, prompts[index]) for index in {index for index, _ in mine}}
    with tqdm(total=len(mine), desc=stream, unit="answer", disable=not team.is_main) as bar:
        generations = engine_for(model).generate(
            model,
            [encoded[index] for index, _ in mine],
            [derive_seed(seed, stream, prompts[index].prompt_id, number) for index, number in mine],
            sampling,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            on_batch=bar.update,
        )
    gathered = dict(team.gather(list(zip(mine, generations, strict=True))))
    return [[gathered[index, number] for number in range(answers_per_prompt)] for index in range(len(prompts))]


def distinct_samples(tokenizer: Any, prompt: Prompt, generations: Sequence[Generation]) -> Samples:
    """The prompt with its distinct answers, in the order in which they first came."""
    complete: dict[str, bool] = {}
    for generation in generations:
        text, ended = decode_completion(tokenizer, generation.ids)
        complete[text] = complete.get(text, False) or ended
    return Samples(
        **{field.name: getattr(prompt, field.name) for field in fields(Prompt)},
        completions=list(complete),
        complete=list(complete.values()),
        reference=prompt.completion if isinstance(prompt, Demonstration) else None,
    )


def rankable(samples: Sequence[Samples]) -> tuple[list[Samples], int]:
    """(those with at least two distinct answers, how many were dropped for having fewer)."""
    kept = [row for row in samples if len(row.completions) >= 2]
    return kept, len(samples) - len(kept)
