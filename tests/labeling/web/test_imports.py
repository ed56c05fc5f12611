"""Exports can be imported in every format, and labels made with other tools are read correctly."""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.records import Samples
from labeling.ratings import FLAGS, NULLABLE
from labeling.web.forms import SKIP_REASONS, label_of
from labeling.web.imports import read_labels
from labeling.web.store import Label, Saved, Store
from stages.label import PLACE, export, main
from tests.data.sources.converting import assert_refused, convert

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.text(CHARACTERS, max_size=12) | st.sampled_from(
    ["<b onclick=x>&amp;</b>", "a\nb\r\n\u2028", "\u05d0\U0001f600", ""]
)
PROMPTS = TEXTS.filter(str.strip)
NAMES = st.sampled_from(["ann", "ben@example.org", "\u00c5sa \u4e2d"])
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A file system in memory, for stores that need not survive a power failure."""
TIMES = st.sampled_from([0.0, 1_700_000_000.25]) | st.floats(0, 4e9)


@st.composite
def forms(draw: st.DrawFn, answers: int) -> dict[str, str]:
    """A ranking form that the app saves: with ties, unranked answers and ratings, a skipped task or a better answer."""
    form = {"demonstration": draw(TEXTS)}
    if draw(st.integers(0, 3)) == 0:
        return form | {"skipped": draw(st.sampled_from(SKIP_REASONS))}
    ranks = draw(st.lists(st.sampled_from(["", *map(str, range(1, answers + 1))]), min_size=answers, max_size=answers))
    if sum(rank != "" for rank in ranks) < 2:
        ranks = ["1"] * answers
    for place, rank in enumerate(ranks):
        form |= {f"rank-{place}": rank, f"quality-{place}": draw(st.sampled_from(["", "1", "7"]))}
        if form[f"quality-{place}"]:
            form |= {f"{name}-{place}": draw(st.sampled_from(["yes", "no", ""])) for name in (*NULLABLE, "opinion")}
    return form


@st.composite
def saved_labels(draw: st.DrawFn) -> list[Saved]:
    """Labels of one to three tasks in arbitrary order; some correct others."""
    found = []
    for number in range(draw(st.integers(1, 3))):
        completions = draw(st.lists(TEXTS, min_size=2, max_size=5))
        turns = [{"role": "system", "content": draw(PROMPTS)}, {"role": "user", "content": f"{draw(PROMPTS)} {number}"}]
        samples = Samples(
            prompt=draw(st.sampled_from([turns, turns[1]["content"]])), user_id=draw(PROMPTS), completions=completions,
            complete=draw(st.lists(st.booleans(), min_size=len(completions), max_size=len(completions))),
            use_case=draw(st.sampled_from(["chat", None])), reference=draw(st.none() | PROMPTS),
        )  # fmt: skip
        gold = [1] * len(completions) if number == 1 else None
        for _ in range(draw(st.integers(1, 3))):
            label = label_of(draw(forms(len(completions))), len(completions), draw(TIMES))
            found.append(Saved(draw(NAMES), samples, label, draw(TIMES), gold))
    return found


def written(store: Store, form: str, folder: Path) -> list[Saved]:
    """What is read of the store's export."""
    export(store, folder, form)
    return read_labels(folder, form)


@settings(max_examples=7, deadline=None)
@given(found=saved_labels(), more=saved_labels())
def test_an_export_restores_the_store_and_merges_with_another(found: list[Saved], more: list[Saved]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name)
        one, other, restored = (Store(folder / f"{place}.sqlite") for place in ("one", "other", "restored"))
        one.merge(found)
        other.merge(more)
        exported = written(one, "own", folder / "a")
        assert restored.merge(exported) == len(exported)
        assert list(restored.history()) == list(one.history()) == sorted(exported, key=lambda saved: saved.saved)
        assert list(restored.labels()) == list(one.labels())
        assert restored.merge(exported) == 0, "a second time"
        both = written(other, "own", folder / "b")
        assert restored.merge(both) <= len(both)
        other.merge(exported)
        key = lambda saved: json.dumps([*map(str, vars(saved).values())])  # noqa: E731
        assert sorted(restored.history(), key=key) == sorted(other.history(), key=key), "whichever comes first"
        assert {key(saved) for saved in [*found, *more]} == {key(saved) for saved in restored.history()}, "none lost"


@pytest.mark.parametrize("form", ["label-studio", "argilla"])
@settings(max_examples=7, deadline=None)
@given(found=saved_labels())
def test_last_labels_survive_the_formats_of_other_tools(form: str, found: list[Saved]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        store = Store(Path(name) / "labels.sqlite")
        store.merge(found)
        read = written(store, form, Path(name) / "out")
        kept = [saved for saved in store.history(last=True) if saved.gold is None]
        order = lambda saved: (saved.saved, saved.name, str(saved.samples))  # noqa: E731
        assert sorted(read, key=order) == sorted(kept, key=order)


SAMPLES = Samples(prompt="Why?", completions=["a", "b", "c"], complete=[True, True, False])


def test_an_imported_label_can_be_corrected_and_its_labeler_signs_in_once_invited(tmp_path: Path) -> None:
    store, run = Store(tmp_path / "old" / PLACE), tmp_path / "new"
    token = store.invite("ann")
    store.add([SAMPLES], [1], [None])
    task = store.claim("ann")
    assert task is not None
    store.save(task.id, "ann", Label([1, 2, None], seconds=3.5), 0)
    assert main([str(tmp_path / "old"), "--export", str(tmp_path / "out")]) == 0
    assert main([str(run), "--import", str(tmp_path / "out")]) == 0
    new = Store(run / PLACE)
    assert list(new.history()) == list(store.history())
    assert new.people() == []
    assert new.sign_in(token) is None
    assert new.sign_in("- ann") is None
    new.invite("ann")
    assert new.add([SAMPLES], [1], [None]) == 0, "the same task"
    assert new.progress("ann") == {"slots": 1, "done": 1, "own": 1, "tasks": 1}
    last = new.last("ann")
    assert last is not None
    assert last.label == Label([1, 2, None], seconds=3.5)
    new.merge([Saved("ann", replace(SAMPLES, prompt="How?"), Label(skipped="unclear"), 7.0)])
    assert new.last("ann") == last, "what was labelled last, not what was imported last"
    assert new.claim("ann") is None
    assert new.save(last.id, "ann", Label([2, 1, None]), 1)
    assert [saved.label.ranks for saved in new.history(last=True)] == [[], [2, 1, None]]


def test_a_correction_counts_even_if_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = Store(tmp_path / "one.sqlite"), Store(tmp_path / "two.sqlite")
    store.invite("ann")
    store.add([SAMPLES], [1], [None])
    task = store.claim("ann")
    assert task is not None
    store.save(task.id, "ann", Label([1, 2, 3]), 0)
    monkeypatch.setattr("time.time", lambda: 5.0)
    store.save(task.id, "ann", Label([3, 2, 1]), 1)
    other.merge(list(store.history()))
    assert [label.ranks for _, _, label, _ in other.labels()] == [[3, 2, 1]]


def test_labels_of_the_same_moment_keep_their_order(tmp_path: Path) -> None:
    one, other = Store(tmp_path / "one.sqlite"), Store(tmp_path / "two.sqlite")
    tasks = [replace(SAMPLES, prompt=f"{number}?") for number in range(6)]
    moments = [(task, 5.0) for task in tasks] + [(tasks[-1], 1.0)]
    one.merge([Saved("ann", task, Label([1, 2, 3], seconds=moment), moment) for task, moment in moments])
    other.merge(list(one.history()))
    assert list(other.labels()) == list(one.labels())


ROW = {"labeler_id": "ann", "saved": 7.0, "ranks": [1, 2], "ratings": [], "skipped": "", "demonstration": "",
       "seconds": 1.0, "task": {"prompt": "Why?", "completions": ["a", "b"]}}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ranks": [1, 3]}, "A rank is a number from 1 to 2."),
        ({"ranks": [1]}, "'ranks' must be a list as long as 'completions' (2)"),
        ({"ranks": []}, "Rank at least two answers"),
        ({"gold": [1, 2, 3]}, "'ranks' must be a list as long as 'completions' (2)"),
        ({"skipped": "bored", "ranks": []}, "Choose a reason for skipping from the list."),
        ({"ratings": [{"quality": 9}, {}]}, "Quality is a number from 1 to 7."),
        (
            {"ratings": [{"quality": 5, "rude": True}, {}]},
            "a rating has 'rude': True; the flags are true, false or null",
        ),
        ({"ratings": [{"opinion": True}, {}]}, "Give a quality to every answer of which you set flags."),
        ({"demonstration": "x" * 20_001}, "The text is too long"),
        ({"saved": None}, "'saved' must be a number of seconds from 0 to 32,503,680,000"),
        ({"saved": 10**400}, "'saved' must be a number of seconds from 0 to 32,503,680,000"),
        ({"seconds": True}, "'seconds' must be a number of seconds from 0 to 32,503,680,000"),
        ({"labeler_id": "\n"}, "the name of a person must have 1 to 100 printable characters"),
        ({"task": {"prompt": "Why?", "completions": ["a", 2]}}, "'completions' must be a list of strings"),
        ({"task": {"prompt": "", "completions": ["a", "b"]}}, "'prompt' must be a non-empty string"),
    ],
)
def test_a_malformed_label_is_reported_in_one_sentence_and_nothing_is_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], sentence: str
) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | change) + "\n")
    assert main([str(tmp_path / "run"), "--import", str(file)]) == 2
    assert f"{file}:2: {sentence}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def label_studio(ranker: Any, kind: str = "ranker", **annotation: Any) -> dict[str, Any]:
    """A task as Label Studio exports it."""
    result = {"id": "x1", "from_name": "rank", "to_name": "list", "type": kind, "value": {kind: ranker}}
    items = [{"id": "m1", "title": "Model 1", "body": "a"}, {"id": 2, "title": "b"}, {"id": "m3", "html": "<i>c</i>"}]
    about = {"id": 9, "completed_by": 4, "was_cancelled": False, "ground_truth": False, "lead_time": 12.5,
             "created_at": "2026-01-31T12:00:00.5Z", "updated_at": "2026-01-31T13:00:00.000000Z"}  # fmt: skip
    return {"id": 1, "data": {"question": "Why?", "items": items}, "predictions": [], "project": 3,
            "annotations": [about | {"result": [result]} | annotation]}  # fmt: skip


def argilla(*responses: dict[str, Any]) -> dict[str, Any]:
    """A record as Argilla's server returns it."""
    return {"id": "0b", "external_id": "1", "status": "completed", "metadata": None, "suggestions": [],
            "fields": {"instruction": "Why?", "reply-1": "a", "reply-2": "b", "reply-3": "<i>c</i>"},
            "responses": [
                {"id": "f0", "user_id": f"u{number}", "inserted_at": "2026-01-31T12:00:00",
                 "updated_at": "2026-01-31T13:00:00", **one} for number, one in enumerate(responses)
            ]}  # fmt: skip


def values(*ranks: int | None) -> dict[str, Any]:
    order = [{"value": f"reply-{number}", "rank": rank} for number, rank in enumerate(ranks, start=1)]
    return {"preference": {"value": order}, "why": {"value": "Better."}}


def read(tmp_path: Path, form: str, *rows: dict[str, Any]) -> list[Saved]:
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps(rows))
    return read_labels(file, form)


HOUR = 1_769_864_400.0
"""2026-01-31 13:00 UTC."""


@pytest.mark.parametrize(
    ("ranker", "ranks"),
    [
        ({"rank": ["2", "m3", "m1"]}, [3, 1, 2]),
        (["2", "m3", "m1"], [3, 1, 2]),
        ({"1": ["2", "m3"], "5": ["m1"], "_": []}, [2, 1, 1]),
        ({"1": ["2"], "2": ["m3"], "_": ["m1"]}, [None, 1, 2]),
    ],
)
def test_rankings_made_in_label_studio_are_read(tmp_path: Path, ranker: Any, ranks: list[int | None]) -> None:
    skipped = label_studio({"_": ["m1", "2", "m3"]}, was_cancelled=True, completed_by={"id": 5, "email": "b@x.org"})
    untouched = label_studio({"_": ["m1", "2", "m3"]})
    one, other = read(tmp_path, "label-studio", label_studio(ranker), untouched, skipped)
    assert (one.samples.prompt, one.samples.completions) == ("Why?", ["a", "b", "<i>c</i>"])
    assert (one.name, one.saved, one.label) == ("user 4", HOUR, Label(ranks, seconds=12.5))
    assert (other.name, other.label) == ("b@x.org", Label(skipped="other", seconds=12.5))
    (ranking,) = convert("label_studio", "rankings", label_studio(ranker))
    assert (ranking.prompt, ranking.ranks, ranking.labeler_id) == ("Why?", ranks, "user 4")
    assert convert("label_studio", "rankings", skipped) == []


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (label_studio({"best": ["m1"], "_": ["2", "m3"]}), "the bucket 'best' is not a rank: call the buckets 1, 2"),
        (label_studio({"1": ["m1"], "2": ["m1"]}), "has an answer twice, or one that is not in the list"),
        (label_studio({"1": ["m1", "m9"]}), "has an answer twice, or one that is not in the list"),
        (label_studio("left", "pairwise"), "a Pairwise result does not say which answer was on the left"),
        (label_studio({}) | {"data": {"prompt": "Why?"}}, "'data' must have one list of answers"),
        (
            label_studio({}) | {"data": {"a": "x", "b": "y", "l": [{"id": 1, "title": "x"}]}},
            "one text must be the prompt",
        ),
        (label_studio({"1": ["m1", "2"]}, updated_at="today"), "'updated_at' must be a time such as"),
    ],
)
def test_label_studio_results_without_a_clear_ranking_are_refused(row: dict[str, Any], sentence: str) -> None:
    assert_refused(sentence, "label_studio", "rankings", row)


def test_rankings_made_in_argilla_are_read(tmp_path: Path) -> None:
    tied, other = ({"status": "submitted", "values": values(*ranks)} for ranks in ((2, 1, 1), (1, 2, 3)))
    draft, discarded = {"status": "draft", "values": values(1, 2, None)}, {"status": "discarded", "values": None}
    row = argilla(tied, other, draft, discarded)
    one, two, skipped = read(tmp_path, "argilla", row)
    assert (one.samples.prompt, one.samples.completions) == ("Why?", ["a", "b", "<i>c</i>"])
    assert (one.name, one.saved, one.label) == ("u0", HOUR, Label([2, 1, 1]))
    assert (two.name, two.label.ranks, skipped.name, skipped.label) == ("u1", [1, 2, 3], "u3", Label(skipped="other"))
    by_question = {"preference": [{"value": values(2, 1, 1)["preference"]["value"], "user_id": "u0"}]}
    assert [
        label.ranks for label in (saved.label for saved in read(tmp_path, "argilla", row | {"responses": by_question}))
    ] == [[2, 1, 1]]
    assert [ranking.ranks for ranking in convert("argilla", "rankings", row)] == [[2, 1, 1], [1, 2, 3]]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"preference": {"value": ["reply-2", "reply-1"]}}, "the ranks are missing: version 2 of Argilla's Python"),
        ({"preference": {"value": [{"value": "A", "rank": 1}]}}, "the option 'A', but the record has no field of"),
        ({"preference": {"value": [{"value": "reply-1", "rank": "1"}]}}, "must be a whole number or null"),
        (values(1, 2, 3) | {"style": values(1, 2, 3)["preference"]}, "must answer one ranking question, found several"),
    ],
)
def test_argilla_responses_without_a_clear_ranking_are_refused(changed: dict[str, Any], sentence: str) -> None:
    assert_refused(sentence, "argilla", "rankings", argilla({"status": "submitted", "values": changed}))


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        (
            Samples(prompt="Why?", completions=list("a" * 51), complete=[True] * 51),
            "51 answers, and Argilla ranks at most 50",
        ),
        (
            Samples(prompt="x" * 20_001, completions=["a", "b"], complete=[True] * 2),
            "20,001 characters, and Argilla allows 1 to 20,000",
        ),
    ],
)
def test_a_task_above_argillas_limits_is_refused(tmp_path: Path, samples: Samples, sentence: str) -> None:
    store = Store(tmp_path / "labels.sqlite")
    store.add([samples], [1], [None])
    with pytest.raises(ValueError, match=sentence):
        export(store, tmp_path / "out", "argilla")


def test_other_tools_see_which_labels_are_finished(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.sqlite")
    labels = [Label([1, 1, 2]), Label([2, 1, None]), Label(skipped="unclear")]
    store.merge([Saved(name, SAMPLES, label, 1.5) for name, label in zip("abc", labels, strict=True)])
    written(store, "label-studio", tmp_path)
    (task,) = json.loads((tmp_path / "label_studio.json").read_text())
    buckets = [one["result"][0]["value"]["ranker"] for one in task["annotations"]]
    assert buckets == [{"1": ["1", "2"], "2": ["3"]}, {"2": ["1"], "1": ["2"], "_": ["3"]}, {"_": ["1", "2", "3"]}]
    assert [one["was_cancelled"] for one in task["annotations"]] == [False, False, True]
    written(store, "argilla", tmp_path)
    file = tmp_path / "answers-3" / "records.json"
    (record,) = json.loads(file.read_text())
    assert [one["status"] for one in record["responses"]["ranking"]] == ["submitted", "draft"]
    assert [one["status"] for one in record["responses"]["skipped"]] == ["discarded"]
    for one in [one for answers in record["responses"].values() for one in answers]:
        del one["status"]  # as Argilla's client writes records that it did not download
    file.write_text(json.dumps([record]))
    assert [saved.label for saved in read_labels(file, "argilla")] == labels


def test_every_flag_survives_every_format(tmp_path: Path) -> None:
    rating: dict[str, Any] = {"quality": 4} | dict.fromkeys(FLAGS, True)
    store = Store(tmp_path / "labels.sqlite")
    label = Label([1, 2, 2], [rating, rating | dict.fromkeys(FLAGS, False), {}], seconds=math.pi)
    store.merge([Saved("ann", SAMPLES, label, 1.5)])
    for form in ("own", "label-studio", "argilla"):
        assert [saved.label for saved in written(store, form, tmp_path / form)] == [label]
