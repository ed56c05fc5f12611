"""Sources: found by name before anything is read, streamed, renamed, grouped, limited, and every mistake told with its
place.
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from data.config import DataConfig, SourceConfig
from data.lines import STOP, BadRows
from data.records import Document, FewShot, Prompt
from data.sources.formats import FORMATS, Format
from data.sources.reading import find, grouped, read


def written(file: Path, rows: Iterable[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def records(config: DataConfig, role: Any, bad: BadRows = STOP) -> list[Any]:
    return [record for name in getattr(config, role) for record in read(find(name, config, role), bad)]


def configured(role: str, *, place: Any = "", **settings: Any) -> DataConfig:
    source = SourceConfig(place=str(place), **settings)
    return DataConfig(sources={"x": source}, **{role: ["x"]})  # type: ignore[arg-type]


def test_a_file_needs_no_entry_and_gives_its_name_to_its_rows(tmp_path: Path) -> None:
    place = written(tmp_path / "mine.jsonl", [{"prompt": "Why?"}, {"prompt": "How?", "dataset": "elsewhere"}])
    found = records(DataConfig(prompts=[place]), "prompts")
    assert [(record.prompt, record.dataset) for record in found] == [("Why?", place), ("How?", place)]


def test_a_folder_is_all_of_its_data_files_in_order(tmp_path: Path) -> None:
    written(tmp_path / "b.jsonl", [{"prompt": "second"}])
    written(tmp_path / "a.jsonl", [{"prompt": "first"}])
    (tmp_path / "README.md").write_text("About these data.")
    config = DataConfig(sources={"mine": SourceConfig(place=str(tmp_path))}, prompts=["mine"])
    assert [(r.prompt, r.dataset) for r in records(config, "prompts")] == [("first", "mine"), ("second", "mine")]


def test_the_embedded_set_is_there_by_name() -> None:
    assert len(records(DataConfig(), "demonstrations")) == 500


def test_columns_are_renamed_or_left_out_and_reading_ends_at_the_limit(tmp_path: Path) -> None:
    place = written(tmp_path / "x.jsonl", ({"question": f"Why {n}?", "answer": "So.", "score": n} for n in range(9)))
    columns: dict[str, str | None] = {"question": "prompt", "answer": "completion", "score": None}
    config = configured("demonstrations", place=place, columns=columns, limit=4)
    assert [record.prompt for record in records(config, "demonstrations")] == [f"Why {n}?" for n in range(4)]


@pytest.mark.parametrize("columns", [{"question": "prompt"}, {"question": "prompt", "prompt": "prompt"}])
def test_two_columns_with_one_name_are_a_bad_row(tmp_path: Path, columns: dict[str, str | None]) -> None:
    place = written(tmp_path / "x.jsonl", [{"question": "Why?"}, {"question": "Why?", "prompt": "SYSTEM"}])
    config = configured("prompts", place=place, columns=columns)
    with pytest.raises(ValueError, match=r"x\.jsonl:2: two columns would be called 'prompt'"):
        records(config, "prompts")


def test_a_renamed_column_that_no_row_has_is_told(tmp_path: Path) -> None:
    place = written(tmp_path / "x.jsonl", [{"prompt": "Why?", "user": "ann"}, {"prompt": "How?"}])
    assert len(records(configured("prompts", place=place, columns={"user": "user_id"}), "prompts")) == 2
    config = configured("prompts", place=place, columns={"usr": "user_id", "user": None})
    with pytest.raises(ValueError, match=r"data\.sources\.x\.columns: no row has 'usr'"):
        records(config, "prompts")
    config = configured("prompts", place=place, columns={"usr": "user_id", "user": None}, limit=1)
    with pytest.raises(ValueError, match=r"x\.columns: none of the rows that were read \(limit: 1\) has 'usr'"):
        records(config, "prompts")


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.jsonl"])
def test_a_column_of_nulls_is_not_reported_missing(tmp_path: Path, name: str) -> None:
    table = pd.DataFrame({"prompt": ["Why?", "How?"], "ticket": [None, None], "user": [None, None]})
    file = tmp_path / name
    {
        ".csv": lambda: table.to_csv(file, index=False),
        ".parquet": lambda: table.to_parquet(file),
        ".jsonl": lambda: table.to_json(file, orient="records", lines=True),
    }[file.suffix]()
    config = configured("prompts", place=file, columns={"ticket": None, "user": "user_id"})
    assert [row.prompt for row in records(config, "prompts")] == ["Why?", "How?"]


def test_a_limit_counts_what_belongs_together(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    place = str(shared_data("truthfulqa"))
    config = configured("rankings", format="truthfulqa", place=place, limit=30)
    assert len(records(config, "rankings")) == 30


@pytest.mark.parametrize("name", ["/dev/null", "x" * 5000])
def test_what_is_no_file_is_one_sentence(name: str) -> None:
    missing = "is no file or folder here" if sys.version_info >= (3, 14) else "no such file"  # for the overlong name
    with pytest.raises(ValueError, match=rf"neither a file nor a folder|cannot be read|{missing}"):
        find("x", DataConfig(sources={"x": SourceConfig(place=name)}), "prompts")
    with pytest.raises(ValueError, match=r"neither a file nor a folder|cannot be read|no such file"):
        find(name, DataConfig(), "prompts")


def test_few_shot_rows_stand_among_demonstrations(tmp_path: Path) -> None:
    pairs = [{"prompt": "one", "completion": "un"}, {"prompt": "two", "completion": "deux"}]
    place = written(
        tmp_path / "x.jsonl", [{"prompt": "Why?", "completion": "So."}, {"prompt": "In French.", "examples": pairs}]
    )
    assert [type(record) for record in records(DataConfig(demonstrations=[place]), "demonstrations")][1] is FewShot


def test_documents_come_from_text_files_and_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    place = written(tmp_path / "b.jsonl", [{"text": "two", "url": "x"}])
    config = DataConfig(sources={"all": SourceConfig(place=str(tmp_path))}, pretraining=["all", place])
    assert records(config, "pretraining") == [
        Document(text="one", dataset="all"),
        Document(text="two", dataset="all"),
        Document(text="two", dataset=place),
    ]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (SourceConfig(format="oast", place="x"), r"data\.sources\.x\.format='oast' is unknown, did you mean 'oasst'\?"),
        (SourceConfig(format="truthfulqa"), r"data\.sources\.x\.place is missing"),
        (SourceConfig(place="nowhere/rows.jsonl"), r"data\.sources\.x: nowhere/rows\.jsonl: no such file or folder"),
        (SourceConfig(format="truthfulqa", place="nowhere/truthfulqa"), "nowhere/truthfulqa: no such file or folder"),
        (SourceConfig(place="a/b/c"), "a/b/c: no such file"),
        (
            SourceConfig(place="somebody/rows"),
            r"data\.sources\.x: somebody/rows is no file or folder here, and a data set on the Hub needs a revision",
        ),
        (
            SourceConfig(format="hh_rlhf"),
            r"data\.sources\.x: Anthropic/hh-rlhf is no file or folder here, and a data set on the Hub needs a "
            r"revision",
        ),
        (SourceConfig(format="dolly", place="README.md"), "format 'dolly' has no rankings, only"),
    ],
)
def test_a_source_that_is_not_there_is_told_before_anything_is_read(settings: SourceConfig, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find("x", DataConfig(sources={"x": settings}, rankings=["x"]), "rankings")


def test_a_name_that_nothing_has_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"data\.prompts: 'oastt': no such file or source, did you mean 'oasst'\?"):
        find("oastt", DataConfig(sources={"oasst": SourceConfig()}), "prompts")
    with pytest.raises(
        ValueError, match=r"'some/name': no such file or source; a Hub data set needs an entry under data\.sources"
    ):
        find("some/name", DataConfig(), "prompts")


def test_a_folder_without_the_files_of_the_format_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no data files"):
        find("x", DataConfig(sources={"x": SourceConfig(place=str(tmp_path))}), "prompts")
    with pytest.raises(ValueError, match=r"lacks finetune_truth\.jsonl, the file of format 'truthfulqa' for rankings"):
        find("x", DataConfig(sources={"x": SourceConfig(format="truthfulqa", place=str(tmp_path))}), "rankings")


def test_rankings_of_another_format_are_named_although_our_keys_are_among_theirs(tmp_path: Path) -> None:
    answer = {"from": "gpt", "value": "So."}
    place = written(
        tmp_path / "x.jsonl", [{"conversations": TURNS[:1], "chosen": answer, "rejected": answer | {"value": "No."}}]
    )
    with pytest.raises(ValueError, match=r"x\.jsonl:1: this looks like ShareGPT: set format: sharegpt"):
        records(DataConfig(rankings=[place]), "rankings")


def test_of_a_bad_row_the_place_is_told_and_the_others_stay(tmp_path: Path) -> None:
    place = written(tmp_path / "x.jsonl", [{"prompt": "Why?"}, {"promt": "How?"}, ["What?"], {"prompt": "Who?"}])
    config = DataConfig(prompts=[place])
    with pytest.raises(ValueError, match=r"x\.jsonl:2: unknown key 'promt', did you mean 'prompt'\?"):
        records(config, "prompts")
    bad = BadRows(skip=True)
    assert [record.prompt for record in records(config, "prompts", bad)] == ["Why?", "Who?"]
    assert [sentence.split(": ", 1)[0].rsplit(":", 1)[1] for sentence in bad.examples] == ["2", "3"]


TURNS = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"id": "x0", "conversations": TURNS},
            "this looks like ShareGPT: set format: sharegpt (unknown keys 'id'; 'conversations'; known are prompt",
        ),
        (
            {"instruction": "Why?", "input": None, "output": "So."},
            "this looks like Stanford Alpaca: set format: alpaca (unknown keys 'instruction'; ",
        ),
        (
            {"instruction": "Why?", "response": "So.", "context": ""},
            "this looks like Databricks Dolly 15k: set format: dolly",
        ),
        (
            {"prompt": "Why?", "id": 3, "region": "north", "promt_id": "a"},
            "unknown keys 'id'; 'region'; 'promt_id', did you mean 'prompt_id'?: rename them with `columns` under "
            "data.sources, or set them to null there to leave them out; known are prompt",
        ),
        (
            {"prompt": "Why?", "id": 3},
            "unknown key 'id': rename it with `columns` under data.sources, or set it to null there to leave it out; "
            "known are prompt",
        ),
        (
            {"prompt": "Why?", "scores": [5, 3]},
            "unknown key 'scores': rename it with `columns` under data.sources, or set it to null there to leave it "
            "out; do not rename scores to `ranks`, where 1 is the best; known are prompt",
        ),
        (
            {"prompt": "Why?", "completion": "No.", "label": False},
            "unknown key 'label': rename it with `columns` under data.sources, or set it to null there to leave it "
            "out; in KTO's form a false `label` marks a bad answer: remove those rows first; known are prompt",
        ),
        ({"promt": "Why?"}, "unknown key 'promt', did you mean 'prompt'?"),
        (
            {"messages": [{"role": "bing", "content": "Hi."}] * 2},
            "'role' of message 1 of 'messages' is 'bing'; allowed are system",
        ),
    ],
)
def test_the_error_names_the_format_of_a_row_in_another_format(
    tmp_path: Path, row: dict[str, Any], sentence: str
) -> None:
    place = written(tmp_path / "x.jsonl", [row])
    with pytest.raises(ValueError, match=r".") as caught:
        records(DataConfig(demonstrations=[place]), "demonstrations")
    assert str(caught.value).startswith(f"{place}:1: {sentence}")


def test_the_keys_of_a_pair_are_known(tmp_path: Path) -> None:
    place = written(tmp_path / "x.jsonl", [{"prompt": "Why?", "chosen": "So.", "rejected": "No.", "chosen_score": 1.5}])
    with pytest.raises(ValueError, match=r"unknown key 'chosen_score': .*; known are chosen, rejected, prompt, "):
        records(DataConfig(rankings=[place]), "rankings")


def test_the_error_names_our_format_for_a_row_in_it(tmp_path: Path) -> None:
    place = written(tmp_path / "x.jsonl", [{"messages": [USER, USER], "category": "Chat"}])
    config = configured("prompts", format="sharegpt", place=place)
    with pytest.raises(
        ValueError, match=r"x\.jsonl:1: this looks like this project's records and trl's forms: set format: rows"
    ):
        records(config, "prompts")


USER = {"role": "user", "content": "Why?"}


def no_system(prompt: Prompt) -> None:
    if prompt.messages[0]["role"] == "system" or "forbidden" in prompt.text:
        raise ValueError("the chat template refuses this conversation: System role not supported")


def test_a_prompt_that_cannot_be_used_is_a_bad_row_at_its_place(tmp_path: Path) -> None:
    system = {"messages": [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "So."}]}
    pairs = [{"prompt": "one", "completion": "un"}, {"prompt": "forbidden", "completion": "non"}]
    good = {"prompt": "Why?", "completion": "So."}
    place = written(tmp_path / "x.jsonl", [good, system, {"prompt": "In French.", "examples": pairs}, good])
    source = find(place, DataConfig(demonstrations=[place]), "demonstrations")
    with pytest.raises(
        ValueError, match=r"x\.jsonl:2: the chat template refuses this conversation: System role not supported"
    ):
        list(read(source, STOP, no_system))
    bad = BadRows(skip=True)
    assert [record.prompt for record in read(source, bad, no_system)] == ["Why?", "Why?"]
    assert [sentence.split(": ", 1)[0] for sentence in bad.examples] == [f"{place}:2", f"{place}:3"]


def test_keys_of_messages_that_are_not_read_are_counted(tmp_path: Path) -> None:
    said = [USER | {"name": "Ann"}, {"role": "assistant", "content": "So.", "weight": 1}]
    place = written(tmp_path / "x.jsonl", [{"messages": said}, {"messages": said}, {"messages": said, "nonsense": 1}])
    bad = BadRows(skip=True)
    assert len(records(DataConfig(demonstrations=[place]), "demonstrations", bad)) == 2
    assert bad.ignored == {"name": 2, "weight": 2}


@pytest.mark.parametrize("identity", [7, 7.0, "7", "7.0"])
def test_null_values_are_left_out_and_ids_may_be_numbers_in_every_format(tmp_path: Path, identity: object) -> None:
    rows = {
        "rows": {"prompt": "Why?", "user_id": identity, "kind": None, "completion": None},
        "shp": {"post_id": identity, "history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "labels": 1},
        "self_instruct": {
            "id": identity,
            "instruction": "Why?",
            "instances": [{"input": "", "output": "So."}],
            "motivation_app": None,
        },
        "sharegpt": {"user_id": identity, "conversations": TURNS, "system": None},
    }
    for name, row in rows.items():
        place = written(tmp_path / f"{name}.jsonl", [row])
        config = configured("prompts", format=name, place=place)
        assert [record.user_id for record in records(config, "prompts")] == ["7"], name


@pytest.mark.parametrize("identity", [1.7564823950012346e17, "1.7564823950012346e+17"])
def test_an_id_that_a_table_has_rounded_is_refused(tmp_path: Path, identity: object) -> None:
    """It would be another user than the same id in another file, or two users in one."""
    place = written(tmp_path / "x.jsonl", [{"prompt": "Why?", "user_id": identity}])
    with pytest.raises(ValueError, match=r"x\.jsonl:1: 'user_id' is 1\.7\S+, a large id that a table has rounded"):
        records(DataConfig(prompts=[place]), "prompts")


@pytest.mark.parametrize("identity", ["6e960637", "3e8", "1e2"])
def test_an_id_that_looks_like_a_number_is_an_id(tmp_path: Path, identity: str) -> None:
    table = tmp_path / "x.csv"
    table.write_text(f"prompt,user_id\nWhy?,{identity}\n")
    for place in (str(table), written(tmp_path / "x.jsonl", [{"prompt": "Why?", "user_id": identity}])):
        assert [record.user_id for record in records(DataConfig(prompts=[place]), "prompts")] == [identity]


@pytest.mark.parametrize(("adjacent", "found"), [(True, "p1:2 p3:1 p4:1 p5:1"), (False, "p1:3 p3:1 p4:1")])
def test_rows_of_a_group_come_together(adjacent: bool, found: str) -> None:
    rows: list[Any] = [{"id": 1, "n": 1}, {"id": 1, "n": 2}, {"id": 2, "n": 3}, ["no object"], {"id": 1, "n": 4}]
    placed = [(f"p{number}", row) for number, row in enumerate(rows, start=1)]
    form = Format(name="pairs", about="", convert={}, group=lambda row: row.get("id"), adjacent=adjacent)
    assert " ".join(f"{place}:{len(rows)}" for place, rows in grouped(placed, form)) == found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[dict[str, Any]]], list[Any]]:
    """Puts rows on a Hub that answers as the real one does, and remembers what it was asked for."""

    def serve(rows: list[dict[str, Any]]) -> list[Any]:
        asked: list[Any] = []

        def load_dataset(*arguments: Any, **options: Any) -> Any:
            asked.append((arguments, options))
            return datasets.Dataset.from_list(rows).to_iterable_dataset()

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return serve


def test_a_hub_data_set_is_streamed_at_its_pinned_commit(hub: Callable[[list[dict[str, Any]]], list[Any]]) -> None:
    asked = hub([{"prompt": "Why?", "kind": None}, {"prompt": "How?", "kind": "plain"}])
    config = configured("prompts", place="somebody/rows", revision="abc123", subset="part", split="test")
    assert records(config, "prompts") == [
        Prompt(prompt="Why?", dataset="x"),
        Prompt(prompt="How?", kind="plain", dataset="x"),
    ]
    assert asked == [(("somebody/rows", "part"), {"split": "test", "revision": "abc123", "streaming": True})]


def test_a_format_knows_where_its_data_are_published(hub: Callable[[list[dict[str, Any]]], list[Any]]) -> None:
    asked = hub([{"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."}])
    config = DataConfig(sources={"hh": SourceConfig(format="hh_rlhf", revision="abc123")}, rankings=["hh"])
    assert records(config, "rankings")[0].completions == ["So.", "No."]
    assert asked[0][0][0] == FORMATS["hh_rlhf"].hub == "Anthropic/hh-rlhf"


def test_a_bad_row_of_a_hub_data_set_has_a_place_too(hub: Callable[[list[dict[str, Any]]], list[Any]]) -> None:
    hub([{"prompt": "Why?"}, {"prompt": "  "}])
    config = configured("prompts", place="somebody/rows", revision="main")
    with pytest.raises(ValueError, match="somebody/rows train: row 2: 'prompt' must be a non-empty string"):
        records(config, "prompts")


def test_a_hub_that_does_not_answer_is_one_sentence() -> None:
    """Tests run offline, so this is the real library's real refusal."""
    config = configured("prompts", place="somebody/no-such-rows", revision="main")
    with pytest.raises(ValueError, match=r"^cannot read somebody/no-such-rows at main from the Hub \([^\n]+\)$"):
        records(config, "prompts")


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("column", ["prompt", "question"])
def test_a_pair_whose_prompt_is_null_gets_no_prompt_from_its_answers(tmp_path: Path, kind: str, column: str) -> None:
    """Both answers begin with the same words, which would be the prompt in a file without a column for it."""
    answers = {"chosen": "The capital is Paris.", "rejected": "The capital is Rome."}
    table = pd.DataFrame([{column: "What is it?"} | answers, {column: None} | answers])
    path = tmp_path / f"pairs.{kind}"
    if kind == "csv":
        table.to_csv(path, index=False)
    elif kind == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=True)
    columns: dict[str, str | None] = {"question": "prompt"} if column == "question" else {}
    config = configured("rankings", place=path, columns=columns)
    with pytest.raises(
        ValueError, match=r"'prompt' is null; if 'chosen' and 'rejected' begin with it, leave its column"
    ):
        records(config, "rankings")
    config = configured("rankings", place=path, columns={column: None})
    assert [ranking.prompt for ranking in records(config, "rankings")] == ["The capital is"] * 2


def test_a_null_prompt_is_no_second_column_and_no_fault_where_nothing_reads_it(tmp_path: Path) -> None:
    place = written(tmp_path / "x.jsonl", [{"question": "Why?", "prompt": None, "completion": "So."}])
    config = configured("demonstrations", place=place, columns={"question": "prompt"})
    assert [record.prompt for record in records(config, "demonstrations")] == ["Why?"]
    talk = "\n\nHuman: Why?\n\nAssistant: "
    place = written(tmp_path / "hh.jsonl", [{"prompt": None, "chosen": talk + "So.", "rejected": talk + "No."}])
    config = configured("rankings", place=place, format="hh_rlhf")
    assert [record.completions for record in records(config, "rankings")] == [["So.", "No."]]


@pytest.mark.parametrize(
    ("labeler", "own", "expected"),
    [
        (None, {}, ("human", "")),
        ("human", {}, ("human", "")),
        ("gpt-4", {}, ("llm", "gpt-4")),
        ("gpt-4", {"labeler_id": "strict"}, ("llm", "strict")),
        ("gpt-4", {"labeler": "human", "labeler_id": "ann"}, ("human", "ann")),
        ("gpt-4", {"labeler": "human"}, ("human", "")),
    ],
)
def test_a_source_says_who_ranked_where_its_rows_do_not(
    tmp_path: Path, labeler: str | None, own: dict[str, str], expected: tuple[str, str]
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "Why?", "chosen": "So.", "rejected": "No."} | own) + "\n")
    config = DataConfig(sources={"uf": SourceConfig(place=str(file), labeler=labeler, licence="CC0")}, rankings=["uf"])
    source = find("uf", config, "rankings")
    (found,) = read(source, BadRows("stop"))
    assert (found.labeler, found.labeler_id) == expected
    assert source.about.endswith("; CC0")
