"""K answers a prompt: the same whoever else is sampled for and however many processes share the work; twins merged."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import labeling.sampling
import labeling.scratch
from data.records import Demonstration, Prompt, Samples
from data.tokenize import encode_completion
from labeling.sampling import AnswerSampler, distinct_samples, rankable, with_echo
from labeling.scratch import remembered
from modeling.config import GenerationSettings
from modeling.generation import Generation, NativeGenerator
from modeling.load import load_causal
from tests.conftest import enliven
from tests.cuts import Cut
from tests.fakes import FakeAccelerator

PROMPTS = [
    Prompt(prompt=text, prompt_id=text)
    for text in ("Why?", "What is the capital of France?", "Write a poem.", "How do I boil an egg?")
]
SAMPLING = GenerationSettings(max_new_tokens=8, temperature=1.0, batch_size=3)


class SentError(Exception):
    """Carries what a process would have sent to the others."""


@pytest.fixture(scope="module")
def ask(tiny: Any, model_config: Any, tiny_tokenizer: Any) -> Callable[..., list[list[Generation]]]:
    model = enliven(load_causal(tiny("llama"), model_config, tiny_tokenizer))

    def ask(
        prompts: list[Prompt] = PROMPTS,
        count: int = 3,
        stream: str = "s",
        seed: int = 0,
        accelerator: FakeAccelerator | None = None,
        scratch: Path | None = None,
    ) -> Any:
        accelerator = accelerator or FakeAccelerator()
        sampler = AnswerSampler(model, tiny_tokenizer, SAMPLING, seed, accelerator, scratch)
        return sampler.answers(prompts, count, stream)

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


def test_two_processes_give_what_one_gives(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(items: list[Any]) -> None:
        raise SentError(items)

    alone = tokens(ask())
    monkeypatch.setattr(labeling.sampling, "gather_object", send)
    with pytest.raises(SentError) as sent:
        ask(accelerator=FakeAccelerator(1, 2))
    assert len(sent.value.args[0]) == 6, "half of the twelve"
    monkeypatch.setattr(labeling.sampling, "gather_object", lambda items: items + sent.value.args[0])
    assert tokens(ask(accelerator=FakeAccelerator(0, 2))) == alone


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """The seeds of each call of the decoder, which is killed in call number STOP["at"]; a block is one batch."""
    calls: list[list[int]] = []

    class Counting(NativeGenerator):
        def generate(self, model: Any, prompts: Any, seeds: Any, *rest: Any, **named: Any) -> list[Generation]:
            calls.append(list(seeds))
            if len(calls) == STOP.get("at"):
                raise Cut
            return super().generate(model, prompts, seeds, *rest, **named)

    monkeypatch.setattr(labeling.sampling, "generator_for", lambda model, tokens: Counting())
    monkeypatch.setattr(labeling.sampling, "BATCHES_A_BLOCK", 1)
    yield calls
    STOP.clear()


STOP: dict[str, int] = {}


def test_a_killed_run_samples_only_what_is_missing(ask: Any, counted: list[list[int]], tmp_path: Path) -> None:
    undisturbed = ask(scratch=tmp_path / "undisturbed")
    assert tokens(undisturbed) == tokens(ask(count=3)), "without a scratch folder it is all one block"
    counted.pop()
    asked = sorted(seed for call in counted for seed in call)
    counted.clear()
    STOP["at"] = 3
    with pytest.raises(Cut):
        ask(scratch=tmp_path)
    assert [len(call) for call in counted] == [3, 3, 3], "blocks of a batch, of which the third is killed"
    finished = counted[0] + counted[1]
    # The kill cut off a line.
    with (tmp_path / "s.rank-0.jsonl").open("ab") as file:
        file.write(b'{"jobs": [[3, 2]], "generations": [{"ids": [1, 2')
    counted.clear()
    STOP.clear()
    again = ask(scratch=tmp_path)
    assert again == undisturbed, "tokens and log-probabilities to the last bit"
    assert sorted([*finished, *(seed for call in counted for seed in call)]) == asked, "none twice, none left out"
    counted.clear()
    assert ask(scratch=tmp_path) == undisturbed
    assert counted == []


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_another_number_of_processes_resumes(
    ask: Any, counted: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    undisturbed = tokens(ask())
    finished: list[int] = []
    # Each process is killed before it exchanges anything.
    monkeypatch.setattr(
        labeling.scratch, "from_main", lambda accelerator, make: make() if accelerator.is_main_process else {}
    )
    for rank in range(ranks):
        STOP["at"] = len(counted) + 2
        with pytest.raises(Cut):
            ask(scratch=tmp_path, accelerator=FakeAccelerator(rank, ranks))
        finished += counted[-2]
    assert len(list(tmp_path.glob("*.rank-*"))) == ranks
    counted.clear()
    STOP.clear()
    assert tokens(ask(scratch=tmp_path)) == undisturbed
    made = [seed for call in counted for seed in call]
    assert not set(made) & set(finished)
    assert len(set(made)) == len(made) == 12 - len(set(finished))
    assert [path.name for path in tmp_path.glob("*.rank-*")] == ["s.rank-0.jsonl"]


def test_numbers_are_made_once(tmp_path: Path) -> None:
    made = [[0.1 + 0.2, 1e-300], None]
    asked: list[int] = []
    for _ in range(2):
        found = [
            remembered(tmp_path, f"number {n}", FakeAccelerator(), lambda n=n: asked.append(n) or made[n])
            for n in range(2)
        ]
        assert found == made
    assert asked == [0, 1]


def test_twins_are_merged_in_the_order_in_which_they_came(tiny_tokenizer: Any) -> None:
    def said(text: str, ended: bool) -> Generation:
        ids = encode_completion(tiny_tokenizer, text, ended)
        return Generation(ids, [0.0] * len(ids), ended)

    prompt = Demonstration(prompt="Why?", prompt_id="p", user_id="u", use_case="chat", completion="Because.")
    found = distinct_samples(
        tiny_tokenizer,
        prompt,
        [said("so", False), said("no", False), said("so", True), said(" so", False), said("no", False)],
    )
    assert found == Samples(
        prompt="Why?",
        prompt_id="p",
        user_id="u",
        use_case="chat",
        completions=["so", "no"],
        complete=[True, False],
        reference="Because.",
    )
    assert distinct_samples(tiny_tokenizer, Prompt(prompt="Why?"), [said("so", True)]).reference is None


def test_the_prompt_is_added_to_its_answers_once() -> None:
    row = Samples(prompt=" Why? ", completions=["So."], complete=[False])
    added = with_echo(row)
    assert (added.completions, added.complete) == (["So.", "Why?"], [False, True])
    assert with_echo(added) == added


def test_a_prompt_with_one_answer_only_is_left_out_and_counted() -> None:
    rows = [
        Samples(prompt="Why?", completions=texts, complete=[True] * len(texts))
        for texts in (["a"], ["a", "b"], [], ["a", "b", "c"])
    ]
    kept, dropped = rankable(rows)
    assert [len(row.completions) for row in kept] == [2, 3]
    assert dropped == 2
