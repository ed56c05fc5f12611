"""Builds InstructGPT's three data sets from one pool of prompts (Ouyang et al. 2022, section 3.2 and table 6).

SFT: prompts with a demonstration. RM: prompts to sample answers for and rank, and rankings that were made before. RL:
API prompts only. Rules that look at one record come first, then those that compare the remaining records:
near-duplicates, the cap per user, evaluation prompts, the mixture. The split is by user.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data.annotate import Annotator, asked
from data.config import DataConfig
from data.curate import in_languages, thinned, under_cap
from data.documents import Documents, collect_documents
from data.few_shot import expand
from data.lines import BadRows
from data.near_duplicates import alike, comparable, distinct
from data.ranking_rules import drop_answers, refuse_undecided
from data.records import SPLITS, Prompt
from data.sets import POOL_SCHEMA, RANKING_SCHEMA, SETS, TEXT_SPLITS, SetName, packed, set_file, set_schema
from data.sources.reading import Source, all_sources, read
from data.table import Mask, Table, filtered, stored


@dataclass
class Built:
    """The result of curation. The texts are in Arrow files in the scratch folder."""

    sources: list[Source]
    pool: Table
    """Prompts with and without a demonstration, from which SFT, RM and RL are made."""
    rankings: Table
    documents: Documents
    bad: BadRows
    dropped_answers: dict[str, int]
    """Answers dropped from rankings that were kept, by rule."""
    group_by: str
    """`user` or `organisation`, as in DataConfig."""

    @property
    def conversational(self) -> bool:
        """Whether any prompt is a conversation; then all are written as conversations."""
        return any(bool(table.left()["conversational"].any()) for table in (self.pool, self.rankings))

    def table(self, name: SetName) -> Table:
        """The table that a set is made from."""
        return self.rankings if name == "rankings" else self.pool

    def members(self, name: SetName, split: str | None = None) -> Mask:
        """The records of a set, in a split or in all of them."""
        kept = self.table(name).kept(split)
        if name in ("sft", "rl"):
            kept = kept & self.pool.notes["answered" if name == "sft" else "api"].to_numpy()
        return kept

    def sizes(self) -> dict[str, int]:
        """Rows by set and split."""
        found = {
            f"{name}_{split}": int(self.table(name).notes["copies"][self.members(name, split)].sum())
            for name in SETS
            for split in SPLITS
        }
        return found | {f"texts_{split}": len(rows) for split, rows in self.documents.splits.items()}

    def removed(self) -> dict[str, dict[str, int]]:
        """Removed records by kind and rule, in the rules' order, and answers dropped from rankings that were kept."""
        return {
            "prompts": self.pool.removed(),
            "rankings": self.rankings.removed(),
            "answers": self.dropped_answers,
            "documents": self.documents.removed,
        }


def build(annotator: Annotator, scratch: Path, check: Callable[[Prompt], object] | None = None) -> Built:
    """Reads the sources and applies the rules. The folder `scratch` must outlive the result.

    `check` raises ValueError for a prompt that cannot be used. Raises ValueError for a malformed row or such a prompt
    (unless `bad_rows: skip`), for a missing source, for a source of rankings without a strict pair, and if a split that
    a later stage needs has no rows.
    """
    config = annotator.config
    sources = all_sources(config)
    bad = BadRows(skip=config.bad_rows == "skip")

    def collected(roles: Sequence[str], schema: pa.Schema) -> Table:
        found = [source for source in sources if source.role in roles]
        rows = (packed(record) for source in found for record in shown(source, bad, check))
        records = stored(scratch / f"{roles[0]}.arrow", rows, schema)
        names = list(dict.fromkeys(source.name for source in found))
        return Table(records, annotator.annotate(records, names), names)

    pool = collected(("demonstrations", "prompts"), POOL_SCHEMA)
    refuse_repeated_ids(pool)
    rankings = collected(("rankings",), RANKING_SCHEMA)
    refuse_undecided(rankings)
    if config.group_by == "organisation":
        refuse_unnamed_organisations([pool, rankings])
    texts = (text for source in sources if source.role == "pretraining" for text in shown(source, bad))
    documents = collect_documents(texts, config, scratch / "documents.arrow")

    drop_unfit(pool, config)
    pool.remove("answer_too_long", pool.notes["answer_tokens"] > config.max_answer_tokens)
    pool.remove("personal_data", pool.notes["personal"])
    drop_unfit(rankings, config)
    dropped_answers = drop_answers(rankings, annotator)
    # From here on records are compared with each other, but not with records that were removed.
    pool.remove("repeated", pool.left().duplicated("identity"))
    kept = pool.kept()
    stays = distinct(lambda: pool.keys(kept), config.near_duplicate_fraction)
    pool.remove("near_duplicate", pd.Series(~stays, index=np.flatnonzero(kept)))
    rankings.remove("repeated", rankings.left().duplicated("row"))
    for table in (pool, rankings):
        table.remove("over_cap", ~under_cap(table.left(), config.max_prompts_per_group))
    drop_evaluation_prompts(pool, rankings, config.near_duplicate_fraction)
    thin(pool, config)
    thin(rankings, config)

    built = Built(sources, pool, rankings, documents, bad, dropped_answers, config.group_by)
    refuse_empty(built)
    return built


def shown(source: Source, bad: BadRows, check: Callable[[Prompt], object] | None = None) -> Iterator[Any]:
    """The records of a source, with a progress bar."""
    what = f"data: {source.role} of {source.name}"
    return iter(tqdm(read(source, bad, check), what, unit=" rows", unit_scale=True, disable=None, leave=False))


def drop_unfit(table: Table, config: DataConfig) -> None:
    """The rules that look at one prompt."""
    table.remove("other_language", ~in_languages(table.notes["language"], config.languages))
    table.remove("prompt_too_long", table.notes["prompt_tokens"] > config.max_prompt_tokens)


def drop_evaluation_prompts(pool: Table, rankings: Table, fraction: float) -> None:
    """Removes training records whose prompt is a near-duplicate of a validation or test prompt of any set, and
    validation records that are near-duplicates of test prompts.

    Within the pool near-duplicates are gone already; between pool and rankings, among rankings, and among the examples
    of few-shot prompts, users in different splits may have the same prompt.
    """
    kept, several = (pool.kept(), rankings.kept()), pool.kept() & pool.notes["few_shot"].to_numpy()
    examples = [
        (number, comparable(asked(example)))
        for number, record in zip(np.flatnonzero(several), pool.each(several), strict=True)
        for example in expand(record)
    ]
    owners = np.array([number for number, _ in examples], dtype=int)
    rows = np.concatenate([np.flatnonzero(kept[0]), np.flatnonzero(kept[1]) + pool.count, owners])
    split = np.concatenate([pool.notes["split"], rankings.notes["split"]])[rows]
    seen = np.zeros(pool.count + rankings.count, dtype=bool)

    def texts() -> Iterator[str]:
        return itertools.chain(pool.keys(kept[0]), rankings.keys(kept[1]), (key for _, key in examples))

    if kept[1].any() or examples:
        train, valid, test = (split == SPLITS.index(name) for name in ("train", "valid", "test"))
        for candidates, others in ((train, ~train), (valid, test)):
            seen[rows[alike(texts, candidates, others, fraction)]] = True
    pool.remove("evaluation_prompt", pd.Series(seen[: pool.count]))
    rankings.remove("evaluation_prompt", pd.Series(seen[pool.count :]))


def thin(table: Table, config: DataConfig) -> None:
    """Brings the training records of each role to the proportions of its sources' weights."""
    notes = table.notes.rename(columns={"copies": "size", "identity": "hash"})
    notes["source"] = notes["dataset"].map(dict(enumerate(table.sources)))
    notes["role"] = np.where(notes["answered"], "demonstrations", "prompts")
    if table.record_type is not Prompt:
        notes["role"] = "rankings"
    gone = pd.Series(False, index=notes.index)
    for role in notes["role"].unique():
        if weights := config.weights(role):
            train = notes[(notes["role"] == role) & table.kept("train")]
            gone[train.index] = ~thinned(train, role, weights)
    table.remove("over_mixture_share", gone)


def refuse_repeated_ids(table: Table) -> None:
    """Raises ValueError if two different prompts have the same prompt_id."""
    notes = table.notes
    clash = notes["item"] != notes.groupby("identity")["item"].transform("first")
    if clash.any():
        number = int(clash.idxmax())
        first = int((notes["identity"] == notes["identity"][number]).idxmax())
        one, other = table.read([first, number])
        raise ValueError(
            f"prompt_id {one.prompt_id!r} is on two different prompts, of {one.dataset!r} and of {other.dataset!r}; "
            "if ids are not unique, leave them out with columns: {prompt_id: null}"
        )


def refuse_unnamed_organisations(tables: Sequence[Table]) -> None:
    """Raises ValueError for a user with an organisation in some rows only, who would be in several splits. A prompt
    without a user is its own user, and several organisations may have it.
    """
    columns = ["user_id", "organisation_id", "prompt_id"]
    rows = pd.concat([table.records.select_columns(columns).to_pandas() for table in tables])
    rows = rows[rows["user_id"] != rows["prompt_id"]]
    unnamed = rows["organisation_id"] == rows["user_id"]
    partly = rows[~unnamed & rows["user_id"].isin(rows.loc[unnamed, "user_id"])]
    if len(partly):
        user, organisation = partly[columns[:2]].iloc[0]
        raise ValueError(
            f"user {user!r} is in the organisation {organisation!r}, but other rows of the user have no "
            "organisation_id: with data.group_by: organisation, add it to them"
        )


def refuse_empty(built: Built) -> None:
    """Raises ValueError if a split that a later stage needs is empty."""
    sizes = built.sizes()
    lacking = {"sft": "prompt with a demonstration", "rm": "prompt", "rl": "API prompt"}
    for name, split in [*itertools.product(("sft", "rm"), SPLITS), ("rl", "train")]:
        if not sizes[f"{name}_{split}"]:
            if name == "rl" and not built.pool.notes["api"].any():
                raise ValueError(
                    "there are no API prompts, and PPO trains only on these: add a source of API prompts to "
                    "data.prompts, or set `source: api` for a source whose rows have no `source`"
                )
            why = ", ".join(f"{count} {rule}" for rule, count in built.pool.removed().items() if count) or "none"
            bad = built.bad
            raise ValueError(
                f"the {name} {split} split is empty after curation: no {lacking[name]} is left among the {split} "
                f"users; try another data.split_salt or other fractions, or look at what was removed ({why})"
                + (f"; malformed rows were skipped ({bad.count}), the first: {bad.examples[0]}" if bad.count else "")
            )


def write(built: Built, folder: Path) -> None:
    """Writes every split that has rows (data/sets.py). The examples of few-shot prompts come last.

    With `group_by: organisation`, `user_id` holds the organisation, the unit of every interval.
    """
    for name, split in itertools.product(SETS, SPLITS):
        table, members = built.table(name), built.members(name, split)
        if not members.any():
            continue
        schema = set_schema(name, built.conversational)
        source = {"prompt": "messages"} if built.conversational else {}
        if built.group_by == "organisation":
            source["user_id"] = "organisation_id"
        columns = [source.get(column, column) for column in schema.names]
        several = members & table.notes["few_shot"].to_numpy()
        with pq.ParquetWriter(set_file(folder, name, split), schema) as writer:
            for batch in filtered(table.records.select_columns(list(dict.fromkeys(columns))), members & ~several):
                writer.write_table(batch.select(columns).rename_columns(schema.names).cast(schema))
            if several.any():
                examples = [packed(example) for record in table.each(several) for example in expand(record)]
                rows = pa.Table.from_pylist(examples, POOL_SCHEMA)
                writer.write_table(rows.select(columns).rename_columns(schema.names).cast(schema))
    for split in TEXT_SPLITS:
        built.documents.rows(split).to_parquet(set_file(folder, "texts", split))
