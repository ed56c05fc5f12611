"""Plain text for the pretraining mix and for perplexity: each document once, and a tenth of them held out."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from numpy.typing import NDArray

from data.config import DataConfig
from data.curate import thinned
from data.records import Document
from data.sets import DOCUMENT_SCHEMA
from data.split import hash64
from data.table import stored

FEW_DOCUMENTS = 10
"""With fewer distinct documents than this, the last tenth of each is held out."""
WRITE_TOGETHER = 16
"""Documents may be long, so only a few are in memory."""


@dataclass
class Documents:
    """N documents in the order in which they were read."""

    texts: Dataset
    notes: pd.DataFrame
    """Of each document: `dataset`, `characters` and `hash`."""
    removed: dict[str, int]
    splits: dict[str, NDArray[np.int64]]
    """Numbers of the documents of `train` and `heldout`, in the order in which they are written."""

    def rows(self, split: str) -> Dataset:
        """The documents of a split."""
        return self.texts.select(self.splits[split])


def collect_documents(documents: Iterable[Document], config: DataConfig, path: Path) -> Documents:
    """Reads the documents and holds out one in ten, chosen by hash, except those longer than a tenth of all text.

    With fewer than ten distinct documents, the last tenth of each is held out. Raises ValueError if there is none.
    """
    read = iter(documents)
    first, distinct = list[Document](), dict[str, str]()
    while len(distinct) < FEW_DOCUMENTS and (document := next(read, None)) is not None:
        first.append(replace(document, text=distinct.setdefault(document.text, document.text)))
    few = len(distinct) < FEW_DOCUMENTS
    if few:
        first = [replace(document, text=part) for document in first for part in cut(document.text)]
    found: list[tuple[str, int, int]] = []

    def rows() -> Iterator[dict[str, str]]:
        for document in itertools.chain(first, read):
            found.append((document.dataset, len(document.text), hash64(f"{config.split_salt}:{document.text}")))
            yield document.__dict__

    texts = stored(path, rows(), DOCUMENT_SCHEMA, WRITE_TOGETHER)
    if not found:
        raise ValueError("data.pretraining: no source has a document")
    notes = pd.DataFrame(found, columns=["dataset", "characters", "hash"]).astype({"hash": np.uint64})
    kept = notes.drop_duplicates("hash")
    removed = {"repeated": len(notes) - len(kept)}
    if few:
        train, heldout = kept[kept.index % 2 == 0], kept[kept.index % 2 == 1]
    else:
        ordered = kept.sort_values("hash", kind="stable")
        small = ordered[ordered["characters"] <= kept["characters"].sum() / 10]
        heldout = small[: max(1, len(ordered) // 10)]
        train = ordered.drop(heldout.index)
    if weights := config.weights("pretraining"):
        sized = train.rename(columns={"dataset": "source", "characters": "size"})
        stays = thinned(sized, "pretraining", weights)
        removed["over_mixture_share"] = int((~stays).sum())
        train = train[stays]
    return Documents(texts, notes, removed, {"train": train.index.to_numpy(), "heldout": heldout.index.to_numpy()})


def cut(text: str) -> tuple[str, str]:
    """A text without its last tenth, and that tenth."""
    place = len(text) * 9 // 10
    return text[:place], text[place:]
