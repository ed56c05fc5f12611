"""Reads a source: finds its files or Hub data set, converts the rows of its format, and checks the records.

Rows are streamed. A malformed row is reported with its place, and stops the run or is counted (`data.bad_rows`).
"""

import difflib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, get_args

from data.config import BUILT_IN, DataConfig, SourceConfig
from data.few_shot import prompts
from data.files import TEXT_SUFFIXES, is_data_file, is_missing, read_rows
from data.lines import BadRows, Placed
from data.messages import other_keys, refuse_untrained
from data.records import Demonstration, FewShot, Prompt, Ranking, UnknownKeyError, parse, parse_document
from data.sources.convert import Fields, Role
from data.sources.folders import folder_files, unread
from data.sources.formats import FORMATS, Format
from demo.assets import ARTICLES, SEED_FOLDER

EMBEDDED = {"seed": "written for this project (Apache-2.0)", "wikipedia": f"{ARTICLES.what}; {ARTICLES.licence}"}
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
SCORES = {"score", "scores", "rating", "ratings", "reward", "rewards"}
"""Columns in which higher is better, unlike `ranks`."""


@dataclass(frozen=True)
class Source:
    """A source that a role's list names, with its settings, its format, and its files or Hub data set."""

    name: str
    role: Role
    settings: SourceConfig
    format: Format
    files: tuple[Path, ...] = ()
    hub: str | None = None
    local_split: str = ""
    """The split that is read of a folder with splits."""

    @property
    def place(self) -> str:
        """The place for reports, which may be published: without the folders of this machine."""
        if self.name in BUILT_IN:
            return "embedded"
        if self.hub is not None:
            subset = self.settings.subset or self.format.subset
            return f"{self.hub}{f' ({subset})' if subset else ''}, split {self.split}, at {self.settings.revision}"
        file = self.files[0]
        place = file.name if len(self.files) == 1 else f"{file.parent.name} ({len(self.files)} files)"
        return place + (f", split {self.local_split}" if self.local_split else "")

    def unread(self, known: Set[Path]) -> list[str]:
        """Subfolders and files of the source's folder that look like data and that no source reads; `known` are the
        files that sources read.
        """
        folder = Path(self.settings.place or "")
        chosen = self.settings.subset is not None or self.role in self.format.files
        return unread(folder, self.files, self.role, known) if self.files and folder.is_dir() and not chosen else []

    @property
    def about(self) -> str:
        """A description, with the licence if it is known."""
        if self.settings.format != "rows":
            licence = self.settings.licence
            return f"{self.format.about}{f'; {licence}' if licence else ''}"
        return EMBEDDED.get(self.name, f"rows of the user's own; {self.settings.licence or 'licence not recorded'}")

    @property
    def split(self) -> str:
        """The Hub split."""
        return self.settings.split or self.format.split


def all_sources(config: DataConfig) -> list[Source]:
    """The sources of every role, in the order of its list. Raises ValueError as `find`."""
    return [find(name, config, role) for role in get_args(Role) for name in getattr(config, role)]


def find(name: str, config: DataConfig, role: Role) -> Source:
    """The source with a name in the role's list; reads no rows.

    Raises ValueError if it does not exist, has an unknown format or cannot play the role.
    """
    settings, where = config.sources.get(name), f"data.sources.{name}"
    if settings is None:
        where = f"data.{role}: {name!r}"
        place = SEED_FOLDER if name == "seed" else ARTICLES.path() if name == "wikipedia" else Path(name)
        settings = SourceConfig(place=str(place))
        if not os.path.exists(place):  # Path.exists raises OSError for names that are too long
            near = difflib.get_close_matches(name, [*config.sources, *BUILT_IN], n=1)
            hint = f", did you mean {near[0]!r}?" if near else "; a Hub data set needs an entry under data.sources"
            raise ValueError(f"{where}: no such file or source{hint}")
    form = FORMATS.get(settings.format)
    if form is None:
        near = difflib.get_close_matches(settings.format, FORMATS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else f"; known are {', '.join(FORMATS)}"
        raise ValueError(f"{where}.format={settings.format!r} is unknown{hint}")
    if role not in form.convert:
        raise ValueError(f"{where}: format {form.name!r} has no {role}, only {' and '.join(form.convert)}")
    place_name = settings.place or form.hub
    if not place_name:
        raise ValueError(f"{where}.place is missing: the file or folder with the {form.name} data")
    path = Path(place_name)
    try:
        if path.is_file() or path.is_dir():
            if path.is_file() and (settings.subset or settings.split):
                raise ValueError(f"{where}: {path} is one file, which has no subset or split to choose")
            if path.is_file() and path.suffix.lower() in ("", *TEXT_SUFFIXES) and role != "pretraining":
                raise ValueError(
                    f"{where}: {path} is read as plain text, which can only be pretraining text: give rows a name that "
                    "ends in .jsonl, .json, .csv, .tsv or .parquet"
                )
            files, split = ((path,), "") if path.is_file() else folder_files(path, form, role, settings)
            for file in files:
                file.open("rb").close()  # fails now rather than after other sources were read
            return Source(name, role, settings, form, files, local_split=split)
        if path.exists():
            raise ValueError(
                f"{where}: {path} is neither a file nor a folder; data are read more than once, so write them to a file"
            )
    except OSError as error:
        raise ValueError(f"{where}: {place_name[:100]} cannot be read ({error.strerror or error})") from None
    if is_data_file(path) or not (form.hub or form.anywhere) or not HUB_NAME.fullmatch(place_name):
        raise ValueError(f"{where}: {path}: no such file or folder")
    if not settings.revision:
        raise ValueError(
            f"{where}: {place_name} is no file or folder here, and a data set on the Hub needs a revision: the "
            "commit to read, as its page there shows it, or `main` for what is there today"
        )
    return Source(name, role, settings, form, hub=place_name)


def read(source: Source, bad: BadRows, check: Callable[[Prompt], object] | None = None) -> Iterator[Any]:
    """The source's records: Demonstrations and FewShots, Prompts, Rankings, or Documents, by its role.

    `check` raises ValueError for a prompt that cannot be used though its row is well formed. Malformed rows and rows
    whose prompt `check` refuses are passed to `bad`. Raises ValueError if a file is missing, empty or damaged, or the
    Hub cannot be reached.
    """
    skipped_before = bad.count
    local = (placed for file in source.files for placed in read_rows(file, bad, nulls=True))
    unseen = set(source.settings.columns)
    named = renamed(hub_rows(source) if source.hub else local, source, bad, unseen)
    for place, group in islice(grouped(named, source.format), source.settings.limit):
        try:
            records = convert(group, source)  # all records of a row or none
            if check is not None and source.role != "pretraining":
                for prompt in chain.from_iterable(map(prompts, records)):
                    check(prompt)
        except ValueError as error:
            bad(place, explained(error, group[0], source))
            continue
        for row in group:
            bad.ignored.update(other_keys(row))
        yield from records
    if unseen:
        limit = source.settings.limit
        rows = "no row" if limit is None else f"none of the rows that were read (limit: {limit})"
        raise ValueError(f"data.sources.{source.name}.columns: {rows} has {min(unseen)!r}")
    bad.of_source[source.role, source.name] = bad.count - skipped_before


def hub_rows(source: Source) -> Iterator[Placed]:
    """Rows of a Hub data set, streamed. Raises ValueError if it cannot be read."""
    from datasets import load_dataset

    revision = source.settings.revision
    try:
        subset = source.settings.subset or source.format.subset
        rows = load_dataset(source.hub, subset, split=source.split, revision=revision, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{source.hub} {source.split}: row {number}", row
    except Exception as error:  # the client, file systems and parsers each have their own errors
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read {source.hub} at {revision} from the Hub ({message})") from error


def renamed(rows: Iterable[Placed], source: Source, bad: BadRows, unseen: set[str]) -> Iterator[Placed]:
    """Rows with the column names of the configuration, without null values and columns that are renamed to null.

    Removes from `unseen` each column that a row has, even if its value is null.

    A row in which two columns would have one name goes to `bad`. So does a pair of texts whose `prompt` is null:
    without the column, what both answers begin with would be taken for the prompt.
    """
    columns, where = source.settings.columns, f"data.sources.{source.name}.columns"
    pairs = source.format.name == "rows" and source.role != "pretraining"
    for place, row in rows:
        if isinstance(row, dict):
            unseen.difference_update(row)
            named = [(name, value) for key, value in row.items() if (name := columns.get(key, key)) is not None]
            names = [name for name, value in named if not is_missing(value)]
            if twice := next((name for name in names if names.count(name) > 1), None):
                advice = f"{where} must give the other one a name of its own, or null"
                bad(place, f"two columns would be called {twice!r}: {advice}")
                continue
            row = {name: value for name, value in named if not is_missing(value)}
            column = "prompt" in columns.values() or any(name == "prompt" for name, _ in named)
            if pairs and column and "prompt" not in row and isinstance(row.get("chosen"), str):
                bad(place, "'prompt' is null; if 'chosen' and 'rejected' begin with it, leave its column out")
                continue
        yield place, row


def grouped(rows: Iterable[Placed], form: Format) -> Iterator[tuple[str, list[Any]]]:
    """(place of the first row, rows that are converted together)."""
    if (group := form.group) is None:  # without reading a row ahead, as groupby does
        yield from ((place, [row]) for place, row in rows)
        return

    def key(placed: Placed) -> object:
        return group(placed[1]) if isinstance(placed[1], dict) else placed[0]  # what is no object is a group of its own

    gathered: Iterable[list[Placed]] = (list(members) for _, members in groupby(rows, key))
    if not form.adjacent:
        by_key: dict[object, list[Placed]] = defaultdict(list)
        for placed in rows:
            by_key[key(placed)].append(placed)
        gathered = by_key.values()
    yield from ((members[0][0], [row for _, row in members]) for members in gathered)


def convert(rows: Sequence[Any], source: Source) -> list[Any]:
    """The records of rows that belong together. Raises ValueError, in a sentence without the place, if malformed."""
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"expected a JSON object, found {type(row).__name__}")
        if source.role == "demonstrations":
            refuse_untrained(row)
    defaults: Fields = {"source": source.settings.source or source.format.source or "api"}
    # Rows that an earlier run exported name a source of that run; weights and counts are by this one's.
    fixed = {"dataset": source.name}
    if source.role == "rankings" and source.format.labeler is not None:
        fixed |= {"labeler": "llm", "labeler_id": source.format.labeler}
    found = source.format.convert[source.role](rows)
    if source.role == "rankings" and (own := source.settings.labeler) not in (None, "human"):
        found = [
            fields if fields.get("labeler")
            else fields | {"labeler": "llm", "labeler_id": fields.get("labeler_id") or own}
            for fields in found
        ]  # fmt: skip
    if source.role == "pretraining":
        return [parse_document(fields | fixed) for fields in found]
    return [parse(defaults | fields | fixed, record_type(source.role, fields)) for fields in found]


def record_type(role: Role, fields: Fields) -> type[Prompt]:
    if role == "demonstrations":
        return FewShot if "examples" in fields else Demonstration
    return Ranking if role == "rankings" else Prompt


def explained(error: ValueError, row: object, source: Source) -> str:
    """The problem of a row, with advice if it looks like another format or has an unknown column."""
    # ShareGPT's rankings have `chosen` and `rejected` as ours do, but ours have no `conversations`.
    own = {key for keys in source.format.keys for key in keys}
    for other in FORMATS.values():
        foreign = [keys for keys in other.keys if isinstance(row, dict) and row.keys() >= set(keys) and set(keys) - own]
        if foreign and source.role in other.convert:
            return f"this looks like {other.about.split(',')[0]}: set format: {other.name} ({error})"
    if isinstance(error, UnknownKeyError) and not all(error.near.values()):
        it = "it" if len(error.near) == 1 else "them"
        advice = f"rename {it} with `columns` under data.sources, or set {it} to null there to leave {it} out"
        if not SCORES.isdisjoint(error.near):
            advice += "; do not rename scores to `ranks`, where 1 is the best"
        if source.role == "demonstrations" and isinstance(row, dict) and isinstance(row.get("label"), bool):
            advice += "; in KTO's form a false `label` marks a bad answer: remove those rows first"
        pair = "chosen, rejected, " if isinstance(row, dict) and "chosen" in row else ""
        return f"{error.named}: {advice}; known are {pair}{error.known}"
    return str(error)
