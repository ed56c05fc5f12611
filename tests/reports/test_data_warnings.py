"""Each warning is given where its threshold is passed, and only there."""

from typing import Any

import pytest

from data.control_tokens import spelled
from data.split import split_of
from reports.data_warnings import about_contents, about_rankings, about_records, warnings
from tests.data.making import demonstrations, described, made, prompts, rankings, twins


def said(folder, rows: dict[str, list[Any]] | None = None, **settings: Any) -> str:
    return "\n".join(warnings(described(folder, rows, **settings)))


def facts(**more: Any) -> dict[str, Any]:
    """Rankings without a fault."""
    good = {
        "count": 100,
        "answers": {"4": 90, "9": 10},
        "labeler_ids": {"rankings_without": 0},
        "strict": 900,
        "tied": 100,
        "longer_better": {"mean": 0.52, "low": 0.5, "high": 0.54, "n": 900},
    }
    return {"rankings": good | more}


def contents(spelled: dict[str, int]) -> dict[str, Any]:
    """The facts that `about_contents` reads, without a fault but for `spelled`."""
    settings = {"languages": ["en"], "personal_data": "rules"}
    return {"sets": {"rm": {"use_cases": {}}}, "languages": {"prompts": {}}, "settings": settings, "spelled": spelled}


def test_large_and_even_data_are_not_warned_of(tmp_path):
    words = ("tell", "write", "list", "sum up", "say")
    rows = [
        {
            "prompt": f"{number} things about the history of towns: {words[number % 5]} what you know",
            "user_id": f"u{number % 400}",
            "completion": "no",
        }
        | {"use_case": ("chat", "extract")[number % 2]}
        for number in range(1600)
    ]
    assert said(tmp_path, {"demonstrations": rows}) == ""


def test_small_splits_and_few_rl_prompts(tmp_path):
    found = said(tmp_path)
    assert "Too small to tell two models apart: SFT validation (" in found
    assert "SFT training" not in found
    assert "prompts to train RL on, fewer than one of the paper's iterations (512)" in found


def test_a_user_who_is_half_of_a_split_is_named_and_masked(tmp_path):
    busy = prompts(200, user_id="bob.miller@miller-tools.com")
    assert "One user, '[EMAIL]', sent " in said(tmp_path, {"prompts": busy})
    assert "lower data.max_prompts_per_group" in said(tmp_path / "again", {"prompts": busy})
    assert "One user" not in said(tmp_path / "few", {"prompts": prompts(30)})


def test_half_is_half(tmp_path):
    others = int(made(tmp_path)[0].pool.kept("train").sum())
    name = next(f"busy {number}" for number in range(100) if split_of(f"busy {number}", 0.2, 0.2) == "train")
    assert f"One user, {name!r}, sent 50.0% of the RM training prompts" in said(
        tmp_path / "half", {"prompts": prompts(others, user_id=name)}
    )
    assert "of the RM" not in said(tmp_path / "less", {"prompts": prompts(others - 1, user_id=name)})


def test_users_of_their_own(tmp_path):
    alone = [row | {"user_id": f"alone {number}"} for number, row in enumerate(demonstrations())]
    assert "Every prompt has a user of its own" in said(tmp_path, {"demonstrations": alone})
    assert "Every prompt" not in said(tmp_path / "other")


def test_unread_files_of_a_source_are_listed_once():
    source = {"name": "books", "unread": ["austen/", "a.zip", "b.zip", "c.zip", "d.zip", "e.zip"]}
    seen = {"skipped": 0, "ignored_keys": {}, "rankings": {"identical": 0}, "removed": {}}
    (found,) = about_records(seen | {"sources": [source | {"role": "prompts"}, source | {"role": "rankings"}]})
    assert found.startswith(
        "The folder of the source 'books' also contains data that is not read: austen/, a.zip, b.zip, c.zip, d.zip and "
        "1 more. Add"
    )
    assert not list(about_records(seen | {"sources": [source | {"unread": []}]}))


def test_skipped_rows(tmp_path):
    assert "1 malformed row skipped" in said(tmp_path, {"prompts": [*prompts(3), '{"promt": 1}']}, bad_rows="skip")


def test_a_rule_that_removes_a_fifth(tmp_path):
    heavy = said(tmp_path, {"prompts": prompts(30) + twins(30)})
    assert "25.0% of all prompts were removed by one rule, near_duplicate (" in heavy
    assert "raise data.near_duplicate_fraction" in heavy
    assert "removed by one rule" not in said(tmp_path / "light", {"prompts": prompts(30) + twins(20)})
    again = [row | {"user_id": "again"} for row in prompts(30)]
    assert "removed by one rule" not in said(tmp_path / "again", {"prompts": prompts(30) + again}), (
        "nothing is lost with a copy"
    )


def test_one_use_case_and_several_languages(tmp_path):
    chatty = [row | {"use_case": "chat"} for row in demonstrations()]
    assert "100.0% of the prompts that name a use case are chat" in said(tmp_path, {"demonstrations": chatty})
    towns = [
        "Berlin",
        "Hamburg",
        "München",
        "Köln",
        "Frankfurt",
        "Stuttgart",
        "Bremen",
        "Dresden",
        "Hannover",
        "Nürnberg",
    ]
    german = [
        {
            "prompt": f"{town} ist berühmt, aber warum eigentlich, und was sollte man dort gesehen haben?",
            "user_id": town,
        }
        for town in towns
    ]
    assert "are in the main language (en): if the others are not intended, set data.languages to [en]" in said(
        tmp_path / "mixed", {"prompts": german}
    )
    assert "main language" not in said(tmp_path / "chosen", {"prompts": german}, languages=["en"])


def test_personal_data_that_nobody_looked_for(tmp_path):
    assert "not searched for personal data" in said(tmp_path, personal_data="off")
    assert "not searched" not in said(tmp_path / "on")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"tied": 901}, "50.0% of the judged pairs are ties"),
        ({"answers": {"2": 100}}, "Every ranking has two answers"),
        (
            {"longer_better": {"mean": 0.62, "low": 0.58, "high": 0.66, "n": 900}},
            "the longer answer is better in 62.0% of pairs",
        ),
        (
            {"longer_better": {"mean": 0.35, "low": 0.3, "high": 0.4, "n": 900}},
            "the shorter answer is better in 65.0% of pairs",
        ),
        ({"labeler_ids": {"rankings_without": 25}}, "25.0% of the rankings name no labeler"),
    ],
)
def test_rankings_that_are_doubtful(more, sentence):
    (only,) = about_rankings(facts(**more))
    assert sentence in only


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tied": 900},
        {"answers": {"2": 99, "3": 1}},
        {"longer_better": {"mean": 0.62, "low": 0.49, "high": 0.75, "n": 20}},
        {"longer_better": {"mean": 0.55, "low": 0.53, "high": 0.57, "n": 9000}},
        {"count": 0},
    ],
)
def test_rankings_that_are_not(more):
    assert list(about_rankings(facts(**more))) == []


def test_separators_of_documents_in_plain_text_are_named(tiny_tokenizer):
    eos = tiny_tokenizer.eos_token
    found = spelled(tiny_tokenizer, [f"A story.{eos}Another." * 6, f"{eos} b" * 5, "c"])
    assert found == {eos: 11}
    (only,) = [line for line in about_contents(contents(found)) if "spells" in line]
    assert only.startswith(f"The pretraining text spells {eos} 11 times; each is trained on as ordinary characters.")
    assert not list(about_contents(contents({eos: 10})))


def test_no_rankings_no_doubts_about_them(tmp_path):
    assert "ranking" not in said(tmp_path)
    assert "Every ranking has two answers" in said(tmp_path / "ranked", {"rankings": rankings(20)})
