"""Pins the Hub models of a run: a model without a `revision` stays at the commit with which the run began, whatever its
author uploads later, so that all stages read the same weights and a resumed stage goes on from them.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stages import manifest
from stages.config import STAGES, RunConfig

COMMIT = re.compile("[0-9a-f]{40}")


def pinned(config: RunConfig, *runs: Path) -> RunConfig:
    """A copy with the commit of each Hub model whose revision is null: the one that a stage of these runs recorded, or
    else the present one. It stays null if the model cannot be reached, and for a model that a finished stage read
    without a commit.
    """
    found = copy.deepcopy(config)
    places: list[tuple[Any, str | None]] = [
        (found.model, found.model.base),
        (found.reward, found.reward.base),
        (found.evaluate.gold, found.evaluate.gold.model),
        *((term, term.path) for term in found.ppo.rewards),
    ]
    for settings, place in places:
        if place is not None and settings.revision is None and on_hub(place):
            settings.revision = commit_of(place, runs)
    return found


def commit_of(name: str, runs: Sequence[Path]) -> str | None:
    """The commit of a Hub model that these runs recorded, or else the present one."""
    for recorded, revision in (entry for run in runs for entry in recordings(run)):
        if recorded == name and (revision is None or COMMIT.fullmatch(revision)):
            return revision
    return present_commit(name)


def recordings(run: Path) -> Iterator[tuple[str, str | None]]:
    """(model, revision) in the configurations of a run's finished stages."""
    for made in filter(None, (manifest.read(run / name) for name in STAGES)):
        model, reward, evaluate, ppo = (made.config[name] for name in ("model", "reward", "evaluate", "ppo"))
        for place, settings in (("base", model), ("base", reward), ("model", evaluate["gold"])):
            yield settings[place], settings["revision"]
        yield from ((term["path"], term["revision"]) for term in ppo["rewards"])


def on_hub(place: str) -> bool:
    """Whether a model's place is a name on the Hub."""
    return place not in ("embedded", "tiny") and not Path(place).exists()


def present_commit(name: str) -> str | None:
    """The commit of a Hub model's main branch, or of its downloaded copy without a network; None if there is none."""
    import httpx2
    from huggingface_hub import hf_hub_download

    try:
        commit = Path(hf_hub_download(name, "config.json")).parent.name
    except (OSError, ValueError, httpx2.HTTPError):  # which loading the model reports
        return None
    if not COMMIT.fullmatch(commit):
        return None
    print(f"{name}: pinned to its present commit {commit}", flush=True)
    return commit
