"""Plain text: what is trained on, what is held out, and that neither fills the memory."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.build import write
from data.config import DataConfig, SourceConfig
from data.sets import read_texts
from data.split import hash64
from tests.data.building import written


def test_documents_are_written_in_small_batches(config: DataConfig, tmp_path: Path, made: Any) -> None:
    texts = [f"{number:04d}" * (100 if number % 7 == 0 else 1) for number in range(60)]
    config.pretraining = [written(tmp_path / "texts.jsonl", ({"text": text} for text in texts))]
    built = made(config)
    assert max(len(batch) for batch in built.documents.texts.data.to_batches()) <= 16
    write(built, tmp_path)
    assert sorted([*read_texts(tmp_path, "train"), *read_texts(tmp_path, "heldout")]) == sorted(texts)


@pytest.mark.parametrize("count", [10, 19, 20, 57])
def test_no_document_is_both_trained_on_and_held_out(config: DataConfig, tmp_path: Path, count: int, made: Any) -> None:
    texts = [f"document {number}" for number in range(count)]
    homes = []
    for order in (texts, texts[::-1] + texts[:1]):
        config.pretraining = [written(tmp_path / "texts.jsonl", ({"text": text, "title": "x"} for text in order))]
        documents = made(config).documents
        found = {split: list(documents.rows(split)["text"]) for split in documents.splits}
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
    config.pretraining = [written(tmp_path / "few.jsonl", ({"text": letter * 1000} for letter in "abc" * 5))]
    assert list(read_texts(sets(config).folder, "heldout")) == [letter * 100 for letter in "abc"], (
        "repeats do not count"
    )


def test_a_document_of_more_than_a_tenth_of_the_text_is_never_held_out(
    config: DataConfig, tmp_path: Path, made: Any
) -> None:
    texts = [f"{n:02d} " * (1000 if n == 7 else 10) for n in range(11)]
    config.pretraining = [written(tmp_path / "texts.jsonl", ({"text": text} for text in texts))]

    def chosen(salt: str) -> int:
        """The document that its hash alone would hold out."""
        return min(range(11), key=lambda n: hash64(f"{salt}:{texts[n]}"))

    config.split_salt = next(salt for salt in map(str, range(999)) if chosen(salt) == 7)
    documents = made(config).documents
    assert 7 in documents.splits["train"]
    assert len(documents.splits["heldout"]) == 1


def test_weights_of_plain_text_are_shares_of_its_characters(config: DataConfig, tmp_path: Path, made: Any) -> None:
    config.sources = {
        "long": SourceConfig(
            place=written(tmp_path / "long.jsonl", ({"text": f"{n:03d}" * 100} for n in range(100))), weight=1
        ),
        "short": SourceConfig(
            place=written(tmp_path / "short.jsonl", ({"text": f"{n:03d}"} for n in range(100))), weight=1
        ),
    }
    config.pretraining = ["long", "short"]
    documents = made(config).documents
    names = documents.rows("train")["dataset"]
    assert Counter(names)["long"] <= 1, "a hundred short ones are as much text as one long one"
    assert Counter(names)["short"] > 80
