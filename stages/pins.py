"""Pins the Hub models of a run: without a `revision`, all stages, also resumed ones, load the commit that was current
when the run started, whatever the model's author uploads later.
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
from stages.config import STAGES, RunConfig

NAME = "pins.json"
"""Name of the pins file in a run folder."""
Pins = dict[str, dict[str, str | None]]
"""Section -> Hub model -> commit, or null if the run loaded the model without one."""
COMMIT = re.compile("[0-9a-f]{40}")
SECTIONS = {
    "model": "base", "reward": "base", "evaluate.gold": "model", "evaluate_reward": "model", "ppo.rewards": "path"
}  # fmt: skip
"""Section of the settings of a model, or of a list of models -> the setting with its name."""


def pin(config: RunConfig, run: Path, *others: Path) -> RunConfig:
    """The configuration of `pinned`, whose commits are saved in the run folder, which must exist."""
    found, pins = pinned(config, run, *others)
    save_pins(pins, run)
    return found


def pinned(config: RunConfig, run: Path, *others: Path) -> tuple[RunConfig, Pins | None]:
    """(a copy of the configuration in which each Hub model without a revision has a commit, the pins to save; None
    without such a model).

    The commit is the one recorded in the run folder, in another of the folders, or else the current one. It stays null
    if the model cannot be reached, and in runs started by a version without pins.
    """
    found, current, pins = copy.deepcopy(config), functools.cache(current_commit), read_pins(run) or {}
    models = [entry for entry in hub_models(found) if entry[1].revision is None]
    for section, settings, name in models:
        known = [commit for place in (run, *others) for commit in recorded(place, section, name)]
        settings.revision = known[0] if known else current(name)
        if known or settings.revision is not None:
            pins.setdefault(section, {})[name] = settings.revision
    return found, pins if models else None


def save_pins(pins: Pins | None, run: Path) -> None:
    """Writes the pins that `pinned` returned to the run folder."""
    if pins is not None and pins != read_pins(run):
        write_whole(run / NAME, (json.dumps(pins, indent=2) + "\n").encode())


def hub_models(config: RunConfig) -> Iterator[tuple[str, Any, str]]:
    """(section, settings, name) of each model that is on the Hub."""
    for section, key in SECTIONS.items():
        found = operator.attrgetter(section)(config)
        for settings in found if isinstance(found, list) else [found]:
            name = getattr(settings, key)
            if name not in (None, "embedded", "tiny") and not Path(name).exists():
                yield section, settings, name


def recorded(run: Path, section: str, name: str) -> Iterator[str | None]:
    """The commit to which a run is pinned; in a folder without pins those in the configurations of its finished stages,
    null where the model was loaded without one.
    """
    if (pins := read_pins(run)) is not None:
        if name in pins.get(section, {}):
            yield pins[section][name]
        return
    for made in filter(None, (manifest.read(run / stage) for stage in STAGES)):
        found: Any = made.config
        for part in section.split("."):
            found = found.get(part) or {}
        for settings in found if isinstance(found, list) else [found]:
            revision = settings.get("revision")
            if settings.get(SECTIONS[section]) == name and (revision is None or COMMIT.fullmatch(revision)):
                yield revision


def read_pins(run: Path) -> Pins | None:
    """The pins of a run; None if its folder has none."""
    file = run / NAME
    return json.loads(file.read_text()) if file.is_file() else None


def current_commit(name: str) -> str | None:
    """The commit of a Hub model's main branch, or of the cached copy when offline; None if neither is available."""
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
