"""A stage's manifest: what it was made from, what it made, and the digests by which a later run knows whether anything
changed.
"""

import hashlib
import importlib.metadata
import json
import platform
import resource
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modeling.disk import file_digest, write_whole

NAME = "manifest.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "safetensors", "numpy")


@dataclass
class Manifest:
    """Everything that a result can be traced by."""

    stage: str
    fingerprint: str
    """Of the configuration that matters to the stage and of its inputs; equal fingerprints make equal results."""
    config: dict[str, Any]
    inputs: dict[str, str]
    """Name to digest."""
    outputs: dict[str, dict[str, Any]]
    """Path in the stage's folder to {sha256, size, mtime_ns}."""
    headline: dict[str, Any]
    seed: int
    world_size: int
    device: str
    started: str
    ended: str
    seconds: float
    cpu_seconds: float | None = None
    """Of the first process, all its threads."""
    peak_memory_gib: float | None = None
    """The most that the first process held so far: of resident memory, or of the GPU's where it used one."""
    git_commit: str | None = field(default_factory=lambda: git_commit())
    python: str = field(default_factory=platform.python_version)
    packages: dict[str, str] = field(
        default_factory=lambda: {name: importlib.metadata.version(name) for name in PACKAGES}
    )

    def write(self, folder: Path) -> None:
        """Writes manifest.json into the folder."""
        write_whole(folder / NAME, f"{json.dumps(asdict(self), indent=2)}\n".encode())


def peak_memory_gib() -> float:
    """What this process has held at most, of resident memory or, where it uses a GPU, of the GPU's."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_reserved() / 2**30, 3)
    unit = 1 if platform.system() == "Darwin" else 2**10  # getrusage counts bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def read(folder: Path) -> Manifest | None:
    """The manifest in a stage's folder, or None where there is no complete result. Raises ValueError when the file is
    damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        return Manifest(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged manifest ({error}); remove the folder {folder} and run the stage again"
        ) from None


def file_record(path: Path) -> dict[str, Any]:
    """Digest, size and time of a file."""
    stat = path.stat()
    return {"sha256": file_digest(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def model_digests(*places: str | None) -> dict[str, str]:
    """Digests of local model folders and files by name; of weights, whose hashing takes seconds, the size and time. A
    Hub name has none.
    """
    found = {}
    for place in places:
        path = Path(place) if place else None
        if path is not None and path.exists():
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            stats = {
                str(f): [f.stat().st_size, f.stat().st_mtime_ns] if f.suffix == ".safetensors" else file_digest(f)
                for f in files
                if f.is_file()
            }
            found[str(path)] = digest_of(stats)
    return found


def output_records(folder: Path, ignored: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Records of every file below a folder, but for the manifest and the `ignored` subfolders."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return {str(f.relative_to(folder)): file_record(f) for f in files if f.relative_to(folder).parts[0] not in ignored}


def stage_digest(folder: Path) -> str:
    """Digest of a finished stage's outputs; a file that was touched since is hashed again, so that edits by hand count.

    Raises ValueError when the stage has no result or a file of it is gone.
    """
    manifest = read(folder)
    if manifest is None:
        raise ValueError(
            f"{folder} holds no finished result: run `make {folder.name}` first, or `make pipeline` for all stages "
            "in order"
        )
    digests = {}
    for name, record in manifest.outputs.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: run the {folder.name} stage again with --force")
        stat = path.stat()
        same = stat.st_size == record["size"] and stat.st_mtime_ns == record["mtime_ns"]
        digests[name] = record["sha256"] if same else file_digest(path)
    return digest_of(digests)


def digest_of(value: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def git_commit() -> str | None:
    """The checkout's commit, `+dirty` when files differ from it, or None outside git."""
    try:
        root = Path(__file__).resolve().parents[1]
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+dirty" if changed else "")
