"""The three sets: who may be in which, and that every row that is missing from them is accounted for."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import data.build
import data.spool
from data.build import Built, build, write
from data.config import DataConfig, SourceConfig
from data.measure import Measurer, full_text
from data.near_duplicates import comparable
from data.part import asked
from data.records import SPLITS, Demonstration, Prompt, Ranking
from data.sets import SETS, SetName, read_set, read_texts, set_file
from data.split import split_of
from tests.data.test_near_duplicates import near

WORDS = [
    "amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "islet", "jetty", "knoll", "ledge", "marsh", "north", "oasis", "petal",
    "quartz", "ridge", "slope", "tundra",
]  # fmt: skip


def words(texts: Iterable[Any]) -> list[int]:
    return [len((text.text if isinstance(text, Prompt) else text).split()) for text in texts]


MEASURER = Measurer(prompt_tokens=words, answer_tokens=words, personal=lambda text: "@" in text)


def rows(file: Path, count: int, start: int = 0, **extra: Any) -> str:
    """`count` prompts of 20 users; every third from the api."""
    lines = []
    for number in range(start, start + count):
        row = {"prompt": f"{WORDS[number % 20]} number {number} please", "user_id": f"user {number % 20}", "prompt_id": f"p{number}"}
        lines.append(row | {"source": "api" if number % 3 == 0 else "labeler"} | extra)
    return written(file, lines)


def written(file: Path, lines: Iterable[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    (tmp_path / "text.md").write_text("one two three " * 50)
    return DataConfig(
        demonstrations=[rows(tmp_path / "demonstrations.jsonl", 60, completion="Here you are.")],
        prompts=[rows(tmp_path / "prompts.jsonl", 60, start=60)],
        rankings=[rows(tmp_path / "rankings.jsonl", 40, start=200, completions=["a", "b"], ranks=[1, 2])],
        pretraining=[str(tmp_path / "text.md")],
        valid_fraction=0.2,
        test_fraction=0.2,
    )


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[DataConfig], Built]:
    return lambda config: build(config, MEASURER, tmp_path_factory.mktemp("scratch"))


class Sets:
    """All sets as records, through the files."""

    def __init__(self, built: Built, folder: Path) -> None:
        write(built, folder)
        self.folder = folder
        self.by_split: dict[str, dict[str, list[Any]]] = {
            name: {split: read_set(folder, name, split) if set_file(folder, name, split).is_file() else [] for split in SPLITS} for name in SETS
        }

    def __getitem__(self, name: SetName) -> dict[str, list[Any]]:
        return self.by_split[name]

    def everything(self, name: SetName) -> list[Any]:
        return [record for split in SPLITS for record in self[name][split]]


@pytest.fixture
def sets(made: Callable[[DataConfig], Built], tmp_path_factory: pytest.TempPathFactory) -> Callable[[DataConfig], Sets]:
    return lambda config: Sets(made(config), tmp_path_factory.mktemp("sets"))


def test_rl_sees_api_prompts_only_and_no_answers(config: DataConfig, sets: Callable[[DataConfig], Sets]) -> None:
    found = sets(config)
    assert all(type(prompt) is Prompt and prompt.source == "api" for prompt in found.everything("rl"))
    assert {p.source for p in found.everything("rm")} == {p.source for p in found.everything("sft")} == {"api", "labeler"}
    for split in SPLITS:
        assert [p.prompt_id for p in found["rl"][split]] == [p.prompt_id for p in found["rm"][split] if p.source == "api"], "and all of them"
        assert found["sft"][split] == [p for p in found["rm"][split] if isinstance(p, Demonstration)]
    assert {name: len(found.everything(name)) for name in SETS} == {"sft": 60, "rm": 120, "rl": 40, "rankings": 40}


def test_every_removed_row_is_counted_under_its_rule(config: DataConfig, tmp_path: Path, made: Callable[[DataConfig], Built]) -> None:
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
            "near_duplicate": 1, "over_cap": 3, "other_language": 0, "prompt_too_long": 1, "answer_too_long": 1, "personal_data": len(train),
            "evaluation_prompt": 0, "over_mixture_share": 0,
        },
        "rankings": {
            "repeated": 1, "over_cap": 0, "other_language": 0, "prompt_too_long": 0, "answer_too_long": 1, "personal_data": len(train & {"leakier"}),
            "evaluation_prompt": 0, "over_mixture_share": 0,
        },
        "documents": {"repeated": 0},
    }  # fmt: skip
    assert built.pool.kept().sum() + sum(built.removed()["prompts"].values()) == 120 + len(added) + 1
    kept = {row["user_id"] for row in built.pool.spool.rows(built.pool.kept().nonzero()[0])}
    assert "glutton" in kept
    assert not {"copycat", "talker", "writer"} & kept
    (victim,) = built.pool.spool.rows(built.pool.ledger.examples["near_duplicate"])
    assert victim["user_id"] == "copycat", "the report can show who it was"


def test_personal_data_leaves_training_and_stays_where_the_model_is_only_measured(config: DataConfig, tmp_path: Path, made: Any) -> None:
    config.prompts.append(written(tmp_path / "more.jsonl", ({"prompt": f"{w} to {w}@b.com", "user_id": f"user {n}"} for n, w in enumerate(WORDS))))
    built = made(config)
    found = {
        split: sum("@" in row["prompt"] for row in built.pool.spool.rows(built.pool.kept(place).nonzero()[0])) for place, split in enumerate(SPLITS)
    }
    assert found["train"] == 0
    assert found["valid"] + found["test"] == 20 - built.removed()["prompts"]["personal_data"] > 0


def test_of_a_prompt_with_and_without_an_answer_the_answer_stays(config: DataConfig, tmp_path: Path, made: Callable[[DataConfig], Built]) -> None:
    config.prompts = [rows(tmp_path / "same.jsonl", 60)]
    built = made(config)
    assert built.removed()["prompts"]["repeated"] == 60
    assert sum(built.sizes()[f"sft_{split}"] for split in SPLITS) == 60


def test_a_row_that_leaves_for_itself_takes_no_twin_with_it(config: DataConfig, tmp_path: Path, made: Callable[[DataConfig], Built]) -> None:
    """A demonstration with too long an answer is no demonstration, but its prompt, named among prompts, is one to rank and to train RL on."""
    lines = [{"prompt": "tell me of tundra", "completion": "a very long answer indeed", "user_id": "user 1"}]
    config.demonstrations.append(written(tmp_path / "long.jsonl", lines))
    config.prompts.append(written(tmp_path / "bare.jsonl", [{"prompt": "tell me of tundra", "user_id": "user 1"}]))
    config.max_answer_tokens = 3
    built = made(config)
    assert built.removed()["prompts"]["answer_too_long"] == 1
    assert built.removed()["prompts"]["repeated"] == 0
    assert "tell me of tundra" in {row["prompt"] for row in built.pool.spool.rows(built.pool.kept().nonzero()[0])}


def test_another_salt_moves_users_and_documents(config: DataConfig, tmp_path: Path, made: Callable[[DataConfig], Built]) -> None:
    config.pretraining = [written(tmp_path / "texts.jsonl", ({"text": f"document {n}"} for n in range(40)))]
    first = made(config)
    config.split_salt = "another"
    second = made(config)
    assert first.pool.split.tolist() != second.pool.split.tolist()
    held_out = [{row["text"] for row in built.documents.spool.rows(built.documents.splits["heldout"])} for built in (first, second)]
    assert held_out[0] != held_out[1]


def test_several_rankings_of_one_prompt_count_once_against_the_cap(config: DataConfig, tmp_path: Path, made: Callable[[DataConfig], Built]) -> None:
    lines = [
        {"prompt": f"{word} again", "user_id": "judge", "completions": ["a", "b"], "ranks": [1, 2], "labeler_id": who}
        for word in WORDS[:4]
        for who in ("ann", "bob", "cid")
    ]
    config.rankings, config.max_prompts_per_group = [written(tmp_path / "judged.jsonl", lines)], 3
    assert made(config).removed()["rankings"]["over_cap"] == 3, "three labelers' rankings of the fourth prompt"


@pytest.mark.parametrize("change", [{"ties": [[0, 1]]}, {"labeler": "llm"}, {"complete": [True, False]}, {"ratings": [{"quality": 1}, {}]}])
def test_rankings_that_differ_in_what_was_judged_are_two(config: DataConfig, tmp_path: Path, change: dict[str, Any], made: Any) -> None:
    ranking = {"prompt": "quartz first", "user_id": "judge", "completions": ["a", "b"], "preferences": []}
    config.rankings = [written(tmp_path / "judged.jsonl", [ranking, ranking, ranking | change])]
    assert made(config).removed()["rankings"]["repeated"] == 1


def test_splits_are_by_organisation_where_the_configuration_says_so(config: DataConfig, tmp_path: Path, sets: Callable[[DataConfig], Sets]) -> None:
    lines = [
        {"prompt": f"{word} {n}", "user_id": f"u{n}", "organisation_id": f"org {n % 12}", "completion": "So."}
        for n in range(60)
        for word in WORDS[:2]
    ]
    config.demonstrations, config.prompts, config.rankings = [written(tmp_path / "org.jsonl", lines)], [], []
    config.group_by, config.max_prompts_per_group = "organisation", 7
    found = sets(config)
    homes = {split: {record.organisation_id for record in found["rm"][split]} for split in SPLITS}
    assert all(homes.values())
    assert not homes["train"] & (homes["valid"] | homes["test"])
    assert Counter(record.organisation_id for record in found.everything("rm")) == {f"org {n}": 7 for n in range(12)}


USERS = st.sampled_from([f"user {number}" for number in range(12)])
TEXT = st.lists(st.sampled_from([*WORDS[:6], "a@b.com"]), min_size=1, max_size=4).map(" ".join)
ENTRY = st.fixed_dictionaries({"prompt": TEXT, "user_id": USERS, "source": st.sampled_from(["api", "labeler"])})
PAIR = st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT})
DEMONSTRATION = ENTRY.flatmap(lambda row: TEXT.map(lambda answer: row | {"completion": answer}))
FEW_SHOT = ENTRY.flatmap(lambda row: st.lists(PAIR, min_size=2, max_size=4).map(lambda pairs: row | {"examples": pairs}))
RANKED = ENTRY.flatmap(lambda row: st.just(row | {"completions": ["x", "y"], "ranks": [1, 2]}))
ANCHORS = [{"prompt": f"anchor {word}", "user_id": f"anchor {n}", "completion": "So."} for n, word in enumerate(WORDS)]


@settings(max_examples=40, deadline=None)
@given(
    answered=st.lists(st.one_of(DEMONSTRATION, FEW_SHOT), max_size=15),
    bare=st.lists(ENTRY, max_size=15),
    ranked=st.lists(RANKED, max_size=15),
    cap=st.integers(1, 4),
    drawn=st.data(),
)
def test_whatever_comes_the_sets_keep_the_rules(answered: list[Any], bare: list[Any], ranked: list[Any], cap: int, drawn: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.md").write_text("one two three " * 50)
        config = DataConfig(
            demonstrations=[written(folder / "d.jsonl", ANCHORS + answered)],
            prompts=[written(folder / "p.jsonl", bare)] if bare else [],
            rankings=[written(folder / "r.jsonl", ranked)] if ranked else [],
            pretraining=[str(folder / "text.md")],
            valid_fraction=0.3,
            test_fraction=0.3,
            max_prompts_per_group=cap,
        )
        made_in(folder, "first", config)
        found = Sets(made_in(folder, "again", config), folder)
        assert_rules(found, cap)

        # Rerun: the same bytes. Another order of the files' rows: the same user in the same place.
        again = folder / "rerun"
        again.mkdir()
        Sets(made_in(folder, "rerun-scratch", config), again)
        assert {f.name: f.read_bytes() for f in again.glob("*.parquet")} == {f.name: f.read_bytes() for f in folder.glob("*.parquet")}
        config.demonstrations = [written(folder / "d2.jsonl", drawn.draw(st.permutations(ANCHORS + answered)))]
        shuffled = folder / "shuffled"
        shuffled.mkdir()
        homes, moved = homes_of(found), homes_of(Sets(made_in(folder, "shuffled-scratch", config), shuffled))
        assert all(homes[user] == moved[user] for user in homes.keys() & moved.keys())


def made_in(folder: Path, name: str, config: DataConfig) -> Built:
    (folder / f"{name}.scratch").mkdir()
    # Batches of three, so that columns and batches part where they can.
    with pytest.MonkeyPatch.context() as small:
        small.setattr(data.spool, "BATCH_ROWS", 3)
        return build(config, MEASURER, folder / f"{name}.scratch")


def homes_of(found: Sets) -> dict[str, str]:
    return {record.user_id: split for name in SETS for split in SPLITS for record in found[name][split]}


def assert_rules(found: Sets, cap: int) -> None:
    users = {split: {record.user_id for name in SETS for record in found[name][split]} for split in SPLITS}
    assert not users["train"] & users["valid"]
    assert not users["train"] & users["test"]
    assert not users["valid"] & users["test"]

    read = [full_text(record) for name in SETS for record in found[name]["train"]]
    assert not any("@" in text for text in read), "personal data, in a few-shot pair or an answer too"

    plain = [record for record in found.everything("rm") if record.kind != "few_shot"]
    assert max(Counter(record.user_id for record in plain).values()) <= cap
    keys = [comparable(asked(record)) for record in plain]
    assert not any(near(keys[i], keys[j], 0.9) for i in range(len(keys)) for j in range(i)), "duplicates leave before the split"

    by_split = {split: [comparable(asked(record)) for name in SETS for record in found[name][split]] for split in SPLITS}
    for earlier, later in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not any(near(one, other, 0.9) for one in by_split[earlier] for other in by_split[later]), "nobody is asked what somebody else learned"

    groups: dict[str, set[str]] = {}
    for split in SPLITS:
        for record in found["sft"][split]:
            if record.kind == "few_shot":
                query = record.text.rsplit("Input: ", 1)[1].removesuffix("\nOutput:")
                assert f"Input: {query}\nOutput: {record.completion}" not in record.text, "never its own answer"
                groups.setdefault(record.prompt_id.split("#")[0], set()).add(split)
    assert all(len(splits) == 1 for splits in groups.values()), "the examples of one instruction know each other's answers"


def test_an_evaluation_prompt_that_somebody_else_ranked_leaves_training(
    config: DataConfig, tmp_path: Path, made: Callable[[DataConfig], Built]
) -> None:
    """The same words from users in different splits: in the pool that cannot be, but rankings come with users of their own."""
    built = made(config)
    (held_out, *_) = built.pool.spool.rows(built.pool.kept(SPLITS.index("test")).nonzero()[0])
    (trained, *_) = built.rankings.spool.rows(built.rankings.kept(SPLITS.index("train")).nonzero()[0])
    copied = {"prompt": held_out["prompt"].upper() + "!", "user_id": trained["user_id"], "completions": ["a", "b"], "ranks": [2, 1]}
    config.rankings.append(written(tmp_path / "copied.jsonl", [copied]))
    again = made(config)
    assert again.removed()["rankings"]["evaluation_prompt"] == 1
    assert again.removed()["prompts"]["evaluation_prompt"] == 0
    assert again.rankings.kept().sum() == built.rankings.kept().sum()


def test_an_example_of_a_few_shot_prompt_that_is_an_evaluation_prompt_takes_the_whole_prompt_out_of_training(
    config: DataConfig, tmp_path: Path, made: Any
) -> None:
    trained, tested = (next(w for w in WORDS if split_of(w, 0.2, 0.2) == split) for split in ("train", "test"))
    pairs = [{"prompt": "one", "completion": "un"}, {"prompt": "two", "completion": "deux"}, {"prompt": "three", "completion": "trois"}]
    few_shot = {"prompt": "Say it in French", "user_id": trained, "examples": pairs}
    config.demonstrations.append(written(tmp_path / "few.jsonl", [few_shot]))
    before = made(config)
    rendered = "Say it in French\n\nInput: two\nOutput: deux\n\nInput: three\nOutput: trois\n\nInput: one\nOutput:"
    ranked = [
        {"prompt": rendered, "user_id": tested, "completions": ["a", "b"], "ranks": [1, 2]},
        {"prompt": "one", "user_id": tested, "completions": ["a", "b"], "ranks": [1, 2]},
    ]
    config.rankings.append(written(tmp_path / "ranked.jsonl", ranked[1:]))
    assert made(config).removed()["prompts"]["evaluation_prompt"] == 0, "the query alone is another task's"
    config.rankings[-1] = written(tmp_path / "ranked.jsonl", ranked)
    again = made(config)
    assert again.removed()["prompts"]["evaluation_prompt"] == 1
    assert again.sizes()["sft_train"] == before.sizes()["sft_train"] - 3


def test_a_validation_prompt_counts_as_evaluation_and_leaves_for_a_test_prompt(config: DataConfig, tmp_path: Path, made: Any) -> None:
    trained, validated, tested = (next(w for w in WORDS if split_of(w, 0.2, 0.2) == split) for split in SPLITS)
    rankings = list(config.rankings)

    def removed(*users: str) -> int:
        lines = [{"prompt": "Petals fall why", "user_id": user, "completions": ["a", user], "ranks": [1, 2]} for user in users]
        config.rankings = [*rankings, written(tmp_path / "petals.jsonl", lines)]
        built = made(config)
        kept = {row["user_id"] for row in built.rankings.spool.rows(built.rankings.kept().nonzero()[0])}
        assert users[-1] in kept
        return built.removed()["rankings"]["evaluation_prompt"]

    assert removed(trained, validated) == 1
    assert removed(trained, tested) == 1
    assert removed(validated, tested) == 1
    assert removed(trained, validated, tested) == 2


def test_weights_thin_the_training_rows_of_a_role_and_leave_evaluation_alone(config: DataConfig, tmp_path: Path, made: Any) -> None:
    config.sources = {
        "many": SourceConfig(place=rows(tmp_path / "many.jsonl", 200, start=1000, completion="So."), weight=1.0),
        "few": SourceConfig(place=rows(tmp_path / "few.jsonl", 60, start=2000, completion="So."), weight=3.0),
    }
    config.demonstrations, config.prompts = ["many", "few"], []
    built = made(config)
    train = Counter(row["dataset"] for row in built.pool.spool.rows(built.pool.kept(0).nonzero()[0]))
    assert train["few"] == 3 * train["many"] > 0 or abs(train["few"] - 3 * train["many"]) < 3
    rest = Counter(row["dataset"] for row in built.pool.spool.rows((built.pool.kept(1) | built.pool.kept(2)).nonzero()[0]))
    assert rest["many"] > rest["few"]
    assert built.removed()["prompts"]["over_mixture_share"] == 260 - sum(train.values()) - sum(rest.values())


def test_the_examples_of_few_shot_prompts_count_as_rows_of_a_mixture(config: DataConfig, tmp_path: Path, made: Any) -> None:
    trained = next(word for word in WORDS if split_of(word, 0.2, 0.2) == "train")
    pairs = [{"prompt": f"{word} asked", "completion": "So."} for word in WORDS[:4]]
    few_shot = [{"prompt": f"{word} task number {number}", "user_id": trained, "examples": pairs} for number, word in enumerate(WORDS)]
    config.sources = {
        "few_shot": SourceConfig(place=written(tmp_path / "few.jsonl", few_shot), weight=1.0),
        "plain": SourceConfig(place=rows(tmp_path / "plain.jsonl", 60, start=1000, completion="So."), weight=1.0),
    }
    config.demonstrations, config.prompts = ["few_shot", "plain"], []
    built = made(config)
    kept = built.pool.kept(SPLITS.index("train"))
    few = int(built.pool.copies[kept & built.pool.few_shot].sum())
    assert 0 <= int((kept & ~built.pool.few_shot).sum()) - few < 4, "as many rows of either, but for a few-shot prompt that is not cut"
    assert few > 20


def test_a_few_shot_prompt_with_too_long_an_answer_leaves_whole(config: DataConfig, tmp_path: Path, made: Any) -> None:
    pairs = [{"prompt": "one", "completion": "un"}, {"prompt": "two", "completion": "much too long an answer"}]
    config.demonstrations.append(written(tmp_path / "few.jsonl", [{"prompt": "In French", "examples": pairs}]))
    config.max_answer_tokens = 3
    assert made(config).removed()["prompts"]["answer_too_long"] == 1


def test_a_source_with_a_weight_and_no_training_rows_is_told(config: DataConfig, tmp_path: Path, made: Any) -> None:
    users = [user for user in (f"user {n}" for n in range(99)) if split_of(user, 0.2, 0.2) == "test"]
    held_out = written(tmp_path / "held.jsonl", ({"prompt": f"{word} alone", "user_id": users[0]} for word in WORDS))
    config.sources = {"all": SourceConfig(place=config.prompts[0], weight=1.0), "held": SourceConfig(place=held_out, weight=1.0)}
    config.prompts = ["all", "held"]
    with pytest.raises(ValueError, match=r"data\.prompts: source 'held' has a weight but no training rows are left of it after curation"):
        made(config)


def test_a_long_document_does_not_wait_for_thousands_of_others(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Any
) -> None:
    monkeypatch.setattr(data.spool, "BATCH_CHARACTERS", 1000)
    monkeypatch.setattr(data.build, "WRITE_CHARACTERS", 700)
    texts = [f"{number:04d}" * (100 if number % 7 == 0 else 1) for number in range(60)]
    config.pretraining = [written(tmp_path / "texts.jsonl", ({"text": text} for text in texts))]
    built = made(config)
    assert built.documents.spool.batch_count > 3
    write(built, tmp_path)
    assert sorted([*read_texts(tmp_path, "train"), *read_texts(tmp_path, "heldout")]) == sorted(texts)


def test_what_a_source_says_of_its_prompts_holds_where_rows_do_not_say(config: DataConfig, tmp_path: Path, sets: Any) -> None:
    lines = [{"prompt": f"{word} again", "user_id": f"user {n}", **({"source": "api"} if n % 2 else {})} for n, word in enumerate(WORDS)]
    config.sources = {"written": SourceConfig(place=written(tmp_path / "w.jsonl", lines), source="labeler", limit=10)}
    config.prompts = [*config.prompts, "written"]
    mine = [record for record in sets(config).everything("rm") if record.dataset == "written"]
    assert Counter(record.source for record in mine) == {"labeler": 5, "api": 5}


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
def test_an_empty_split_stops_the_run_with_its_name(config: DataConfig, change: dict[str, Any], sentence: str, made: Any) -> None:
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=sentence):
        made(config)


def test_a_run_without_api_prompts_is_told_so(config: DataConfig, tmp_path: Path, made: Any) -> None:
    config.prompts = []
    config.demonstrations = [rows(tmp_path / "labeler.jsonl", 60, completion="So.", source="labeler")]
    with pytest.raises(ValueError, match="the rl train split is empty after curation: no api prompt"):
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
    with pytest.raises(ValueError, match="prompt_id 'p0' stands on two different prompts"):
        made(config)


@pytest.mark.parametrize("count", [10, 19, 20, 57])
def test_no_document_is_both_trained_on_and_held_out(config: DataConfig, tmp_path: Path, count: int, made: Any) -> None:
    texts = [f"document {number}" for number in range(count)]
    homes = []
    for order in (texts, texts[::-1] + texts[:1]):
        config.pretraining = [written(tmp_path / "texts.jsonl", ({"text": text, "title": "x"} for text in order))]
        documents = made(config).documents
        found = {split: [row["text"] for row in documents.spool.rows(rows)] for split, rows in documents.splits.items()}
        assert len(found["heldout"]) == max(1, count // 10)
        assert sorted(found["train"] + found["heldout"]) == sorted(texts)
        assert documents.removed == {"repeated": len(order) - count}
        homes.append(found)
    assert homes[0] == homes[1], "whatever their order"


def test_of_a_few_documents_the_last_tenth_of_each_is_held_out(config: DataConfig, tmp_path: Path, sets: Any) -> None:
    """Whole ones would be too much or too little: of a long and a short one, say."""
    (tmp_path / "one.txt").write_text("0123456789" * 3)
    config.pretraining = [str(tmp_path / "one.txt")]
    folder = sets(config).folder
    assert list(read_texts(folder, "train")) == ["0123456789" * 2 + "0123456"]
    assert list(read_texts(folder, "heldout")) == ["789"]
    config.pretraining = [written(tmp_path / "few.jsonl", ({"text": letter * 1000} for letter in "abcabc"))]
    folder = sets(config).folder
    assert list(read_texts(folder, "train")) == [letter * 900 for letter in "abc"]
    assert list(read_texts(folder, "heldout")) == [letter * 100 for letter in "abc"]


@pytest.mark.parametrize("salt", ["", "a", "b", "c"])
def test_a_document_that_is_much_of_the_text_is_never_held_out(config: DataConfig, tmp_path: Path, salt: str, made: Any) -> None:
    config.pretraining = [written(tmp_path / "texts.jsonl", ({"text": f"{n:02d} " * (1000 if n == 7 else 10)} for n in range(11)))]
    config.split_salt = salt
    documents = made(config).documents
    assert 7 in documents.splits["train"]
    assert len(documents.splits["heldout"]) == 1


def test_weights_of_plain_text_are_shares_of_its_characters(config: DataConfig, tmp_path: Path, made: Any) -> None:
    config.sources = {
        "long": SourceConfig(place=written(tmp_path / "long.jsonl", ({"text": f"{n:03d}" * 100} for n in range(100))), weight=1),
        "short": SourceConfig(place=written(tmp_path / "short.jsonl", ({"text": f"{n:03d}"} for n in range(100))), weight=1),
    }
    config.pretraining = ["long", "short"]
    documents = made(config).documents
    names = [documents.datasets[code] for code in documents.dataset[documents.splits["train"]]]
    assert Counter(names)["long"] <= 1, "a hundred short ones are as much text as one long one"
    assert Counter(names)["short"] > 80


def test_a_conversation_among_the_prompts_makes_all_of_them_conversations(config: DataConfig, tmp_path: Path, sets: Any) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    config.prompts.append(written(tmp_path / "chat.jsonl", [{"prompt": turns, "user_id": "chatter"}]))
    found = sets(config)
    assert [record.prompt for record in found.everything("rm") if record.user_id == "chatter"] == [turns]
    first = next(record for record in found.everything("rm") if record.prompt_id == "p0")
    assert first.prompt == [{"role": "user", "content": "amber number 0 please"}]


def test_a_conversation_that_left_makes_nobody_else_one(config: DataConfig, tmp_path: Path, sets: Any) -> None:
    turns = [{"role": "user", "content": "one two three four five six seven eight"}]
    config.prompts.append(written(tmp_path / "chat.jsonl", [{"prompt": turns, "user_id": "chatter"}]))
    config.max_prompt_tokens = 7
    assert {type(record.prompt) for record in sets(config).everything("rm")} == {str}


def test_a_conversation_among_the_rankings_is_one(config: DataConfig, tmp_path: Path, sets: Any) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    config.rankings.append(written(tmp_path / "chat.jsonl", [{"prompt": turns, "user_id": "chatter", "completions": ["a", "b"], "ranks": [1, 2]}]))
    assert turns in [record.prompt for record in sets(config).everything("rankings")]


def test_conversations_that_share_a_long_history_are_not_twins_and_those_that_ask_the_same_of_it_are(
    config: DataConfig, tmp_path: Path, made: Any
) -> None:
    system = {"role": "system", "content": "You are the assistant of a small shop that sells tea. " * 20}
    turns = [
        [system, {"role": "user", "content": question}] for question in ("Which tea for cold days?", "Do you ship abroad?", "Do you ship abroad")
    ]
    config.prompts.append(written(tmp_path / "chat.jsonl", ({"prompt": prompt, "user_id": f"user {n}"} for n, prompt in enumerate(turns))))
    built = made(config)
    assert built.removed()["prompts"]["near_duplicate"] == 1
    (victim,) = built.pool.spool.rows(built.pool.ledger.examples["near_duplicate"])
    assert victim["messages"][-1]["content"] == "Do you ship abroad"


def test_all_that_a_ranking_holds_is_on_disk(config: DataConfig, tmp_path: Path, sets: Any) -> None:
    full = [
        {
            "prompt": "full one", "user_id": "user 1", "completions": ["a", "b", ""], "ranks": [2, None, 1], "labeler_id": "ann", "labeler": "llm",
            "complete": [True, False, True], "ratings": [{"quality": 3, "hateful": False}, {}, {"note": "ok"}], "kind": "plain", "use_case": "chat",
        },
        {"prompt": "full two", "user_id": "user 1", "completions": ["a", "b", "c"], "preferences": [[0, 1], [1, 2], [2, 0]], "ties": [[0, 2]]},
    ]  # fmt: skip
    config.rankings = [written(tmp_path / "full.jsonl", full)]
    records = {record.text: record for record in sets(config).everything("rankings")}
    for row in full:
        expected = Ranking(**row, dataset=config.rankings[0])  # type: ignore[arg-type]
        assert records[str(row["prompt"])] == expected


def test_the_sets_are_data_sets_to_anyone(config: DataConfig, sets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of which no row is in a set leave nothing behind that a reader of Parquet stumbles over."""
    monkeypatch.setattr(data.spool, "BATCH_ROWS", 3)
    found = sets(config)
    loaded = load_dataset("parquet", data_files=str(set_file(found.folder, "sft", "train")), split="train", cache_dir=str(found.folder / "cache"))
    assert loaded["prompt"][:] == [record.prompt for record in found["sft"]["train"]]
    assert loaded["completion"][:] == [record.completion for record in found["sft"]["train"]]


def test_measuring_in_two_processes_changes_nothing(config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    monkeypatch.setattr(data.spool, "BATCH_ROWS", 16)
    config.max_prompt_tokens = 4
    one = made(config)
    config.workers = 2
    two = made(config)
    assert one.removed() == two.removed()
    assert one.pool.measures.prompt_tokens.tolist() == two.pool.measures.prompt_tokens.tolist()
    assert one.pool.spool.batch_count > 4


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
