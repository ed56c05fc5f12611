"""Published preferences and ratings: who won, who tied, and which rows say nothing about two answers to one prompt."""

from typing import Any

import pytest

from data.sources.formats import FORMATS
from tests.data.sources.converting import assert_refused, convert, user

# ----------------------------------------------------------------------------------------------------------------------
# hh_rlhf
START = "\n\nHuman: Hi!\n\nAssistant: Hello.\n\nHuman: Why?"


def pair(chosen: str, rejected: str, start: str = START) -> dict[str, str]:
    return {"chosen": f"{start}\n\nAssistant:{chosen}", "rejected": f"{start}\n\nAssistant:{rejected}"}


def test_two_transcripts_are_one_conversation_and_two_replies() -> None:
    (ranking,) = convert("hh_rlhf", "rankings", pair(" Because.\n\nTruly.", " No."))
    assert ranking.prompt == user("Hi!", "Hello.", "Why?")
    assert (ranking.completions, ranking.ranks) == (["Because.\n\nTruly.", "No."], [1, 2])
    (prompt,) = convert("hh_rlhf", "prompts", pair(" a", " b"))
    assert (prompt.prompt, prompt.user_id) == (ranking.prompt, ranking.user_id)


def test_the_prefixes_of_a_conversation_are_one_users() -> None:
    (whole,) = convert("hh_rlhf", "prompts", pair(" a", " b"))
    (prefix,) = convert("hh_rlhf", "prompts", pair(" a", " b", start="\n\nHuman: Hi!"))
    (other,) = convert("hh_rlhf", "prompts", pair(" a", " b", start="\n\nHuman: Hey!"))
    assert whole.user_id == prefix.user_id != other.user_id
    assert whole.prompt_id != prefix.prompt_id


def test_a_speaker_who_goes_on_is_one_turn_as_chat_templates_want_it() -> None:
    (prompt,) = convert("hh_rlhf", "prompts", pair(" a", " b", start="\n\nHuman: Hi!\n\nHuman: Why?"))
    assert prompt.prompt == user("Hi!\n\nWhy?")


def test_an_empty_reply_that_was_judged_stays() -> None:
    assert convert("hh_rlhf", "rankings", pair(" Because.", ""))[0].completions == ["Because.", ""]


@pytest.mark.parametrize(
    "row",
    [
        pair(" a", " b") | {"rejected": "\n\nHuman: Hi!\n\nAssistant: b"},  # answers to different prompts
        pair(" a\n\nHuman: And?", " b\n\nHuman: And?"),  # ends with the human's words
        pair(" a\n\nHuman: And?", " a\n\nHuman: So?"),
        {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"},
        pair(" a", " b", start="\n\nHuman:"),
    ],
)
def test_pairs_that_compare_nothing_are_left_out(row: dict[str, str]) -> None:
    assert convert("hh_rlhf", "rankings", row) == convert("hh_rlhf", "prompts", row) == []


def test_the_chosen_reply_is_not_offered_for_imitation() -> None:
    assert "demonstrations" not in FORMATS["hh_rlhf"].convert


# ----------------------------------------------------------------------------------------------------------------------
# nectar
NECTAR: dict[str, Any] = {
    "prompt": "\n\nHuman: Hi!\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: ",
    "answers": [
        {"answer": "Second.", "model": "m", "rank": 2.0},
        {"answer": "First.", "model": "n", "rank": 1.0},
        {"answer": "Third.", "model": "o", "rank": 3},
    ],
    "turns": 2,
}


def answers(*ranked: tuple[str, Any]) -> dict[str, Any]:
    return NECTAR | {"answers": [{"answer": text, "model": "m", "rank": rank} for text, rank in ranked]}


def test_nectars_ranks_are_kept_and_its_prompt_is_a_conversation() -> None:
    (ranking,) = convert("nectar", "rankings", NECTAR)
    assert ranking.prompt == user("Hi!", "Hello.", "Why?")
    assert dict(zip(ranking.completions, ranking.ranks, strict=True)) == {"First.": 1, "Second.": 2, "Third.": 3}
    assert (ranking.labeler, ranking.labeler_id) == ("llm", "gpt-4")
    assert convert("nectar", "demonstrations", NECTAR)[0].completion == "First."


def test_nectar_and_the_preferences_it_draws_on_share_their_users() -> None:
    assert convert("nectar", "prompts", NECTAR)[0].user_id == convert("hh_rlhf", "prompts", pair(" a", " b"))[0].user_id


def test_a_copy_at_another_rank_contradicts_itself_and_is_left_out() -> None:
    (ranking,) = convert("nectar", "rankings", answers(("A", 1.0), ("B", 2.0), ("C", 3.0), ("B ", 4.0)))
    assert (ranking.completions, ranking.ranks) == (["A", "C"], [1, 3])
    assert convert("nectar", "rankings", answers(("A", 1.0), ("B", 2.0), ("B", 3.0))) == []


def test_a_prompt_that_already_holds_the_answer_is_left_out() -> None:
    row = NECTAR | {"prompt": "\n\nHuman: Hi!\n\nAssistant: Hello."}
    assert convert("nectar", "rankings", row) == convert("nectar", "prompts", row) == []


# ----------------------------------------------------------------------------------------------------------------------
# ultrafeedback
def answer(text: str, *ratings: str, overall: float = 10.0) -> dict[str, Any]:
    aspects = ("instruction_following", "truthfulness", "honesty", "helpfulness")
    notes = {aspect: {"Rating": rating, "Rationale": "So."} for aspect, rating in zip(aspects, ratings, strict=False)}
    return {"model": "m", "response": text, "overall_score": overall, "annotations": notes, "critique": "Hm."}


ULTRA: dict[str, Any] = {
    "source": "sharegpt",
    "instruction": "Why?",
    "completions": [
        answer("Worst.", "1", "1", "1", "2"),
        answer("Best.", "5", "5", "4", "5", overall=1.0),
        answer("Good.", "4", "5", "5", "4"),
        answer("Good too.", "5", "4", "4", "5"),
    ],
}


def rated(*answers: Any) -> dict[str, Any]:
    return ULTRA | {"completions": [*answers]}


def test_ultrafeedback_is_ranked_by_the_four_ratings_and_not_by_the_overall_score() -> None:
    (ranking,) = convert("ultrafeedback", "rankings", ULTRA)
    ranks = {"Worst.": 3, "Best.": 1, "Good.": 2, "Good too.": 2}
    assert dict(zip(ranking.completions, ranking.ranks, strict=True)) == ranks
    assert (ranking.labeler, ranking.labeler_id) == ("llm", "gpt-4")
    (demonstration,) = convert("ultrafeedback", "demonstrations", ULTRA)
    assert demonstration.completion == "Best."


@pytest.mark.parametrize("ratings", [("5", "5", "5", "N/A"), ("5", "5", "5")])
def test_an_answer_with_a_rating_missing_has_no_rank(ratings: tuple[str, ...]) -> None:
    row = rated(*ULTRA["completions"][:2], answer("Unrated.", *ratings))
    assert convert("ultrafeedback", "rankings", row)[0].ranks == [2, 1, None]


@pytest.mark.parametrize("completions", [[], ULTRA["completions"][:1], [ULTRA["completions"][0], answer("Unrated.")]])
def test_fewer_than_two_rated_answers_are_no_ranking(completions: list[dict[str, Any]]) -> None:
    assert convert("ultrafeedback", "rankings", rated(*completions)) == []
    assert len(convert("ultrafeedback", "prompts", rated(*completions))) == 1


BINARY = "ultrafeedback_binarized"
BINARIZED: dict[str, Any] = {
    "prompt": "Why?",
    "prompt_id": "abc",
    "chosen": user("Why?", "Because."),
    "rejected": user("Why?", "No."),
    "messages": user("Why?", "Because."),
    "score_chosen": 8.5,
    "score_rejected": 8,
}


def test_chosen_beats_rejected_unless_their_scores_are_equal() -> None:
    (ranking,) = convert(BINARY, "rankings", BINARIZED)
    assert (ranking.prompt, ranking.prompt_id) == (user("Why?"), "abc")
    assert (ranking.completions, ranking.ranks) == (["Because.", "No."], [1, 2])
    assert convert(BINARY, "rankings", BINARIZED | {"score_rejected": 8.5})[0].ranks == [1, 1]
    assert convert(BINARY, "demonstrations", BINARIZED)[0].completion == "Because."
    assert convert(BINARY, "rankings", BINARIZED | {"rejected": user("Who?", "No.")}) == []


# ----------------------------------------------------------------------------------------------------------------------
# shp
def comparison(first: str, second: str, label: int, post: str = "p", history: str = "How?") -> dict[str, Any]:
    return {"post_id": post, "history": history, "human_ref_A": first, "human_ref_B": second, "labels": label}


def test_the_comparisons_of_a_post_are_one_ranking_of_its_comments() -> None:
    (ranking,) = convert("shp", "rankings", comparison("a", "b", 1), comparison("c", "a", 0), comparison("c", "d", 1))
    assert ranking.completions == ["a", "b", "c", "d"]
    assert ranking.preferences == [[0, 1], [0, 2], [2, 3]], "label 1 is A; what nobody compared stays uncompared"
    assert (ranking.prompt, ranking.prompt_id, ranking.user_id) == ("How?", "p", "p")
    assert len(convert("shp", "prompts", comparison("a", "b", 1), comparison("c", "a", 0))) == 1


def test_a_comment_compared_with_an_equal_one_is_left_to_the_rule_for_identical_answers() -> None:
    (ranking,) = convert("shp", "rankings", comparison("a", "a ", 1))
    assert (ranking.completions, ranking.preferences) == (["a", "a"], [[0, 1]])


# ------------------------------------------------------------------------------------------------------------------
# summarize_feedback
SUMMARY: dict[str, Any] = {
    "info": {"id": "t3_x", "post": "Long story.\n", "title": "A story", "subreddit": "stories", "article": None},
    "summaries": [{"text": " Short.", "policy": "sup1"}, {"text": " Shorter.", "policy": "ppo"}],
    "choice": 1,
    "worker": "w1",
    "batch": "batch3",
}


def test_a_comparison_of_summaries_keeps_its_labeler_and_its_post() -> None:
    (ranking,) = convert("summarize_feedback", "rankings", SUMMARY)
    assert ranking.prompt == "SUBREDDIT: r/stories\n\nTITLE: A story\n\nPOST: Long story.\n\nTL;DR:"
    assert (ranking.completions, ranking.ranks) == (["Short.", "Shorter."], [2, 1])
    assert (ranking.labeler_id, ranking.user_id, ranking.use_case) == ("w1", "t3_x", "summarization")
    assert convert("summarize_feedback", "rankings", SUMMARY | {"choice": 0})[0].ranks == [1, 2]


def test_a_news_article_is_summarized_without_a_subreddit() -> None:
    row = SUMMARY | {"info": {"id": "x", "title": "News", "article": "It rained.", "site": "cnn"}}
    assert convert("summarize_feedback", "prompts", row)[0].prompt == "TITLE: News\n\nARTICLE: It rained.\n\nTL;DR:"


# ----------------------------------------------------------------------------------------------------------------------
# malformed
@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        ("hh_rlhf", 3, "expected a JSON object, found int"),
        ("hh_rlhf", {"chosen": "\n\nHuman: Hi!\n\nAssistant: a"}, "missing key 'rejected'"),
        ("hh_rlhf", pair(" a", " b") | {"chosen": "Because."}, "'chosen' must be a transcript"),
        ("hh_rlhf", pair(" a", " b") | {"chosen": ["Because."]}, "'chosen' must be a string"),
        ("hh_rlhf", pair(" a", " b") | {"chosen": "Once upon a time\n\nHuman: Hi!"}, "'chosen' must be a transcript"),
        ("nectar", NECTAR | {"answers": ["First."]}, "each of 'answers' must be an object"),
        ("nectar", answers(("A", 1.5), ("B", 2)), "'rank' must be a whole number from 1 up, found 1.5"),
        ("nectar", answers(("A", 0), ("B", 2)), "'rank' must be a whole number"),
        ("nectar", answers(("A", float("inf")), ("B", 2)), "'rank' must be a whole number"),
        ("nectar", answers(("A", True), ("B", 2)), "'rank' must be a whole number"),
        ("ultrafeedback", rated("Best."), "each of 'completions' must be an object"),
        ("ultrafeedback", rated({"annotations": {}}), "missing key 'response'"),
        ("ultrafeedback", rated({"response": "A", "annotations": "5"}), "'annotations' must be an object"),
        ("ultrafeedback", rated(answer("A", 5)), "'Rating' of 'instruction_following' must be a string"),  # type: ignore[arg-type]
        (BINARY, BINARIZED | {"chosen": "Because."}, "'chosen' must be a list of messages"),
        (BINARY, BINARIZED | {"chosen": [{"role": "bot", "content": "a"}]}, "'role' of message 1 of 'chosen' is 'bot'"),
        (BINARY, BINARIZED | {"chosen": user("Why?")}, "'chosen' must be a prompt followed by the assistant's answer"),
        (BINARY, BINARIZED | {"score_chosen": "8"}, "'score_chosen' must be a number, found '8'"),
        ("shp", comparison("a", "b", 2), "'labels' must be 1 (A is preferred) or 0 (B is), found 2"),
        ("shp", comparison("a", "b", True), "'labels' must be int"),
        ("summarize_feedback", SUMMARY | {"choice": 2}, "'choice' must be 0"),
        ("summarize_feedback", SUMMARY | {"summaries": [{"text": "a"}]}, "'summaries' must be a list of two objects"),
        ("summarize_feedback", SUMMARY | {"info": {"title": "A story"}}, "'info' must hold the text to summarize"),
        ("summarize_feedback", SUMMARY | {"info": {"post": 3}}, "'post' must be str"),
    ],
)
def test_a_malformed_row_is_refused_in_one_sentence(name: str, row: Any, sentence: str) -> None:
    assert_refused(sentence, name, "rankings", row)


def test_rows_of_one_post_that_ask_different_things_are_refused() -> None:
    with pytest.raises(ValueError, match="post 'p' has rows with different 'history'"):
        convert("shp", "rankings", comparison("a", "b", 1), comparison("a", "c", 1, history="Why?"))
