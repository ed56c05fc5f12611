"""The embedded seed set keeps what its page promises: written for this project, short, plain, and wide enough to learn
from.
"""

from collections import Counter
from pathlib import Path

import pytest

from data.config import DataConfig
from data.files import read_records
from data.lines import STOP
from data.near_duplicates import comparable, distinct
from data.records import KINDS, SOURCES, USE_CASES, Demonstration
from data.sources.reading import find, read
from demo.assets import SEED_FOLDER

FILES = sorted(SEED_FOLDER.glob("*.jsonl"))


@pytest.fixture(scope="module")
def seed() -> list[Demonstration]:
    return list(read(find("seed", DataConfig(), "demonstrations"), STOP))


def test_all_four_topics_are_there() -> None:
    assert [file.stem for file in FILES] == ["culture", "home", "nature", "work"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_topic_has_its_hundred_and_all_ten_use_cases(file: Path) -> None:
    records = read_records(file, Demonstration)
    assert len(records) >= 100
    assert {record.use_case for record in records} == set(USE_CASES)


def test_the_set_is_wide_enough(seed: list[Demonstration]) -> None:
    assert len(seed) >= 400
    assert len({record.user_id for record in seed}) >= 60
    assert {record.source for record in seed} == set(SOURCES)
    assert {record.kind for record in seed} >= set(KINDS)
    assert sum(record.source == "api" for record in seed) >= 100, "RL needs prompts too"


def test_labelers_prompts_have_a_kind(seed: list[Demonstration]) -> None:
    assert all(record.kind in KINDS for record in seed if record.source == "labeler")


def test_a_user_is_a_labeler_or_a_customer_never_both(seed: list[Demonstration]) -> None:
    by_source = {source: {record.user_id for record in seed if record.source == source} for source in SOURCES}
    assert not by_source["labeler"] & by_source["api"]


def test_nothing_is_there_twice(seed: list[Demonstration]) -> None:
    for values in ([record.prompt_id for record in seed], [record.text.lower() for record in seed]):
        assert [value for value, count in Counter(values).items() if count > 1] == []
    assert distinct(lambda: (comparable(record.text) for record in seed), 0.9).all()


def test_prompts_and_answers_are_short(seed: list[Demonstration]) -> None:
    prompts, answers = (
        [len(record.text.split()) for record in seed],
        [len(record.completion.split()) for record in seed],
    )
    assert sum(length <= 25 for length in prompts) > 0.8 * len(seed)
    assert sum(length <= 25 for length in answers) > 0.9 * len(seed)
    assert max(prompts) <= 60
    assert max(answers) <= 40


def test_it_is_plain_ascii_without_stray_blanks(seed: list[Demonstration]) -> None:
    for file in FILES:
        assert file.read_bytes().isascii(), file.name
    for record in seed:
        assert record.text == record.text.strip(), record.prompt_id
        assert record.completion == record.completion.strip(), record.prompt_id


def test_a_few_shot_prompt_shows_examples(seed: list[Demonstration]) -> None:
    for record in seed:
        if record.kind == "few_shot":
            assert record.text.count("\n") >= 2, record.prompt_id
