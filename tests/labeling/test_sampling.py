"""K answers a prompt: the same whoever else is sampled for and however many processes share the work; twins merged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from data.records import Demonstration, Prompt, Samples
from data.tokenize import encode_completion
from labeling.sampling import answer, distinct_samples, rankable
from modeling.engines.types import Generation, Sampling
from modeling.load import load_causal
from modeling.processes import Processes
from tests.conftest import enliven

PROMPTS = [Prompt(prompt=text, prompt_id=text) for text in ("Why?", "What is the capital of France?", "Write a poem.", "How do I boil an egg?")]
SAMPLING = Sampling(max_new_tokens=8, temperature=1.0, batch_size=3)


class SentError(Exception):
    """Carries what a process would have sent to the others."""


class Team(Processes):
    """One of two processes that run one after the other."""

    others: list[Any] | None = None

    def gather(self, items: list[Any]) -> list[Any]:
        if self.others is None:
            raise SentError(items)
        return items + self.others


def team(rank: int = 0, count: int = 1) -> Team:
    return Team(rank=rank, count=count, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def ask(tiny: Any, model_config: Any, tiny_tokenizer: Any) -> Callable[..., list[list[Generation]]]:
    model = enliven(load_causal(tiny("llama"), model_config, tiny_tokenizer))

    def ask(prompts: list[Prompt] = PROMPTS, count: int = 3, stream: str = "s", seed: int = 0, team: Processes | None = None) -> Any:
        team = team or Processes(0, 1, torch.device("cpu"))
        return answer(model, tiny_tokenizer, prompts, count, SAMPLING, stream, seed, team)

    return ask


def tokens(answers: list[list[Generation]]) -> list[list[list[int]]]:
    return [[generation.ids for generation in row] for row in answers]


def test_every_prompt_gets_its_number_of_different_answers(ask: Any) -> None:
    answers = ask()
    assert [len(row) for row in answers] == [3] * 4
    assert len({tuple(ids) for row in tokens(answers) for ids in row}) == 12, "no random stream is used twice"


def test_answers_hang_on_seed_stream_and_prompt_and_not_on_who_else_is_asked(ask: Any) -> None:
    answers = tokens(ask())
    assert tokens(ask(PROMPTS[::-1]))[::-1] == answers
    assert tokens(ask(PROMPTS[1:2])) == answers[1:2]
    assert tokens(ask(count=2)) == [row[:2] for row in answers]
    assert tokens(ask(seed=1)) != answers
    assert tokens(ask(stream="t")) != answers


def test_two_processes_give_what_one_gives(ask: Any) -> None:
    second = team(1, 2)
    with pytest.raises(SentError) as sent:
        ask(team=second)
    first = team(0, 2)
    object.__setattr__(first, "others", sent.value.args[0])
    assert len(sent.value.args[0]) == 6, "half of the twelve"
    assert tokens(ask(team=first)) == tokens(ask())


def test_twins_are_merged_in_the_order_in_which_they_came(tiny_tokenizer: Any) -> None:
    def said(text: str, ended: bool) -> Generation:
        ids = encode_completion(tiny_tokenizer, text, ended)
        return Generation(ids, [0.0] * len(ids), ended)

    prompt = Demonstration(prompt="Why?", prompt_id="p", user_id="u", use_case="chat", completion="Because.")
    found = distinct_samples(tiny_tokenizer, prompt, [said("so", False), said("no", False), said("so", True), said(" so", False), said("no", False)])
    assert found == Samples(
        prompt="Why?", prompt_id="p", user_id="u", use_case="chat", completions=["so", "no"], complete=[True, False], reference="Because."
    )
    assert distinct_samples(tiny_tokenizer, Prompt(prompt="Why?"), [said("so", True)]).reference is None


def test_a_prompt_with_one_answer_only_is_left_out_and_counted() -> None:
    rows = [Samples(prompt="Why?", completions=texts, complete=[True] * len(texts)) for texts in (["a"], ["a", "b"], [], ["a", "b", "c"])]
    kept, dropped = rankable(rows)
    assert [len(row.completions) for row in kept] == [2, 3]
    assert dropped == 2
