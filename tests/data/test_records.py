"""Records: what a row must be, what is said of one that is not, and what a record that gives only the least is filled
up with.
"""

from typing import Any

import pytest

from data.records import USE_CASES, Demonstration, Prompt, Ranking, parse, to_row

RANKING = {"prompt": "Why?", "completions": ["a", "b", "c"]}


def ranking(**changes: Any) -> dict[str, Any]:
    return RANKING | changes


MALFORMED: list[tuple[type[Prompt], object, str]] = [
    (Prompt, ["Why?"], "expected a JSON object, found list"),
    (Prompt, None, "expected a JSON object, found NoneType"),
    (Prompt, {}, "missing key 'prompt'"),
    (Prompt, {"prompt": 3}, "'prompt' must be a non-empty string or a list of messages"),
    (Prompt, {"prompt": None}, "'prompt' must be a non-empty string or a list of messages"),
    (Prompt, {"prompt": " \n"}, "'prompt' must be a non-empty string or a list of messages"),
    (Prompt, {"prompt": []}, "'prompt' has no messages"),
    (Prompt, {"prompt": ["Why?"]}, "message 1 of 'prompt' must be an object with 'role' and 'content', found str"),
    (Prompt, {"prompt": [{"role": "user"}]}, "message 1 of 'prompt' has no 'content'; found 'role'"),
    (
        Prompt,
        {"prompt": [{"role": "user", "content": 3}]},
        "'content' of message 1 of 'prompt' must be a string or a list of text parts",
    ),
    (Prompt, {"prompt": "Why?", "id": "x0"}, "unknown key 'id'; known are prompt, prompt_id"),
    (Prompt, {"prompt": "Why?", "user": "ann"}, "unknown key 'user', did you mean 'user_id'?"),
    (
        Prompt,
        {"prompt": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
        "must not be the assistant's",
    ),
    (Prompt, {"prompt": "Why?", "promt_id": "a"}, "unknown key 'promt_id', did you mean 'prompt_id'?"),
    (Prompt, {"prompt": "Why?", "xyzzy": 1}, "unknown key 'xyzzy'; known are prompt, prompt_id"),
    (Prompt, {"prompt": "Why?", "completion": "So."}, "unknown key 'completion'"),
    (
        Prompt,
        {"id": 1, "promt": "Why?", "region": "north"},
        "unknown keys 'id'; 'promt', did you mean 'prompt'?; 'region'; known are prompt, prompt_id",
    ),
    (Prompt, {"prompt": "Why?", "prompt_id": 7}, "'prompt_id' must be a string"),
    (Prompt, {"prompt": "Why?", "user_id": None}, "'user_id' must be a string"),
    (Prompt, {"prompt": "Why?", "source": "web"}, "'source' is 'web'; allowed are labeler, api; if the column means"),
    (Prompt, {"prompt": "Why?", "source": None}, "'source' is None"),
    (Prompt, {"prompt": "Why?", "kind": "long"}, "'kind' is 'long'; allowed are plain, few_shot, user_based"),
    (Prompt, {"prompt": "Why?", "use_case": ["chat"]}, "'use_case' is ['chat']"),
    (Demonstration, {"prompt": "Why?"}, "missing key 'completion'"),
    (Demonstration, {"prompt": "Why?", "completion": ""}, "'completion' must be a non-empty string"),
    (Demonstration, {"prompt": "Why?", "completion": ["So."]}, "'completion' must be a non-empty string"),
    (
        Demonstration,
        {"prompt": "Why?", "completions": ["So."]},
        "unknown key 'completions', did you mean 'completion'?",
    ),
    (Ranking, {"prompt": "Why?"}, "missing key 'completions'"),
    (Ranking, ranking(completions="abc", ranks=[1, 2, 3]), "'completions' must be a list of strings"),
    (Ranking, ranking(completions=["a", 2, "c"], ranks=[1, 2, 3]), "'completions' must be a list of strings"),
    (Ranking, ranking(completions=["a"], ranks=[1]), "at least 2 completions, found 1"),
    (Ranking, ranking(completions=[], ranks=[]), "at least 2 completions, found 0"),
    (Ranking, ranking(), "exactly one of 'ranks' and 'preferences'"),
    (Ranking, ranking(ranks=[1, 2, 3], preferences=[[0, 1]]), "exactly one of 'ranks' and 'preferences'"),
    (Ranking, ranking(ranks=[1, 2]), "'ranks' must be a list as long as 'completions' (3)"),
    (Ranking, ranking(ranks={"a": 1}), "'ranks' must be a list as long as 'completions' (3)"),
    (Ranking, ranking(ranks=[0, 1, 2]), "'ranks' must hold integers from 1 up"),
    (Ranking, ranking(ranks=[1, 2.0, 3]), "'ranks' must hold integers from 1 up"),
    (Ranking, ranking(ranks=[1, True, 3]), "'ranks' must hold integers from 1 up"),
    (Ranking, ranking(ranks=[1, "2", 3]), "'ranks' must hold integers from 1 up"),
    (Ranking, ranking(preferences=[[0, 3]]), "'preferences' must be a list of [better, worse] pairs"),
    (Ranking, ranking(preferences=[[-1, 0]]), "'preferences' must be a list of [better, worse] pairs"),
    (Ranking, ranking(preferences=[[1, 1]]), "'preferences' must be a list of [better, worse] pairs"),
    (Ranking, ranking(preferences=[[0, 1, 2]]), "'preferences' must be a list of [better, worse] pairs"),
    (Ranking, ranking(preferences=[[0, True]]), "'preferences' must be a list of [better, worse] pairs"),
    (Ranking, ranking(preferences="01"), "'preferences' must be a list of [better, worse] pairs"),
    (Ranking, ranking(ranks=[1, 2, 3], labeler="cat"), "'labeler' is 'cat'; allowed are human, simulated, llm"),
    (Ranking, ranking(ranks=[1, 2, 3], labeler_id=4), "'labeler_id' must be a string"),
    (Ranking, ranking(ranks=[1, 2, 3], complete=[True]), "'complete' must be a list as long as 'completions' (3)"),
    (Ranking, ranking(ranks=[1, 2, 3], complete=["yes", "no", "no"]), "'complete' must be a list"),
    (Ranking, ranking(ranks=[1, 2, 3], ratings=[7, 3, 1]), "'ratings' must be a list"),
    (Ranking, ranking(ranks=[1, 2, 3], rank=[1, 2, 3]), "unknown key 'rank', did you mean 'ranks'?"),
]


@pytest.mark.parametrize(("record_type", "row", "sentence"), MALFORMED)
def test_a_malformed_row_is_refused_in_one_sentence(record_type: type[Prompt], row: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(row, record_type)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "extra",
    [{"ranks": [2, 1, 2]}, {"ranks": [1, None, 5]}, {"preferences": [[0, 1], [1, 2], [2, 0]]}, {"preferences": []}],
)
def test_ties_gaps_unranked_answers_and_cycles_are_taken_as_they_are(extra: dict[str, Any]) -> None:
    record = parse(RANKING | extra, Ranking)
    assert to_row(record).items() >= extra.items()


def test_what_a_row_does_not_say_has_the_documented_default() -> None:
    record = parse({"prompt": "Why?"}, Prompt)
    assert (record.source, record.kind, record.use_case) == ("api", None, None)
    assert record.prompt_id
    assert record.user_id == record.prompt_id, "each prompt is a user of its own"
    assert parse({"prompt": "Why?", "user_id": "ann"}, Prompt).prompt_id == record.prompt_id, (
        "the id hangs on the prompt alone"
    )
    assert parse({"prompt": "Why not?"}, Prompt).prompt_id != record.prompt_id
    ranked = parse(ranking(ranks=[1, 2, 3]), Ranking)
    assert (ranked.labeler, ranked.labeler_id, ranked.complete, ranked.ratings, ranked.preferences) == (
        "human",
        "",
        None,
        None,
        None,
    )


def test_ids_that_are_given_stay() -> None:
    record = parse({"prompt": "Why?", "prompt_id": "p", "user_id": "u"}, Prompt)
    assert (record.prompt_id, record.user_id) == ("p", "u")


def test_a_string_is_one_user_turn_and_a_conversation_stays_one() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert parse({"prompt": "Why?"}, Prompt).messages == [{"role": "user", "content": "Why?"}]
    assert parse({"prompt": turns}, Prompt).messages == turns
    assert parse({"prompt": turns}, Prompt).text == "Be brief.\nWhy?"


@pytest.mark.parametrize("kind", ["plain", "few_shot", "user_based", None])
@pytest.mark.parametrize("use_case", [*USE_CASES, None])
def test_every_kind_and_use_case_of_the_paper_survives_writing_and_reading(
    kind: str | None, use_case: str | None
) -> None:
    record = parse(
        {"prompt": "Why?", "completion": "So.", "source": "labeler", "kind": kind, "use_case": use_case}, Demonstration
    )
    assert parse(to_row(record), Demonstration) == record


def test_the_paper_has_ten_use_cases() -> None:
    assert len(set(USE_CASES)) == len(USE_CASES) == 10


def test_a_prompt_taken_from_a_demonstration_no_longer_knows_the_answer() -> None:
    record = parse({"prompt": "Why?", "completion": "So.", "user_id": "u", "kind": "plain"}, Demonstration)
    bare = Prompt.of(record)
    assert type(bare) is Prompt
    assert "So." not in str(to_row(bare))
    assert (bare.prompt_id, bare.user_id, bare.kind) == (record.prompt_id, "u", "plain")
