"""Folders as a source's place: written by `datasets.save_to_disk`, a copy of a Hub data set, or any data files.

A folder may hold several splits: the folders of a saved DatasetDict, files that are all named after a split
(`train-00000-of-00002.parquet`, `test.jsonl`, `tldr-test.jsonl`), or what its README.md describes. One split of one
subset is read, as with a data set on the Hub.
"""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from yaml import YAMLError

from data.config import SourceConfig
from data.files import TEXT_SUFFIXES, is_data_file
from data.sources.convert import Role
from data.sources.formats import Format

STATE, SPLITS_OF = "state.json", "dataset_dict.json"
METADATA = (STATE, SPLITS_OF, "dataset_info.json", "dataset_infos.json")
"""Files that `datasets` writes next to the data."""
CACHED = re.compile(r"cache-[0-9a-f]{16}(_\d{5}_of_\d{5})?\.arrow")
"""Results of `map` and `filter`, which `datasets` keeps next to the data."""
ABOUT = ("readme", "license", "licence")
"""Text files with one of these names before the first dot are not documents."""
PACKED = (".gz", ".xz", ".bz2", ".zst", ".zip", ".tar", ".tgz", ".7z")
TABLES = (".xlsx", ".xls", ".ods", ".avro", ".orc", ".feather", ".pkl")
DOCUMENTS = (".html", ".rst", ".tex", ".pdf", ".docx", ".epub")
"""Suffixes of files that may contain data and are not read, unless `is_data_file` accepts them (`.jsonl.gz`)."""
SHARD = re.compile(r"(\w[\w.]*)-\d{5}-of-\d{5}.*")
SPLIT = re.compile(
    r"(?:^|(?<=[-_.]))(train|training|validation|valid|val|dev|test|testing|eval|evaluation)(?=[-_.]|$)", re.IGNORECASE
)


def folder_files(folder: Path, form: Format, role: Role, settings: SourceConfig) -> tuple[tuple[Path, ...], str]:
    """(the files of a folder that the role needs, their split or "" if the folder has no splits).

    Raises ValueError if there are none, or several splits and none is named.
    """
    if named := form.files.get(role):
        for name in named:
            if not (folder / name).is_file():
                raise ValueError(f"the folder {folder} lacks {name}, the file of format {form.name!r} for {role}")
        return tuple(folder / name for name in named), ""
    splits: Mapping[str, list[Path]]
    if settings.subset and any((folder / name).is_file() for name in (SPLITS_OF, STATE)):
        raise ValueError(f"the folder {folder} was written by `save_to_disk`, which has no subsets")
    if (folder / SPLITS_OF).is_file():
        splits = {str(split): saved_files(folder / str(split)) for split in metadata(folder / SPLITS_OF, "splits")}
    elif (folder / STATE).is_file():
        splits = {"": saved_files(folder)}
    else:
        splits = described_files(folder, form, role, settings) or by_split(data_files(folder, role, settings.subset))
    found = ", ".join(sorted(splits)) if any(splits) else "none"
    split = settings.split or (form.split if form.hub is not None and form.split in splits else None)
    if split is None and len(splits) > 1:
        raise ValueError(
            f"the folder {folder} has several splits: set `split` of its entry under data.sources to one of {found}"
        )
    split = next(iter(splits)) if split is None else split
    if split not in splits:
        hint = "; use `limit` to read the first rows only" if "[" in split else ""
        hint += "; add one entry under data.sources for each split" if "+" in split else ""
        raise ValueError(f"the folder {folder} has no split {split!r}; its splits: {found}{hint}")
    return tuple(splits[split]), split


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a Dataset that `save_to_disk` wrote, in the order of its rows."""
    items = metadata(folder / STATE, "_data_files")
    files = [folder / str(item.get("filename")) for item in items if isinstance(item, dict)]
    for file in files:
        if not file.is_file():
            raise ValueError(f"the folder {folder} lacks {file.name}, which its {STATE} names: was it copied whole?")
    return files


def metadata(file: Path, key: str) -> list[object]:
    """The list under a key of a metadata file of `datasets`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[key]
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        found = None
    if not isinstance(found, list) or not found:
        raise ValueError(f"{file}: not as `datasets.save_to_disk` writes it: was the folder copied whole?")
    return found


def described_files(folder: Path, form: Format, role: Role, settings: SourceConfig) -> Mapping[str, list[Path]] | None:
    """The files of a subset by split, as the folder's README.md describes them for the Hub; None if its files must be
    found by their names. Raises ValueError if there is no such subset, or several and none is named.
    """
    described = described_subsets(folder / "README.md")
    names = [str(item.get("config_name", "default")) for item in described]
    subset = settings.subset or (form.subset if form.subset in names else None)
    if subset is not None and subset not in names:
        if (folder / subset).is_dir():
            return None
        known = f"its README.md describes {', '.join(names)}" if names else "and no README.md describes it"
        raise ValueError(f"the folder {folder} has no subset {subset!r}: there is no folder of that name, {known}")
    if not names:
        return None
    has_default = len(names) == 1 or "default" in names or any(item.get("default") for item in described)
    if subset is None and not has_default:
        raise ValueError(
            f"the folder {folder} has several subsets: set `subset` of its entry under data.sources to one of "
            f"{', '.join(names)}"
        )
    from datasets import load_dataset_builder

    try:
        # A relative path such as `json` would be taken for the name of one of the library's own loaders.
        found = load_dataset_builder(str(folder.absolute()), subset).config.data_files
    except (OSError, ValueError) as error:
        if subset is None and len(names) == 1 and isinstance(error, FileNotFoundError):
            return None  # a part of the data set was copied
        which, reason = f"subset {subset!r}" if subset else "the default subset", " ".join(str(error).split())[:200]
        raise ValueError(f"{which} of the folder {folder} cannot be read: {reason}") from None
    return {str(split): [file for file in map(Path, files) if is_data(file, role)] for split, files in found.items()}


def described_subsets(readme: Path) -> list[dict[str, object]]:
    """The entries under `configs` of a data card that name files in the folder; empty if there is no such card."""
    if not readme.is_file():
        return []
    from huggingface_hub import metadata_load

    try:
        found = (metadata_load(readme) or {}).get("configs")
    except (ValueError, YAMLError):
        return []
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    return [entry for entry in entries if isinstance(entry.get("config_name", ""), str) and names_local_files(entry)]


def names_local_files(entry: Mapping[str, object]) -> bool:
    """Whether an entry under `configs` says where its files are, and that is not on the Hub or the web."""
    places = [entry[key] for key in ("data_files", "data_dir") if key in entry]
    return bool(places) and "://" not in str(places)


def data_files(folder: Path, role: Role, subset: str | None) -> list[Path]:
    """The data files of a folder, or of its subfolder `data` or that of the subset, sorted by name."""
    for place in [folder / subset] if subset and (folder / subset).is_dir() else [folder, folder / "data"]:
        if place.is_dir() and (found := sorted(file for file in place.iterdir() if is_data(file, role))):
            return found
    inner = sorted(
        place.name for place in folder.iterdir() if place.is_dir() and any(map(is_data_file, place.iterdir()))
    )
    hint = f"; those in {', '.join(inner)} are read when the place names one of these folders" if inner else ""
    if (folder / "snapshots").is_dir():
        hint = (
            "; it is a folder of the Hub's cache: give a folder in its `snapshots`, or the data set's name and revision"
        )
    raise ValueError(f"the folder {folder} holds no data files (.jsonl, .parquet, ...){hint}")


def is_data(file: Path, role: Role) -> bool:
    """Whether a file in a folder holds data of the role."""
    if not is_data_file(file) or not file.is_file():
        return False
    if file.name.startswith(".") or file.name in METADATA or CACHED.fullmatch(file.name):
        return False
    is_text = file.suffix.lower() in TEXT_SUFFIXES
    return not is_text or (role == "pretraining" and file.name.lower().split(".")[0] not in ABOUT)


def unread(folder: Path, files: Sequence[Path], role: Role, known: Set[Path]) -> list[str]:
    """Subfolders and files of other formats that look like data for this role and that no source reads. Empty for a
    folder that lists its files (`save_to_disk`, `configs` in README.md).

    Args:
        files: the files read from the folder, all with the same parent.
        known: the files that any source reads.
    """
    if any((folder / name).is_file() for name in (SPLITS_OF, STATE)) or described_subsets(folder / "README.md"):
        return []
    kinds = PACKED + (DOCUMENTS if role == "pretraining" else TABLES)
    found, resolved = [], {file.resolve() for file in known}
    for entry in sorted({*folder.iterdir(), *files[0].parent.iterdir()} - {files[0].parent}):
        with contextlib.suppress(OSError):  # no permission to list a folder
            if entry.name.startswith("."):
                continue
            inside = [file.resolve() for file in entry.rglob("*") if is_data(file, role)] if entry.is_dir() else []
            packed = entry.is_file() and entry.suffix.lower() in kinds and not is_data_file(entry)
            if packed or (inside and resolved.isdisjoint(inside)):
                found.append(f"{entry.relative_to(folder)}{'/' * bool(inside)}")
    return found


def by_split(files: Sequence[Path]) -> Mapping[str, list[Path]]:
    """Files by the split in their names; all under "" unless every file is named after a split.

    If names contain several splits (`train-eval`), the first or the last is used for all files, whichever gives more
    splits.
    """
    named = [named_splits(file.name) for file in files]
    if not all(named):
        return {"": list(files)}
    place = max((0, -1), key=lambda place: len({found[place][1] for found in named}))
    splits: dict[str, list[Path]] = {}
    for file, found in zip(files, named, strict=True):
        splits.setdefault(found[place][1], []).append(file)
    prefixes = {found[place][0] for found in named}
    if len(prefixes) == len(files) > 1 and "" not in prefixes and not {"train", "training"} & splits.keys():
        return {"": list(files)}  # topics such as `web-dev` and `unit-test`, not splits
    return splits


def named_splits(name: str) -> list[tuple[str, str]]:
    """(prefix, split) of each split in a file's name."""
    if match := SHARD.fullmatch(name):
        return [("", match[1])]
    return [(name[: match.start()], match[1].lower()) for match in SPLIT.finditer(name)]
