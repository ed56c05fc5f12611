"""Checks the files of --config before jsonargparse reads them, since its messages name neither the file nor a
remedy."""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml


def check_config_files(arguments: Sequence[str] | None) -> None:
    """Raises ValueError when a file after --config is missing, a folder, not UTF-8 or not YAML."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for index, argument in enumerate(given):
        if argument.startswith("--config="):
            check_config_file(Path(argument.removeprefix("--config=")))
        elif argument == "--config" and index + 1 < len(given):
            check_config_file(Path(given[index + 1]))


def check_config_file(path: Path) -> None:
    """Raises ValueError when the file cannot be read as YAML, with the line."""
    if path.is_dir():
        raise ValueError(f"--config {path} is a folder: give a YAML file")
    if not path.exists():
        raise ValueError(f"--config {path} does not exist: give a YAML file")
    try:
        yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error
