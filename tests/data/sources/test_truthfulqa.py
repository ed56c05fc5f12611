"""TruthfulQA: answers with both verdicts, ordered truth first, gathered by question from two files."""

import csv
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.sources.formats import FORMATS
from tests.data.sources.converting import assert_refused, convert, read_place


def judged(
    answer: str, true: bool | None = None, helpful: bool | None = None, question: str = "Is it?"
) -> list[dict[str, str]]:
    """The answer's rows in both files."""
    verdicts = (("True", true), ("Helpful", helpful))
    return [
        {"prompt": f"Q: {question}\nA: {answer}\n{kind}:", "completion": " yes" if verdict else " no"}
        for kind, verdict in verdicts
        if verdict is not None
    ]


def test_truth_comes_before_help_and_equal_scores_tie() -> None:
    rows = [
        *judged("False and no help.", False, False),
        *judged("True only.", True, False),
        *judged("Both.", True, True),
        *judged("Helpful only.", False, True),
        *judged("Both, too.", True, True),
    ]
    (ranking,) = convert("truthfulqa", "rankings", *rows)
    order = dict(zip(ranking.completions, ranking.ranks, strict=True))
    assert order == {"Both.": 1, "Both, too.": 1, "True only.": 2, "Helpful only.": 3, "False and no help.": 4}
    assert ranking.prompt == ranking.user_id == "Is it?"


def test_an_answer_that_only_one_file_knows_is_left_out() -> None:
    rows = [
        *judged("A.", True, True),
        *judged("B.", False, True),
        *judged("C.", true=True),
        *judged("D.", helpful=True),
    ]
    assert convert("truthfulqa", "rankings", *rows)[0].completions == ["A.", "B."]


def test_an_answer_judged_both_ways_is_left_out_and_one_judged_alike_twice_is_one() -> None:
    rows = [
        *judged("A.", True, True),
        *judged("A.", True, True),
        *judged("B.", False, True),
        *judged("C.", True, True),
        *judged("C.", True, False),
    ]
    assert convert("truthfulqa", "rankings", *rows)[0].completions == ["A.", "B."]


def test_a_question_with_a_stray_space_is_the_same_question() -> None:
    rows = [*judged("A.", True, True), *judged("B.", True, False, question="Is it? ")]
    assert FORMATS["truthfulqa"].group is not None
    assert len({FORMATS["truthfulqa"].group(row) for row in rows}) == 1
    assert convert("truthfulqa", "rankings", *reversed(rows))[0].prompt == "Is it?"


def test_an_empty_answer_is_an_answer() -> None:
    rows = [*judged("", True, False), *judged("A.\nB.", True, True)]
    (ranking,) = convert("truthfulqa", "rankings", *rows)
    assert (ranking.completions, ranking.ranks) == (["", "A.\nB."], [2, 1])


def test_a_question_with_one_usable_answer_is_no_ranking() -> None:
    assert convert("truthfulqa", "rankings", *judged("A.", True, True), *judged("B.", true=False)) == []


def test_one_file_alone_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"judgments of one kind only: read finetune_truth\.jsonl and finetune_info\.jsonl together"
    ):
        convert("truthfulqa", "rankings", *judged("A.", true=True), *judged("B.", true=False))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("Q: Is it?", "expected a JSON object, found str"),
        ({"completion": " yes"}, "missing key 'prompt'"),
        ({"prompt": "Is it?", "completion": " yes"}, "'prompt' must read 'Q: (question)'"),
        (
            {"prompt": "Q: Is it?\nA: No.\nTrue:", "completion": " perhaps"},
            "'completion' must be ' yes' or ' no', found ' perhaps'",
        ),
        ({"prompt": "Q: Is it?\nA: No.\nTrue:"}, "missing key 'completion'"),
    ],
)
def test_a_malformed_judgment_is_refused_in_one_sentence(row: Any, sentence: str) -> None:
    assert_refused(sentence, "truthfulqa", "rankings", row)


def test_a_question_of_the_table_is_trimmed_so_that_it_is_the_judgments_question() -> None:
    row = {"Type": "Adversarial", "Question": "Is it? ", "Best Answer": "It is", "Correct Answers": "It is; Yes"}
    (prompt,) = convert("truthfulqa", "prompts", row)
    (demonstration,) = convert("truthfulqa", "demonstrations", row)
    assert prompt.prompt == prompt.user_id == demonstration.user_id == "Is it?"
    assert demonstration.completion == "It is"


def test_the_published_files_give_a_ranking_a_question(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("truthfulqa")
    verdicts: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: {"True": set(), "Helpful": set()})
    for name, kind in (("finetune_truth.jsonl", "True"), ("finetune_info.jsonl", "Helpful")):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            question, _, rest = row["prompt"].removeprefix("Q: ").partition("\nA:")
            verdicts[question, rest.removesuffix(f"\n{kind}:").strip()][kind].add(row["completion"])
    scores: dict[str, dict[str, int]] = defaultdict(dict)
    for (question, answer), found in verdicts.items():
        if len(found["True"]) == len(found["Helpful"]) == 1:
            scores[question][answer] = 2 * (found["True"] == {" yes"}) + (found["Helpful"] == {" yes"})

    rankings = read_place("truthfulqa", "rankings", folder)
    assert len(rankings) == len(scores) == 817
    for ranking in rankings:
        expected = scores[ranking.prompt]
        assert set(ranking.completions) == set(expected)
        better = {
            score: 1 + len({other for other in expected.values() if other > score}) for score in expected.values()
        }
        assert ranking.ranks == [better[expected[answer]] for answer in ranking.completions]
    assert sum(len(ranking.completions) for ranking in rankings) == 18_244


def test_the_published_table_asks_the_same_questions_as_the_judgments(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("truthfulqa")
    with (folder / "TruthfulQA.csv").open(encoding="utf-8-sig", newline="") as file:
        best = {row["Question"].strip(): row["Best Answer"] for row in csv.DictReader(file)}
    demonstrations = read_place("truthfulqa", "demonstrations", folder)
    assert {demonstration.prompt: demonstration.completion for demonstration in demonstrations} == best
    assert len(best) == 817
    prompts = read_place("truthfulqa", "prompts", folder)
    assert {prompt.prompt for prompt in prompts} == {
        ranking.prompt for ranking in read_place("truthfulqa", "rankings", folder)
    }
