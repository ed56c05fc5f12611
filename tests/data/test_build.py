"""The three sets: who may be in which, and that every row that is missing from them is accounted for."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import data.annotate
import data.build
import data.table
from data.annotate import Annotator
from data.build import Built, build
from data.config import DataConfig, SourceConfig
from data.records import SPLITS, Demonstration, Prompt, Ranking
from data.sets import SETS
from data.split import split_of
from tests.data.building import WORDS, Sets, rows, words, written


def test_rl_sees_api_prompts_only_and_no_answers(config: DataConfig, sets: Callable[[DataConfig], Sets]) -> None:
    found = sets(config)
    assert all(type(prompt) is Prompt and prompt.source == "api" for prompt in found.everything("rl"))
    assert (
        {p.source for p in found.everything("rm")} == {p.source for p in found.everything("sft")} == {"api", "labeler"}
    )
    for split in SPLITS:
        assert [p.prompt_id for p in found["rl"][split]] == [
            p.prompt_id for p in found["rm"][split] if p.source == "api"
        ], "and all of them"
        assert found["sft"][split] == [p for p in found["rm"][split] if isinstance(p, Demonstration)]
    assert {name: len(found.everything(name)) for name in SETS} == {"sft": 60, "rm": 120, "rl": 40, "rankings": 40}


def test_every_removed_row_is_counted_under_its_rule(
    config: DataConfig, tmp_path: Path, made: Callable[[DataConfig], Built]
) -> None:
    added = [
        {"prompt": "AMBER number 0, please!", "user_id": "copycat"},
        {"prompt": "one two three four five six", "user_id": "talker"},
        {"prompt": "write to ann@birch.com", "user_id": "leaky"},
        {"prompt": "mail bob@cedar.com soon", "user_id": "leakier"},
        *({"prompt": f"{word} at last", "user_id": "glutton"} for word in WORDS[:9]),
    ]
    config.prompts.append(written(tmp_path / "more.jsonl", added))
    answer = {"prompt": "tell me of tundra", "completion": "very long answer indeed", "user_id": "writer"}
    config.demonstrations.append(written(tmp_path / "long.jsonl", [answer]))
    ranked = {"completions": ["a", "b"], "ranks": [1, 2]}
    more = [
        {"prompt": "quartz first", "user_id": "judge"} | ranked,
        {"prompt": "quartz first", "user_id": "judge"} | ranked,
        {"prompt": "quartz first", "user_id": "judge", "labeler_id": "another"} | ranked,
        {"prompt": "quartz second", "user_id": "judge"} | ranked | {"completions": ["a", "four words are many"]},
        {"prompt": "quartz fourth", "user_id": "judge"} | ranked | {"completions": ["so", " so\n"]},
        {
            "prompt": "quartz fifth",
            "user_id": "reader",
            "completions": ["a", "b", "four words are many"],
            "ranks": [1, 2, 3],
        },
        {"prompt": "quartz third", "user_id": "leakier"} | ranked | {"completions": ["a", "b@c.com"]},
    ]
    config.rankings.append(written(tmp_path / "judged.jsonl", more))
    config.max_prompts_per_group, config.max_prompt_tokens, config.max_answer_tokens = 6, 5, 3
    built = made(config)
    train = {user for user in ("leaky", "leakier") if split_of(user, 0.2, 0.2) == "train"}
    assert train, "or the rule is not tried"
    assert built.removed() == {
        "prompts": {
            "repeated": 0,
            "near_duplicate": 1, "over_cap": 3, "other_language": 0, "prompt_too_long": 1, "answer_too_long": 1,
            "personal_data": len(train),
            "evaluation_prompt": 0, "over_mixture_share": 0,
        },
        "rankings": {
            "repeated": 1, "over_cap": 0, "other_language": 0, "prompt_too_long": 0, "answer_too_long": 1,
            "personal_data": len(train & {"leakier"}),
            "identical_answers": 1, "evaluation_prompt": 0, "over_mixture_share": 0,
        },
        "answers": {"answer_too_long": 1, "personal_data": 0},
        "documents": {"repeated": 0},
    }  # fmt: skip
    assert built.pool.kept().sum() + sum(built.removed()["prompts"].values()) == 120 + len(added) + 1
    kept = {record.user_id for record in built.pool.each(built.pool.kept())}
    assert "glutton" in kept
    assert not {"copycat", "talker", "writer"} & kept
    (victim,) = built.pool.read(built.pool.examples("near_duplicate"))
    assert victim.user_id == "copycat", "the report can show who it was"


LONG = "four words are many"
MAIL = "ask ann@birch.com"


def test_a_record_is_counted_under_the_first_rule_that_removes_it(
    config: DataConfig, tmp_path: Path, made: Callable[[DataConfig], Built]
) -> None:
    row = {"prompt": "one two three four five six", "completion": "very long answer indeed", "user_id": "writer"}
    config.demonstrations.append(written(tmp_path / "long.jsonl", [row]))
    config.max_prompt_tokens, config.max_answer_tokens = 5, 3
    removed = made(config).removed()["prompts"]
    assert (removed["prompt_too_long"], removed["answer_too_long"]) == (1, 0)


@pytest.mark.parametrize(
    ("judged", "left", "dropped"),
    [
        ({"completions": ["a", LONG, "b"], "ranks": [2, 1, 3]}, {"completions": ["a", "b"], "ranks": [2, 3]},
            {"answer_too_long": 1}),
        (
            {"completions": [LONG, "a", "b", LONG], "preferences": [[0, 2], [1, 2], [3, 0]], "ties": [[0, 1]]},
            {"completions": ["a", "b"], "preferences": [[0, 1]], "ties": []},
            {"answer_too_long": 2},
        ),
        (
            {"completions": ["a", "b", MAIL, ""], "ranks": [1, 2, 2, 3], "complete": [True, False, True, True],
             "ratings": [{}, {}, {"q": 1}, {"q": 2}]},
            {"completions": ["a", "b", ""], "ranks": [1, 2, 3], "complete": [True, False, True],
                "ratings": [{}, {}, {"q": 2}]},
            {"personal_data": 1},
        ),
        (
            {"completions": ["a", LONG, "b", MAIL], "ranks": [2, 1, 3, 1]},
            {"completions": ["a", "b"], "ranks": [2, 3]},
            {"answer_too_long": 1, "personal_data": 1},
        ),
        ({"completions": ["a", LONG, " a"], "ranks": [2, 1, 3]}, "answer_too_long", {}),
        ({"completions": ["a", LONG, "b"], "ranks": [2, 1, 2]}, "answer_too_long", {}),
        ({"completions": ["a", LONG, MAIL], "ranks": [2, 1, 3]}, "personal_data", {}),
        ({"completions": ["a", "a", ""], "ranks": [1, 2, None]}, "identical_answers", {}),
        ({"completions": ["", " ", "b"], "preferences": [[0, 1]], "ties": [[0, 2]]}, "identical_answers", {}),
        ({"completions": ["a", "a ", "b"], "ranks": [1, 2, 3]}, {"completions": ["a", "a ", "b"], "ranks": [1, 2, 3]},
            {}),
    ],
)  # fmt: skip
def test_an_unusable_answer_is_dropped_and_the_others_stay(
    config: DataConfig, tmp_path: Path, made: Any, judged: dict[str, Any], left: Any, dropped: dict[str, int]
) -> None:  # fmt: skip
    train = next(name for name in WORDS if split_of(name, 0.2, 0.2) == "train")
    other = {"prompt": "another", "completions": ["a", "b"], "ranks": [1, 2]}
    config.rankings.append(
        written(tmp_path / "judged.jsonl", [{"prompt": "which one", "user_id": train} | judged, other])
    )
    config.max_answer_tokens = 3
    built = made(config)
    removed = built.removed()
    assert removed["answers"] == {"answer_too_long": 0, "personal_data": 0} | dropped
    assert {rule: count for rule, count in removed["rankings"].items() if count} == (
        {} if isinstance(left, dict) else {left: 1}
    )
    found = [record for record in Sets(built, tmp_path).everything("rankings") if record.prompt == "which one"]
    expected = (
        []
        if isinstance(left, str)
        else [Ranking(prompt="which one", user_id=train, dataset=config.rankings[-1], **left)]
    )
    assert found == expected


def test_personal_data_in_the_prompt_removes_the_whole_ranking(config: DataConfig, tmp_path: Path, made: Any) -> None:
    train = next(name for name in WORDS if split_of(name, 0.2, 0.2) == "train")
    row = {"prompt": MAIL, "user_id": train, "completions": ["a", "b", "c"], "ranks": [1, 2, 3]}
    config.rankings.append(written(tmp_path / "judged.jsonl", [row]))
    assert made(config).removed()["rankings"]["personal_data"] == 1


@pytest.mark.parametrize(
    ("judged", "problem"),
    [
        ({"completions": ["the very same", " the very same"], "ranks": [1, 2]}, "compare identical answers"),
        ({"completions": ["", " "], "ranks": [1, 2]}, "compare identical answers"),
        ({"completions": ["a", "b", "c"], "ranks": [1, 1, 1]}, "are ties or rank no answers"),
        ({"completions": ["a", "b", "c"], "ranks": [None, None, None]}, "are ties or rank no answers"),
        ({"completions": ["a", "b", "c"], "ranks": [None, 1, None]}, "are ties or rank no answers"),
        ({"completions": ["a", "b", "b"], "preferences": [[1, 2]], "ties": [[0, 1]]}, "compare identical answers"),
        ({"completions": ["a", "b"], "preferences": [], "ties": [[0, 1]]}, "are ties or rank no answers"),
    ],
)
def test_a_source_of_rankings_without_a_strict_pair_is_refused(
    config: DataConfig, tmp_path: Path, made: Any, judged: dict[str, Any], problem: str
) -> None:
    lines = [{"prompt": f"{word} again"} | judged for word in WORDS]
    config.rankings.append(written(tmp_path / "same.jsonl", lines))
    with pytest.raises(ValueError, match=rf"data\.rankings: all 20 rankings of '.*same\.jsonl' {problem}"):
        made(config)


def test_personal_data_leaves_training_and_stays_where_the_model_is_only_measured(
    config: DataConfig, tmp_path: Path, made: Any
) -> None:
    config.prompts.append(
        written(
            tmp_path / "more.jsonl",
            ({"prompt": f"{w} to {w}@b.com", "user_id": f"user {n}"} for n, w in enumerate(WORDS)),
        )
    )
    built = made(config)
    found = {
        split: sum("@" in record.prompt for record in built.pool.each(built.pool.kept(split)))
        for place, split in enumerate(SPLITS)
    }
    assert found["train"] == 0
    assert found["valid"] + found["test"] == 20 - built.removed()["prompts"]["personal_data"] > 0


def test_of_a_prompt_with_and_without_an_answer_the_answer_stays(
    config: DataConfig, tmp_path: Path, made: Callable[[DataConfig], Built]
) -> None:
    config.prompts = [rows(tmp_path / "same.jsonl", 60)]
    built = made(config)
    assert built.removed()["prompts"]["repeated"] == 60
    assert sum(built.sizes()[f"sft_{split}"] for split in SPLITS) == 60


def test_a_record_removed_by_its_own_rule_does_not_remove_its_duplicate(
    config: DataConfig, tmp_path: Path, made: Callable[[DataConfig], Built]
) -> None:
    """A demonstration with too long an answer is no demonstration, but its prompt, named among prompts, is one to rank
    and to train RL on.
    """
    lines = [{"prompt": "tell me of tundra", "completion": "a very long answer indeed", "user_id": "user 1"}]
    config.demonstrations.append(written(tmp_path / "long.jsonl", lines))
    config.prompts.append(written(tmp_path / "bare.jsonl", [{"prompt": "tell me of tundra", "user_id": "user 1"}]))
    config.max_answer_tokens = 3
    built = made(config)
    assert built.removed()["prompts"]["answer_too_long"] == 1
    assert built.removed()["prompts"]["repeated"] == 0
    assert "tell me of tundra" in {record.prompt for record in built.pool.each(built.pool.kept())}


def test_another_salt_moves_users_and_documents(
    config: DataConfig, tmp_path: Path, made: Callable[[DataConfig], Built]
) -> None:
    config.pretraining = [written(tmp_path / "texts.jsonl", ({"text": f"document {n}"} for n in range(40)))]
    first = made(config)
    config.split_salt = "another"
    second = made(config)
    assert first.pool.notes["split"].tolist() != second.pool.notes["split"].tolist()
    held_out = [set(built.documents.rows("heldout")["text"]) for built in (first, second)]
    assert held_out[0] != held_out[1]


def test_several_rankings_of_one_prompt_count_once_against_the_cap(
    config: DataConfig, tmp_path: Path, made: Callable[[DataConfig], Built]
) -> None:
    lines = [
        {"prompt": f"{word} again", "user_id": "judge", "completions": ["a", "b"], "ranks": [1, 2], "labeler_id": who}
        for word in WORDS[:4]
        for who in ("ann", "bob", "cid")
    ]
    config.rankings, config.max_prompts_per_group = [written(tmp_path / "judged.jsonl", lines)], 3
    assert made(config).removed()["rankings"]["over_cap"] == 3, "three labelers' rankings of the fourth prompt"


@pytest.mark.parametrize(
    "change",
    [{"ties": [[0, 1]]}, {"labeler": "llm"}, {"complete": [True, False, True]}, {"ratings": [{"quality": 1}, {}, {}]}],
)
def test_rankings_that_differ_in_what_was_judged_are_two(
    config: DataConfig, tmp_path: Path, change: dict[str, Any], made: Any
) -> None:
    ranking = {"prompt": "quartz first", "user_id": "judge", "completions": ["a", "b", "c"], "preferences": [[2, 0]]}
    config.rankings = [written(tmp_path / "judged.jsonl", [ranking, ranking, ranking | change])]
    assert made(config).removed()["rankings"]["repeated"] == 1


def test_splits_are_by_organisation_where_the_configuration_says_so(
    config: DataConfig, tmp_path: Path, sets: Callable[[DataConfig], Sets]
) -> None:
    lines = [
        {"prompt": f"{word} {n}", "user_id": f"u{n}", "organisation_id": f"org {n % 12}", "completion": "So."}
        for n in range(60)
        for word in WORDS[:2]
    ]
    config.demonstrations, config.prompts, config.rankings = [written(tmp_path / "org.jsonl", lines)], [], []
    config.group_by, config.max_prompts_per_group = "organisation", 7
    found = sets(config)
    homes = {split: {record.organisation_id for record in found["rm"][split]} for split in SPLITS}
    assert all(record.user_id == record.organisation_id for record in found.everything("rm")), "the unit of intervals"
    assert all(homes.values())
    assert not homes["train"] & (homes["valid"] | homes["test"])
    assert Counter(record.organisation_id for record in found.everything("rm")) == {f"org {n}": 7 for n in range(12)}


def test_a_user_with_an_organisation_in_some_rows_only_is_refused_where_organisations_are_the_unit(
    config: DataConfig, tmp_path: Path, made: Any
) -> None:
    demonstrations = [{"prompt": "first one", "user_id": "ann", "organisation_id": "acme", "completion": "So."}]
    config.demonstrations.append(written(tmp_path / "acme.jsonl", demonstrations))
    config.prompts.append(written(tmp_path / "ann.jsonl", [{"prompt": "second one", "user_id": "ann"}]))
    made(config)
    config.group_by = "organisation"
    with pytest.raises(
        ValueError, match="user 'ann' is in the organisation 'acme', but other rows of the user have no organisation_id"
    ):
        made(config)


def test_the_organisation_is_the_user_of_few_shot_examples_too(
    config: DataConfig, tmp_path: Path, sets: Callable[[DataConfig], Sets]
) -> None:
    pairs = [{"prompt": "one", "completion": "un"}, {"prompt": "two", "completion": "deux"}]
    few = {"prompt": "In French", "examples": pairs, "user_id": "ann", "organisation_id": "acme"}
    config.demonstrations.append(written(tmp_path / "few.jsonl", [few]))
    config.group_by = "organisation"
    assert [one.user_id for one in sets(config).everything("sft") if one.organisation_id == "acme"] == ["acme"] * 2


def test_several_organisations_may_have_a_prompt_without_a_user(config: DataConfig, tmp_path: Path, made: Any) -> None:
    greeting = [{"prompt": "Hello", "organisation_id": name, "completion": "Hi."} for name in ("acme", "other")]
    config.demonstrations.append(written(tmp_path / "greeting.jsonl", greeting))
    config.group_by = "organisation"
    made(config)


def test_a_few_shot_prompt_with_too_long_an_answer_leaves_whole(config: DataConfig, tmp_path: Path, made: Any) -> None:
    pairs = [{"prompt": "one", "completion": "un"}, {"prompt": "two", "completion": "much too long an answer"}]
    config.demonstrations.append(written(tmp_path / "few.jsonl", [{"prompt": "In French", "examples": pairs}]))
    config.max_answer_tokens = 3
    assert made(config).removed()["prompts"]["answer_too_long"] == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"valid_fraction": 1e-9}, "the sft valid split is empty after curation"),
        ({"test_fraction": 1e-9}, "the sft test split is empty after curation"),
        ({"valid_fraction": 0.5, "test_fraction": 0.4999999}, "the sft train split is empty after curation"),
        ({"max_prompt_tokens": 1}, r"the sft train split is empty after curation.*120 prompt_too_long"),
        ({"max_answer_tokens": 1}, r"the sft train split is empty after curation.*60 answer_too_long"),
    ],
)
def test_an_empty_split_stops_the_run_with_its_name(
    config: DataConfig, change: dict[str, Any], sentence: str, made: Any
) -> None:
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=sentence):
        made(config)


def test_an_empty_split_tells_of_rows_that_were_skipped(config: DataConfig, tmp_path: Path, made: Any) -> None:
    bad = written(tmp_path / "bad.jsonl", [{"Prompt": "Why?"}])
    config.bad_rows, config.max_prompt_tokens, config.prompts = "skip", 1, [*config.prompts, bad]
    with pytest.raises(ValueError, match=r"; malformed rows were skipped \(1\), the first: .*bad.jsonl:1: unknown key"):
        made(config)


def test_a_run_without_api_prompts_is_told_so(config: DataConfig, tmp_path: Path, made: Any) -> None:
    config.prompts = []
    config.demonstrations = [rows(tmp_path / "labeler.jsonl", 60, completion="So.", source="labeler")]
    with pytest.raises(ValueError, match="there are no API prompts, and PPO trains only on these: add a source"):
        made(config)


def test_a_bad_row_stops_the_run_or_is_skipped_and_listed(config: DataConfig, made: Any) -> None:
    file = Path(config.prompts[0])
    file.write_text(file.read_text() + '{"promt": "Why?"}\n{"prompt": \n')
    with pytest.raises(ValueError, match=rf"{file.name}:61: unknown key 'promt', did you mean 'prompt'\?"):
        made(config)
    config.bad_rows = "skip"
    built = made(config)
    assert [sentence.split(": ")[0] for sentence in built.bad.examples] == [f"{file}:61", f"{file}:62"]
    assert built.sizes()["rm_train"] + built.sizes()["rm_valid"] + built.sizes()["rm_test"] == 120


def test_one_id_on_two_different_prompts_is_refused(config: DataConfig, tmp_path: Path, made: Any) -> None:
    config.prompts.append(written(tmp_path / "same.jsonl", [{"prompt": "amber number 0 please", "prompt_id": "p0"}]))
    made(config)
    config.prompts[-1] = written(tmp_path / "other.jsonl", [{"prompt": "How?", "prompt_id": "p0"}])
    with pytest.raises(ValueError, match="prompt_id 'p0' is on two different prompts"):
        made(config)


def test_measuring_in_two_processes_changes_nothing(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Any
) -> None:
    monkeypatch.setattr(data.annotate, "ROWS_PER_WORKER", 10)
    config.max_prompt_tokens = 4
    one = made(config)
    config.workers = 2
    two = made(config)
    assert one.removed() == two.removed()
    assert one.pool.notes.equals(two.pool.notes)


def test_a_killed_worker_is_one_sentence(config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the kernel when memory runs out."""
    main = os.getpid()

    def die(text: str) -> bool:
        if os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    monkeypatch.setattr(data.annotate, "ROWS_PER_WORKER", 10)
    config.workers = 2
    with pytest.raises(ValueError, match=r"was killed \(\w+\), probably because memory ran out: lower data\.workers"):
        build(Annotator(config, words, words, die), tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"demonstrations": []}, "data.demonstrations is empty"),
        ({"valid_fraction": 0.0}, "data.valid_fraction=0.0"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "leave room for training"),
        ({"near_duplicate_fraction": 0.0}, "data.near_duplicate_fraction=0.0"),
        ({"near_duplicate_fraction": 1.5}, "data.near_duplicate_fraction=1.5"),
        ({"max_prompts_per_group": 0}, "data.max_prompts_per_group=0 must be at least 1"),
        ({"max_prompt_tokens": 0}, "data.max_prompt_tokens=0 must be at least 1"),
        ({"workers": 0}, "data.workers=0 must be at least 1"),
        ({"prompts": ["a.jsonl", "a.jsonl"]}, "data.prompts names a source twice"),
        ({"sources": {"seed": SourceConfig()}}, "data.sources.seed: that name is taken"),
        ({"sources": {"x": SourceConfig(weight=0.0)}, "prompts": ["x"]}, r"data.sources.x.weight=0.0 must be above 0"),
        ({"sources": {"x": SourceConfig()}}, "data.sources.x is in none of the lists"),
        (
            {"sources": {"x": SourceConfig(weight=1.0)}, "prompts": ["x"], "demonstrations": ["x"]},
            "has a weight and is under demonstrations and prompts",
        ),
        ({"sources": {"x": SourceConfig(limit=0)}, "prompts": ["x"]}, "data.sources.x.limit=0 must be at least 1"),
        (
            {"sources": {"x": SourceConfig(weight=1.0)}, "prompts": ["x", "y.jsonl"]},
            r"data.prompts: give every source a weight or none; 'y.jsonl' has none",
        ),
    ],
)
def test_contradictions_are_refused_by_name(change: dict[str, Any], sentence: str) -> None:
    DataConfig().validate()
    with pytest.raises(ValueError, match=sentence):
        DataConfig(**change).validate()
