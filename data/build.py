"""InstructGPT's three data sets, from one pool of prompts (Ouyang et al. 2022, section 3.2 and table 6).

SFT: prompts with a demonstration. RM: prompts to sample answers for and rank, and rankings that were made before. RL:
    api prompts only. Rules that look at one row come first, then those that compare what is left: near-duplicates, a
    user's cap, evaluation prompts, the mixture. Users are split by hash. Every rule's count and a few of its victims go
    into the report.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from data.config import DataConfig
from data.curate import in_languages, thinned, under_cap
from data.few_shot import expand
from data.files import BadRows
from data.measure import Measurer, measure
from data.near_duplicates import alike, comparable, distinct
from data.part import TEST, TRAIN, VALID, Collector, Mask, Part, asked, first_among
from data.ranking_rules import drop_answers, refuse_undecided
from data.records import SPLITS, Document, FewShot, Prompt, Ranking
from data.sets import (
    DOCUMENT_SCHEMA,
    POOL_SCHEMA,
    RANKING_SCHEMA,
    SETS,
    TEXT_SPLITS,
    SetName,
    packed,
    record_of,
    set_file,
    set_schema,
)  # fmt: skip
from data.sources.reading import Source, all_sources, read
from data.split import hash64
from data.spool import Spool

T = TypeVar("T")
FEW_DOCUMENTS = 10
"""Fewer than these leave no whole one to hold out."""
WRITE_CHARACTERS = 2**24
"""Of plain text, written at a time."""


@dataclass
class Documents:
    """Plain text: N documents in the order in which they were read."""

    spool: Spool
    digest: NDArray[np.uint64]
    characters: NDArray[np.int64]
    dataset: NDArray[np.int32]
    datasets: list[str]
    removed: dict[str, int]
    splits: dict[str, NDArray[np.int64]]
    """Row numbers of `train` and `heldout`, in the order in which they are written."""


@dataclass(frozen=True)
class Reader:
    """How malformed rows are handled, and a check that may refuse prompts of well-formed rows."""

    bad: BadRows
    check: Callable[[Prompt], object] | None


@dataclass
class Built:
    """What curation decided; the texts are still in the spools, which live in the scratch folder."""

    sources: list[Source]
    pool: Part
    """Prompts with and without a demonstration: what SFT, RM and RL are made from."""
    rankings: Part
    documents: Documents
    bad: BadRows

    @property
    def conversational(self) -> bool:
        """Whether any prompt is a conversation, and so all are written as such."""
        return any(bool(part.conversational[part.kept()].any()) for part in (self.pool, self.rankings))

    def members(self, name: SetName, split: int) -> Mask:
        """The rows of the pool, or of the rankings, that a set's split is made from."""
        if name == "rankings":
            return self.rankings.kept(split)
        kept = self.pool.kept(split)
        return kept & {"sft": self.pool.answered, "rm": kept, "rl": self.pool.api}[name]

    def sizes(self) -> dict[str, int]:
        """Rows by set and split."""
        found = {}
        for name in SETS:
            copies = self.rankings.copies if name == "rankings" else self.pool.copies
            for split, split_name in enumerate(SPLITS):
                found[f"{name}_{split_name}"] = int(copies[self.members(name, split)].sum())
        return found | {f"texts_{split}": len(rows) for split, rows in self.documents.splits.items()}

    def removed(self) -> dict[str, dict[str, int]]:
        """Removed rows by kind and rule, in the rules' order, and answers dropped from rankings that were kept."""
        return {
            "prompts": self.pool.ledger.removed,
            "rankings": self.rankings.ledger.removed,
            "answers": self.rankings.dropped,
            "documents": self.documents.removed,
        }


def build(
    config: DataConfig, measurer: Measurer, scratch: Path, check: Callable[[Prompt], object] | None = None
) -> Built:
    """Reads the sources and applies the rules; the spools go into the folder `scratch`, which must outlive the result.

    `check` raises ValueError for a prompt that cannot be used. Raises ValueError on a malformed row or such a prompt
    (unless `bad_rows: skip`), on a missing source, on a source of rankings without a strict pair, and when a split that
    a later stage needs has no rows.
    """
    found = all_sources(config)
    reader = Reader(BadRows(skip=config.bad_rows == "skip"), check)
    bad = reader.bad
    pool = collect([*found["demonstrations"], *found["prompts"]], config, reader, scratch / "pool.arrow", POOL_SCHEMA)
    refuse_repeated_ids(pool)
    rankings = collect(found["rankings"], config, reader, scratch / "rankings.arrow", RANKING_SCHEMA)
    refuse_undecided(rankings)
    documents = collect_documents(found["pretraining"], config, bad, scratch / "documents.arrow")

    for part, record_type in ((pool, Prompt), (rankings, Ranking)):
        drop_unfit(part, record_type, config, measurer)
    # What is left is compared, so that nobody leaves for the sake of a row that leaves as well.
    pool.ledger.apply("repeated", first_among(pool.identity, pool.kept()))
    pool.ledger.apply("near_duplicate", distinct_among(pool, config.near_duplicate_fraction))
    rankings.ledger.apply("repeated", first_among(rankings.row, rankings.kept()))
    for part in (pool, rankings):
        capped = np.zeros(part.count, dtype=bool)
        left = np.flatnonzero(part.kept())
        capped[left] = under_cap(part.group[left], part.item[left], config.max_prompts_per_group)
        part.ledger.apply("over_cap", capped)
    drop_evaluation_prompts(pool, rankings, config.near_duplicate_fraction)
    answered = np.where(pool.answered, "demonstrations", "prompts")
    for part, role_of in ((pool, answered), (rankings, np.full(rankings.count, "rankings"))):
        thin(part, role_of, config)

    built = Built([source for role in found.values() for source in role], pool, rankings, documents, bad)
    refuse_empty(built)
    return built


def collect(found: Sequence[Source], config: DataConfig, reader: Reader, path: Path, schema: pa.Schema) -> Part:
    """All records of the sources, in order."""
    collector = Collector(path, schema, config.group_by, config.split_salt)
    for source in found:
        for record in shown(read(source, reader.bad, reader.check), f"data: {source.role} of {source.name}"):
            collector.add(record)
    return collector.finish(config.valid_fraction, config.test_fraction)


def shown(records: Iterable[T], what: str) -> Iterable[T]:
    """The records, with a count on the screen while they are read."""
    return tqdm(records, desc=what, unit=" rows", unit_scale=True, disable=None, leave=False)


def drop_unfit(part: Part, record_type: type[Prompt], config: DataConfig, measurer: Measurer) -> None:
    """The rules that look at one row by itself."""
    part.measures = measure(part.spool, record_type, part.kept(), part.split == TRAIN, measurer, config.workers)
    part.ledger.apply("other_language", in_languages(part.measures.language, config.languages))
    part.ledger.apply("prompt_too_long", part.measures.prompt_tokens <= config.max_prompt_tokens)
    if record_type is Ranking:
        drop_answers(part, config, measurer)
        return
    part.ledger.apply("answer_too_long", part.measures.answer_tokens <= config.max_answer_tokens)
    part.ledger.apply("personal_data", ~part.measures.personal)


def distinct_among(pool: Part, fraction: float) -> Mask:
    """The rows that are left and no near-duplicate of an earlier one that is."""
    stays = pool.kept().copy()
    stays[stays] = distinct(lambda: kept_keys(pool), fraction)
    return stays


def kept_keys(part: Part) -> Iterator[pa.StringArray]:
    """What the rows that are left are compared by."""
    for start, keys in zip(part.spool.starts, part.spool.column("key"), strict=False):
        yield keys.filter(pa.array(part.kept()[start : start + len(keys)]))


def drop_evaluation_prompts(pool: Part, rankings: Part, fraction: float) -> None:
    """Drops training rows whose prompt is a near-duplicate of a validation or test prompt of any set, and validation
    rows whose is of a test prompt.

    Within the pool no prompt has a twin any more; between pool and rankings, among rankings, and among the examples
    that few-shot prompts become, one prompt may come from users in different splits.
    """
    examples, owners = few_shot_examples(pool)
    parts = (pool, rankings)
    row = np.concatenate(
        [*(np.flatnonzero(part.kept()) + start for part, start in zip(parts, (0, pool.count), strict=True)), owners]
    )
    split = np.concatenate([part.split for part in parts])[row]
    seen = np.zeros(pool.count + rankings.count, dtype=bool)
    if rankings.kept().any() or len(owners):

        def texts() -> Iterator[pa.StringArray]:
            return itertools.chain(kept_keys(pool), kept_keys(rankings), [examples])

        for candidates, others in ((split == TRAIN, split != TRAIN), (split == VALID, split == TEST)):
            seen[row[alike(texts, candidates, others, fraction)]] = True
    for part, found in zip(parts, np.split(seen, [pool.count]), strict=True):
        part.ledger.apply("evaluation_prompt", ~found)


def few_shot_examples(pool: Part) -> tuple[pa.StringArray, NDArray[np.int64]]:
    """(what each example of the few-shot prompts that are left is compared by, the row that it belongs to)."""
    keys, owners = list[str](), list[int]()
    numbers = np.flatnonzero(pool.kept() & pool.few_shot)
    for number, row in zip(numbers, pool.spool.rows(numbers), strict=True):
        record = record_of(row, Prompt)
        assert isinstance(record, FewShot)
        for example in expand(record):
            keys.append(comparable(asked(example)))
            owners.append(int(number))
    return pa.array(keys, pa.string()), np.array(owners, dtype=np.int64)


def thin(part: Part, role_of: NDArray[np.str_], config: DataConfig) -> None:
    """Brings the training rows of each role to the proportions that its sources' weights ask for."""
    stays = np.ones(part.count, dtype=bool)
    for role in np.unique(role_of):
        weights = weights_of(config, role)
        rows = np.flatnonzero(part.kept(TRAIN) & (role_of == role))
        if weights:
            index = np.array([list(weights).index(name) if name in weights else -1 for name in part.datasets])
            sources_of = index[part.dataset[rows]]
            refuse_missing(role, list(weights), sources_of)
            stays[rows] = thinned(
                sources_of, list(weights.values()), part.copies[rows].astype(float), part.identity[rows]
            )
    part.ledger.apply("over_mixture_share", stays)


def refuse_missing(role: str, names: Sequence[str], sources_of: NDArray[np.int64]) -> None:
    """Raises ValueError when a source with a weight has no training rows: its share of anything is nothing."""
    for place, name in enumerate(names):
        if not (sources_of == place).any():
            raise ValueError(
                f"data.{role}: source {name!r} has a weight but no training rows are left of it after curation"
            )


def weights_of(config: DataConfig, role: str) -> dict[str, float]:
    """The weights of a role's sources by name; empty where they have none."""
    names: list[str] = getattr(config, role)
    weights = {name: config.sources[name].weight if name in config.sources else None for name in names}
    return {name: weight for name, weight in weights.items() if weight is not None}


def refuse_repeated_ids(part: Part) -> None:
    """Raises ValueError when two different prompts have the same prompt_id; the same prompt twice is left to the
    near-duplicate rule.
    """
    order = np.lexsort((part.item, part.identity))
    same_id = part.identity[order][1:] == part.identity[order][:-1]
    other_text = part.item[order][1:] != part.item[order][:-1]
    clash = np.flatnonzero(same_id & other_text)
    if len(clash):
        one, other = part.spool.rows([int(order[clash[0]]), int(order[clash[0] + 1])])
        raise ValueError(
            f"prompt_id {one['prompt_id']!r} stands on two different prompts, of {one['dataset']!r} and of "
            f"{other['dataset']!r}; where ids are not "
            "unique, leave them out with columns: {prompt_id: null}"
        )


def refuse_empty(built: Built) -> None:
    """Raises ValueError when a split that a later stage needs is empty."""
    sizes = built.sizes()
    needed = [(name, split) for name in ("sft", "rm") for split in SPLITS]
    for name, split in [*needed, ("rl", "train")]:
        if not sizes[f"{name}_{split}"]:
            lacking = {"sft": "prompt with a demonstration", "rm": "prompt", "rl": "api prompt"}[name]
            why = ", ".join(f"{count} {rule}" for rule, count in built.pool.ledger.removed.items() if count) or "none"
            raise ValueError(
                f"the {name} {split} split is empty after curation: no {lacking} is left among the {split} users; "
                f"try another data.split_salt or other fractions, or look at what was removed ({why})"
            )


def collect_documents(found: Sequence[Source], config: DataConfig, bad: BadRows, path: Path) -> Documents:
    """All plain text, each document once. One document in ten is held out, by hash, and none that alone is over a tenth
    of the text.

    Of fewer than ten documents each is cut in two, and its last tenth held out.
    """
    texts: Iterator[Document] = (
        document for source in found for document in shown(read(source, bad), f"data: text of {source.name}")
    )
    first = list(itertools.islice(texts, FEW_DOCUMENTS))
    few = len(first) < FEW_DOCUMENTS
    if few:
        first = [part for document in first for part in cut(document)]
    spool, names = Spool(path, DOCUMENT_SCHEMA), dict[str, int]()
    digests, sizes, codes = list[int](), list[int](), list[int]()
    for document in itertools.chain(first, texts):
        spool.append({"text": document.text, "dataset": document.dataset})
        digests.append(hash64(f"{config.split_salt}:{document.text}"))
        sizes.append(len(document.text))
        codes.append(names.setdefault(document.dataset, len(names)))
    spool.close()
    if not digests:
        raise ValueError("data.pretraining: no source has a document")
    digest, characters, dataset = np.array(digests, np.uint64), np.array(sizes, np.int64), np.array(codes, np.int32)
    kept = first_among(digest, np.ones(len(digest), dtype=bool))
    removed = {"repeated": int((~kept).sum())}
    if few:
        train, heldout = (np.flatnonzero(kept[place::2]) * 2 + place for place in (0, 1))
    else:
        ordered = np.flatnonzero(kept)[np.argsort(digest[kept], kind="stable")]
        small = ordered[characters[ordered] <= characters[kept].sum() / 10]
        heldout = small[: max(1, len(ordered) // 10)]
        train = ordered[~np.isin(ordered, heldout)]
    weights = weights_of(config, "pretraining")
    if weights:
        sources_of = np.array([list(weights).index(name) for name in names])[dataset[train]]
        refuse_missing("pretraining", list(weights), sources_of)
        stays = thinned(sources_of, list(weights.values()), characters[train].astype(float), digest[train])
        removed["over_mixture_share"] = int((~stays).sum())
        train = train[stays]
    return Documents(spool, digest, characters, dataset, list(names), removed, {"train": train, "heldout": heldout})


def cut(document: Document) -> tuple[Document, Document]:
    """A document but for its last tenth, and that tenth."""
    place = len(document.text) * 9 // 10
    return Document(text=document.text[:place], dataset=document.dataset), Document(
        text=document.text[place:], dataset=document.dataset
    )


def write(built: Built, folder: Path) -> None:
    """Writes every set's splits that have rows (data/sets.py)."""
    for name in SETS:
        part = built.rankings if name == "rankings" else built.pool
        for split, split_name in enumerate(SPLITS):
            members = built.members(name, split)
            if members.any():
                with pq.ParquetWriter(
                    set_file(folder, name, split_name), set_schema(name, built.conversational)
                ) as writer:
                    for batch in _selected(part, members, writer.schema, built.conversational):
                        writer.write_batch(batch)
    for split_name in TEXT_SPLITS:
        rows = built.documents.splits[split_name]
        with pq.ParquetWriter(set_file(folder, "texts", split_name), DOCUMENT_SCHEMA) as writer:
            for piece in in_pieces(rows, built.documents.characters[rows]):
                writer.write_batch(pa.RecordBatch.from_pylist(list(built.documents.spool.rows(piece)), DOCUMENT_SCHEMA))


def in_pieces(rows: NDArray[np.int64], characters: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows in their order, some WRITE_CHARACTERS of text at a time."""
    pieces = np.cumsum(characters) // WRITE_CHARACTERS
    yield from np.split(rows, np.flatnonzero(np.diff(pieces)) + 1) if len(rows) else ()


def _selected(part: Part, members: Mask, schema: pa.Schema, conversational: bool) -> Iterator[pa.RecordBatch]:
    """The members as batches of the schema, in order; a few-shot prompt's examples follow its batch's other rows."""
    start = 0
    for batch in part.spool.batches():
        chosen = members[start : start + len(batch)]
        several = chosen & part.few_shot[start : start + len(batch)]
        start += len(batch)
        plain = batch.filter(pa.array(chosen & ~several))
        # Some readers of Parquet take no row groups without rows.
        if len(plain):
            yield _as_set(plain, schema, conversational)
        if several.any():
            groups = [record_of(row, Prompt) for row in batch.filter(pa.array(several)).to_pylist()]
            rows = [packed(example, "") for group in groups if isinstance(group, FewShot) for example in expand(group)]
            yield _as_set(pa.RecordBatch.from_pylist(rows, POOL_SCHEMA), schema, conversational)


def _as_set(batch: pa.RecordBatch, schema: pa.Schema, conversational: bool) -> pa.RecordBatch:
    columns = {"prompt": batch.column("messages" if conversational else "prompt")}
    return pa.RecordBatch.from_arrays(
        [columns[name] if name in columns else batch.column(name) for name in schema.names], schema=schema
    )
