"""Checks the files given by --config before jsonargparse reads them, since its messages do not name the file."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
"""A number where a key is expected: YAML reads `{learning_rate: 0,5}` as the keys `learning_rate` and `5`."""

FREE = re.compile(r"(^|\.)(sources|columns|extra_body(\..*)?)$")
"""Sections whose keys are users' own names, in which a dot means nothing."""


def check_config_files(arguments: Sequence[str] | None) -> None:
    """Raises ValueError when a file after --config is missing, a folder, not UTF-8, not YAML or not a mapping."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for index, argument in enumerate(given):
        if argument.startswith("--config="):
            check_config_file(Path(argument.removeprefix("--config=")))
        elif argument == "--config" and index + 1 < len(given):
            check_config_file(Path(given[index + 1]))


def check_config_file(path: Path) -> None:
    """Raises ValueError, with the line number, if the file is not a YAML mapping.

    Pipes (`--config <(...)`) are not checked, since they can be read only once.
    """
    if path.is_dir():
        raise ValueError(f"--config {path} is a folder: give a YAML file")
    if not path.exists():
        raise ValueError(f"--config {path} does not exist: give a YAML file")
    if not path.is_file():
        return
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(node, yaml.MappingNode):
        holds = "holds no settings" if node is None else "is not a mapping of settings"
        raise ValueError(f"{path}: {holds}: write lines of the form `key: value`, or leave --config out")
    check_keys(node, path)


def check_keys(node: yaml.Node, path: Path, place: str = "") -> None:
    """Raises ValueError for a duplicate key, because YAML's loader would silently keep the last one, for a key that
    YAML does not read as text or that is a number, and for a dotted key beside its section.

    Args:
        place: the dotted name of the section that the node is.
    """
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            check_keys(item, path, place)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode):
            if key.style is None and NUMBER.fullmatch(key.value):
                raise ValueError(
                    f"{path}:{line}: {key.value} is a number where a key is expected: write numbers with a decimal "
                    "point, and a key that is a number in quotes"
                )
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise ValueError(f"{path}:{line}: YAML does not read the key {key.value} as text: put it in quotes")
            if key.value in lines:
                raise ValueError(
                    f"{path}:{line}: {key.value} is given twice, first in line {lines[key.value]}: keep one"
                )
            lines[key.value] = line
        check_keys(value, path, f"{place}.{getattr(key, 'value', '')}".lstrip("."))
    for name, line in ({} if FREE.search(place) else lines).items():
        if section := next((key for key in lines if name.startswith(f"{key}.")), None):
            raise ValueError(
                f"{path}:{line}: {name} and the section {section} of line {lines[section]} are both given: write the "
                "setting in the section"
            )
