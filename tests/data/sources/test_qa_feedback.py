"""QA-Feedback: comparisons stay as they were made, and the answers' passages are part of the prompt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.sources.converting import assert_refused, convert, read_place

ROW: dict[str, Any] = {
    "question": "When did the mill open? ",
    "passages": [["Old Mill", "Old Mill\n\nOld Mill is a  mill.", "It opened in 1850."], ["Rivers", "Some are long."]],
    "gold": "The mill opened in 1850. ",
    "prediction 1": "In 1850.",
    "prediction 2": "In 1950.",
    "prediction 3": "Long ago.",
    "prediction 4": "In 1850, I believe.",
    "feedback": {"errors": []},
    "preference": [1, 1, 0, 2, 2, 2],
}


def row(**changes: Any) -> dict[str, Any]:
    return ROW | changes


def test_the_six_comparisons_stay_raw_and_in_their_published_order() -> None:
    (ranking,) = convert("qa_feedback", "rankings", ROW)
    assert ranking.completions == ["In 1850.", "In 1950.", "Long ago.", "In 1850, I believe."]
    assert ranking.preferences == [[0, 1], [0, 2], [2, 1], [3, 1], [3, 2]]
    assert ranking.ties == [[0, 3]]
    assert ranking.ranks is None


def test_a_cycle_is_kept_as_a_cycle() -> None:
    (ranking,) = convert("qa_feedback", "rankings", row(preference=[1, 2, 0, 1, 0, 0]))
    assert ranking.preferences == [[0, 1], [2, 0], [1, 2]]


def test_the_prompt_holds_each_passage_once_on_a_line_then_the_question() -> None:
    (prompt,) = convert("qa_feedback", "prompts", ROW)
    assert prompt.prompt == (
        "Answer the question from the passages.\n\nOld Mill: Old Mill is a mill. It opened in 1850.\nRivers: Some "
        "are long.\n\n"
        "Question: When did the mill open?"
    )
    assert (prompt.use_case, prompt.source) == ("closed_qa", "api")


@pytest.mark.parametrize(
    ("passage", "line"),
    [
        (["Bloom", "Bloom is an album.", "It sold."], "Bloom: Bloom is an album. It sold."),
        (["Bloom", "Bloom\n\nBloom is an album.", "It sold."], "Bloom: Bloom is an album. It sold."),
        (
            ["Bloom: The Film", "Bloom:", "The Film\n\nBloom: The Film is a film."],
            "Bloom: The Film: Bloom: The Film is a film.",
        ),
        (["Who?", "Who?", "It is a song."], "Who?: It is a song."),
        (["Pi", "Pies are round."], "Pi: Pies are round."),
        (["", "No title."], "No title."),
        (["No text"], "No text"),
    ],
)
def test_only_a_heading_is_taken_for_the_repeated_title(passage: list[str], line: str) -> None:
    assert convert("qa_feedback", "prompts", row(passages=[passage]))[0].prompt.split("\n")[2] == line


def test_a_question_without_passages_stands_alone() -> None:
    (prompt,) = convert("qa_feedback", "prompts", row(passages=[]))
    assert (prompt.prompt, prompt.use_case) == ("When did the mill open?", "open_qa")


def test_all_roles_ask_in_the_same_words() -> None:
    (prompt,), (demonstration,), (ranking,) = (
        convert("qa_feedback", role, ROW) for role in ("prompts", "demonstrations", "rankings")
    )
    assert prompt.prompt == demonstration.prompt == ranking.prompt
    assert demonstration.completion == "The mill opened in 1850."


def test_rows_of_the_supervised_file_have_a_list_of_answers() -> None:
    supervised = {
        "question": "Why?",
        "passages": [["T", "S."]],
        "text": "question: Why? context: T S.",
        "answer": [" Because. ", "So."],
    }
    (demonstration,) = convert("qa_feedback", "demonstrations", supervised)
    assert demonstration.completion == "Because."
    assert demonstration.prompt.endswith("T: S.\n\nQuestion: Why?")


@pytest.mark.parametrize(
    ("malformed", "sentence"),
    [
        (["Why?"], "expected a JSON object, found list"),
        (row(preference=[1, 1, 0, 2, 2]), "'preference' must hold 6 verdicts"),
        (row(preference=[1, 1, 0, 2, 2, 3]), "'preference' must hold 6 verdicts"),
        (row(preference=[True, 1, 0, 2, 2, 1]), "'preference' must hold 6 verdicts"),
        (row(preference=[[1], 1, 0, 2, 2, 1]), "'preference' must hold 6 verdicts"),
        (row(passages=[["T", 3]]), "each of 'passages' must be a list of strings"),
        (row(passages=["T"]), "each of 'passages' must be a list of strings"),
        (row(passages=None), "'passages' must be list"),
        (row(question=None), "'question' must be str"),
        ({key: value for key, value in ROW.items() if key != "prediction 3"}, "missing key 'prediction 3'"),
    ],
)
def test_a_malformed_row_is_refused_in_one_sentence(malformed: Any, sentence: str) -> None:
    assert_refused(sentence, "qa_feedback", "rankings", malformed)


@pytest.mark.parametrize("answer", [[], [3], "Because."])
def test_a_malformed_answer_is_refused(answer: Any) -> None:
    with pytest.raises(ValueError, match="'answer' must be a list of"):
        convert("qa_feedback", "demonstrations", {"question": "Why?", "passages": [], "answer": answer})


def test_the_published_comparisons_all_arrive_and_none_is_added(shared_data: Callable[[str], Path]) -> None:
    file = shared_data("qa_feedback/dev_feedback.json")
    published = json.loads(file.read_text(encoding="utf-8"))
    rankings = read_place("qa_feedback", "rankings", file)
    assert len(rankings) == len(published) == 500
    assert sum(len(ranking.ties) for ranking in rankings) == sum(row["preference"].count(0) for row in published) == 384
    assert sum(len(ranking.preferences) for ranking in rankings) == 2616
    for ranking, source in zip(rankings, published, strict=True):
        verdicts = iter(source["preference"])
        for first in range(4):
            for second in range(first + 1, 4):
                verdict = next(verdicts)
                assert ([first, second] in ranking.preferences) == (verdict == 1)
                assert ([second, first] in ranking.preferences) == (verdict == 2)
                assert ([first, second] in ranking.ties) == (verdict == 0)
        for title, *sentences in source["passages"]:
            assert f"\n{title}: " in ranking.prompt
            assert set(" ".join(sentences).split()) <= set(ranking.prompt.split()) | set(title.split()), (
                "no word of a passage is lost"
            )
    assert len({ranking.prompt_id for ranking in rankings}) == 500
    assert len(read_place("qa_feedback", "demonstrations", file)) == 500
