"""Checks that the results of earlier stages fit together and match the configuration."""

import functools
import json
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling.disk import file_digest
from stages import manifest
from stages.config import SIDE_STAGES, STAGES

SAME_MODEL = ("model.base", "model.revision")
"""Must be equal in all stages: a later one combines this model with the results of the earlier ones."""


def outdated(root: Path, stages: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Warnings about the results of these stages in the run folder, and of those that they were made from: settings
    that differ from `config`, and a base model whose files have changed since.

    Raises ValueError if one was made from a result that has been replaced since, or from another base model.
    """
    warnings, waiting, known = list[str](), list(stages), set[str]()
    base = manifest.model_digests(config.get("model", {}).get("base"))
    while waiting:
        name = waiting.pop()
        made = None if name in known else manifest.read(root / name)
        known.add(name)
        if made is None:
            continue
        for source in (source for source in made.inputs if source in (*STAGES, *SIDE_STAGES)):
            try:
                current = manifest.stage_digest(root / source)
            except ValueError:  # files of its result have been removed
                continue
            if current != made.inputs[source]:
                pipeline = ", or `make pipeline`, which runs all stages whose inputs or settings have changed"
                again = "`make sft_baseline` again" if name in SIDE_STAGES else f"`make {name}` again{pipeline}"
                raise ValueError(f"{root / name} was made from an older result of the {source} stage: run {again}")
            waiting.append(source)
        if any(made.inputs.get(path, digest) != digest for path, digest in base.items()):
            warnings.append(f"the files in {next(iter(base))} have changed since {root / name} was made from them")
        if name == "data":
            warnings += [f"{path} has changed since {root / name} was made from it" for path in changed_files(made)]
        changed = changed_settings(made.settings, config)
        for key in SAME_MODEL:
            if key in changed:
                raise ValueError(
                    f"{root / name} was made with {key}={changed[key]}: use the same here, or another run_name"
                )
        if changed:
            warnings.append(f"{root / name} was made with other settings: {listed(changed)}")
    return warnings


def changed_files(made: manifest.Manifest) -> list[str]:
    """The files among the inputs of the data stage with other contents now; those that are gone do not count."""
    changed = []
    for path, digest in made.inputs.items():
        if not Path(path).is_file() or file_digest(Path(path)) == digest:
            continue
        if manifest.model_digests(path)[path] != digest:  # the form in which a chat template's is recorded
            changed.append(path)
    return changed


def changed_settings(made: Mapping[str, Any], config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings in `made`, by dotted name, that differ in `config`; without those that `config` does not have."""
    found: dict[str, Any] = {}
    for name, value in made.items():
        try:
            now = functools.reduce(operator.getitem, name.split("."), config)
        except (KeyError, TypeError):
            continue
        if isinstance(value, Mapping) and isinstance(now, Mapping):
            found |= changed_settings(value, now, f"{prefix}{name}.")
        elif json.loads(json.dumps(now)) != value and not is_same_place(now, value):
            found[prefix + name] = value
    return found


def listed(settings: Mapping[str, Any]) -> str:
    """Settings in a message."""
    return ", ".join(f"{key}={shortened(value)}" for key, value in settings.items())


def difference(recorded: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """How an interrupted run differs from this configuration and these inputs. `recorded` is the JSON of its settings
    and inputs; empty in runs of older versions.
    """
    found = []
    if recorded:
        made = json.loads(recorded)
        if changed := changed_settings(made["settings"], config):
            found.append(f"other settings ({listed(changed)})")
        if made["inputs"] != inputs:
            found.append("other inputs")
    return " and ".join(found) or "another configuration or other inputs"


def is_same_place(one: Any, other: Any) -> bool:
    """Whether these are two spellings of the path of a file or folder."""
    if not (isinstance(one, str) and isinstance(other, str) and os.path.exists(one)):
        return False
    return os.path.realpath(one) == os.path.realpath(other)


def shortened(value: Any) -> str:
    """A setting in a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
