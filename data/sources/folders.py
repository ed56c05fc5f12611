"""Folders as a source's place: written by `datasets.save_to_disk`, a copy of a Hub data set, or any data files.

A folder may hold several splits: the folders of a saved DatasetDict, or files that are all named after a split
(`train-00000-of-00002.parquet`, `test.jsonl`). One split is read, as with a data set on the Hub.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.config import SourceConfig
from data.files import TEXT_SUFFIXES, is_data_file
from data.sources.adapter import Adapter, Role

STATE, SPLITS_OF = "state.json", "dataset_dict.json"
DESCRIPTIONS = (STATE, SPLITS_OF, "dataset_info.json", "dataset_infos.json")
"""Metadata files that `datasets` writes next to the data."""
SHARD = r"(?P<shard>\w[\w.]*)-\d{5}-of-\d{5}.*"
NAMED_SPLIT = re.compile(rf"{SHARD}|(?P<name>train|training|validation|valid|val|dev|test|eval)([-._].*)?")


def folder_files(folder: Path, adapter: Adapter, role: Role, settings: SourceConfig) -> tuple[tuple[Path, ...], str]:
    """(the files of a folder that the role needs, their split or "" if the folder has no splits).

    Raises ValueError when there are none, or several splits and none is named.
    """
    named = adapter.files.get(role)
    if named:
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"the folder {folder} lacks {missing[0]}, the file of format {adapter.name!r} for {role}")
        return tuple(folder / name for name in named), ""
    splits: Mapping[str, list[Path]]
    if (folder / SPLITS_OF).is_file():
        splits = {split: saved_files(folder / split) for split in map(str, _described(folder / SPLITS_OF, "splits"))}
    elif (folder / STATE).is_file():
        splits = {"": saved_files(folder)}
    else:
        splits = by_split(data_files(folder, role, settings.subset))
    split = chosen_split(folder, splits, adapter, settings)
    return tuple(splits[split]), split


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a Dataset that `save_to_disk` wrote, in the order of its rows."""
    files = [
        folder / str(item.get("filename"))
        for item in _described(folder / STATE, "_data_files")
        if isinstance(item, dict)
    ]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"the folder {folder} lacks {missing[0]}, which its {STATE} names: was it copied whole?")
    return files


def data_files(folder: Path, role: Role, subset: str | None) -> list[Path]:
    """The data files of a folder, or of its subfolder `data` or that of the subset, in the order of their names."""
    for place in [folder / subset] if subset and (folder / subset).is_dir() else [folder, folder / "data"]:
        mine = (
            sorted(file for file in place.iterdir() if is_data_file(file) and _is_data(file)) if place.is_dir() else []
        )
        # A text file is a document only in the pretraining role; next to rows it is a README.
        found = [
            file
            for file in mine
            if file.suffix not in TEXT_SUFFIXES or (role == "pretraining" and file.name != "README.md")
        ]
        if found:
            return found
    inner = sorted(
        place.name for place in folder.iterdir() if place.is_dir() and any(map(is_data_file, place.iterdir()))
    )
    hint = f"; those in {', '.join(inner)} are read when the place names one of these folders" if inner else ""
    raise ValueError(f"the folder {folder} holds no data files (.jsonl, .parquet, ...){hint}")


def by_split(files: Sequence[Path]) -> Mapping[str, list[Path]]:
    """Files by the split in their names; all under the empty name unless every file is named after a split."""
    matches = [NAMED_SPLIT.fullmatch(file.name) for file in files]
    splits: dict[str, list[Path]] = {}
    for file, match in zip(files, matches, strict=True):
        splits.setdefault((match["shard"] or match["name"]) if match and all(matches) else "", []).append(file)
    return splits


def chosen_split(folder: Path, splits: Mapping[str, Sequence[Path]], adapter: Adapter, settings: SourceConfig) -> str:
    """The split to read: the configured one, the only one, or a published format's default."""
    wanted = settings.split or (adapter.split if adapter.hub is not None and adapter.split in splits else None)
    if wanted is None and len(splits) == 1:
        return next(iter(splits))
    found = ", ".join(sorted(splits)) if any(splits) else "none"
    if wanted is None:
        raise ValueError(
            f"the folder {folder} has several splits: set `split` of its entry under data.sources to one of {found}"
        )
    if wanted not in splits:
        raise ValueError(f"the folder {folder} has no split {wanted!r}; its splits: {found}")
    return wanted


def _is_data(file: Path) -> bool:
    return file.is_file() and not file.name.startswith(".") and file.name not in DESCRIPTIONS


def _described(file: Path, key: str) -> list[object]:
    """The list under a key of a metadata file of `datasets`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[key]
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        found = None
    if not isinstance(found, list) or not found:
        raise ValueError(f"{file}: not as `datasets.save_to_disk` writes it: was the folder copied whole?")
    return found
