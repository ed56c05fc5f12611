"""Reads a source: opens what its place names, hands the rows to its format's adapter, and checks what comes back.

Everything streams. A mistake is told with the place of the row, and either stops the run or is counted
(`data.bad_rows`).
"""

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, get_args

from data.config import BUILT_IN, DataConfig, SourceConfig
from data.few_shot import expand
from data.files import BadRows, Placed, is_data_file, is_missing, read_rows
from data.messages import other_keys
from data.records import Demonstration, FewShot, Prompt, Ranking, UnknownKeyError, parse, parse_document
from data.sources.adapter import Adapter, Role
from data.sources.folders import folder_files
from data.sources.registry import ADAPTERS
from demo.assets import ARTICLES, SEED_FOLDER

EMBEDDED = {"seed": "written for this project (Apache-2.0)", "wikipedia": f"{ARTICLES.what}; {ARTICLES.licence}"}
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
RECORD_TYPES: dict[Role, type[Prompt]] = {"demonstrations": Demonstration, "prompts": Prompt, "rankings": Ranking}


@dataclass(frozen=True)
class Source:
    """A source that a role's list names, found: its settings, its adapter, and its files or its place on the Hub."""

    name: str
    role: Role
    settings: SourceConfig
    adapter: Adapter
    files: tuple[Path, ...]
    hub: str | None
    local_split: str = ""
    """The split that is read of a folder with splits."""

    @property
    def place(self) -> str:
        """Where it is, for people who may read of it elsewhere: no folders of this machine."""
        if self.name in BUILT_IN:
            return "embedded"
        if self.hub is None:
            place = (
                self.files[0].name if len(self.files) == 1 else f"{self.files[0].parent.name} ({len(self.files)} files)"
            )
            return place + (f", split {self.local_split}" if self.local_split else "")
        subset = self.settings.subset or self.adapter.subset
        return f"{self.hub}{f' ({subset})' if subset else ''}, split {self.split}, at {self.settings.revision}"

    @property
    def about(self) -> str:
        """A description, with the licence if it is known."""
        if self.settings.format != "rows":
            return self.adapter.about
        if self.name in EMBEDDED:
            return EMBEDDED[self.name]
        return f"rows of the user's own; {self.settings.licence or 'licence not recorded'}"

    @property
    def split(self) -> str:
        """The Hub split."""
        return self.settings.split or self.adapter.split


def sources(config: DataConfig, role: Role) -> list[Source]:
    """The sources that a list of the configuration names, in order.

    Raises ValueError when one is not there, has no such format or cannot play the role: nothing is read yet.
    """
    return [find(name, config, role) for name in getattr(config, role)]


def all_sources(config: DataConfig) -> dict[Role, list[Source]]:
    """The sources of every role. Raises ValueError as `sources`."""
    return {role: sources(config, role) for role in get_args(Role)}


def find(name: str, config: DataConfig, role: Role) -> Source:
    """One source, by its name in the list. Raises ValueError as `sources`."""
    settings = config.sources.get(name)
    where = f"data.{role}: {name!r}" if settings is None else f"data.sources.{name}"
    if settings is None:
        place = SEED_FOLDER if name == "seed" else ARTICLES.path() if name == "wikipedia" else Path(name)
        settings = SourceConfig(place=str(place))
        if not is_there(place):
            near = difflib.get_close_matches(name, [*config.sources, "seed", "wikipedia"], n=1)
            hint = f", did you mean {near[0]!r}?" if near else "; a Hub data set needs an entry under data.sources"
            raise ValueError(f"{where}: no such file or source{hint}")
    adapter = ADAPTERS.get(settings.format)
    if adapter is None:
        near = difflib.get_close_matches(settings.format, ADAPTERS, n=1)
        raise ValueError(
            f"{where}.format={settings.format!r} is unknown"
            + (f", did you mean {near[0]!r}?" if near else f"; known are {', '.join(ADAPTERS)}")
        )
    if role not in adapter.convert:
        raise ValueError(f"{where}: format {adapter.name!r} has no {role}, only {' and '.join(adapter.convert)}")
    place_name = settings.place or adapter.hub
    if not place_name:
        raise ValueError(f"{where}.place is missing: the file or folder with the {adapter.name} data")
    path = Path(place_name)
    try:
        if path.is_file() or path.is_dir():
            files, split = files_at(path, adapter, role, settings)
            return Source(name, role, settings, adapter, files, None, split)
        if path.exists():
            raise ValueError(
                f"{where}: {path} is neither a file nor a folder; data are read more than once, so write them to a file"
            )
    except OSError as error:
        raise ValueError(f"{where}: {place_name[:100]} cannot be read ({error.strerror or error})") from None
    published = adapter.hub is not None or adapter.anywhere
    if is_data_file(path) or not published or not HUB_NAME.fullmatch(place_name):
        raise ValueError(f"{where}: {path}: no such file or folder")
    if not settings.revision:
        raise ValueError(
            f"{where}: {place_name} is no file or folder here, and a data set on the Hub needs a revision: the "
            "commit to read, as its page there "
            "shows it, or `main` for what is there today"
        )
    return Source(name, role, settings, adapter, (), place_name)


def files_at(path: Path, adapter: Adapter, role: Role, settings: SourceConfig) -> tuple[tuple[Path, ...], str]:
    """(the files of a place, their split). Raises ValueError if there are none, OSError if one cannot be read."""
    files, split = ((path,), "") if path.is_file() else folder_files(path, adapter, role, settings)
    return tuple(readable(file) for file in files), split


def readable(file: Path) -> Path:
    """The file. Raises OSError when it may not be read: its digest is taken before its rows."""
    with file.open("rb"):
        return file


def is_there(place: Path) -> bool:
    """Whether the name is that of anything at all; one that no file could have is not."""
    try:
        return place.exists()
    except OSError:
        return False


def read(source: Source, bad: BadRows, check: Callable[[Prompt], object] | None = None) -> Iterator[Any]:
    """The source's records: Demonstrations and FewShots, Prompts, Rankings, or Documents, by its role.

    `check` raises ValueError for a prompt that cannot be used though its row is well formed. Malformed rows and rows
    whose prompt `check` refuses are passed to `bad`. Raises ValueError when a file is missing, empty or damaged, or the
    Hub cannot be reached.
    """
    settings, adapter, skipped_before = source.settings, source.adapter, bad.count
    rows = present(renamed(_rows(source, bad), settings.columns, bad, f"data.sources.{source.name}.columns"))
    convert = adapter.convert[source.role]
    for place, group in islice(grouped(rows, adapter), settings.limit):
        try:
            # All of a row's records or none of them.
            records = [record(row, source) for row in convert(group)]
            if check is not None and source.role != "pretraining":
                for found in records:
                    for prompt in expand(found) if isinstance(found, FewShot) else (found,):
                        check(prompt)
        except ValueError as error:
            bad(place, explained(error, group[0], source))
            continue
        for row in group:
            bad.ignored.update(other_keys(row))
        yield from records
    bad.of_source[source.role, source.name] = bad.count - skipped_before


def explained(error: ValueError, row: object, source: Source) -> str:
    """The problem of a row, with advice if it looks like another format or has an unknown column."""
    # ShareGPT's rankings have `chosen` and `rejected` as ours do, but ours have no `conversations`.
    own = {key for keys in source.adapter.keys for key in keys}
    for other in ADAPTERS.values():
        foreign = [keys for keys in other.keys if isinstance(row, dict) and row.keys() >= set(keys) and set(keys) - own]
        if foreign and source.role in other.convert:
            return f"this looks like {other.about.split(',')[0]}: set format: {other.name} ({error})"
    if isinstance(error, UnknownKeyError) and not all(error.near.values()):
        it = "it" if len(error.near) == 1 else "them"
        advice = f"rename {it} with `columns` under data.sources, or set {it} to null there to leave {it} out"
        return f"{error.named}: {advice}; known are {error.known}"
    return str(error)


def present(rows: Iterable[Placed]) -> Iterator[Placed]:
    """Rows without null values: tables have every column in every row."""
    for place, row in rows:
        yield (
            place,
            {key: value for key, value in row.items() if not is_missing(value)} if isinstance(row, dict) else row,
        )


def record(row: dict[str, Any], source: Source) -> Any:
    """A converter's row as a record of the source's role. Raises ValueError when it is none, in one sentence without
    the place.
    """
    # Rows that an earlier run exported name a source of that run; weights and counts are by this one's.
    row["dataset"] = source.name
    if source.role == "pretraining":
        return parse_document(row)
    wrote = source.settings.source or source.adapter.source
    if wrote is not None:
        row.setdefault("source", wrote)
    if source.role == "demonstrations" and "examples" in row:
        return parse(row, FewShot)
    return parse(row, RECORD_TYPES[source.role])


def _rows(source: Source, bad: BadRows) -> Iterator[Placed]:
    if source.hub is None:
        for file in source.files:
            yield from read_rows(file, bad)
    else:
        yield from hub_rows(source)


def hub_rows(source: Source) -> Iterator[Placed]:
    """Rows of a Hub data set, streamed. Raises ValueError when it cannot be read."""
    from datasets import load_dataset

    assert source.hub is not None
    subset = source.settings.subset or source.adapter.subset
    try:
        rows = load_dataset(source.hub, subset, split=source.split, revision=source.settings.revision, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{source.hub} {source.split}: row {number}", row
    except Exception as error:  # its client, file systems and parsers each have errors of their own
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read {source.hub} at {source.settings.revision} from the Hub ({said})") from error


def renamed(rows: Iterable[Placed], columns: dict[str, str | None], bad: BadRows, where: str) -> Iterator[Placed]:
    """Rows with the columns called as the configuration says; one that it gives no name is left out.

    A row in which two columns would have one name goes to `bad`. Raises ValueError, at the end, when no row had a
    column that is renamed.
    """
    if not columns:
        yield from rows
        return
    missing = set(columns)
    for place, row in rows:
        if not isinstance(row, dict):
            yield place, row
            continue
        missing -= row.keys()
        named = [(columns.get(key, key), value) for key, value in row.items()]
        ours = {name: value for name, value in named if name is not None}
        if len(ours) < sum(name is not None for name, _ in named):
            twice = next(name for name, _ in named if name is not None and sum(name == other for other, _ in named) > 1)
            bad(
                place,
                f"two columns would be called {twice!r}: {where} must give the other one a name of its own, or null",
            )
        else:
            yield place, ours
    if missing:
        raise ValueError(f"{where}: no row has {min(missing)!r}")


def grouped(rows: Iterable[Placed], adapter: Adapter) -> Iterator[tuple[str, list[Any]]]:
    """(place of the first, rows that the adapter converts together)."""
    if adapter.group is None:
        for place, row in rows:
            yield place, [row]
        return
    group = adapter.group

    def key(placed: Placed) -> object:
        # What is not even an object gets a group of its own, where its converter says what is wrong.
        return group(placed[1]) if isinstance(placed[1], dict) else placed[0]

    if adapter.adjacent:
        gathered: Iterable[list[Placed]] = (list(members) for _, members in groupby(rows, key))
    else:
        by_key: dict[object, list[Placed]] = defaultdict(list)
        for placed in rows:
            by_key[key(placed)].append(placed)
        gathered = by_key.values()
    for members in gathered:
        yield members[0][0], [row for _, row in members]


def read_texts(path: Path) -> list[str]:
    """The documents of a file that this project wrote: rows with `text`. Raises ValueError when it is missing or
    damaged.
    """
    return [row["text"] for _, row in read_rows(path)]
