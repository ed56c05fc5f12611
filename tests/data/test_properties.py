"""Whatever comes, the sets keep the rules: users, caps, duplicates, personal data, few-shot answers, evaluation
prompts, reruns.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.build
import data.table
from data.annotate import asked, full_text
from data.build import Built, build
from data.config import DataConfig
from data.near_duplicates import comparable
from data.records import SPLITS
from data.sets import SETS
from tests.data.building import WORDS, Sets, annotator, written
from tests.data.test_near_duplicates import near

USERS = st.sampled_from([f"user {number}" for number in range(12)])


TEXT = st.lists(st.sampled_from([*WORDS[:6], "a@b.com"]), min_size=1, max_size=4).map(" ".join)


ENTRY = st.fixed_dictionaries({"prompt": TEXT, "user_id": USERS, "source": st.sampled_from(["api", "labeler"])})


PAIR = st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT})


DEMONSTRATION = ENTRY.flatmap(lambda row: TEXT.map(lambda answer: row | {"completion": answer}))


FEW_SHOT = ENTRY.flatmap(
    lambda row: st.lists(PAIR, min_size=2, max_size=4).map(lambda pairs: row | {"examples": pairs})
)


RANKED = ENTRY.flatmap(lambda row: st.just(row | {"completions": ["x", "y"], "ranks": [1, 2]}))


ANCHORS = [{"prompt": f"anchor {word}", "user_id": f"anchor {n}", "completion": "So."} for n, word in enumerate(WORDS)]


@settings(max_examples=5, deadline=None)
@given(
    answered=st.lists(st.one_of(DEMONSTRATION, FEW_SHOT), max_size=15),
    bare=st.lists(ENTRY, max_size=15),
    ranked=st.lists(RANKED, max_size=15),
    cap=st.integers(1, 4),
    drawn=st.data(),
)
def test_whatever_comes_the_sets_keep_the_rules(
    answered: list[Any], bare: list[Any], ranked: list[Any], cap: int, drawn: st.DataObject
) -> None:
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
        assert {f.name: f.read_bytes() for f in again.glob("*.parquet")} == {
            f.name: f.read_bytes() for f in folder.glob("*.parquet")
        }
        config.demonstrations = [written(folder / "d2.jsonl", drawn.draw(st.permutations(ANCHORS + answered)))]
        shuffled = folder / "shuffled"
        shuffled.mkdir()
        homes, moved = homes_of(found), homes_of(Sets(made_in(folder, "shuffled-scratch", config), shuffled))
        assert all(homes[user] == moved[user] for user in homes.keys() & moved.keys())


def made_in(folder: Path, name: str, config: DataConfig) -> Built:
    (folder / f"{name}.scratch").mkdir()
    # Batches of three, so that columns and batches part where they can.
    with pytest.MonkeyPatch.context() as small:
        small.setattr(data.table, "BATCH", 3)
        return build(annotator(config), folder / f"{name}.scratch")


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
    assert not any(near(keys[i], keys[j], 0.9) for i in range(len(keys)) for j in range(i)), (
        "duplicates leave before the split"
    )

    by_split = {
        split: [comparable(asked(record)) for name in SETS for record in found[name][split]] for split in SPLITS
    }
    for earlier, later in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not any(near(one, other, 0.9) for one in by_split[earlier] for other in by_split[later]), (
            "nobody is asked what somebody else learned"
        )

    groups: dict[str, set[str]] = {}
    for split in SPLITS:
        for record in found["sft"][split]:
            if record.kind == "few_shot":
                query = record.text.rsplit("Input: ", 1)[1].removesuffix("\nOutput:")
                assert f"Input: {query}\nOutput: {record.completion}" not in record.text, "never its own answer"
                groups.setdefault(record.prompt_id.split("#")[0], set()).add(split)
    assert all(len(splits) == 1 for splits in groups.values()), (
        "the examples of one instruction know each other's answers"
    )
