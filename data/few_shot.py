"""Few-shot prompts: K query and answer pairs under one instruction give K examples (Ouyang et al. 2022, section 3.2).

Each has the other K - 1 pairs as its context and never its own answer. The rules of curation look at the instruction
with its pairs, before it is expanded.
"""

from collections.abc import Iterator

from data.near_duplicates import comparable
from data.records import Demonstration, Example, FewShot, Prompt


def expand(record: FewShot) -> Iterator[Demonstration]:
    """One demonstration a pair, its id the record's with `#` and the pair's place; a repeated pair counts once.

    Pairs that ask the same as the example, but for case, spaces and punctuation, are not in its context: they would
    give the answer away.
    """
    pairs = distinct_pairs(record)
    for place, (query, example) in enumerate(pairs, start=1):
        context = [other for asked, other in pairs if asked != query]
        own = {"prompt_id": f"{record.prompt_id}#{place}", "kind": "few_shot", "completion": example["completion"]}
        own |= {"prompt": render(record.text, context, example["prompt"])}
        yield Demonstration(**(Prompt.of(record).__dict__ | own))


def prompts(record: Prompt) -> list[Prompt]:
    """The prompts that a record becomes: one, or those of a few-shot prompt."""
    return list(expand(record)) if isinstance(record, FewShot) else [record]


def distinct_pairs(record: FewShot) -> list[tuple[str, Example]]:
    """(what the query is compared by, pair) of each pair that is not the same as an earlier one."""
    found: dict[tuple[str, str], Example] = {}
    for pair in record.examples:
        found.setdefault((comparable(pair["prompt"]), pair["completion"].strip()), pair)
    return [(query, pair) for (query, _), pair in found.items()]


def render(instruction: str, context: list[Example], query: str) -> str:
    """The instruction, the pairs of the context, and the query. Ours: the paper does not print its format."""
    shown = [f"Input: {pair['prompt'].strip()}\nOutput: {pair['completion'].strip()}" for pair in context]
    return "\n\n".join([instruction.strip(), *shown, f"Input: {query.strip()}\nOutput:"])


def whole_text(record: FewShot) -> str:
    """Instruction and all pairs as one text, for the rules that compare prompts or look for personal data in them."""
    *context, last = record.examples
    return f"{render(record.text, context, last['prompt'])} {last['completion']}"
