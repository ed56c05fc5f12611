"""Pins the Hub models of a run: a model without a `revision` stays at the commit with which the run began, whatever its
author uploads later, so that all stages read the same weights, and a resumed stage goes on from them.
"""

import copy
import functools
import json
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modeling.disk import write_whole
from stages import manifest
from stages.config import RunConfig

NAME = "pins.json"
"""In the run folder: section -> Hub model -> commit."""
COMMIT = re.compile("[0-9a-f]{40}")
SECTIONS = {
    "model": ("base", "data"),
    "reward": ("base", "reward"),
    "evaluate.gold": ("model", "evaluate"),
    "evaluate_reward": ("model", "evaluate_reward"),
    "ppo.rewards": ("path", "ppo"),
}
"""Section of the settings of a model, or of a list of models -> (setting with its name, first stage that reads it)."""


def pinned(config: RunConfig, *runs: Path) -> RunConfig:
    """A copy with the commit of each Hub model whose revision is null: the one that one of these run folders has, or
    else the current one. It stays null if the model cannot be reached, and in a run whose stage read it before runs had
    pins.
    """
    found, current = copy.deepcopy(config), functools.cache(current_commit)
    for section, settings, name in hub_models(found):
        if settings.revision is None:
            known = [commit for run in runs for commit in recorded(run, section, name)]
            settings.revision = known[0] if known else current(name)
    return found


def keep_pins(config: RunConfig, run: Path) -> None:
    """Adds the commits of the configuration to the run folder."""
    before = read_pins(run)
    after = copy.deepcopy(before)
    for section, settings, name in hub_models(config):
        if settings.revision is not None and COMMIT.fullmatch(settings.revision):
            after.setdefault(section, {})[name] = settings.revision
    if after != before:
        write_whole(run / NAME, (json.dumps(after, indent=2) + "\n").encode())


def hub_models(config: RunConfig) -> Iterator[tuple[str, Any, str]]:
    """(section, settings, name) of each model that is on the Hub."""
    for section, (key, _) in SECTIONS.items():
        found = operator.attrgetter(section)(config)
        for settings in found if isinstance(found, list) else [found]:
            name = getattr(settings, key)
            if name not in (None, "embedded", "tiny") and not Path(name).exists():
                yield section, settings, name


def recorded(run: Path, section: str, name: str) -> Iterator[str | None]:
    """The commit that a run keeps, or else that of its finished stage; None if that one read the model without one."""
    if commit := read_pins(run).get(section, {}).get(name):
        yield commit
        return
    key, stage = SECTIONS[section]
    made = manifest.read(run / stage)
    found: Any = {} if made is None else made.config
    for part in section.split("."):
        found = found.get(part) or {}
    for settings in found if isinstance(found, list) else [found]:
        revision = settings.get("revision")
        if settings.get(key) == name and (revision is None or COMMIT.fullmatch(revision)):
            yield revision


def read_pins(run: Path) -> dict[str, dict[str, str]]:
    """The commits that a run keeps."""
    file = run / NAME
    return json.loads(file.read_text()) if file.is_file() else {}


def current_commit(name: str) -> str | None:
    """The commit of a Hub model's main branch, or of its downloaded copy without a network; None if there is none."""
    import httpx2
    from huggingface_hub import hf_hub_download

    try:
        commit = Path(hf_hub_download(name, "config.json")).parent.name
    except (OSError, ValueError, httpx2.HTTPError):  # loading the model reports the error
        return None
    if not COMMIT.fullmatch(commit):
        return None
    print(f"{name}: pinned to its current commit {commit}", flush=True)
    return commit
